from __future__ import annotations

import asyncio
import gc
import logging
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from conftest import broadcast_threads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes.deadline import wait_until
from recorder import (
    BrokenConsumer,
    HeldRecorder,
    Recorder,
    StuckConsumer,
    make_event,
    numbered,
    subscribe,
)

from celery_broadcast import inbox, notices
from celery_broadcast.batch import Batch
from celery_broadcast.bridge import Bridge
from celery_broadcast.consumer import Consumer
from celery_broadcast.counts import (
    CANCELLED,
    DRAIN_TIMEOUT,
    INBOX_FULL,
    MAILBOX_FULL,
    ConsumerStats,
)
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.errors import BroadcastError
from celery_broadcast.events import JobEvent, JobFailed, JobFinished, JobStarted
from celery_broadcast.producer import Drained, Producer
from celery_broadcast.restarts import Restart
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry

MakeProducer = Callable[..., Producer]


class HeldReceiver:
    """A receiver of a notice that holds the producer's thread, until the test frees it."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.freed = threading.Event()

    def __call__(self, _: object, **__: object) -> None:
        self.held.set()
        assert self.freed.wait(60.0)


def conserved(stats: ConsumerStats) -> bool:
    accounted = stats.handled + stats.failed + stats.dropped_total + stats.pending
    return stats.offered == accounted


def test_every_consumer_gets_every_event_it_wants_in_the_order_published(
    make_producer: MakeProducer,
) -> None:
    everything, failures = Recorder(), Recorder()
    producer = make_producer(
        subscribe(everything, "everything"), subscribe(failures, "failures", events=(JobFailed,))
    )
    events = [make_event(JobFailed if n % 3 == 0 else JobStarted, task_id=str(n)) for n in range(9)]

    for event in events:
        producer.notify(event)
    producer.drain()

    assert everything.events == events
    assert failures.task_ids == ["0", "3", "6"]


def test_nothing_starts_before_the_first_event(make_producer: MakeProducer) -> None:
    producer = make_producer(subscribe(Recorder(), "store"))
    assert broadcast_threads() == []

    producer.notify(make_event(JobFinished))

    wait_until(lambda: sorted(broadcast_threads()) == ["broadcast", "broadcast:store"])


def test_a_drain_starts_again_only_who_gets_what_a_teardown_has_published(
    make_producer: MakeProducer,
) -> None:
    class Tells(Recorder):
        def teardown(self) -> None:
            super().teardown()
            producer.notify(make_event(JobFailed))

    tells, hears, neither = Tells(), Recorder(), Recorder()
    producer = make_producer(
        subscribe(tells, "tells"),
        subscribe(hears, "hears", events=(JobFailed,)),
        subscribe(neither, "neither", events=(JobStarted,)),
    )
    producer.notify(make_event(JobFinished))

    assert producer.drain().left == 0  # the first event may have been handled before

    assert (len(tells.events), len(hears.events)) == (1, 1)
    once = ["setup", "teardown"]
    assert (tells.lives, hears.lives, neither.lives) == (once, once + once, once)
    assert producer.drain() == Drained()


def test_a_drain_in_a_receiver_of_a_notice_is_refused(make_producer: MakeProducer) -> None:
    recorder = Recorder()
    refused: list[str] = []

    def drain(_: object, **__: object) -> None:
        with pytest.raises(BroadcastError) as caught:
            producer.drain()
        refused.append(str(caught.value))

    producer = make_producer(subscribe(recorder, "store"))
    with notices.broadcast_started.connected_to(drain):
        producer.notify(make_event(JobFinished))
        recorder.wait_for(1)

    (told,) = refused
    assert told.startswith("A receiver of a notice of the broadcast can't drain the broadcast")


def test_a_drain_begins_no_rate_limit_anew(make_producer: MakeProducer) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", rate_limit=1 / 3_600))
    for event in numbered(3):
        producer.notify(event)
        producer.drain(timeout_seconds=0.0 if recorder.events else 10.0)

    assert recorder.task_ids == ["0"]
    assert producer.stats()["store"].dropped == {DRAIN_TIMEOUT: 2}


def test_who_has_ended_itself_stays_so_after_a_drain(make_producer: MakeProducer) -> None:
    def end(event: JobEvent) -> None:
        handled.append(event.task_id)
        raise SystemExit

    handled: list[str] = []
    producer = make_producer(subscribe(end, "store", restart=Restart("transient")))
    for event in numbered(3):
        producer.notify(event)
        producer.drain()

    assert handled == ["0"]
    stats = producer.stats()["store"]
    assert (stats.handled, stats.failed, stats.dropped) == (1, 0, {CANCELLED: 2})


@pytest.mark.parametrize("last", [False, True])
def test_a_drain_handles_also_what_consumers_publish_meanwhile(
    make_producer: MakeProducer, *, last: bool
) -> None:
    """As a chain of stages does, the last of which has its events when all others are done."""
    stored: list[str] = []
    one_batch = Batch(max_events=100, max_wait=3_600.0)  # a stop delivers it, and nothing else

    def count(events: list[JobEvent]) -> None:
        producer.notify(make_event(JobFailed, task_id=str(len(events))))

    def sum_up(events: list[JobEvent]) -> None:
        producer.notify(make_event(JobStarted, task_id=f"sum of {events[0].task_id}"))

    producer = make_producer(
        subscribe(lambda event: stored.append(event.task_id), "store", events=(JobStarted,)),
        subscribe(sum_up, "sum-up", events=(JobFailed,), batch=one_batch),
        subscribe(count, "count", events=(JobFinished,), batch=one_batch),
    )
    for event in numbered(3):
        producer.notify(event)

    drained = producer.drain(last=last)

    assert stored == ["sum of 3"]
    assert drained == Drained(handled=5, left=0)


def test_a_drain_handles_what_waits_and_ends_the_threads(make_producer: MakeProducer) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    for event in numbered(500):
        producer.notify(event)

    drained = producer.drain()

    assert drained.left == 0
    assert len(recorder.events) == 500
    assert broadcast_threads() == []


def test_draining_twice_is_harmless(make_producer: MakeProducer) -> None:
    producer = make_producer(subscribe(Recorder(), "store"))
    producer.notify(make_event(JobFinished))
    producer.drain()

    assert producer.drain() == Drained(handled=0, left=0)


def test_an_event_after_a_drain_starts_anew_and_the_counts_go_on(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished))
    producer.drain()

    producer.notify(make_event(JobFinished))
    producer.drain()

    assert producer.stats()["store"].handled == 2
    assert recorder.lives == ["setup", "teardown", "setup", "teardown"]


def test_an_event_published_during_a_drain_is_handled_after_it(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))

    def publish_late(_: object, **__: object) -> None:
        producer.notify(make_event(JobFinished, task_id="late"))

    producer.notify(make_event(JobFinished, task_id="early"))
    with notices.broadcast_drained.connected_to(publish_late):
        producer.drain()

    assert [event.task_id for event in recorder.wait_for(2)] == ["early", "late"]


def test_a_stuck_consumer_holds_the_drain_only_until_the_deadline_and_is_counted(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, live = StuckConsumer(), Recorder()
    producer = make_producer(subscribe(stuck, "stuck"), subscribe(live, "live"))
    for event in numbered(5):
        producer.notify(event)
    stuck.stuck.wait(10)

    drained = producer.drain(timeout_seconds=0.1)
    stuck.freed.set()

    assert drained.left == 5
    assert len(live.events) == 5
    assert producer.stats()["stuck"].dropped == {DRAIN_TIMEOUT: 5}
    assert conserved(producer.stats()["stuck"])
    assert "with 5 events unhandled (stuck: 5). Raise broadcast_drain_timeout, or" in caplog.text


def test_coroutines_clean_up_before_the_drain_that_cancelled_them_is_over(
    make_producer: MakeProducer,
) -> None:
    begun, cleaned_up = threading.Event(), threading.Event()

    async def endless(_: JobEvent) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    producer = make_producer(subscribe(endless, "endless"))
    producer.notify(make_event(JobFinished))
    begun.wait(10)

    drained = producer.drain(timeout_seconds=0.05)

    assert cleaned_up.is_set()
    assert drained.left == 1
    assert producer.stats()["endless"].dropped == {DRAIN_TIMEOUT: 1}
    assert conserved(producer.stats()["endless"])


def test_a_drain_inside_a_consumer_is_refused(make_producer: MakeProducer) -> None:
    errors: list[BaseException] = []

    def drains(_: JobEvent) -> None:
        try:
            producer.drain()
        except BroadcastError as error:
            errors.append(error)

    producer = make_producer(subscribe(drains, "store"))
    producer.notify(make_event(JobFinished))
    producer.drain()

    assert "The consumer store can't drain the broadcast" in str(errors[0])


def wait_for_front(producer: Producer) -> None:
    """Wait until an idle consumer is woken in the place of the producer's thread."""
    inbox = producer._inbox
    wait_until(lambda: inbox._front is not inbox.bell and inbox._front.is_awaited)


