from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered, subscribe

from celery_broadcast.errors import RelayError
from celery_broadcast.events import EVENT_TYPES, JobEnded, JobEvent, JobFailed, JobFinished
from celery_broadcast.producer import Producer
from celery_broadcast.relay.outgoing import Outgoing, subscription_of
from celery_broadcast.relay.pauses import seconds_after
from celery_broadcast.relay.transport import Parcel
from celery_broadcast.relay.wire import Writer
from celery_broadcast.selection import Selection, any_of
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry, Subscription


class RecordingTransport:
    """A broker that keeps what it gets, and is away while `is_away` is set."""

    def __init__(self) -> None:
        self.published: list[list[Parcel]] = []
        self.tries: list[list[Parcel]] = []
        self.closed: int = 0
        self.threads: set[str] = set()
        self.is_away = threading.Event()
        self.tried = threading.Event()

    def publish(self, parcels: Sequence[Parcel]) -> None:
        self.tries.append(list(parcels))
        self.threads.add(threading.current_thread().name)
        self.tried.set()
        if self.is_away.is_set():
            msg = "Redis at redis://here: could not publish. Is it there?"
            raise RelayError(msg)
        self.published.append(list(parcels))

    def close(self) -> None:
        self.closed += 1

    @property
    def parcels(self) -> list[Parcel]:
        return [parcel for parcels in self.published for parcel in parcels]


class RecordingMeans:
    """Has one transport for all lives, and numbers the writers."""

    def __init__(self) -> None:
        self.transport = RecordingTransport()
        self.writers = 0

    def new_writer(self) -> Any:
        self.writers += 1
        return Writer(f"writer-{self.writers}", "/celery/tests")

    def new_transport(self) -> Any:
        return self.transport


class FreeSituation:
    """A consumer's that nobody stops."""

    def __init__(self) -> None:
        self.stop_requested = threading.Event()
        self.is_over = threading.Event()
        self.lost = 0

    def dropped(self) -> int:
        return self.lost


@pytest.fixture
def means() -> RecordingMeans:
    return RecordingMeans()


@pytest.fixture
def make_relaying(means: RecordingMeans) -> Iterator[Callable[..., Producer]]:
    """Make producers with these subscriptions, and the relay if one of them is remote."""
    made: list[Producer] = []

    def make(*subscriptions: Subscription, **settings: Any) -> Producer:
        registry = Registry()
        registry.subscriptions = subscriptions
        producer = Producer(
            Settings(**{"drain_timeout": 10.0, **settings}),
            registry,
            relay=lambda remote: subscription_of(means, remote),
        )
        made.append(producer)
        return producer

    yield make
    means.transport.is_away.clear()
    for producer in made:
        producer.drain()


def remote(name: str = "pager", *events: type[JobEvent], **options: Any) -> Subscription:
    return subscribe(Recorder(), name, events=events or (JobEvent,), remote=True, **options)


def new_outgoing(means: RecordingMeans, *wanting_json: Selection) -> Outgoing:
    outgoing = Outgoing(means, any_of(wanting_json), pause_after=lambda _: 0.0)
    outgoing.situation = FreeSituation()
    outgoing.setup()
    return outgoing


def send(outgoing: Outgoing, events: Sequence[JobEvent]) -> None:
    outgoing.handle(list(events))


def doing(act: Callable[[], None]) -> Callable[[int], float]:
    """Return what does it instead of a pause."""

    def pause_after(failures: int) -> float:
        act()
        return 0.0

    return pause_after


def bodies(parcels: Sequence[Parcel]) -> str:
    return b"".join(parcel.body for parcel in parcels).decode()


# By itself.


def test_a_batch_goes_as_a_parcel_for_each_type_and_task(means: RecordingMeans) -> None:
    outgoing = new_outgoing(means)

    outgoing.handle(
        [
            make_event(JobFinished, "shop.charge"),
            make_event(JobFailed, "shop.charge"),
            make_event(JobFinished, "shop.refund"),
            make_event(JobFinished, "shop.charge"),
        ]
    )

    (parcels,) = means.transport.published
    assert sorted((parcel.event_type, parcel.task_name) for parcel in parcels) == [
        ("JobFailed", "shop.charge"),
        ("JobFinished", "shop.charge"),
        ("JobFinished", "shop.refund"),
    ]


def test_values_go_as_text_unless_who_wants_the_event_has_asked_for_json(
    means: RecordingMeans,
) -> None:
    outgoing = new_outgoing(means, Selection(events=(JobFailed,), tasks=("shop.*",)))

    outgoing.handle(
        [
            make_event(JobFailed, "shop.charge", args=({"as": "json"},)),
            make_event(JobFailed, "mail.send", args=({"as": "text"},)),
        ]
    )

    sent = bodies(means.transport.parcels)
    assert '"args":[{"as":"json"}]' in sent
    assert "\"args\":[\"{'as': 'text'}\"]" in sent


