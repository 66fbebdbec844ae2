from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from nodes.deadline import wait_until
from recorder import BrokenConsumer, Recorder, make_event, numbered, subscribe

from celery_broadcast import notices
from celery_broadcast.consumer import Consumer
from celery_broadcast.consumer_thread import ConsumerThread, hands
from celery_broadcast.counts import GAVE_UP
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.events import JobEvent, JobFailed, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import Restart, Restarts

NOBODY: frozenset[str] = frozenset()


def consumer_thread(
    consumer: Consumer, *events: JobEvent, selector: Callable[[JobEvent], object] | None = None
) -> ConsumerThread:
    """Give a consumer a mailbox with these events in it, and a thread that isn't started."""
    mailbox: Mailbox[Delivery] = Mailbox(size=100)
    for event in events:
        mailbox.put(Delivery(event, NOBODY))
    return ConsumerThread(subscribe(consumer, "store", selector=selector), mailbox)


def ends(thread: ConsumerThread) -> bool:
    thread.finish(deadline=time.monotonic() + 10.0)
    return thread.has_ended()


def run_to_the_end(thread: ConsumerThread) -> None:
    thread.start()
    thread.stop()
    assert ends(thread)


def test_a_step_handles_one_event_and_counts_it() -> None:
    recorder = Recorder()
    thread = consumer_thread(recorder, *numbered(2))
    thread.set_up()

    assert thread.step()

    assert recorder.task_ids == ["0"]
    assert thread.mailbox.stats().handled == 1
    assert thread.mailbox.stats().pending == 1


def test_a_step_without_an_event_says_so() -> None:
    thread = consumer_thread(Recorder())
    thread.set_up()

    assert not thread.step(wait_seconds=0)


def test_a_raising_consumer_loses_the_event_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    thread = consumer_thread(BrokenConsumer(OSError("no route")), *numbered(1))
    thread.set_up()

    assert thread.step()

    assert thread.mailbox.stats().failed == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "consumer 'store' raised on JobFinished shop.charge[0]; "
        "this event is lost, the consumer goes on"
    )
    assert record.exc_info is not None


def test_many_failures_are_summed_up_in_the_log_and_each_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[JobEvent] = []

    def hear(consumer: str, *, event: JobEvent, error: BaseException) -> None:
        assert (consumer, str(error)) == ("store", "no")
        told.append(event)

    events = numbered(50)
    thread = consumer_thread(BrokenConsumer(OSError("no")), *events)
    thread.set_up()

    with notices.consumer_failed.connected_to(hear):
        while thread.step(wait_seconds=0):
            pass

    assert told == events
    assert thread.mailbox.stats().failed == 50
    assert len([record for record in caplog.records if "raised on" in record.getMessage()]) < 10


def test_a_selector_that_says_no_declines_the_event() -> None:
    recorder = Recorder()
    thread = consumer_thread(recorder, *numbered(3), selector=lambda event: event.task_id == "1")
    thread.set_up()

    while thread.step(wait_seconds=0):
        pass

    assert recorder.task_ids == ["1"]
    stats = thread.mailbox.stats()
    assert (stats.handled, stats.declined) == (3, 2)


def test_a_selector_that_raises_fails_that_event_alone() -> None:
    recorder = Recorder()
    thread = consumer_thread(recorder, *numbered(2), selector=lambda event: 1 / int(event.task_id))
    thread.set_up()

    while thread.step(wait_seconds=0):
        pass

    assert recorder.task_ids == ["1"]
    assert thread.mailbox.stats().failed == 1


def test_a_consumer_is_set_up_and_torn_down_on_its_own_thread() -> None:
    recorder = Recorder()
    thread = consumer_thread(recorder, *numbered(3))

    run_to_the_end(thread)

    assert recorder.lives == ["setup", "teardown"]
    assert recorder.task_ids == ["0", "1", "2"]
    assert recorder.threads == {"broadcast:store"}


