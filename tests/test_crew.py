from __future__ import annotations

import time

import pytest
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered, subscribe

from celery_broadcast import notices
from celery_broadcast.consumer import Consumer
from celery_broadcast.consumer_thread import ConsumerThread
from celery_broadcast.counts import GAVE_UP
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.events import JobEvent, JobFailed, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import Restart, Restarts
from celery_broadcast.station import Station, hands

NOBODY: frozenset[str] = frozenset()


def mailbox_with(*events: JobEvent) -> Mailbox[Delivery]:
    mailbox: Mailbox[Delivery] = Mailbox(size=100)
    for event in events:
        mailbox.put(Delivery(event, NOBODY))
    return mailbox


def new_crew(consumer: Consumer, *events: JobEvent) -> Crew:
    """Give a consumer a mailbox with these events in it, and threads that aren't started."""
    return Crew(subscribe(consumer, "store"), mailbox_with(*events))


def ends(crew: Crew) -> bool:
    crew.finish(deadline=time.monotonic() + 10.0)
    return crew.has_ended()


def run_to_the_end(crew: Crew) -> None:
    crew.start()
    crew.stop()
    assert ends(crew)


def test_a_consumer_is_set_up_and_torn_down_on_its_own_thread() -> None:
    recorder = Recorder()
    crew = new_crew(recorder, *numbered(3))

    run_to_the_end(crew)

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
    crew = new_crew(recorder, *numbered(3))

    run_to_the_end(crew)

    assert recorder.lives == ["setup", "teardown", "setup", "teardown"]
    assert recorder.task_ids == ["1", "2"]
    assert crew.mailbox.stats().failed == 1


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

    crew = new_crew(recorder, *numbered(2))
    with notices.consumer_restarted.connected_to(hear):
        run_to_the_end(crew)

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
    crew = Crew(subscribe(NeverReady(), "store", restart=Restart(max_restarts=0)), mailbox)
    with notices.consumer_gave_up.connected_to(hear):
        crew.start()
        assert ends(crew)

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

    station = Station(subscribe(NeverReady(), "store"), Mailbox(size=1))
    thread = ConsumerThread(station, "broadcast:store", LongPauses())
    with notices.consumer_restarted.connected_to(hear):
        thread.start()
        wait_until(lambda: bool(pausing))
        station.stop()
        station.abandon(GAVE_UP)
        assert thread.wait_for_end(deadline=time.monotonic() + 10.0)


def test_a_teardown_that_raises_is_logged_and_hurts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class BadEnd(Recorder):
        def teardown(self) -> None:
            raise SystemExit("badly")

    recorder = BadEnd()
    crew = new_crew(recorder, *numbered(1))

    run_to_the_end(crew)

    assert recorder.task_ids == ["0"]
    assert "consumer 'store' could not tear down" in caplog.text


def test_a_consumer_knows_in_whose_hands_its_code_runs() -> None:
    seen: list[object] = []
    mailbox: Mailbox[Delivery] = Mailbox(size=100)
    mailbox.put(Delivery(make_event(JobFinished), NOBODY))
    mailbox.put(Delivery(make_event(JobFailed), frozenset({"other"})))
    crew = Crew(subscribe(lambda _: seen.append(hands.get()), "store"), mailbox)

    run_to_the_end(crew)

    assert seen == [{"store"}, {"store", "other"}]
    assert hands.get() == NOBODY
