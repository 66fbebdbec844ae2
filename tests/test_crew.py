from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import NOBODY, deliver, new_crew, run, run_out, working
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes.deadline import wait_until
from recorder import BrokenConsumer, Recorder, make_event, numbered, subscribe

from celery_broadcast import notices
from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer
from celery_broadcast.consumer_thread import ConsumerThread
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, GAVE_UP, MAILBOX_FULL
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.events import JobEvent, JobFailed, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import Restart, Restarts
from celery_broadcast.retry import Retry
from celery_broadcast.station import Station, hands


def crew_of(consumer: Consumer, *events: JobEvent) -> Crew:
    """Give an instance a mailbox with these events in it, and threads that aren't started."""
    mailbox: Mailbox[Item] = Mailbox(size=100)
    deliver(mailbox, events)
    return Crew(subscribe(consumer, "store"), mailbox)


def ends(crew: Crew) -> bool:
    crew.finish(deadline=time.monotonic() + 10.0)
    return crew.has_ended()


def run_to_the_end(crew: Crew) -> None:
    crew.start()
    crew.stop()
    assert ends(crew)


def test_a_consumer_is_set_up_and_torn_down_on_its_own_thread() -> None:
    recorder = Recorder()
    crew = crew_of(recorder, *numbered(3))

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
    crew = crew_of(recorder, *numbered(3))

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

    crew = crew_of(recorder, *numbered(2))
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

    mailbox: Mailbox[Item] = Mailbox(size=100)
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
    crew = crew_of(recorder, *numbered(1))

    run_to_the_end(crew)

    assert recorder.task_ids == ["0"]
    assert "consumer 'store' could not tear down" in caplog.text


def test_a_consumer_knows_in_whose_hands_its_code_runs() -> None:
    seen: list[object] = []
    mailbox: Mailbox[Item] = Mailbox(size=100)
    mailbox.put(Delivery(make_event(JobFinished), NOBODY))
    mailbox.put(Delivery(make_event(JobFailed), frozenset({"other"})))
    crew = Crew(subscribe(lambda _: seen.append(hands.get()), "store"), mailbox)

    run_to_the_end(crew)

    assert seen == [{"store"}, {"store", "other"}]
    assert hands.get() == NOBODY


# Several threads.


class Worker(Consumer):
    """Notes what becomes of each instance, and where; one class for each test."""

    made: list[Worker]
    handled: list[JobEvent]

    def __init_subclass__(cls) -> None:
        cls.made, cls.handled = [], []

    def __init__(self) -> None:
        self.made.append(self)
        self.threads = {threading.current_thread().name}
        self.lives: list[str] = []

    def setup(self) -> None:
        self._note("setup")

    def teardown(self) -> None:
        self._note("teardown")

    def handle(self, event: JobEvent) -> None:
        self.handled.append(event)
        self._note("handle")

    def _note(self, what: str) -> None:
        self.lives.append(what)
        self.threads.add(threading.current_thread().name)


def test_each_thread_has_an_instance_of_its_own_and_all_are_at_work_at_once() -> None:
    meeting = threading.Barrier(3, timeout=10)

    class Meets(Worker):
        def handle(self, event: JobEvent) -> None:
            meeting.wait()
            super().handle(event)

    stats = run(Meets, numbered(6), concurrency=3)

    assert stats.handled == 6
    assert len(Meets.made) == 3
    assert sorted(name for each in Meets.made for name in each.threads) == [
        "broadcast:store-1",
        "broadcast:store-2",
        "broadcast:store-3",
    ]
    for each in Meets.made:
        assert (each.lives[0], each.lives[-1]) == ("setup", "teardown")
        assert each.lives.count("handle") >= 1


def test_an_end_is_waited_for_until_the_last_thread_has_come_to_it() -> None:
    at_work, free = threading.Barrier(4, timeout=10), threading.Event()

    def handle(event: JobEvent) -> None:
        at_work.wait()
        if event.task_id == "1":
            free.wait(10)

    with working(handle, numbered(3), concurrency=3) as crew:
        at_work.wait()
        crew.stop()
        wait_until(lambda: crew.mailbox.stats().pending == 1)
        crew.finish(time.monotonic())
        assert not crew.has_ended()

        free.set()

        crew.finish(time.monotonic() + 10)
        assert crew.has_ended()
        assert crew.mailbox.stats().handled == 3