def test_a_consumer_that_exits_is_restarted_and_loses_only_the_event_in_its_hands() -> None:
    class ExitsOnce(Recorder):
        def handle(self, event: JobEvent) -> None:
            if event.task_id == "0":
                raise SystemExit(3)
            super().handle(event)

    recorder = ExitsOnce()
    thread = consumer_thread(recorder, *numbered(3))

    run_to_the_end(thread)

    assert recorder.lives == ["setup", "teardown", "setup", "teardown"]
    assert recorder.task_ids == ["1", "2"]
    assert thread.mailbox.stats().failed == 1


def test_a_consumer_whose_setup_raises_tries_again_and_its_events_wait() -> None:
    class ReadyAtLast(Recorder):
        def setup(self) -> None:
            super().setup()
            if len(self.lives) == 1:
                raise ConnectionError("not yet")

    recorder = ReadyAtLast()
    restarted: list[float] = []

    def hear(consumer: str, *, error: BaseException, pause: float) -> None:
        restarted.append(pause)

    thread = consumer_thread(recorder, *numbered(2))
    with notices.consumer_restarted.connected_to(hear):
        run_to_the_end(thread)

    assert recorder.task_ids == ["0", "1"]
    assert recorder.lives == ["setup", "setup", "teardown"]
    assert len(restarted) == 1


def test_a_consumer_that_crashes_too_often_is_given_up_and_its_events_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NeverReady(Consumer):
        def setup(self) -> None:
            raise ConnectionError("never")

        def handle(self, event: JobEvent) -> None: ...

    gave_up: list[str] = []

    def hear(consumer: str, *, error: BaseException) -> None:
        gave_up.append(f"{consumer}: {error}")

    mailbox: Mailbox[Delivery] = Mailbox(size=100)
    for event in numbered(2):
        mailbox.put(Delivery(event, NOBODY))
    thread = ConsumerThread(
        subscribe(NeverReady(), "store"), mailbox, Restarts(Restart(max_restarts=0))
    )
    with notices.consumer_gave_up.connected_to(hear):
        thread.start()
        assert ends(thread)

    assert gave_up == ["store: never"]
    assert not mailbox.put(Delivery(make_event(JobFinished), NOBODY))
    assert mailbox.stats().dropped == {GAVE_UP: 3}
    assert "gave up" in caplog.text


def test_a_stop_wakes_a_pause_at_once() -> None:
    class NeverReady(Consumer):
        def setup(self) -> None:
            raise ConnectionError("never")

        def handle(self, event: JobEvent) -> None: ...

    class LongPauses(Restarts):
        def pause_after_crash(self, crash: BaseException, now: float) -> float | None:
            return 3_600.0 if super().pause_after_crash(crash, now) is not None else None

    pausing: list[float] = []

    def hear(consumer: str, *, error: BaseException, pause: float) -> None:
        pausing.append(pause)

    thread = ConsumerThread(
        subscribe(NeverReady(), "store"), Mailbox(size=1), LongPauses(Restart(max_restarts=1))
    )
    with notices.consumer_restarted.connected_to(hear):
        thread.start()
        wait_until(lambda: bool(pausing))
        thread.stop()
        assert ends(thread)


def test_a_teardown_that_raises_is_logged_and_hurts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class BadEnd(Recorder):
        def teardown(self) -> None:
            raise SystemExit("badly")

    recorder = BadEnd()
    thread = consumer_thread(recorder, *numbered(1))

    run_to_the_end(thread)

    assert recorder.task_ids == ["0"]
    assert "consumer 'store' could not tear down" in caplog.text


def test_a_consumer_knows_in_whose_hands_its_code_runs() -> None:
    seen: list[object] = []
    mailbox: Mailbox[Delivery] = Mailbox(size=100)
    mailbox.put(Delivery(make_event(JobFinished), NOBODY))
    mailbox.put(Delivery(make_event(JobFailed), frozenset({"other"})))
    thread = ConsumerThread(subscribe(lambda _: seen.append(hands.get()), "store"), mailbox)

    run_to_the_end(thread)

    assert seen == [{"store"}, {"store", "other"}]
    assert hands.get() == NOBODY