def test_while_the_broker_is_away_the_very_same_parcels_are_tried_again(
    means: RecordingMeans, caplog: pytest.LogCaptureFixture
) -> None:
    outgoing = new_outgoing(means)
    failures: list[int] = []

    def come_back(failures_in_a_row: int) -> float:
        failures.append(failures_in_a_row)
        outgoing.situation.lost += 1  # type: ignore[attr-defined]  # as its mailbox drops
        if failures_in_a_row == 3:
            means.transport.is_away.clear()
        return 0.0

    outgoing._pause_after = come_back
    means.transport.is_away.set()

    send(outgoing, numbered(2))

    assert failures == [1, 2, 3]
    assert means.transport.published == [means.transport.tries[0]]
    assert means.transport.tries == [means.transport.tries[0]] * 4
    away, back = [record.getMessage() for record in caplog.records]
    assert away == (
        "relay can't send to remote consumers (Redis at redis://here: could not publish. Is it "
        "there?). Jobs go on, and their events wait here, as many as its mailbox holds. It tries "
        "again, and says when it has sent them"
    )
    pattern = r"relay sends to remote consumers again, after \d+\.\d s and 3 failed tries; 3 events"
    assert re.match(pattern, back)


def test_each_outage_is_said_once(means: RecordingMeans, caplog: pytest.LogCaptureFixture) -> None:
    outgoing = new_outgoing(means)

    for _ in range(2):
        means.transport.is_away.set()
        outgoing._pause_after = doing(means.transport.is_away.clear)
        send(outgoing, numbered(1))
        send(outgoing, numbered(1))

    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING] * 2


def test_what_is_over_is_tried_no_more(means: RecordingMeans) -> None:
    outgoing = new_outgoing(means)
    means.transport.is_away.set()
    outgoing._pause_after = doing(outgoing.situation.is_over.set)

    send(outgoing, numbered(1))

    assert len(means.transport.tries) == 1


def test_nothing_is_published_where_nothing_is_left_to_send(means: RecordingMeans) -> None:
    class OfTheirOwn(JobEvent, frozen=True, kw_only=True): ...

    outgoing = new_outgoing(means)

    outgoing.handle([OfTheirOwn(task_id="1", task_name="shop.charge")])

    assert means.transport.tries == []


def test_each_life_has_a_connection_and_a_producer_id_of_its_own(means: RecordingMeans) -> None:
    outgoing = new_outgoing(means)
    send(outgoing, numbered(1))
    outgoing.teardown()
    outgoing.teardown()
    outgoing = new_outgoing(means)
    send(outgoing, numbered(1))

    assert means.transport.closed == 1
    assert ['"writer-1:1"' in bodies(parcels) for parcels in means.transport.published] == [
        True,
        False,
    ]
    assert '"writer-2:1"' in bodies(means.transport.published[1])


def test_pauses_grow_to_half_a_minute_and_stay_so() -> None:
    seconds = [seconds_after(failures) for failures in range(1, 2_000)]

    assert 0.375 <= seconds[0] <= 0.5
    assert 3.0 <= seconds[3] <= 4.0
    assert all(22.5 <= pause <= 30.0 for pause in seconds[7:])


# As a consumer of a process.