def test_a_crash_of_one_thread_restarts_that_one_only() -> None:
    meeting = threading.Barrier(3, timeout=10)

    class Crashes(Worker):
        def handle(self, event: JobEvent) -> None:
            super().handle(event)
            if event.task_id in {"0", "1", "2"}:
                meeting.wait()
            if event.task_id == "1":
                raise SystemExit(3)

    stats = run(Crashes, numbered(9), concurrency=3)

    assert (stats.handled, stats.failed) == (8, 1)
    assert len(Crashes.made) == 4
    (crashed,) = {name for each in Crashes.made[:3] for name in each.threads} & {
        name for each in Crashes.made[3:] for name in each.threads
    }
    assert crashed.startswith("broadcast:store-")


def test_a_consumer_that_one_thread_gives_up_is_given_up_by_all() -> None:
    meeting, free = threading.Barrier(2, timeout=10), threading.Event()
    ended: list[str] = []

    def hear(consumer: str) -> None:
        ended.append(threading.current_thread().name)

    def handle(event: JobEvent) -> None:
        meeting.wait()
        if event.task_id == "0":
            raise SystemExit(3)
        free.wait(10)

    with (
        notices.consumer_stopped.connected_to(hear),
        working(
            handle, numbered(9), concurrency=2, restart=Restart("temporary"), name="exits"
        ) as crew,
    ):
        wait_until(lambda: crew.mailbox.is_closed)
        free.set()
        crew.finish(time.monotonic() + 10)

        assert sorted(ended) == ["broadcast:exits-1", "broadcast:exits-2"]
        stats = crew.mailbox.stats()
        assert (stats.failed, stats.dropped) == (1, {GAVE_UP: 8})


def forbid_threads(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    start = threading.Thread.start
    allowed = [None] * after

    def start_or_not(thread: threading.Thread) -> None:
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)


def test_a_consumer_with_fewer_threads_than_it_asks_for_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as exhausted:
        forbid_threads(exhausted, after=1)
        crew = new_crew(lambda _: None, numbered(5), concurrency=3)
        crew.start()

    assert run_out(crew).handled == 5
    assert "consumer 'store' has fewer threads than it asks for" in caplog.text