def test_an_idle_consumer_gets_its_events_while_the_producer_is_held(
    make_producer: MakeProducer,
) -> None:
    recorder, receiver = Recorder(), HeldReceiver()
    producer = make_producer(subscribe(recorder, "store"))
    events = numbered(4)
    producer.notify(events[0])
    wait_for_front(producer)
    with notices.attempt_lost.connected_to(receiver):
        producer.announce("attempt_lost", event=None)
        assert receiver.held.wait(10.0)
        for event in events[1:]:
            wait_for_front(producer)
            producer.notify(event)

        assert recorder.wait_for(4) == events
        receiver.freed.set()


def test_an_idle_consumer_sleeps_while_what_is_there_is_the_producers_affair(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, receiver = Recorder(), HeldReceiver()
    producer = make_producer(subscribe(recorder, "store"))
    tries: list[None] = []
    move_on = producer._move_on

    def count_and_move_on() -> None:
        tries.append(None)
        move_on()

    monkeypatch.setattr(producer, "_move_on", count_and_move_on)
    with notices.broadcast_started.connected_to(receiver):
        for event in numbered(100):
            producer.notify(event)
        assert receiver.held.wait(10.0)
        (crew,) = producer.consumers.all()
        wait_until(lambda: crew.mailbox.bell.is_awaited)
        for event in numbered(100):
            producer.notify(event)
        wait_until(lambda: crew.mailbox.bell.is_awaited)

        assert len(tries) <= 1
        receiver.freed.set()
    recorder.wait_for(200)


def test_while_every_consumer_is_behind_nobody_is_woken_and_nothing_is_lost(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_SECONDS_TO_COLLECT", 60.0)
    held = HeldRecorder()
    producer = make_producer(subscribe(held, "store"))
    events = numbered(10)
    producer.notify(events[0])
    assert held.held.wait(10.0)
    producer.notify(events[1])
    wait_until(lambda: not producer._inbox.items)
    producer.notify(events[2])  # it comes to one that waits already
    wait_until(lambda: producer._inbox.is_collecting)
    for event in events[3:]:
        producer.notify(event)
    assert producer._inbox.items

    held.freed.set()

    assert held.wait_for(10) == events


def test_an_idle_consumer_moves_on_also_what_others_are_to_have(
    make_producer: MakeProducer,
) -> None:
    idle, failures, seen = Recorder(), Recorder(), Recorder()
    producer = make_producer(
        subscribe(idle, "idle"),
        subscribe(failures, "failures", events=(JobFailed,)),
        subscribe(seen, "seen", selector=bool),
    )
    events = [make_event(JobFailed if n % 2 else JobStarted, task_id=str(n)) for n in range(40)]
    for event in events:
        producer.notify(event)
        wait_for_front(producer)
    producer.drain()

    assert idle.events == seen.events == events
    assert failures.events == events[1::2]


def test_no_wake_is_lost_however_many_publish_and_fall_asleep(make_producer: MakeProducer) -> None:
    recorders = [Recorder() for _ in range(3)]
    producer = make_producer(
        *(subscribe(each, f"store-{number}") for number, each in enumerate(recorders))
    )

    def publish(publisher: int) -> None:
        for number in range(300):
            producer.notify(make_event(JobFinished, task_id=f"{publisher}-{number}"))
            if number % (5 + publisher) == 0:  # so that all consumers are idle now and then
                wait_until(lambda: all(each.pending == 0 for each in producer.stats().values()))

    with ThreadPoolExecutor(max_workers=2) as publishers:
        list(publishers.map(publish, range(2)))

    wait_until(lambda: all(each.handled == 600 for each in producer.stats().values()))
    assert recorders[0].task_ids == recorders[1].task_ids == recorders[2].task_ids


def test_who_subscribes_while_an_idle_consumer_moves_events_on_misses_none(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, late = Recorder(), Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished, task_id="0"))
    wait_for_front(producer)
    are_settled = producer.consumers.are_settled

    def be_overtaken() -> bool:
        answer = are_settled()
        if not producer._registry.subscriptions[1:]:
            producer._registry.add(subscribe(late, "late"))
            producer.notify(make_event(JobFinished, task_id="2"))
        return answer

    monkeypatch.setattr(producer.consumers, "are_settled", be_overtaken)
    producer.notify(make_event(JobFinished, task_id="1"))

    assert [event.task_id for event in late.wait_for(1)] == ["2"]
    assert [event.task_id for event in recorder.wait_for(3)] == ["0", "1", "2"]


def test_what_a_finalizer_publishes_reaches_also_who_has_moved_on_what_it_was_of(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", events=(JobFinished,)))
    producer.notify(make_event(JobFinished, task_id="0"))
    wait_for_front(producer)

    class Result:
        def __del__(self) -> None:
            producer.notify(make_event(JobFinished, task_id="last words"))

    producer.notify(make_event(JobStarted, args=[Result()]))  # which nobody wants

    assert recorder.wait_for(2)[1].task_id == "last words"


def test_an_event_that_can_not_even_be_looked_at_is_none_of_the_consumer_that_moves_it_on(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    class Name(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise SystemExit(3)

    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", tasks=("shop.*",)))
    producer.notify(make_event(JobFinished, task_id="0"))
    wait_for_front(producer)

    producer.notify(make_event(JobFinished, task_name=Name("shop.charge")))
    wait_until(lambda: "can't deliver" in caplog.text)
    producer.notify(make_event(JobFinished, task_id="2"))

    assert recorder.wait_for(2)[1].task_id == "2"
    producer.drain()
    assert "can't deliver all of 1 events" in caplog.text
    assert "crashed" not in caplog.text


def test_an_event_published_at_the_very_end_of_a_drain_does_not_lie(
    make_producer: MakeProducer,
) -> None:
    recorder, receiver = Recorder(), HeldReceiver()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished, task_id="0"))
    draining = producer._draining

    class Draining:
        """Ends while somebody who is about to start the thread has just seen it going on."""

        def __getattr__(self, name: str) -> object:
            return getattr(draining, name)

        def locked(self) -> bool:
            was_locked = draining.locked()
            receiver.freed.set()
            drainer.join(10.0)
            return was_locked

    drainer = threading.Thread(target=producer.drain)
    with notices.broadcast_drained.connected_to(receiver):
        drainer.start()
        assert receiver.held.wait(10.0)
        producer._draining = Draining()  # type: ignore[assignment]
        producer.notify(make_event(JobFinished, task_id="1"))

    assert [event.task_id for event in recorder.wait_for(2)] == ["0", "1"]
    producer._draining = draining


def test_a_drain_that_would_serve_itself_sees_that_another_thread_has(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    serve = producer._serve

    def serve_late(request: Any = None) -> None:
        other = threading.Thread(target=serve)
        other.start()
        other.join(10.0)
        serve(request)

    with monkeypatch.context() as no_threads:
        no_threads.setattr(producer, "_start", lambda: None)
        producer.notify(make_event(JobFinished))
        no_threads.setattr(producer, "_serve", serve_late)
        drainer = threading.Thread(target=producer.drain, daemon=True)
        drainer.start()
        drainer.join(10.0)

    assert not drainer.is_alive()
    assert len(recorder.events) == 1


def test_what_is_lost_while_an_idle_consumer_moves_events_on_is_noticed(
    make_producer: MakeProducer,
) -> None:
    told: list[int] = []

    def hear(consumer: str, *, count: int, reason: str) -> None:
        told.append(count)

    recorder, stuck = Recorder(), StuckConsumer()
    producer = make_producer(
        subscribe(recorder, "store"), subscribe(stuck, "stuck"), mailbox_size=1
    )
    with notices.events_dropped.connected_to(hear):
        producer.notify(make_event(JobFinished))
        assert stuck.stuck.wait(10.0)
        recorder.wait_for(1)
        wait_for_front(producer)
        for count in range(2, 6):
            producer.notify(make_event(JobFinished))
            recorder.wait_for(count)
        stuck.freed.set()
        producer.drain()

    assert sum(told) == producer.stats()["stuck"].dropped[MAILBOX_FULL] == 3


def test_what_an_idle_consumer_can_not_move_on_is_said_and_hurts_it_in_nothing(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", tasks=("shop.*",)))
    producer.notify(make_event(JobFinished))
    recorder.wait_for(1)
    wait_for_front(producer)

    producer.notify(make_event(JobFinished, queue=["no queue has such a name"]))
    producer.notify(make_event(JobFinished, task_id="next"))

    assert recorder.wait_for(2)[1].task_id == "next"
    producer.drain()
    assert "can't deliver" in caplog.text
    assert producer.stats()["store"].failed == 0


def test_a_stuck_consumer_costs_at_most_its_own_mailbox(make_producer: MakeProducer) -> None:
    stuck, live = StuckConsumer(), Recorder()
    producer = make_producer(
        subscribe(stuck, "stuck"), subscribe(live, "live", mailbox_size=None), mailbox_size=10
    )
    producer.notify(make_event(JobFinished, task_id="first"))
    stuck.stuck.wait(10)

    for event in numbered(1_000):
        producer.notify(event)
    live.wait_for(1_001)

    wait_until(lambda: producer.stats()["stuck"].offered == 1_001)
    assert producer.stats()["stuck"].pending == 11
    assert producer.stats()["stuck"].dropped == {MAILBOX_FULL: 990}
    stuck.freed.set()


def test_losses_are_summed_up_in_one_line_and_one_notice(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, int, str]] = []

    def hear(consumer: str, *, count: int, reason: str) -> None:
        told.append((consumer, count, reason))

    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "store", mailbox_size=1))
    producer.notify(make_event(JobFinished))
    stuck.stuck.wait(10)

    with notices.events_dropped.connected_to(hear):
        for event in numbered(100):
            producer.notify(event)
        wait_until(lambda: producer.stats()["store"].offered == 101)
        stuck.freed.set()
        producer.drain()

    assert told == [("store", 99, MAILBOX_FULL)]
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.getMessage().startswith("consumer 'store' lost 99 events within ")


def test_losses_are_said_while_events_go_on_and_without_a_further_one(
    make_producer: MakeProducer,
) -> None:
    said = threading.Event()

    def hear(_: str, **__: object) -> None:
        said.set()

    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "store", mailbox_size=1))
    with notices.events_dropped.connected_to(hear):
        for event in numbered(100):
            producer.notify(event)

        assert said.wait(10.0)
    stuck.freed.set()