def test_a_remote_consumer_is_not_run_but_what_it_wants_is_sent(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    here, elsewhere = Recorder(), Recorder()
    producer = make_relaying(
        subscribe(here, "here"),
        subscribe(elsewhere, "pager", events=(JobFailed,), tasks=("shop.*",), remote=True),
        remote("audit", JobFinished, tasks=("*.refund",)),
    )

    for name in EVENT_TYPES.values():
        producer.notify(make_event(name, "shop.charge"))
        producer.notify(make_event(name, "mail.refund"))
    producer.drain()

    assert len(here.events) == 2 * len(EVENT_TYPES)
    assert elsewhere.lives == []
    assert sorted((parcel.event_type, parcel.task_name) for parcel in means.transport.parcels) == [
        ("JobFailed", "shop.charge"),
        ("JobFinished", "mail.refund"),
    ]
    assert means.transport.threads == {"broadcast:relay"}
    assert means.transport.closed == 1


def test_the_relay_is_counted_like_any_consumer(make_relaying: Callable[..., Producer]) -> None:
    producer = make_relaying(subscribe(Recorder(), "here"), remote("pager", JobEnded))
    assert sorted(producer.stats()) == ["here", "relay"]

    for event in numbered(250):
        producer.notify(event)
    producer.drain()

    stats = producer.stats()
    assert sorted(stats) == ["here", "relay"]
    assert (stats["relay"].offered, stats["relay"].handled) == (250, 250)


def test_without_a_remote_consumer_there_is_no_relay(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(subscribe(Recorder(), "here"))

    producer.notify(*numbered(1))
    producer.drain()

    assert list(producer.stats()) == ["here"]
    assert means.writers == 0


def test_many_events_go_in_batches_of_a_hundred_at_most(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote())

    for event in numbered(1000):
        producer.notify(event)
    producer.drain()

    sizes = [bodies(parcels).count('"specversion"') for parcels in means.transport.published]
    assert sum(sizes) == 1000
    assert max(sizes) <= 100
    assert len(sizes) <= 20


def test_one_event_alone_waits_no_longer_than_a_moment(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote())

    producer.notify(*numbered(1))

    wait_until(lambda: means.transport.published, timeout_seconds=5.0)


def test_while_the_broker_is_away_the_mailbox_fills_and_drops_and_all_is_counted(
    means: RecordingMeans,
    make_relaying: Callable[..., Producer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    producer = make_relaying(remote(), mailbox_size=10)
    means.transport.is_away.set()
    first, *later = numbered(101)
    producer.notify(first)
    assert means.transport.tried.wait(10.0)

    for event in later:
        producer.notify(event)
    wait_until(lambda: producer.stats()["relay"].offered == 101)
    assert producer.stats()["relay"].dropped == {"mailbox-full": 90}
    means.transport.is_away.clear()
    wait_until(lambda: producer.stats()["relay"].handled == 11)

    assert "; 90 events were dropped meanwhile" in caplog.text
    sent = bodies(means.transport.parcels)
    assert re.findall(r'"taskid":"(\d+)"', sent) == ["0", *map(str, range(91, 101))]


def test_a_drain_tries_until_its_deadline_and_counts_what_is_left(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote())
    means.transport.is_away.set()
    producer.notify(*numbered(1))
    assert means.transport.tried.wait(10.0)
    started = time.monotonic()

    drained = producer.drain(0.5)

    assert time.monotonic() - started < 5.0
    assert (drained.handled, drained.left) == (0, 1)
    assert producer.stats()["relay"].dropped == {"drain-timeout": 1}
    assert len(means.transport.tries) > 1
    wait_until(lambda: means.transport.closed == 1)


def test_a_drain_wakes_a_relay_that_pauses(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote())
    means.transport.is_away.set()
    producer.notify(*numbered(1))
    wait_until(lambda: len(means.transport.tries) == 3)  # the next pause takes 2 s or so
    means.transport.is_away.clear()

    drained = producer.drain(10.0)

    assert (drained.handled, drained.left) == (1, 0)
    assert (len(means.transport.published), means.transport.closed) == (1, 1)


def test_a_remote_consumer_that_is_declared_later_gets_what_comes_from_then_on(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote("pager", JobFailed))
    producer.notify(make_event(JobFailed))
    producer.notify(make_event(JobFinished))
    wait_until(lambda: means.transport.published)

    producer._registry.add(remote("audit", JobFinished))
    producer.notify(make_event(JobFinished))
    producer.drain()

    assert [parcel.event_type for parcel in means.transport.parcels] == ["JobFailed", "JobFinished"]
    assert (means.writers, means.transport.closed) == (2, 2)
    assert producer.stats()["relay"].handled == 2


def test_a_relay_that_cant_set_up_is_not_given_up(
    means: RecordingMeans,
    make_relaying: Callable[..., Producer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        monkeypatch.undo()
        raise OSError("no redact")

    monkeypatch.setattr(means, "new_writer", fail)
    producer = make_relaying(remote())

    producer.notify(*numbered(1))

    wait_until(lambda: means.transport.published)
    assert producer.stats()["relay"].handled == 1


def test_a_forked_child_sends_under_an_id_of_its_own(
    means: RecordingMeans, make_relaying: Callable[..., Producer]
) -> None:
    producer = make_relaying(remote())
    producer.notify(*numbered(1))
    wait_until(lambda: means.transport.published)
    receiving, sending = os.pipe()

    pid = os.fork()
    if not pid:
        try:
            producer.notify(*numbered(1))
            producer.drain()
            os.write(sending, bodies(means.transport.published[-1]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    assert '"writer-2:1"' in os.read(receiving, 10_000).decode()
    assert '"writer-1:1"' in bodies(means.transport.published[-1])


def test_where_nothing_is_sent_a_remote_consumer_runs_like_any_other(
    make_producer: Callable[..., Producer],
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "pager", remote=True))

    producer.notify(*numbered(1))

    assert len(recorder.wait_for(1)) == 1
