"""What comes from a broker, from the first look at a parcel to its acknowledgement."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from memory_transport import MemoryBroker, MemoryTransport
from nodes.deadline import wait_until
from parcels import as_json, changed, parcel_of, with_body
from recorder import HeldRecorder, Recorder, make_event, numbered, subscribe

from celery_broadcast import Batch, JobFinished, Restart
from celery_broadcast.errors import RelayError
from celery_broadcast.events import JobEvent
from celery_broadcast.inbox import Post
from celery_broadcast.producer import Producer
from celery_broadcast.relay.incoming import Incoming
from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.transport import DeadLetter, Group, Limits, Parcel
from celery_broadcast.relay.wire import Writer
from celery_broadcast.selection import Selection

KEY = "a key of thirty-two characters.."


class Replica:
    """A process that reads for one group, as far as that matters here."""

    def __init__(self, producer: Producer, incoming: Incoming, transport: MemoryTransport) -> None:
        self.producer = producer
        self.incoming = incoming
        self.transport = transport

    def stop(self, drain_seconds: float = 10.0) -> None:
        self.incoming.stop()
        self.producer.drain(drain_seconds, last=True)
        self.incoming.let_go()
        assert self.incoming.wait_for_end(float("inf"))


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


Start = Callable[..., Replica]


@pytest.fixture
def start(broker: MemoryBroker, make_producer: Callable[..., Producer]) -> Iterator[Start]:
    """Start replicas of the group "pager", stopped at the end of the test."""
    replicas: list[Replica] = []

    def start_replica(
        consumer: Any, *, incoming: dict[str, Any] | None = None, **options: Any
    ) -> Replica:
        subscription = subscribe(consumer, "pager", mailbox_size=None, **options)
        # Nothing of what is published in this process: its events come from the broker.
        deaf = msgspec.structs.replace(subscription, selection=Selection(events=()))
        producer = make_producer(deaf)
        transport = MemoryTransport(broker)
        reader = Incoming(
            subscription=subscription,
            group=Group(name="pager", event_types=("JobFinished", "JobFailed")),
            transport=transport,
            accept=lambda deliveries: producer.accept("pager", deliveries),
            has_given_up=lambda: producer.consumers.has_given_up("pager"),
            limits=broker.limits,
            **incoming or {},
        )
        replica = Replica(producer, reader, transport)
        replicas.append(replica)
        reader.start()
        return replica

    yield start_replica
    broker.is_away = False
    for replica in replicas:
        replica.stop()


def letters_of(broker: MemoryBroker) -> list[DeadLetter]:
    return broker.letters.get("pager", [])


def missing(replica: Replica) -> int:
    """Return how many events a replica has missed, or would have if it went on alone."""
    replica.stop()
    count, _ = replica.incoming._gaps.surely_missing(float("inf")) or (0, None)
    return count + replica.incoming.counts["missing"]


def done(broker: MemoryBroker) -> None:
    wait_until(lambda: broker.is_empty("pager"))


# What goes well.


def test_events_are_handled_and_their_parcel_acknowledged(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    broker.add("pager", parcel_of(numbered(3)))

    replica = start(recorder)

    recorder.wait_for(3)
    done(broker)
    assert recorder.task_ids == ["0", "1", "2"]
    assert recorder.events[0].event_id == "producer:1"
    assert broker.acknowledged == {"pager": 1}
    assert replica.producer.stats()["pager"].handled == 3


def test_a_parcel_is_not_acknowledged_before_all_in_it_is_handled(
    broker: MemoryBroker, start: Start
) -> None:
    held = HeldRecorder()
    broker.add("pager", parcel_of(numbered(2)))
    start(held)

    assert held.held.wait(10.0)
    assert broker.acknowledged == {}

    held.freed.set()
    done(broker)
    assert broker.acknowledged == {"pager": 1}


def test_the_lease_is_renewed_while_a_consumer_is_at_it(
    make_producer: Callable[..., Producer], broker: MemoryBroker, start: Start
) -> None:
    broker.limits = Limits(lease=0.1)
    held = HeldRecorder()
    broker.add("pager", parcel_of(numbered(1)))
    start(held)

    wait_until(lambda: broker.renewals > 8)
    held.freed.set()

    done(broker)
    assert held.task_ids == ["0"]


def test_the_events_of_a_parcel_are_handled_without_a_wait_in_between(
    broker: MemoryBroker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []
    wait = Post.wait

    def noted(post: Post, mailbox: Any) -> None:
        waits.append(mailbox)
        wait(post, mailbox)

    monkeypatch.setattr(Post, "wait", noted)
    recorder = Recorder()
    broker.add("pager", parcel_of(numbered(100)))

    start(recorder)

    recorder.wait_for(100)
    done(broker)
    assert len(waits) < 10


def test_replicas_share_the_work(broker: MemoryBroker, start: Start) -> None:
    recorders = [HeldRecorder(), HeldRecorder()]
    for recorder in recorders:
        start(recorder)

    for event in numbered(2):
        broker.add("pager", parcel_of([event]))
    for recorder in recorders:  # each has one before either is free for another
        assert recorder.held.wait(10.0)
    for recorder in recorders:
        recorder.freed.set()

    done(broker)
    assert sorted(recorders[0].task_ids + recorders[1].task_ids) == ["0", "1"]


def test_a_consumer_of_batches_gets_them_out_of_several_parcels(
    broker: MemoryBroker, start: Start
) -> None:
    batches: list[list[str]] = []
    writer = Writer("producer", "/celery/tests")
    for event in numbered(6):
        broker.add("pager", parcel_of([event], writer))

    start(
        lambda batch: batches.append([each.task_id for each in batch]),
        batch=Batch(max_events=3, max_wait=60.0),
    )

    done(broker)
    assert batches == [["0", "1", "2"], ["3", "4", "5"]]


def test_a_consumer_with_several_threads_has_parcels_for_all_of_them(
    broker: MemoryBroker, start: Start
) -> None:
    both_at_it = threading.Barrier(2)
    for event in numbered(2):
        broker.add("pager", parcel_of([event]))

    start(lambda _: both_at_it.wait(10.0), concurrency=2)

    done(broker)
    assert letters_of(broker) == []


def test_what_the_selection_does_not_want_is_not_handed_over(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    events = [make_event(JobFinished, task_id=queue, queue=queue) for queue in ("a", "b")]
    broker.add("pager", parcel_of(events))

    start(recorder, queues=("b",))

    done(broker)
    assert recorder.task_ids == ["b"]


def test_a_paused_consumer_takes_nothing(broker: MemoryBroker, start: Start) -> None:
    recorder = Recorder()
    replica = start(recorder)
    subscription = replica.incoming._subscription
    subscription.pause()
    assert replica.incoming.is_reading.wait(10.0)
    other = Recorder()
    broker.add("pager", parcel_of(numbered(1)))
    start(other)

    other.wait_for(1)
    subscription.resume()
    broker.add("pager", parcel_of(numbered(1)))
    done(broker)


def test_a_consumer_that_is_paused_keeps_nothing_that_was_sent_ahead(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    replica = start(recorder)
    subscription = replica.incoming._subscription
    broker.add("pager", parcel_of(numbered(1)))
    recorder.wait_for(1)
    assert not replica.transport.is_closed

    subscription.pause()
    wait_until(lambda: replica.transport.is_closed)

    subscription.resume()
    broker.add("pager", parcel_of(numbered(1)))
    recorder.wait_for(2)


# Poison.


def test_an_event_that_is_raised_on_comes_again_alone_and_then_is_put_aside(
    broker: MemoryBroker, start: Start
) -> None:
    calls: list[str] = []

    def raise_on_1(event: JobEvent) -> None:
        calls.append(event.task_id)
        if event.task_id == "1":
            raise ValueError("theirs")

    broker.add("pager", parcel_of(numbered(3)))
    replica = start(raise_on_1)

    wait_until(lambda: letters_of(broker))
    done(broker)
    (letter,) = letters_of(broker)
    assert sorted(calls) == ["0", "1", "1", "1", "1", "1", "2"]
    assert (letter.reason, letter.deliveries) == ("raised", 5)
    assert "raised on it 5 times" in letter.error
    assert "ValueError: theirs" in letter.error
    assert b'"taskid":"1"' in letter.parcel.body
    assert replica.incoming.counts["dead"] == 1


def test_of_a_failed_batch_each_event_comes_again_alone(broker: MemoryBroker, start: Start) -> None:
    batches: list[list[str]] = []

    def raise_on_1(events: list[JobEvent]) -> None:
        batches.append([event.task_id for event in events])
        if any(event.task_id == "1" for event in events):
            raise ValueError("theirs")

    broker.add("pager", parcel_of(numbered(3)))
    start(raise_on_1, batch=Batch(max_events=3, max_wait=0.0))

    wait_until(lambda: letters_of(broker))
    done(broker)
    assert len(letters_of(broker)) == 1
    assert batches.count(["0"]) == batches.count(["2"]) == 1


def test_a_parcel_whose_replica_died_is_split_and_nothing_in_it_is_lost(
    broker: MemoryBroker, start: Start
) -> None:
    stuck, recorder = HeldRecorder(), Recorder()
    broker.add("pager", parcel_of(numbered(3)))
    dying = start(stuck)
    assert stuck.held.wait(10.0)

    broker.kill(dying.transport)
    replica = start(recorder)

    recorder.wait_for(3)
    done(broker)
    assert sorted(recorder.task_ids) == ["0", "1", "2"]
    assert replica.incoming.counts["split"] == 1
    stuck.freed.set()


def test_an_event_that_kills_its_process_is_put_aside_and_its_neighbours_are_handled(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    held: list[HeldRecorder] = []
    broker.add("pager", parcel_of(numbered(3)))

    def live_until_1() -> None:
        """Have a replica that "dies" as soon as it gets event 1."""
        struck, free = threading.Event(), threading.Event()

        def handle(event: JobEvent) -> None:
            if event.task_id == "1":
                struck.set()
                free.wait(60.0)
            else:
                recorder.handle(event)

        replica = start(handle)
        wait_until(lambda: struck.is_set() or broker.is_empty("pager"))
        if struck.is_set():
            broker.kill(replica.transport)
        free.set()
        replica.stop()

    while not broker.is_empty("pager"):
        live_until_1()

    assert not held
    (letter,) = letters_of(broker)
    assert (letter.reason, letter.deliveries) == ("killed", 5)
    assert b'"taskid":"1"' in letter.parcel.body
    assert {"0", "2"} <= set(recorder.task_ids)


def test_of_two_events_with_one_id_none_is_lost(broker: MemoryBroker, start: Start) -> None:
    def raise_on_all(_: JobEvent) -> None:
        raise ValueError

    broker.add("pager", changed(parcel_of(numbered(2)), id="not:unique"))

    start(raise_on_all)
    done(broker)

    assert [as_json(letter.parcel)[0]["taskid"] for letter in letters_of(broker)] == ["0", "1"]


def test_a_suspect_is_handled_while_nothing_else_is_in_hand(
    broker: MemoryBroker, start: Start
) -> None:
    in_hand: set[str] = set()
    seen_with: list[set[str]] = []
    lock = threading.Lock()
    together = threading.Event()

    def handle(event: JobEvent) -> None:
        with lock:
            in_hand.add(event.task_id)
            if event.task_id == "suspect":
                seen_with.append(set(in_hand))
        together.wait(0.05)
        with lock:
            in_hand.discard(event.task_id)

    suspect = make_event(JobFinished, task_id="suspect")
    broker.add("pager", parcel_of(numbered(1)))
    broker.add("pager", parcel_of([suspect]))
    broker.waiting["pager"][-1].deliveries = 1
    broker.add("pager", parcel_of(numbered(1)))

    start(handle, concurrency=4)

    done(broker)
    assert seen_with == [{"suspect"}]


@pytest.mark.parametrize(
    ("parcel", "why"),
    [
        (Parcel(event_type="JobFinished", task_name="a", body=b"\x80 pickled"), "no JSON"),
        (Parcel(event_type="Rubbish", task_name="a", body=b"[]"), "no event type"),
        (Parcel(event_type="JobFinished", task_name="a", body=b"[" * 100_000), "no JSON"),
        (Parcel(event_type="JobFinished", task_name="a", body=b"[]"), "empty"),
    ],
)
def test_what_is_no_parcel_is_put_aside_and_the_next_is_handled(
    broker: MemoryBroker, start: Start, parcel: Parcel, why: str
) -> None:
    recorder = Recorder()
    broker.add("pager", parcel)
    broker.add("pager", parcel_of(numbered(1)))

    start(recorder)

    recorder.wait_for(1)
    done(broker)
    (letter,) = letters_of(broker)
    assert letter.reason == "refused"
    assert why in letter.error


@pytest.mark.parametrize("deliveries", [0, 1])
def test_nothing_that_is_too_deep_to_be_told_apart_is_taken_for_ever(
    broker: MemoryBroker, start: Start, deliveries: int
) -> None:
    # One of these depths can still be read, and is too much a few calls further on.
    for depth in range(sys.getrecursionlimit() - 60, sys.getrecursionlimit()):
        marked = changed(parcel_of(numbered(2)), deep="?")
        deep = marked.body.replace(b'"?"', b"[" * depth + b"]" * depth)
        broker.add("pager", with_body(marked, deep))
        broker.waiting["pager"][-1].deliveries = deliveries
    broker.add("pager", parcel_of([make_event(JobFinished, task_id="good")]))

    handled: list[str] = []

    def raise_on_others(event: JobEvent) -> None:
        if event.task_id != "good":
            raise ValueError
        handled.append(event.task_id)

    start(raise_on_others, incoming={"max_deliveries": 2})
    done(broker)

    assert handled == ["good"]


def test_what_the_transport_refuses_is_put_aside(broker: MemoryBroker, start: Start) -> None:
    broker.add("pager", Parcel(event_type="", task_name="", body=b"PK"), refusal="It is compressed")

    start(Recorder())

    wait_until(lambda: letters_of(broker))
    assert letters_of(broker)[0].error == "It is compressed"
    done(broker)


def test_what_a_stranger_calls_a_task_makes_no_line_of_the_log(
    broker: MemoryBroker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a\nCRITICAL all is lost\x1b[2J" + "a" * 100_000
    broker.add("pager", Parcel(event_type="JobFinished", task_name=name, body=b"rubbish"))
    start(Recorder())

    wait_until(lambda: letters_of(broker))
    done(broker)
    (message,) = [each.message for each in caplog.records if "put aside" in each.message]
    assert message.isprintable()
    assert len(message) < 1000


def test_of_a_parcel_with_a_wrong_event_the_others_are_handled(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    parcel = parcel_of(numbered(2))
    body = parcel.body[:-1] + b',{"id": "wrong"}]'
    broker.add("pager", msgspec.structs.replace(parcel, body=body))

    start(recorder)

    recorder.wait_for(2)
    done(broker)
    assert [letter.reason for letter in letters_of(broker)] == ["refused"]


def test_only_what_is_signed_is_opened_and_what_is_sent_again_is_signed(
    broker: MemoryBroker, start: Start
) -> None:
    calls: list[str] = []

    def raises(event: JobEvent) -> None:
        calls.append(event.task_id)
        raise ValueError

    signer = Signer(KEY)
    forged, real = numbered(2)
    broker.add("pager", parcel_of([forged]))
    broker.add("pager", signer.sign(parcel_of([real])))
    start(raises, incoming={"verifier": Verifier(KEY, max_age=60.0), "signer": signer})

    wait_until(lambda: len(letters_of(broker)) == 2)
    done(broker)
    assert calls == ["1"] * 5
    assert [letter.reason for letter in letters_of(broker)] == ["refused", "raised"]


def test_an_event_that_is_refused_out_of_a_signed_parcel_can_be_replayed(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    signer = Signer(KEY)
    parcel = parcel_of(numbered(2))
    later = msgspec.structs.replace(
        parcel, body=parcel.body.replace(b'"schemaversion":"1.', b'"schemaversion":"2.', 1)
    )
    broker.add("pager", signer.sign(later))
    verifier = Verifier(KEY, max_age=60.0)
    start(recorder, incoming={"verifier": verifier, "signer": signer})

    wait_until(lambda: letters_of(broker))
    done(broker)
    assert recorder.task_ids == ["1"]
    assert Verifier(KEY, max_age=60.0).refusal(letters_of(broker)[0].parcel) == ""


def test_a_signed_parcel_that_comes_again_after_it_was_acknowledged_is_only_forgotten(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    signed = Signer(KEY).sign(parcel_of(numbered(1)))
    replica = start(recorder, incoming={"verifier": Verifier(KEY, max_age=60.0)})
    broker.add("pager", signed)
    done(broker)

    broker.add("pager", signed)

    wait_until(lambda: broker.acknowledged == {"pager": 2})
    assert recorder.task_ids == ["0"]
    assert replica.incoming.counts["repeated"] == 1
    assert letters_of(broker) == []


def test_a_forgery_with_the_signature_of_another_does_not_have_the_real_one_forgotten(
    broker: MemoryBroker, start: Start
) -> None:
    recorder = Recorder()
    signed = Signer(KEY).sign(parcel_of(numbered(1)))
    broker.add("pager", msgspec.structs.replace(signed, body=b"[]"))
    broker.add("pager", signed)

    start(recorder, incoming={"verifier": Verifier(KEY, max_age=60.0)})

    recorder.wait_for(1)
    done(broker)
    assert [letter.reason for letter in letters_of(broker)] == ["refused"]


def test_an_event_of_a_signed_parcel_that_is_refused_alone_can_be_replayed(
    broker: MemoryBroker, start: Start
) -> None:
    parcel = parcel_of(numbered(2))
    later = parcel.body.replace(b'"schemaversion":"1.0"', b'"schemaversion":"2.0"', 1)
    broker.add("pager", Signer(KEY).sign(with_body(parcel, later)))

    start(Recorder(), incoming={"verifier": Verifier(KEY, 60.0), "signer": Signer(KEY)})

    done(broker)
    (letter,) = letters_of(broker)
    assert letter.reason == "refused"
    assert b'"schemaversion":"2.0"' in letter.parcel.body
    assert Verifier(KEY, 60.0).refusal(letter.parcel) == ""


def test_a_refused_parcel_cannot_write_a_line_of_the_log(
    broker: MemoryBroker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = Parcel(event_type="JobFinished", task_name="a\nCRITICAL lies", body=b"[]")
    broker.add("pager", hostile)

    start(Recorder())
    done(broker)

    assert "'a\\nCRITICAL lies'" in caplog.text
    assert "\nCRITICAL lies" not in caplog.text


@pytest.mark.parametrize(("payload", "args"), [("text", ("'42'", "7")), ("json", ("42", 7))])
def test_json_that_another_has_asked_for_comes_as_text_to_who_has_not(
    broker: MemoryBroker, start: Start, payload: str, args: tuple[object, ...]
) -> None:
    recorder = Recorder()
    event = make_event(JobFinished, args=("42", 7))
    broker.add("pager", Writer("producer", "/celery/tests").parcels([event], "json")[0])

    start(recorder, payload=payload)

    recorder.wait_for(1)
    assert recorder.events[0].args == args
    done(broker)


# Numbers.


def test_a_gap_in_the_numbers_is_counted_and_said(
    broker: MemoryBroker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer("producer", "/celery/tests")
    parcels = [parcel_of([event], writer) for event in numbered(5)]
    for number in (0, 1, 4):
        broker.add("pager", parcels[number])
    broker.add("pager", parcels[1])  # once more, which fills nothing
    broker.limits = Limits(lease=0.2)

    replica = start(Recorder())

    wait_until(lambda: replica.incoming.counts["missing"] == 2)
    wait_until(lambda: "has not got 2 events" in caplog.text)


def test_what_a_replica_had_that_is_gone_is_not_missed(broker: MemoryBroker, start: Start) -> None:
    writer = Writer("producer", "/celery/tests")
    parcels = [parcel_of([event], writer) for event in numbered(4)]
    broker.add("pager", parcels[0])
    broker.add("pager", parcels[3])  # it handled 1, and died with 2 in its hands
    broker.add("pager", parcels[2], deliveries=1)

    replica = start(Recorder())

    done(broker)
    assert missing(replica) == 0


def test_other_types_and_tasks_have_numbers_of_their_own(
    broker: MemoryBroker, start: Start
) -> None:
    writer = Writer("producer", "/celery/tests")
    one = make_event(JobFinished, "shop.one")
    writer.parcels([one])
    for event in (one, make_event(JobFinished, "shop.other"), one):
        (parcel,) = writer.parcels([event])
        broker.add("pager", parcel)

    replica = start(Recorder())

    done(broker)
    assert replica.incoming.counts["events"] == 3
    assert missing(replica) == 0


def test_what_is_replayed_is_no_begin_from_which_others_are_missed(
    broker: MemoryBroker, start: Start
) -> None:
    writer = Writer("producer", "/celery/tests")
    long_ago = parcel_of([make_event(JobFinished, task_id="1")], writer)
    writer.parcels(numbered(5))
    recorder = Recorder()
    broker.add("pager", long_ago, is_sent_alone=True)
    broker.add("pager", parcel_of([make_event(JobFinished, task_id="7")], writer))

    replica = start(recorder)

    assert [event.task_id for event in recorder.wait_for(2)] == ["1", "7"]
    done(broker)
    assert missing(replica) == 0


def test_what_other_replicas_have_is_not_missed(broker: MemoryBroker, start: Start) -> None:
    recorders = [Recorder(), Recorder()]
    replicas = [start(recorder) for recorder in recorders]
    wait_until(lambda: len(broker.readers.get("pager", ())) == 2)
    writer = Writer("producer", "/celery/tests")
    for event in numbered(40):
        broker.add("pager", parcel_of([event], writer))
        wait_until(lambda: len(broker.held.get("pager", ())) < 2)

    done(broker)
    assert sum(len(recorder.events) for recorder in recorders) == 40
    assert [missing(replica) for replica in replicas] == [0, 0]


# The broker.


def test_a_broker_that_is_away_is_said_once_and_read_again_when_it_is_back(
    broker: MemoryBroker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder()
    broker.is_away = True
    replica = start(recorder)
    wait_until(lambda: "goes on trying" in caplog.text)
    broker.add("pager", parcel_of(numbered(1)))

    broker.is_away = False

    recorder.wait_for(1)
    wait_until(lambda: "reads from the broker again" in caplog.text)
    assert caplog.text.count("goes on trying") == 1
    assert replica.incoming.is_reading.is_set()
    done(broker)


def test_a_broker_that_only_takes_nothing_is_said_once_and_asked_less_and_less_often(
    broker: MemoryBroker,
    start: Start,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[int] = []

    def pause_after(count: int) -> float:
        failures.append(count)
        return 0.0

    def is_short_of_memory(what: str) -> None:
        if what == "send to" and len(failures) < 5:
            msg = "It is short of memory."
            raise RelayError(msg)

    def raises(event: JobEvent) -> None:
        raise ValueError

    monkeypatch.setattr("celery_broadcast.relay.incoming.seconds_after", pause_after)
    with caplog.at_level(logging.INFO, "celery_broadcast"):
        replica = start(raises)
        replica.transport.before = is_short_of_memory
        broker.add("pager", parcel_of(numbered(1)))
        wait_until(lambda: letters_of(broker))

    assert failures == [1, 2, 3, 4, 5]
    assert caplog.text.count("can't read from the broker") == 1
    assert caplog.text.count("reads from the broker again") == 1


def test_each_reason_why_the_broker_cannot_be_read_is_said_once(
    broker: MemoryBroker,
    start: Start,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = ["It is away.", "It is away.", "It starts.", "It is away.", "It starts."]

    def fail(what: str) -> None:
        if what == "receive" and reasons:
            raise RelayError(reasons.pop(0))

    monkeypatch.setattr("celery_broadcast.relay.incoming.seconds_after", lambda _: 0.0)
    with caplog.at_level(logging.INFO, "celery_broadcast"):
        start(Recorder()).transport.before = fail
        wait_until(lambda: "reads from the broker again" in caplog.text)

    said = [record.getMessage() for record in caplog.records if "can't read" in record.getMessage()]
    assert [line.rpartition(": ")[2] for line in said] == ["It is away.", "It starts."]


def test_a_broker_that_goes_away_in_between_does_not_have_things_done_twice(
    broker: MemoryBroker, start: Start
) -> None:
    calls: list[str] = []
    failed: set[str] = set()

    def raises_first(event: JobEvent) -> None:
        calls.append(event.task_id)
        if len(calls) == 1:
            raise ValueError

    def fail_once(what: str) -> None:
        if what in {"acknowledge", "send to"} and what not in failed:
            failed.add(what)
            raise RelayError(what)

    replica = start(raises_first)
    replica.transport.before = fail_once
    broker.add("pager", parcel_of(numbered(1)))

    wait_until(lambda: len(calls) == 2)
    done(broker)
    assert calls == ["0", "0"]
    assert failed == {"acknowledge", "send to"}
    assert letters_of(broker) == []


@pytest.mark.parametrize("ends", ["while the broker is away", "when it is back"])
def test_what_came_over_a_lost_connection_is_left_to_whom_it_goes_next(
    broker: MemoryBroker, start: Start, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    # Renewed again after each pause.
    broker.limits = Limits(lease=0.15)
    monkeypatch.setattr("celery_broadcast.relay.incoming.seconds_after", lambda _: 0.1)
    held = HeldRecorder()
    replica = start(held)
    broker.add("pager", parcel_of(numbered(1)))
    assert held.held.wait(10.0)

    broker.is_away = True
    broker.cut(replica.transport)
    wait_until(lambda: not replica.incoming.is_reading.is_set())
    if ends == "while the broker is away":
        held.freed.set()
    broker.is_away = False
    if ends == "when it is back":
        wait_until(replica.incoming.is_reading.is_set)
        held.freed.set()

    held.wait_for(2)
    done(broker)
    assert held.task_ids == ["0", "0"]
    assert replica.incoming.is_reading.is_set()


def test_what_was_lost_while_it_had_to_wait_for_its_turn_is_not_handled(
    broker: MemoryBroker, start: Start
) -> None:
    held = HeldRecorder()
    replica = start(held, concurrency=2)
    broker.add("pager", parcel_of(numbered(1)))
    assert held.held.wait(10.0)

    broker.cut(replica.transport)  # it comes again, and waits until it is alone
    wait_until(lambda: replica.incoming.counts["parcels"] == 2)
    broker.cut(replica.transport)
    held.freed.set()

    held.wait_for(2)
    done(broker)
    assert held.task_ids == ["0", "0"]
    assert replica.incoming.counts["parcels"] == 3


# The end.


def test_a_stop_has_what_is_in_hand_handled(broker: MemoryBroker, start: Start) -> None:
    held = HeldRecorder()
    broker.add("pager", parcel_of(numbered(2)))
    replica = start(held)
    assert held.held.wait(10.0)
    threading.Timer(0.05, held.freed.set).start()

    replica.stop()

    assert held.task_ids == ["0", "1"]
    assert broker.is_empty("pager")
    assert replica.transport.is_closed


def test_what_is_not_handled_in_time_is_given_back_without_being_counted(
    broker: MemoryBroker, start: Start
) -> None:
    held = HeldRecorder()
    broker.add("pager", parcel_of(numbered(1)))
    replica = start(held)
    assert held.held.wait(10.0)

    replica.stop(drain_seconds=0.0)

    assert [entry.deliveries for entry in broker.waiting["pager"]] == [0]
    held.freed.set()


def test_of_a_parcel_that_is_half_done_only_the_rest_is_sent_again(
    broker: MemoryBroker, start: Start
) -> None:
    reached, freed = threading.Event(), threading.Event()

    def hang_on_1(event: JobEvent) -> None:
        if event.task_id == "1":
            reached.set()
            freed.wait(60.0)

    broker.add("pager", parcel_of(numbered(3)))
    replica = start(hang_on_1)
    assert reached.wait(10.0)

    replica.stop(drain_seconds=0.0)

    bodies = [entry.parcel.body for entry in broker.waiting["pager"]]
    assert [(b'"taskid":"1"' in body, b'"taskid":"2"' in body) for body in bodies] == [
        (True, False),
        (False, True),
    ]
    freed.set()


def test_what_is_not_handled_is_given_back_to_a_broker_that_was_away_meanwhile(
    broker: MemoryBroker, start: Start
) -> None:
    broker.limits = Limits(lease=0.3)  # renewed every 0.1 s
    held = HeldRecorder()
    replica = start(held)
    broker.add("pager", parcel_of(numbered(1)))
    assert held.held.wait(10.0)
    broker.is_away = True
    replica.incoming.stop()
    wait_until(lambda: not replica.incoming.is_reading.is_set())
    broker.is_away = False

    replica.incoming.let_go()

    assert replica.incoming.wait_for_end(float("inf"))
    assert broker.held["pager"] == {}
    assert len(broker.waiting["pager"]) == 1
    held.freed.set()


def test_who_gives_up_gives_back_and_takes_no_more(broker: MemoryBroker, start: Start) -> None:
    def exits(event: JobEvent) -> None:
        raise SystemExit(1)

    for event in numbered(3):
        broker.add("pager", parcel_of([event]))
    replica = start(exits, restart=Restart("temporary"))

    replica.incoming.wait_for_end(float("inf"))

    assert replica.incoming.has_given_up
    assert len(broker.waiting["pager"]) == 3
    assert letters_of(broker) == []


def test_a_cancelled_consumer_ends_its_reading(broker: MemoryBroker, start: Start) -> None:
    recorder = Recorder()
    replica = start(recorder)
    broker.add("pager", parcel_of(numbered(1)))
    recorder.wait_for(1)

    replica.incoming._subscription.cancel()

    replica.incoming.wait_for_end(float("inf"))
    assert not replica.incoming.has_given_up


def test_the_group_is_declared_before_it_is_said_to_be_read(
    broker: MemoryBroker, start: Start
) -> None:
    replica = start(Recorder())

    assert replica.incoming.is_reading.wait(10.0)

    assert set(broker.groups) == {"pager"}
    with contextlib.suppress(KeyError):
        assert broker.waiting["pager"] is not None