def test_a_consumer_declared_later_gets_the_events_from_then_on(
    make_producer: MakeProducer,
) -> None:
    registry = Registry()
    early, late = Recorder(), Recorder()
    registry.add(subscribe(early, "early"))
    producer = Producer(Settings(), registry)
    producer.notify(make_event(JobFinished, task_id="1"))
    early.wait_for(1)

    registry.add(subscribe(late, "late"))
    producer.notify(make_event(JobFinished, task_id="2"))
    producer.drain()

    assert early.task_ids == ["1", "2"]
    assert late.task_ids == ["2"]


def test_what_finds_the_inbox_full_is_counted_for_each_consumer_that_wanted_it(
    make_producer: MakeProducer,
) -> None:
    failures, everything = Recorder(), Recorder()
    receiver = HeldReceiver()
    producer = make_producer(
        subscribe(everything, "everything"),
        subscribe(failures, "failures", events=(JobFailed,)),
        inbox_size=2,
    )
    with notices.broadcast_started.connected_to(receiver):
        producer.notify(make_event(JobFinished))
        receiver.held.wait(10.0)
        for event_type in (JobFinished, JobFailed, JobFinished, JobFailed):
            producer.notify(make_event(event_type))
        receiver.freed.set()
    producer.drain()

    assert len(everything.events) == 2
    assert producer.stats()["everything"].dropped == {INBOX_FULL: 3}
    assert producer.stats()["failures"].dropped == {INBOX_FULL: 2}
    assert all(conserved(stats) for stats in producer.stats().values())