@pytest.mark.parametrize("options", [{}, {"batch": Batch(max_events=2, max_wait=3600.0)}], ids=str)
def test_a_consumer_without_any_thread_has_its_events_handled_at_its_end(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    recorder = Recorder()
    handle: Callable[[Any], object] = recorder.handle
    if options:
        handle = lambda events: deque(map(recorder.handle, events))  # noqa: E731
    with monkeypatch.context() as exhausted:
        forbid_threads(exhausted)
        crew = new_crew(handle, numbered(5), **options)
        crew.start()

    assert run_out(crew).handled == 5
    assert recorder.threads == {"MainThread"}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_consumer_without_any_thread_runs_in_its_own_hands(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    seen: list[object] = []

    def handle(event: JobEvent) -> None:
        seen.append(hands.get())

    async def handle_later(event: JobEvent) -> None:
        handle(event)

    with monkeypatch.context() as exhausted:
        forbid_threads(exhausted)
        crew = new_crew(handle_later if is_async else handle, numbered(1))
        crew.start()
    run_out(crew)

    assert seen == [{"store"}]
    assert hands.get() == NOBODY


@pytest.mark.parametrize("is_async", [False, True])
def test_a_consumer_without_any_thread_has_not_ended_while_events_are_left(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    async def handle(event: JobEvent) -> None: ...

    with monkeypatch.context() as exhausted:
        forbid_threads(exhausted)
        crew = new_crew(handle if is_async else lambda _: None, numbered(5))
        crew.start()
    crew.stop()

    crew.finish(time.monotonic() - 1.0)  # the time is over before it began

    left = crew.mailbox.stats().pending
    assert left
    assert not crew.has_ended()
    assert crew.abandon(DRAIN_TIMEOUT) == left
    assert crew.has_ended()


# Batches.


def test_a_batch_comes_as_soon_as_it_is_full() -> None:
    came: queue.SimpleQueue[list[JobEvent]] = queue.SimpleQueue()
    with working(came.put, batch=Batch(max_events=3, max_wait=3600.0)) as crew:
        events = numbered(7)
        deliver(crew.mailbox, events)

        assert came.get(timeout=10) == events[:3]
        assert came.get(timeout=10) == events[3:6]
        wait_until(lambda: crew.mailbox.stats().handled == 6)
        assert crew.mailbox.stats().pending == 1

        run_out(crew)
        assert came.get(timeout=10) == events[6:]
    assert came.empty()


def test_a_batch_comes_when_its_first_event_has_waited_for_long_enough() -> None:
    came: queue.SimpleQueue[list[JobEvent]] = queue.SimpleQueue()
    with working(came.put, batch=Batch(max_events=100, max_wait=0.02)) as crew:
        (event,) = numbered(1)
        deliver(crew.mailbox, [event])

        assert came.get(timeout=10) == [event]


def test_a_batch_that_fails_costs_each_of_its_events_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []

    def hear(consumer: str, *, event: Any, error: BaseException) -> None:
        told.append(event)

    events = numbered(5)
    with notices.consumer_failed.connected_to(hear):
        stats = run(BrokenConsumerOfBatches, events, batch=Batch(max_events=100, max_wait=3600.0))

    assert (stats.handled, stats.failed) == (0, 5)
    assert told == [events]
    assert (
        "consumer 'store' raised on 5 events, JobFinished shop.charge[0] the first; "
        "these are lost, the consumer goes on" in caplog.text
    )


class BrokenConsumerOfBatches(Consumer):
    def handle(self, event: Any) -> None:
        raise OSError("no")


def test_another_try_is_of_the_whole_batch() -> None:
    tries: list[list[JobEvent]] = []

    def handle(events: list[JobEvent]) -> None:
        tries.append(events)
        if len(tries) < 3:
            raise OSError("no")

    events = numbered(4)
    stats = run(
        handle,
        events,
        batch=Batch(max_events=4, max_wait=3600.0),
        retry=Retry(attempts=3, wait=0.0),
    )

    assert tries == [events, events, events]
    assert stats.handled == 4


def test_several_threads_get_batches_of_their_own_at_once() -> None:
    meeting = threading.Barrier(2, timeout=10)
    came: list[list[JobEvent]] = []

    def handle(events: list[JobEvent]) -> None:
        meeting.wait()
        came.append(events)

    events = numbered(6)
    stats = run(handle, events, concurrency=2, batch=Batch(max_events=3, max_wait=3600.0))

    assert stats.handled == 6
    assert sorted(came, key=lambda batch: batch[0].task_id) == [events[:3], events[3:]]


@pytest.mark.parametrize(
    ("overflow", "second"), [("drop_oldest", ["7", "8", "9"]), ("drop_newest", ["2", "3", "4"])]
)
def test_a_mailbox_drops_by_its_policy_while_a_batch_is_handled(
    overflow: str, second: list[str]
) -> None:
    came: list[list[str]] = []
    at_work, free = threading.Event(), threading.Event()

    def handle(events: list[JobEvent]) -> None:
        came.append([event.task_id for event in events])
        at_work.set()
        free.wait(10)

    with working(
        handle,
        numbered(2),
        batch=Batch(max_events=2, max_wait=3600.0),
        mailbox_size=3,
        overflow=overflow,
    ) as crew:
        at_work.wait(10)
        deliver(crew.mailbox, numbered(10)[2:])
        free.set()
        stats = run_out(crew)

    assert came == [["0", "1"], second[:2], second[2:]]
    assert stats.dropped == {MAILBOX_FULL: 5}


def test_a_batch_that_is_abandoned_while_it_is_collected_is_never_handled() -> None:
    came: list[object] = []
    with working(came.append, numbered(3), batch=Batch(max_events=9, max_wait=3600.0)) as crew:
        wait_until(lambda: not crew.mailbox._waiting)

        assert crew.abandon(DRAIN_TIMEOUT) == 3

        crew.finish(time.monotonic() + 10)
        assert came == []
        assert crew.mailbox.stats().dropped == {DRAIN_TIMEOUT: 3}


def test_a_selector_that_exits_costs_a_batch_only_the_event_it_was_asked_about() -> None:
    exits = iter([True])
    came: list[str] = []

    def select(event: JobEvent) -> bool:
        if event.task_id == "2" and next(exits, False):
            sys.exit(3)
        return True

    stats = run(
        lambda events: came.extend(event.task_id for event in events),
        numbered(6),
        batch=Batch(max_events=6, max_wait=3600.0),
        selector=select,
    )

    assert came == ["0", "1", "3", "4", "5"]
    assert (stats.handled, stats.failed) == (5, 1)


# Keys.


def by_customer(event: JobEvent) -> str:
    return event.task_name


def of_customers(*names: str) -> list[JobEvent]:
    return [make_event(JobFinished, name, task_id=str(n)) for n, name in enumerate(names)]


@settings(max_examples=20)
@given(customers=st.lists(st.sampled_from("abcde"), max_size=60), concurrency=st.integers(2, 5))
def test_events_of_a_key_stay_in_order_whatever_the_others_do(
    customers: list[str], concurrency: int
) -> None:
    came: dict[str, list[str]] = defaultdict(list)
    at_work: Counter[str] = Counter()
    overlaps: list[str] = []

    def handle(event: JobEvent) -> None:
        at_work[event.task_name] += 1
        if at_work[event.task_name] > 1:
            overlaps.append(event.task_id)
        came[event.task_name].append(event.task_id)
        at_work[event.task_name] -= 1

    events = of_customers(*customers)
    stats = run(handle, events, concurrency=concurrency, partition_by=by_customer)

    assert overlaps == []
    assert stats.handled == len(events)
    assert all(ids == sorted(ids, key=int) for ids in came.values())


def test_other_keys_go_on_while_one_is_stuck() -> None:
    free = threading.Event()
    came: queue.SimpleQueue[str] = queue.SimpleQueue()

    def handle(event: JobEvent) -> None:
        if event.task_id == "0":
            free.wait(10)
        came.put(event.task_name + event.task_id)

    with working(
        handle, of_customers(*"aababcaa"), concurrency=2, partition_by=by_customer
    ) as crew:
        assert [came.get(timeout=10) for _ in range(3)] == ["b2", "b4", "c5"]
        wait_until(lambda: crew.mailbox.stats().pending == 5)
        free.set()
        run_out(crew)

    assert [came.get(timeout=10) for _ in range(5)] == ["a0", "a1", "a3", "a6", "a7"]


def test_a_mailbox_keeps_its_bound_while_a_key_is_stuck_and_goes_on_afterwards() -> None:
    stuck, free = threading.Event(), threading.Event()
    came: list[str] = []

    def handle(event: JobEvent) -> None:
        stuck.set()
        free.wait(10)
        came.append(event.task_id)

    with working(handle, concurrency=2, partition_by=by_customer, mailbox_size=3) as crew:
        events = of_customers(*"a" * 20)
        deliver(crew.mailbox, events[:1])
        stuck.wait(10)
        for event in events[1:]:
            deliver(crew.mailbox, [event])
            wait_until(lambda: not crew.mailbox._waiting)
        assert crew.mailbox.stats().pending == 4
        assert crew.mailbox.stats().dropped == {MAILBOX_FULL: 16}
        free.set()
        run_out(crew)

    assert came == ["0", "1", "2", "3"]


def test_a_crash_keeps_the_order_of_its_key_and_costs_one_event() -> None:
    came: list[str] = []
    crashes = iter([True])
    others_are_done = threading.Event()

    def handle(event: JobEvent) -> None:
        if event.task_id == "1" and next(crashes, False):
            others_are_done.wait(10)
            raise SystemExit(3)
        came.append(event.task_name + event.task_id)
        if event.task_id == "6":
            others_are_done.set()

    stats = run(handle, of_customers(*"aaabbabaaa"), concurrency=2, partition_by=by_customer)

    assert [each for each in came if each[0] == "a"] == ["a0", "a2", "a5", "a7", "a8", "a9"]
    assert (stats.handled, stats.failed) == (9, 1)


def test_a_key_function_that_raises_fails_that_event_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()

    def key(event: JobEvent) -> object:
        return {"0": "a", "1": [], "3": "b"}[event.task_id]

    stats = run(recorder.handle, numbered(4), concurrency=2, partition_by=key)

    assert sorted(recorder.task_ids) == ["0", "3"]
    assert (stats.handled, stats.failed) == (2, 2)
    assert "consumer 'store' raised on JobFinished shop.charge[1]; this event is lost" in (
        caplog.text
    )


def test_what_waits_behind_a_key_is_dropped_when_the_consumer_is_cancelled() -> None:
    stuck, free = threading.Event(), threading.Event()
    came: list[str] = []

    def handle(event: JobEvent) -> None:
        stuck.set()
        free.wait(10)
        came.append(event.task_id)

    with working(handle, of_customers(*"aaab"), concurrency=2, partition_by=by_customer) as crew:
        stuck.wait(10)
        wait_until(lambda: not crew.mailbox._waiting)

        crew.cancel()
        free.set()

        crew.finish(time.monotonic() + 10)
        assert sorted(came) == ["0", "3"]
        stats = crew.mailbox.stats()
        assert (stats.handled, stats.dropped, stats.pending) == (2, {CANCELLED: 2}, 0)


# Another try.


def test_a_consumer_waits_between_its_tries_and_its_events_are_pending_meanwhile() -> None:
    tried = threading.Event()

    def handle(event: JobEvent) -> None:
        tried.set()
        raise OSError("no")

    with working(handle, numbered(3), retry=Retry(attempts=2, wait=3600.0)) as crew:
        tried.wait(10)
        assert crew.mailbox.stats().pending == 3
        assert crew.mailbox.stats().failed == 0


def test_a_stop_wakes_the_pause_and_the_tries_that_are_left_follow_each_other() -> None:
    tries: list[str] = []
    tried = threading.Event()

    def handle(event: JobEvent) -> None:
        tries.append(event.task_id)
        tried.set()
        raise OSError("no")

    with working(handle, numbered(2), retry=Retry(attempts=3, wait=3600.0)) as crew:
        tried.wait(10)
        stats = run_out(crew)

    assert tries == ["0", "0", "0", "1", "1", "1"]
    assert stats.failed == 2


def test_an_event_that_fails_after_several_tries_is_said_noticed_and_counted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    def hear(consumer: str, *, event: JobEvent, error: BaseException) -> None:
        told.append(str(error))

    errors = iter(["first", "second", "third"])

    def handle(event: JobEvent) -> None:
        raise OSError(next(errors))

    with notices.consumer_failed.connected_to(hear):
        stats = run(handle, numbered(1), retry=Retry(attempts=3, wait=0.0))

    assert told == ["third"]
    assert stats.failed == 1
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "is lost" in line] == [
        (
            "consumer 'store' raised on JobFinished shop.charge[0]; "
            "this event is lost, the consumer goes on"
        )
    ]
    assert [line for line in said if "is called again" in line] == [
        (
            "consumer 'store' raised OSError on JobFinished shop.charge[0], the first time; "
            "it is called again in 0.0 s"
        )
    ]


def test_an_abandoned_consumer_tries_nothing_again() -> None:
    tries: list[str] = []
    tried = threading.Event()

    def handle(event: JobEvent) -> None:
        tries.append(event.task_id)
        tried.set()
        raise OSError("no")

    with working(handle, numbered(2), retry=Retry(attempts=5, wait=3600.0)) as crew:
        tried.wait(10)

        assert crew.abandon(DRAIN_TIMEOUT) == 2

        crew.finish(time.monotonic() + 10)
        assert tries == ["0"]
        stats = crew.mailbox.stats()
        assert (stats.failed, stats.dropped) == (0, {DRAIN_TIMEOUT: 2})


# Not too fast.


class Tokens:
    """In place of a rate limit: gives what it is told to, and says an hour otherwise."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.asked_in_vain = threading.Event()
        self._lock = threading.Lock()

    def take(self) -> float:
        with self._lock:
            if not self.left:
                self.asked_in_vain.set()
                return 3600.0
            self.left -= 1
            return 0.0


def crew_with_tokens(tokens: int, consumer: Any, count: int, **options: Any) -> tuple[Crew, Tokens]:
    crew = new_crew(consumer, numbered(count), rate_limit="1/h", **options)
    limit = Tokens(tokens)
    crew._station.rate_limit = limit  # type: ignore[assignment]
    crew.start()
    return crew, limit


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_call_takes_a_token_which_the_threads_share_and_an_abandon_wakes_who_waits(
    concurrency: int,
) -> None:
    recorder = Recorder()
    crew, limit = crew_with_tokens(4, recorder.handle, 9, concurrency=concurrency)

    recorder.wait_for(4)
    limit.asked_in_vain.wait(10)
    crew.stop()
    assert crew.abandon(DRAIN_TIMEOUT) == 5
    crew.finish(time.monotonic() + 10)

    assert len(recorder.events) == 4
    assert crew.has_ended()


def test_a_crew_of_many_threads_gives_up_once(caplog: pytest.LogCaptureFixture) -> None:
    class NeverReady(Consumer):
        def setup(self) -> None:
            raise ConnectionError("never")

        def handle(self, event: JobEvent) -> None: ...

    gave_up: list[str] = []

    def hear(consumer: str, *, error: BaseException) -> None:
        gave_up.append(consumer)

    with notices.consumer_gave_up.connected_to(hear):
        crew = new_crew(NeverReady, numbered(3), concurrency=4, restart=Restart("temporary"))
        crew.start()
        assert crew.finish(time.monotonic() + 10)

    assert gave_up == ["store"]
    assert crew.mailbox.stats().dropped == {GAVE_UP: 3}
    assert len([record for record in caplog.records if "gave up" in record.getMessage()]) == 1


def test_a_crew_that_is_cancelled_in_its_start_does_not_begin() -> None:
    recorder = Recorder()
    crew = Crew(subscribe(recorder, "store"), Mailbox(size=None))
    crew.subscription.switch.cancel()

    crew.start()

    assert crew.finish(time.monotonic() + 10)
    assert recorder.lives == []


released = threading.Event()


async def handle_never(event: JobEvent) -> None:
    raise AssertionError


@pytest.mark.parametrize("consumer", [BrokenConsumerOfBatches, handle_never])
def test_a_cancel_does_not_wait_for_a_token(consumer: Any) -> None:
    crew, limit = crew_with_tokens(0, consumer, 3)
    limit.asked_in_vain.wait(10)

    crew.cancel()

    assert crew.finish(time.monotonic() + 10)
    assert crew.mailbox.stats().dropped == {CANCELLED: 3}
    assert crew.mailbox.stats().pending == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"selector": lambda _: released.wait(10)}, "its selector"),
        (
            {"partition_by": lambda _: released.wait(10), "concurrency": 2},
            "its partition_by",
        ),
    ],
    ids=["selector", "partition_by"],
)
def test_what_is_asked_about_an_event_can_hang_too(
    options: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    released.clear()
    crew = new_crew(lambda _: None, numbered(1), stuck_after=0.01, **options)
    crew.start()
    wait_until(lambda: crew.look(time.monotonic()) is not None and bool(caplog.records))
    released.set()

    assert run_out(crew).pending == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"at {what}, asked about JobFinished shop.charge[0] for " in line
    assert "released.wait(10)" in line


def test_an_event_that_is_declined_takes_no_token() -> None:
    recorder = Recorder()
    crew, limit = crew_with_tokens(
        2, recorder.handle, 9, selector=lambda event: event.task_id in {"3", "8"}
    )

    assert run_out(crew).declined == 7
    assert recorder.task_ids == ["3", "8"]
    assert limit.left == 0


def test_a_batch_takes_one_token() -> None:
    crew, limit = crew_with_tokens(2, lambda _: None, 6, batch=Batch(max_events=3, max_wait=3600.0))

    assert run_out(crew).handled == 6
    assert limit.left == 0


def test_every_try_takes_a_token() -> None:
    crew, limit = crew_with_tokens(6, BrokenConsumerOfBatches, 2, retry=Retry(attempts=3, wait=0.0))

    assert run_out(crew).failed == 2
    assert limit.left == 0


def test_a_real_limit_spaces_the_calls() -> None:
    called_at: list[float] = []

    run(lambda _: called_at.append(time.monotonic()), numbered(5), rate_limit="200/s")

    assert called_at[-1] - called_at[0] > 4 * 0.005 * 0.9


# Told when it hangs.


def test_a_call_is_known_while_it_goes_on_and_no_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at_work, free = threading.Event(), threading.Event()
    told: list[tuple[object, float, str]] = []

    def hear(consumer: str, *, event: object, seconds: float, stack: str) -> None:
        told.append((event, seconds, stack))

    def hangs(event: JobEvent) -> None:
        at_work.set()
        free.wait(10)

    (event,) = numbered(1)
    with (
        notices.consumer_stuck.connected_to(hear),
        working(hangs, [event], stuck_after=100.0) as crew,
    ):
        at_work.wait(10)
        now = time.monotonic()
        assert 99.0 < (crew.look(now) or 0.0) <= 100.0
        assert told == []

        for later in (200.0, 300.0):
            crew.look(now + later)
        free.set()
        run_out(crew)
        assert crew.look(now + 400.0) is None

    ((told_event, seconds, stack),) = told
    assert told_event is event
    assert seconds >= 199.0
    assert "free.wait(10)" in stack
    lines = [record.getMessage() for record in caplog.records if "has been at" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith(
        "consumer 'store' has been at JobFinished shop.charge[0] for 200.0 s; it goes on. "
        "Just now it is here:\n"
    )
    assert lines[0].endswith(stack.rstrip())


@pytest.mark.parametrize("method", ["setup", "teardown"])
def test_a_setup_or_a_teardown_that_hangs_is_said_too(
    caplog: pytest.LogCaptureFixture, method: str
) -> None:
    at_work, free = threading.Event(), threading.Event()

    class Hangs(Consumer):
        def setup(self) -> None:
            self._hang("setup")

        def handle(self, event: JobEvent) -> None: ...

        def teardown(self) -> None:
            self._hang("teardown")

        def _hang(self, where: str) -> None:
            if where == method:
                at_work.set()
                free.wait(10)

    with working(Hangs, numbered(1), stuck_after=100.0) as crew:
        if method == "teardown":
            crew.stop()
        at_work.wait(10)
        crew.look(time.monotonic() + 200.0)
        free.set()

    assert f"consumer 'store' has been at its {method} for " in caplog.text


def test_each_try_is_a_call_of_its_own_and_the_pause_between_them_is_none() -> None:
    told: list[str] = []

    def hear(consumer: str, *, event: object, seconds: float, stack: str) -> None:
        told.append(stack)

    tried = threading.Event()

    def handle(event: JobEvent) -> None:
        raise OSError("no")

    with (
        notices.consumer_stuck.connected_to(hear),
        working(
            handle, numbered(1), stuck_after=100.0, retry=Retry(attempts=2, wait=an_hour(tried))
        ) as crew,
    ):
        tried.wait(10)
        wait_until(lambda: crew._station.calls is not None and not crew._station.calls._going_on)
        crew.look(time.monotonic() + 200.0)

    assert told == []


def an_hour(asked: threading.Event) -> Callable[[Any], float]:
    def wait(_: Any) -> float:
        asked.set()
        return 3600.0

    return wait


# The log of the process is its own affair.


class BrokenLog(logging.Handler):
    """Raises on every line, as home-made handlers do."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(record.getMessage())


@pytest.fixture
def broken_log() -> Iterator[None]:
    log, handler = logging.getLogger("celery_broadcast"), BrokenLog()
    log.addHandler(handler)
    yield
    log.removeHandler(handler)


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("crashes_in", ["setup", "handle"])
def test_a_log_that_raises_does_not_end_a_consumer_that_crashes(crashes_in: str) -> None:
    class CrashesOnce(Recorder):
        def setup(self) -> None:
            super().setup()
            if crashes_in == "setup" and len(self.lives) == 1:
                raise SystemExit

        def handle(self, event: JobEvent) -> None:
            super().handle(event)
            if crashes_in == "handle" and len(self.events) == 1:
                raise SystemExit

    recorder = CrashesOnce()
    crew = crew_of(recorder, *numbered(3))

    run_to_the_end(crew)

    assert recorder.task_ids == ["0", "1", "2"]


@pytest.mark.usefixtures("broken_log")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_consumer_that_a_log_does_not_let_say_its_end_has_ended() -> None:
    crew = new_crew(BrokenConsumer(SystemExit(1)).handle, numbered(3), restart=Restart("temporary"))
    crew.start()

    assert all(thread.wait_for_end(time.monotonic() + 10.0) for thread in crew._threads)

    assert crew.mailbox.stats().dropped == {GAVE_UP: 2}
