"""Each promise of the README, as a test of that name; real workers prove them again."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from conftest import broadcast_threads
from nodes.deadline import wait_until
from recorder import (
    BrokenConsumer,
    Recorder,
    StuckConsumer,
    make_event,
    numbered,
    subscribe,
)
from test_fork import in_child
from test_installation import receivers, run_one_job

import celery_broadcast
from celery_broadcast import JobEnded, JobEvent, JobFinished, on_job_event
from celery_broadcast.consumer import Consumer
from celery_broadcast.producer import Producer

MakeProducer = Callable[..., Producer]


def test_promise_1_off_means_absent(app: Celery) -> None:
    on_job_event(name="recorder")(Recorder().handle)
    before = receivers()

    celery_broadcast.install(app)
    run_one_job(app)

    assert receivers() == before
    assert broadcast_threads() == []


def test_promise_2_celery_is_left_alone(
    broadcasting_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def first(**_: Any) -> None:
        heard.append("first")

    def second(**_: Any) -> None:
        heard.append("second")

    on_job_event(name="broken")(BrokenConsumer(OSError("no")).handle)
    signals.task_postrun.connect(first, weak=False)
    celery_broadcast.uninstall(broadcasting_app)
    before = receivers()
    celery_broadcast.install(broadcasting_app)
    signals.task_postrun.connect(second, weak=False)
    try:
        run_one_job(broadcasting_app)
        # Errors of our own: nothing that Celery could log, or hand to whoever sends.
        ours = [response for _, response in signals.task_prerun.send(sender=None, task=object())]
    finally:
        signals.task_postrun.disconnect(second)
        celery_broadcast.uninstall(broadcasting_app)
        after = receivers()
        signals.task_postrun.disconnect(first)
    caplog.clear()

    assert heard == ["first", "second"]
    assert ours == [None]
    assert after == before


def calls_made_by(function: Callable[[], object]) -> list[str]:
    """Return every function that is called on this thread, in C or in Python."""
    calls: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)
        elif event == "c_call":
            calls.append(argument.__name__)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("consumers", [1, 64])
@pytest.mark.parametrize("state", ["idle", "stuck"])
def test_promise_3_the_job_pays_the_same_whoever_listens(
    make_producer: MakeProducer, consumers: int, state: str
) -> None:
    all_stuck = [StuckConsumer() for _ in range(consumers)]
    manner: list[Consumer] = [*all_stuck] if state == "stuck" else [Recorder() for _ in all_stuck]
    producer = make_producer(
        *(subscribe(one, f"consumer-{number}") for number, one in enumerate(manner)), mailbox_size=5
    )
    for event in numbered(10):
        producer.notify(event)
    wait_until(lambda: all(stats.offered == 10 for stats in producer.stats().values()))
    event = make_event(JobFinished)

    calls = calls_made_by(lambda: producer.notify(event))

    for stuck in all_stuck:
        stuck.freed.set()
    # The whole of it, in each of the four cases: nothing here knows of consumers.
    ours = [call for call in calls if call not in {"<lambda>", "setprofile"}]
    assert ours[:6] == ["notify", "get", "put", "len", "put", "append"]
    assert ours[6:] in ([], ["put"])  # wakes one thread, if that sleeps


def test_promise_4_exactly_one_end_per_started_attempt(broadcasting_app: Celery) -> None:
    recorder = Recorder()
    on_job_event(name="recorder")(recorder.handle)

    @broadcasting_app.task(bind=True, max_retries=2)
    def unlucky(self: Any) -> None:
        raise self.retry(exc=OSError("no"))

    errors = {error.__name__: error for error in (ValueError, Ignore, Reject, SystemExit)}

    @broadcasting_app.task
    def gives_up(error: str) -> None:
        raise errors[error]

    unlucky.delay()
    run_one_job(broadcasting_app)
    for error in ("ValueError", "Ignore", "Reject"):
        gives_up.delay(error)
    with pytest.raises(SystemExit):
        gives_up.delay("SystemExit")
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        gives_up.apply(("ValueError",), throw=True)
    celery_broadcast.drain()

    started = [event for event in recorder.events if not isinstance(event, JobEnded)]
    ended = [event for event in recorder.events if isinstance(event, JobEnded)]
    key = ("task_id", "retries")
    assert len(started) == 9
    assert [[getattr(e, k) for k in key] for e in started] == [
        [getattr(e, k) for k in key] for e in ended
    ]


def test_promise_5_events_arrive_in_the_order_they_were_published(
    make_producer: MakeProducer,
) -> None:
    recorders = [Recorder() for _ in range(4)]
    producer = make_producer(*(subscribe(one, str(id(one))) for one in recorders))

    for event in numbered(2_000):
        producer.notify(event)
    producer.drain()

    for recorder in recorders:
        assert recorder.task_ids == [str(number) for number in range(2_000)]


def test_promise_6_every_event_is_accounted_for_at_every_moment(
    make_producer: MakeProducer,
) -> None:
    stuck = StuckConsumer()
    producer = make_producer(
        subscribe(Recorder(), "records"),
        subscribe(BrokenConsumer(OSError("no")), "raises"),
        subscribe(Recorder(), "declines", selector=lambda event: event.task_id == "7"),
        subscribe(stuck, "stuck", mailbox_size=3),
    )

    for event in numbered(500):
        producer.notify(event)
        for stats in producer.stats().values():
            accounted = stats.handled + stats.failed + stats.dropped_total + stats.pending
            assert stats.offered == accounted
    producer.drain(timeout_seconds=1.0)
    stuck.freed.set()

    for stats in producer.stats().values():
        assert (stats.offered, stats.pending) == (500, 0)
        assert stats.handled + stats.failed + stats.dropped_total == 500


def test_promise_7_no_consumer_can_hurt_another(make_producer: MakeProducer) -> None:
    live, stuck = Recorder(), StuckConsumer()
    producer = make_producer(
        subscribe(stuck, "stuck"),
        subscribe(BrokenConsumer(OSError("no")), "raises"),
        subscribe(BrokenConsumer(SystemExit(3)), "exits"),
        subscribe(live, "live"),
        drain_timeout=0.2,
    )

    for event in numbered(100):
        producer.notify(event)

    assert [event.task_id for event in live.wait_for(100)] == [str(n) for n in range(100)]
    stuck.freed.set()


def test_promise_8_a_stuck_consumer_costs_at_most_its_own_mailbox(
    make_producer: MakeProducer,
) -> None:
    class Weighty:
        pass

    def weighty_event(kept: list[weakref.ref[Weighty]]) -> JobEvent:
        result = Weighty()
        kept.append(weakref.ref(result))
        return make_event(JobFinished, result=result)

    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "stuck", mailbox_size=10))
    kept: list[weakref.ref[Weighty]] = []
    producer.notify(weighty_event(kept))
    stuck.stuck.wait(10)

    for _ in range(1_000):
        producer.notify(weighty_event(kept))
    wait_until(lambda: producer.stats()["stuck"].offered == 1_001)
    gc.collect()

    # One in its hands and ten in its mailbox.
    assert sum(reference() is not None for reference in kept) == 11
    stuck.freed.set()


def test_promise_9_what_waits_is_handled_within_the_deadline_and_the_rest_is_said(
    make_producer: MakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    quick, stuck = Recorder(), StuckConsumer()
    producer = make_producer(subscribe(quick, "quick"), subscribe(stuck, "stuck"))
    for event in numbered(100):
        producer.notify(event)

    drained = producer.drain(timeout_seconds=0.5)
    stuck.freed.set()

    assert len(quick.events) == 100
    assert drained.left == 100
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_promise_10_a_forked_child_starts_clean(make_producer: MakeProducer) -> None:
    stuck = StuckConsumer()
    producer = make_producer(subscribe(stuck, "store"))
    for event in numbered(10):
        producer.notify(event)
    stuck.stuck.wait(10)

    def child() -> Any:
        stats = producer.stats()["store"]
        return [stats.offered, stats.pending, broadcast_threads()]

    assert in_child(child) == [0, 0, []]
    stuck.freed.set()


def test_promise_11_an_event_is_handled_at_most_once_in_the_process(
    make_producer: MakeProducer,
) -> None:
    class CrashesOnEachFirst(Recorder):
        def handle(self, event: JobEvent) -> None:
            super().handle(event)
            if event.task_id == "1":
                raise SystemExit(3)

    recorder = CrashesOnEachFirst()
    producer = make_producer(subscribe(recorder, "store"))
    for event in numbered(3):
        producer.notify(event)
    producer.drain()

    assert recorder.task_ids == ["0", "1", "2"]