def test_what_found_the_inbox_full_is_none_of_a_later_subscribers_losses() -> None:
    receiver = HeldReceiver()
    registry, late = Registry(), Recorder()
    registry.add(subscribe(Recorder(), "early"))
    producer = Producer(Settings(), registry, inbox_size=1)
    with notices.broadcast_started.connected_to(receiver):
        producer.notify(make_event(JobFinished))
        receiver.held.wait(10.0)
        producer.notify(make_event(JobFinished))  # the first one still waits in the inbox
        registry.add(subscribe(late, "late"))
        receiver.freed.set()
    producer.drain()

    assert producer.stats()["early"].dropped == {INBOX_FULL: 1}
    assert producer.stats()["late"].dropped == {}


def test_a_signal_handler_can_publish_while_it_interrupts_a_publication(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", mailbox_size=None))
    interrupted = 0

    def publish(*_: object) -> None:
        nonlocal interrupted
        interrupted += 1
        producer.notify(make_event(JobFailed))

    before = signal.signal(signal.SIGALRM, publish)
    try:
        published = armed = 0
        while interrupted < 50:
            if armed == interrupted:  # never two at once: on a slow machine they pile up
                armed += 1
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
            producer.notify(make_event(JobFinished))
            published += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    producer.drain()

    assert len(recorder.events) == published + interrupted


def test_a_late_event_in_a_process_that_has_ended_its_broadcast_is_said_to_be_lost(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished))
    producer.drain(last=True)

    producer.notify(make_event(JobFinished))

    assert "1 late events are lost" in caplog.text
    assert len(recorder.events) == 1
    assert broadcast_threads() == []


def test_a_system_without_threads_left_loses_nothing_when_it_has_some_again(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))

    def no_thread(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", no_thread)
        producer.notify(make_event(JobFinished, task_id="1"))
    producer.notify(make_event(JobFinished, task_id="2"))
    producer.drain()

    assert recorder.task_ids == ["1", "2"]
    assert "broadcast has no thread; 1 events wait" in caplog.text


def test_a_process_that_gets_no_thread_at_all_handles_its_events_at_the_drain(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Recorder(), Recorder()
    producer = make_producer(subscribe(one, "one"), subscribe(other, "other"))

    def no_thread(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    for event in numbered(3):
        producer.notify(event)
    drained = producer.drain(last=True)

    assert drained == Drained(handled=6, left=0)
    assert one.task_ids == other.task_ids == ["0", "1", "2"]


def test_what_a_process_without_threads_does_not_get_done_in_time_is_counted(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make_producer(subscribe(Recorder(), "store"))

    def no_thread(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    for event in numbered(3):
        producer.notify(event)
    drained = producer.drain(timeout_seconds=0.0)

    assert drained == Drained(handled=0, left=3)
    assert producer.stats()["store"].dropped == {DRAIN_TIMEOUT: 3}


def test_a_consumer_without_a_thread_gets_its_events_at_the_drain(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, poor = Recorder(), Recorder()
    producer = make_producer(subscribe(poor, "poor"), subscribe(live, "live"))
    start = threading.Thread.start

    def one_too_few(thread: threading.Thread) -> None:
        if thread.name == "broadcast:poor":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", one_too_few)
    producer.notify(make_event(JobFinished))
    producer.drain()

    assert len(live.events) == len(poor.events) == 1
    assert poor.lives == ["setup", "teardown"]
    assert producer.stats()["poor"].handled == 1


def test_what_can_not_be_delivered_is_said_and_the_next_event_is(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))

    producer.notify(make_event(JobFinished, queue=["no queue has such a name"]))
    producer.notify(make_event(JobFinished, task_id="next"))
    producer.drain()

    assert recorder.task_ids == ["next"]
    assert "broadcast can't deliver JobFinished shop.charge[id-1]; it is lost" in caplog.text


def test_what_can_not_be_delivered_costs_no_other_event_whatever_the_log_does(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", tasks=("*",)))
    log, handler = logging.getLogger("celery_broadcast.producer"), BrokenLog("can't deliver")
    log.addHandler(handler)
    receiver = HeldReceiver()
    try:
        with notices.broadcast_started.connected_to(receiver):
            producer.notify(make_event(JobFinished, task_id="0"))
            receiver.held.wait(10.0)
            producer.notify(make_event(JobFinished, queue=["no queue has such a name"]))
            producer.notify(make_event(JobFinished, task_id="1"))
            receiver.freed.set()
        producer.drain()
    finally:
        log.removeHandler(handler)

    assert handler.raised.is_set()
    assert recorder.task_ids == ["0", "1"]


def test_after_a_crash_of_its_thread_the_next_event_starts_it(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))

    crashes = iter([SystemExit(3)])

    def crash_once() -> None:
        for crash in crashes:
            raise crash

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(producer, "_say_started", crash_once)
        producer.notify(make_event(JobFinished, task_id="1"))
        wait_until(lambda: "broadcast's thread crashed" in caplog.text)
    producer.notify(make_event(JobFinished, task_id="2"))
    producer.drain()

    assert recorder.task_ids == ["1", "2"]


def test_a_drain_that_is_interrupted_leaves_a_broadcast_that_works(
    make_producer: MakeProducer,
) -> None:
    recorder, stuck = Recorder(), StuckConsumer()
    producer = make_producer(subscribe(recorder, "store"), subscribe(stuck, "stuck"))
    producer.notify(make_event(JobFinished, task_id="1"))
    stuck.stuck.wait(10)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            producer.drain(timeout_seconds=60.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    stuck.freed.set()
    producer.notify(make_event(JobFinished, task_id="2"))
    producer.drain()

    assert recorder.task_ids == ["1", "2"]
    assert all(conserved(stats) for stats in producer.stats().values())
    assert producer.stats()["stuck"].dropped == {DRAIN_TIMEOUT: 1}


def test_a_drain_whose_request_is_served_at_once_waits_for_nothing_more(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished))
    recorder.wait_for(1)
    put = producer._inbox.put_for_producer

    class Inbox:
        """Lets the producer's thread end before whoever requested that goes on."""

        def __getattr__(self, name: str) -> object:
            return getattr(inbox, name)

        def put_for_producer(self, item: object) -> None:
            put(item)  # type: ignore[arg-type]
            wait_until(lambda: producer._thread is None)

    inbox, producer._inbox = producer._inbox, Inbox()  # type: ignore[assignment]
    drained: list[Drained] = []
    drainer = threading.Thread(target=lambda: drained.append(producer.drain()), daemon=True)

    drainer.start()
    drainer.join(10.0)

    assert [result.left for result in drained] == [0]
    producer._inbox = inbox


def test_what_strikes_while_the_thread_starts_makes_no_second_one(
    make_producer: MakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    start = threading.Thread.start

    def struck_down(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "broadcast":
            raise TimeoutError

    with monkeypatch.context() as soft_time_limit:
        soft_time_limit.setattr(threading.Thread, "start", struck_down)
        with pytest.raises(TimeoutError):
            producer.notify(make_event(JobFinished, task_id="1"))
    producer.notify(make_event(JobFinished, task_id="2"))
    recorder.wait_for(2)

    assert broadcast_threads().count("broadcast") == 1
    assert recorder.task_ids == ["1", "2"]


class BrokenLog(logging.Handler):
    """Raises on the lines with such a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word
        self.raised = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage():
            self.raised.set()
            raise OSError(record.getMessage())


def test_a_log_that_raises_on_losses_does_not_end_the_producer(make_producer: MakeProducer) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "stuck", mailbox_size=1))
    log, handler = logging.getLogger("celery_broadcast"), BrokenLog("lost")
    log.addHandler(handler)
    try:
        for event in numbered(9):
            producer.notify(event)
        thread = producer._thread
        assert handler.raised.wait(10)
    finally:
        log.removeHandler(handler)

    stuck.freed.set()
    producer.notify(make_event(JobFinished))
    wait_until(lambda: producer.stats()["stuck"].offered == 10)
    assert producer._thread is thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_drain_counts_what_the_thread_that_crashed_has_left(make_producer: MakeProducer) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "stuck"))
    for event in numbered(3):
        producer.notify(event)
    assert stuck.stuck.wait(10)

    def crash() -> None:
        raise SystemExit

    producer._ask(partial(crash))
    wait_until(lambda: producer._thread is None)

    assert producer.drain(0.0).left == 3
    assert producer.stats()["stuck"].dropped == {DRAIN_TIMEOUT: 3}
    stuck.freed.set()


def strike_once(
    is_time: Callable[[], bool], and_then: Callable[[], None] = lambda: None
) -> threading.Thread:
    """Have the main thread struck as by a soft time limit, as soon as it is time."""

    def strike(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise TimeoutError

    def watch() -> None:
        wait_until(is_time)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        wait_until(lambda: signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN)
        and_then()

    signal.signal(signal.SIGUSR1, strike)
    watcher = threading.Thread(target=watch)
    watcher.start()
    return watcher


def test_a_soft_time_limit_goes_through_a_drain_which_counts_what_is_left(
    make_producer: MakeProducer,
) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "stuck"))
    for event in numbered(3):
        producer.notify(event)
    assert stuck.stuck.wait(10)

    watcher = strike_once(lambda: bool(producer._stopping))
    with pytest.raises(TimeoutError):
        producer.drain(60.0)

    watcher.join()
    assert producer.stats()["stuck"].dropped == {DRAIN_TIMEOUT: 3}
    assert not producer._draining.locked()
    stuck.freed.set()


def test_a_soft_time_limit_goes_through_a_drain_that_waits_for_the_producer(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    receiver = HeldReceiver()
    producer = make_producer(subscribe(recorder, "store"))
    with notices.broadcast_started.connected_to(receiver):
        for event in numbered(3):
            producer.notify(event)
        assert receiver.held.wait(10)
        watcher = strike_once(lambda: len(producer._inbox.items) > 3)
        with pytest.raises(TimeoutError):
            producer.drain(60.0)
        watcher.join()
        receiver.freed.set()

    wait_until(lambda: producer.stats()["store"].handled == 3)  # nobody has dropped them


def test_a_soft_time_limit_goes_through_a_cancel(make_producer: MakeProducer) -> None:
    stuck = StuckConsumer()
    subscription = subscribe(stuck, "stuck")
    producer = make_producer(subscription)
    producer.notify(make_event(JobFinished))
    assert stuck.stuck.wait(10)

    watcher = strike_once(lambda: subscription.switch.is_cancelled)
    with pytest.raises(TimeoutError):
        subscription.cancel(60.0)

    watcher.join()
    stuck.freed.set()


def test_the_drain_of_a_process_that_ends_is_not_ended_by_a_soft_time_limit(
    make_producer: MakeProducer,
) -> None:
    stuck = StuckConsumer()
    bridge = Bridge(Settings(), make_producer(subscribe(stuck, "stuck")))
    bridge.producer.notify(make_event(JobFinished))
    assert stuck.stuck.wait(10)

    watcher = strike_once(lambda: bool(bridge.producer._stopping), and_then=stuck.freed.set)
    bridge.on_worker_process_shutdown()

    watcher.join()
    assert bridge.producer.stats()["stuck"].handled == 1


def test_a_drain_counts_what_a_receiver_of_a_notice_holds_up(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    receiver = HeldReceiver()
    producer = make_producer(subscribe(recorder, "store"))
    with notices.broadcast_started.connected_to(receiver):
        for event in numbered(5):
            producer.notify(event)
        receiver.held.wait(10)
        drained = producer.drain(timeout_seconds=0.1)
    receiver.freed.set()

    assert drained.left == 5
    assert producer.stats()["store"].dropped == {DRAIN_TIMEOUT: 5}
    producer.notify(make_event(JobFinished, task_id="late"))
    assert recorder.wait_for(1)[0].task_id == "late"


def test_a_consumer_that_gives_up_has_its_losses_noticed_once(make_producer: MakeProducer) -> None:
    told: list[int] = []

    def hear(_: str, *, count: int, reason: str) -> None:
        told.append(count)

    producer = make_producer(subscribe(BrokenConsumer(SystemExit(3)), "store"))
    with notices.events_dropped.connected_to(hear):
        for event in numbered(9):
            producer.notify(event)
        producer.drain()

    assert sum(told) == producer.stats()["store"].dropped_total > 0


def test_a_broadcast_without_a_consumer_says_so(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    producer = make_producer()

    producer.notify(make_event(JobFinished))
    producer.drain()

    assert "but there is no consumer. Name the module that declares them" in caplog.text


def test_the_last_event_of_a_process_is_not_kept_alive(make_producer: MakeProducer) -> None:
    class Result:
        pass

    handled: list[int] = []
    producer = make_producer(subscribe(lambda _: handled.append(1), "store"))
    result = Result()
    kept = weakref.ref(result)
    producer.notify(make_event(JobFinished, result=result))
    del result

    wait_until(lambda: bool(handled))
    wait_until(lambda: gc.collect() >= 0 and kept() is None)


def test_what_a_notice_was_about_is_not_kept_alive(make_producer: MakeProducer) -> None:
    class Fact:
        pass

    heard: list[int] = []

    def hear(_: object, **__: object) -> None:
        heard.append(1)

    producer = make_producer(subscribe(Recorder(), "store"))
    fact = Fact()
    kept = weakref.ref(fact)
    with notices.attempt_lost.connected_to(hear):
        producer.announce("attempt_lost", event=fact)
        del fact
        wait_until(lambda: bool(heard))

    wait_until(lambda: gc.collect() >= 0 and kept() is None)


def test_after_a_notice_whose_receiver_held_up_a_drain_nothing_starts_by_itself(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    started: list[object] = []
    receiver = HeldReceiver()

    def hear_start(_: object, **facts: object) -> None:
        started.append(facts)

    with (
        notices.attempt_lost.connected_to(receiver),
        notices.broadcast_started.connected_to(hear_start),
    ):
        producer.notify(make_event(JobFinished))
        recorder.wait_for(1)
        producer.announce("attempt_lost", event=None)
        receiver.held.wait(10.0)
        producer.drain(0.0)
        thread = producer._thread
        assert thread is not None
        receiver.freed.set()
        thread.join(10.0)

    assert len(started) == 1
    assert producer._thread is None


def test_the_log_says_that_the_broadcast_is_on_and_that_it_drained(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    producer = make_producer(subscribe(Recorder(), "one"), subscribe(Recorder(), "two"))

    producer.notify(make_event(JobFinished))
    producer.drain()

    assert "broadcast is on: 2 consumers (one, two) in pid " in caplog.text
    assert "broadcast drained " in caplog.text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    manners=st.lists(st.sampled_from(["records", "raises", "declines", "tiny"]), max_size=5),
    count=st.integers(0, 200),
)
def test_every_event_is_accounted_for_whoever_consumes(
    make_producer: MakeProducer, manners: list[str], count: int
) -> None:
    kinds = {
        "records": lambda name: subscribe(Recorder(), name),
        "raises": lambda name: subscribe(BrokenConsumer(OSError("no")), name),
        "declines": lambda name: subscribe(Recorder(), name, selector=lambda _: False),
        "tiny": lambda name: subscribe(Recorder(), name, mailbox_size=1),
    }
    producer = make_producer(*(kinds[kind](f"{kind}-{n}") for n, kind in enumerate(manners)))

    for event in numbered(count):
        producer.notify(event)
        assert all(conserved(stats) for stats in producer.stats().values())
    producer.drain()

    for stats in producer.stats().values():
        assert stats.offered == count
        assert stats.pending == 0
        assert conserved(stats)


# Consumers that come and go.


def test_a_drain_waits_for_a_consumer_that_another_of_its_name_has_replaced(
    make_producer: MakeProducer,
) -> None:
    at_work, free = threading.Event(), threading.Event()
    handled: list[str] = []

    def first(event: JobEvent) -> None:
        at_work.set()
        free.wait(10)
        handled.append(f"first {event.task_id}")

    producer = make_producer(subscribe(first, "store"))
    for event in numbered(2):
        producer.notify(event)
    wait_until(lambda: producer.stats()["store"].offered == 2)
    at_work.wait(10)
    wait_until(lambda: producer.stats()["store"].pending == 2)

    class Second(Consumer):
        def handle(self, event: JobEvent) -> None:
            handled.append(f"second {event.task_id}")

        def teardown(self) -> None:
            free.set()

    producer._registry.subscriptions = (subscribe(Second(), "store"),)
    producer.notify(make_event(JobFinished, task_id="2"))
    wait_until(lambda: handled == ["second 2"])
    wait_until(lambda: producer.stats()["store"].handled == 1)

    drained = producer.drain()

    assert handled == ["second 2", "first 0", "first 1"]
    assert drained == Drained(handled=2, left=0)


def test_what_a_replaced_consumer_leaves_at_the_deadline_is_counted(
    make_producer: MakeProducer,
) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "store"))
    for event in numbered(3):
        producer.notify(event)
    wait_until(lambda: producer.stats()["store"].offered == 3)
    stuck.stuck.wait(10)
    wait_until(lambda: producer.stats()["store"].pending == 3)
    producer._registry.subscriptions = (subscribe(lambda _: None, "store"),)
    producer.notify(make_event(JobFinished))
    wait_until(lambda: producer.stats()["store"].handled == 1)

    drained = producer.drain(timeout_seconds=0.05)
    stuck.freed.set()

    assert drained.left == 3
    assert producer.stats()["store"].dropped == {DRAIN_TIMEOUT: 3}


# Batches, and calls that hang.


def test_events_are_stamped_only_while_a_consumer_asks_for_batches(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    first, second = (Delivery(event, frozenset({"somebody"})) for event in numbered(2))
    producer.put(first)
    recorder.wait_for(1)
    assert first.dispatched_at == 0.0

    batches: list[list[JobEvent]] = []
    batching = subscribe(batches.append, "batches", batch=Batch(max_events=9, max_wait=0.0))
    producer._registry.subscriptions += (batching,)
    before = time.monotonic()
    producer.put(second)
    wait_until(lambda: bool(batches))

    assert before <= second.dispatched_at <= time.monotonic()


def test_a_call_that_hangs_is_said_once_and_the_next_one_again(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    free: list[threading.Event] = [threading.Event(), threading.Event()]
    quick, others = Recorder(), Recorder()

    def hear(consumer: str, *, event: JobEvent, seconds: float, stack: str) -> None:
        assert consumer == "slow"
        assert seconds >= 0.02
        assert "free[int(event.task_id)].wait(10)" in stack
        told.put(event)

    def slow(event: JobEvent) -> None:
        free[int(event.task_id)].wait(10)

    producer = make_producer(
        subscribe(slow, "slow", stuck_after=0.02),
        subscribe(quick, "quick", stuck_after=60.0),
        subscribe(others, "others"),
    )
    events = numbered(2)
    with notices.consumer_stuck.connected_to(hear):
        for event, until_then in zip(events, free, strict=True):
            producer.notify(event)
            assert told.get(timeout=10) is event
            until_then.set()
        producer.drain()

    assert told.empty()
    lines = [record.getMessage() for record in caplog.records if "has been at" in record.message]
    assert len(lines) == 2


def test_a_call_of_a_cancelled_consumer_that_hangs_is_said_too(
    make_producer: MakeProducer,
) -> None:
    stuck, others = StuckConsumer(), Recorder()
    said: queue.SimpleQueue[object] = queue.SimpleQueue()

    def hear(consumer: str, **_: object) -> None:
        said.put(consumer)

    slow = subscribe(stuck, "slow", stuck_after=0.2)
    producer = make_producer(slow, subscribe(others, "others"))
    with notices.consumer_stuck.connected_to(hear):
        producer.notify(make_event(JobFinished))
        assert stuck.stuck.wait(10)
        slow.switch.cancel()
        producer._registry.remove(slow)
        producer.notify(make_event(JobFinished))
        others.wait_for(2)  # so it has been let go

        assert said.get(timeout=10) == "slow"
    stuck.freed.set()


def test_a_process_whose_consumers_have_nothing_to_do_is_not_woken_to_look_at_them(
    make_producer: MakeProducer,
) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store", stuck_after=0.01))
    looks: list[float] = []
    look = producer.consumers._look_at_calls

    def count_looks(now: float) -> None:
        looks.append(now)
        look(now)

    producer.consumers._look_at_calls = count_looks  # type: ignore[method-assign]
    producer.notify(make_event(JobFinished))
    recorder.wait_for(1)

    wait_until(lambda: bool(looks) and producer.consumers._look_due_at is None)
    so_far = len(looks)
    producer.announce("attempt_lost")  # it wakes the thread, for something else
    producer.notify(make_event(JobFinished))
    recorder.wait_for(2)

    wait_until(lambda: len(looks) > so_far and producer.consumers._look_due_at is None)


def test_nobody_is_looked_at_where_nobody_asked_for_it(make_producer: MakeProducer) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "store"))
    producer.notify(make_event(JobFinished))
    stuck.stuck.wait(10)

    assert producer.consumers._look_due_at is None
    stuck.freed.set()
