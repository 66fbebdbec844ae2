from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from crews import declared, deliver, new_crew, run, run_out, working
from nodes.deadline import wait_until
from recorder import make_event, numbered, subscribe
from test_fork import in_child

import celery_broadcast
from celery_broadcast import Event, JobEvent, JobFinished, async_life, notices, on_job_event
from celery_broadcast.async_life import AsyncLife
from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, GAVE_UP
from celery_broadcast.dispatcher import Item, delivery_of
from celery_broadcast.errors import BroadcastError
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.producer import Producer
from celery_broadcast.restarts import Restart
from celery_broadcast.retry import Retry
from celery_broadcast.station import Station, hands
from celery_broadcast.waiting import call_on_loop

MakeProducer = Callable[..., Producer]


async def until(fact: Callable[[], bool]) -> None:
    """Let the event loop go on until the fact is true, on whatever thread it becomes so."""
    while not fact():  # noqa: ASYNC110  # an event of asyncio is for its own thread
        await asyncio.sleep(0.001)


class Gate:
    """Coroutines of a consumer come here and wait until the test opens it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most_waiting = 0
        self.cancelled: list[str] = []
        self.left: list[str] = []
        self._opened = threading.Event()

    async def handle(self, event: JobEvent) -> None:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        try:
            await until(self._opened.is_set)
        except asyncio.CancelledError:
            self.cancelled.append(event.task_id)
            raise
        finally:
            self.waiting -= 1
            self.left.append(event.task_id)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: self.waiting == count)

    def open(self) -> None:
        self._opened.set()


# What a consumer can be.


def test_a_coroutine_function_is_a_consumer() -> None:
    came: list[str] = []

    async def handle(event: JobEvent) -> None:
        await asyncio.sleep(0)
        came.append(event.task_id)

    assert run(handle, numbered(3)).handled == 3
    assert came == ["0", "1", "2"]


def test_a_class_may_have_coroutines_for_all_its_methods() -> None:
    lives: list[str] = []

    class Webhook(Consumer):
        async def setup(self) -> None:
            await asyncio.sleep(0)
            lives.append("setup")

        async def handle(self, event: JobEvent) -> None:
            await asyncio.sleep(0)
            lives.append(event.task_id)

        async def teardown(self) -> None:
            await asyncio.sleep(0)
            lives.append("teardown")

    run(Webhook, numbered(2))

    assert lives == ["setup", "0", "1", "teardown"]


def test_setup_and_teardown_may_be_plain_and_run_where_the_event_loop_is() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    class Webhook(Consumer):
        def setup(self) -> None:
            loops.append(asyncio.get_running_loop())

        async def handle(self, event: JobEvent) -> None:
            loops.append(asyncio.get_running_loop())

        def teardown(self) -> None:
            loops.append(asyncio.get_running_loop())

    run(Webhook, numbered(1))

    first, *others = loops
    assert others == [first, first]
    assert first.is_closed()


def test_a_setup_that_raises_is_tried_again_and_the_events_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[int] = []

    class ReadyAtLast(Consumer):
        async def setup(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise ConnectionError("not yet")

        async def handle(self, event: JobEvent) -> None: ...

    assert run(ReadyAtLast, numbered(2)).handled == 2
    assert len(tries) == 2
    assert "consumer 'store' could not set up" in caplog.text


def test_a_setup_that_was_cancelled_by_its_own_code_is_a_crash_too() -> None:
    tries: list[int] = []

    class Impatient(Consumer):
        async def setup(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise asyncio.CancelledError

        async def handle(self, event: JobEvent) -> None: ...

    assert run(Impatient, numbered(1)).handled == 1
    assert len(tries) == 2


def test_a_teardown_that_raises_is_logged_and_hurts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class BadEnd(Consumer):
        async def handle(self, event: JobEvent) -> None: ...

        async def teardown(self) -> None:
            raise SystemExit("badly")

    assert run(BadEnd, numbered(1)).handled == 1
    assert "consumer 'store' could not tear down" in caplog.text


# How many at once, and in which order.


def test_concurrency_bounds_the_calls_in_flight() -> None:
    gate = Gate()

    with working(gate.handle, numbered(10), concurrency=4) as crew:
        gate.wait_for(4)
        gate.open()
        assert run_out(crew).handled == 10

    assert gate.most_waiting == 4


def test_one_at_a_time_they_are_in_order() -> None:
    came: list[str] = []

    async def handle(event: JobEvent) -> None:
        for _ in range(3 - len(came) % 3):
            await asyncio.sleep(0)
        came.append(event.task_id)

    run(handle, numbered(30))

    assert came == [str(number) for number in range(30)]


def test_coroutines_get_batches_too() -> None:
    came: list[list[str]] = []

    async def handle(events: list[JobEvent]) -> None:
        came.append([event.task_id for event in events])

    with working(handle, batch=Batch(max_events=3, max_wait=0.02)) as crew:
        deliver(crew.mailbox, numbered(4))
        wait_until(lambda: len(came) == 2)

    assert came == [["0", "1", "2"], ["3"]]


def by_customer(event: JobEvent) -> str:
    return event.task_name


def of_customers(*names: str) -> list[JobEvent]:
    return [make_event(JobFinished, name, task_id=str(n)) for n, name in enumerate(names)]


def test_events_of_a_key_stay_in_order_while_others_go_on() -> None:
    came: dict[str, list[int]] = defaultdict(list)
    at_work: set[str] = set()

    async def handle(event: JobEvent) -> None:
        assert event.task_name not in at_work
        at_work.add(event.task_name)
        for _ in range(int(event.task_id) % 4):
            await asyncio.sleep(0)
        came[event.task_name].append(int(event.task_id))
        at_work.remove(event.task_name)

    customers = [*"abcab" * 40]
    stats = run(handle, of_customers(*customers), concurrency=3, partition_by=by_customer)

    assert stats.handled == 200
    assert all(numbers == sorted(numbers) for numbers in came.values())


def test_a_crash_keeps_the_order_of_its_key_and_the_next_life_goes_on_with_it() -> None:
    came: list[tuple[str, int]] = []
    lives = 0

    class Crashes(Consumer):
        async def setup(self) -> None:
            nonlocal lives
            lives += 1

        async def handle(self, event: JobEvent) -> None:
            if event.task_id == "1":
                await asyncio.sleep(0.01)  # until those behind it are put aside
                raise SystemExit(3)
            came.append((event.task_name + event.task_id, lives))

    stats = run(Crashes, of_customers(*"bababaa"), concurrency=2, partition_by=by_customer)

    assert [each for each in came if each[0].startswith("a")] == [("a3", 2), ("a5", 2), ("a6", 2)]
    assert (stats.handled, stats.failed) == (6, 1)


def test_ten_thousand_events_in_a_burst_are_all_handled(make_producer: MakeProducer) -> None:
    came: list[str] = []

    async def handle(event: JobEvent) -> None:
        came.append(event.task_id)
        if len(came) % 100 == 0:
            await asyncio.sleep(0)

    producer = make_producer(subscribe(handle, "store", mailbox_size=None))
    events = numbered(10_000)
    for event in events:
        producer.notify(event)
    producer.drain()

    assert came == [event.task_id for event in events]


def test_a_pause_holds_coroutines_too_and_a_resume_wakes_them() -> None:
    came: list[str] = []

    async def handle(event: JobEvent) -> None:
        came.append(event.task_id)

    with working(handle) as crew:
        crew.subscription.pause()
        deliver(crew.mailbox, numbered(3))
        assert crew.mailbox.stats().pending == 3

        crew.subscription.resume()

        wait_until(lambda: len(came) == 3)


def test_a_pause_holds_coroutines_for_what_waits_behind_a_key_too() -> None:
    came: list[str] = []
    has_passed_on = threading.Event()

    async def handle(event: JobEvent) -> None:
        came.append(event.task_id)
        if event.task_id == "0":
            await until(lambda: crew.mailbox._aside == 2)
            crew.subscription.pause()
            asyncio.get_running_loop().call_soon(has_passed_on.set)

    with working(handle, concurrency=2, partition_by=lambda _: "one for all") as crew:
        deliver(crew.mailbox, numbered(3))
        assert has_passed_on.wait(10)
        assert came == ["0"]

        crew.subscription.resume()

        wait_until(lambda: len(came) == 3)
        assert came == ["0", "1", "2"]


# What goes wrong.


def test_what_a_coroutine_raises_fails_that_event_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(event: JobEvent) -> None:
        if event.task_id == "1":
            raise OSError("no route")

    stats = run(handle, numbered(3), concurrency=2)

    assert (stats.handled, stats.failed) == (2, 1)
    assert "consumer 'store' raised on JobFinished shop.charge[1]; this event is lost" in (
        caplog.text
    )


def test_a_coroutine_that_is_cancelled_by_its_own_code_fails_that_event_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lives: list[str] = []

    class Impatient(Consumer):
        async def setup(self) -> None:
            lives.append("setup")

        async def handle(self, event: JobEvent) -> None:
            if event.task_id == "0":
                raise asyncio.CancelledError
            if event.task_id == "1":
                cancelled = asyncio.get_running_loop().create_future()
                cancelled.cancel()
                await cancelled

    stats = run(Impatient, numbered(4))

    assert (stats.handled, stats.failed) == (2, 2)
    assert lives == ["setup"]
    assert "this event is lost, the consumer goes on" in caplog.text


def test_an_exit_restarts_the_consumer_once_the_others_in_flight_have_ended() -> None:
    lives: list[str] = []
    gate = Gate()

    class Exits(Consumer):
        async def setup(self) -> None:
            lives.append("setup")

        async def handle(self, event: JobEvent) -> None:
            if event.task_id == "2":
                await until(lambda: gate.waiting == 2)
                raise SystemExit(3)
            await gate.handle(event)

        async def teardown(self) -> None:
            lives.append(f"teardown after {sorted(gate.left)}")

    with working(Exits, numbered(5), concurrency=3) as crew:
        wait_until(lambda: crew.mailbox.stats().failed == 1)
        gate.open()
        stats = run_out(crew)

    assert lives[:3] == ["setup", "teardown after ['0', '1']", "setup"]
    assert gate.cancelled == []
    assert (stats.handled, stats.failed) == (4, 1)


def test_an_exit_is_said_at_once_and_a_call_that_hangs_is_cancelled_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_life, "_SECONDS_AFTER_CRASH", 0.02)
    gate = Gate()
    came: list[str] = []
    cancelled: list[str] = []

    async def handle(event: JobEvent) -> None:
        came.append(event.task_id)
        if event.task_id == "0":
            try:
                await gate.handle(event)
            except asyncio.CancelledError:
                cancelled.append(caplog.text)
                raise OSError("connection lost") from None
        if event.task_id == "1":
            await until(lambda: gate.waiting == 1)
            raise SystemExit(3)

    retry = Retry(attempts=3, wait=3_600.0)
    with working(handle, numbered(3), concurrency=2, retry=retry) as crew:
        wait_until(lambda: crew.mailbox.stats().pending == 0)
        stats = run_out(crew)

    assert came == ["0", "1", "2"]
    assert (stats.handled, stats.failed) == (1, 2)
    (said_before,) = cancelled
    assert (
        "consumer 'store' crashed (SystemExit) with others in flight (1): they have 0.0 s to end"
    ) in said_before


@pytest.mark.parametrize("part", ["selector", "partition_by"])
def test_an_exit_of_another_part_leaves_those_in_flight_alone(part: str) -> None:
    gate = Gate()

    def exits(event: JobEvent) -> str:
        if event.task_id == "2":
            gate.open()
            sys.exit(3)
        return event.task_id

    options: dict[str, Any] = {part: exits}
    with working(gate.handle, numbered(2), concurrency=3, **options) as crew:
        gate.wait_for(2)
        deliver(crew.mailbox, numbered(4)[2:])
        stats = run_out(crew)

    assert gate.cancelled == []
    assert (stats.handled, stats.failed) == (3, 1)


def test_an_exit_of_a_task_of_the_consumers_own_is_a_crash_but_no_failed_setup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lives: list[str] = []

    async def die() -> None:
        sys.exit(3)

    class StartsTasks(Consumer):
        async def setup(self) -> None:
            lives.append("setup")

        async def handle(self, event: JobEvent) -> None:
            if event.task_id == "0":
                self.task = asyncio.create_task(die())
                await asyncio.sleep(60.0)

        async def teardown(self) -> None:
            lives.append("teardown")
            if hasattr(self, "task"):
                assert isinstance(self.task.exception(), SystemExit)

    stats = run(StartsTasks, numbered(2))

    assert lives == ["setup", "teardown", "setup", "teardown"]
    assert (stats.handled, stats.failed) == (1, 1)
    assert "consumer 'store' crashed (SystemExit)" in caplog.text
    assert "could not set up" not in caplog.text


def test_a_consumer_that_exits_too_often_is_given_up() -> None:
    async def handle(event: JobEvent) -> None:
        raise SystemExit(3)

    with working(handle, numbered(5), restart=Restart("temporary")) as crew:
        wait_until(lambda: crew.mailbox.stats().pending == 0)

        stats = crew.mailbox.stats()
        assert (stats.failed, stats.dropped) == (1, {GAVE_UP: 4})


# The end.


def test_at_the_deadline_of_a_drain_coroutines_are_cancelled_and_clean_up(
    make_producer: MakeProducer,
) -> None:
    lives: list[str] = []
    gate = Gate()

    class Slow(Consumer):
        async def handle(self, event: JobEvent) -> None:
            await gate.handle(event)

        async def teardown(self) -> None:
            await asyncio.sleep(0)
            lives.append("teardown")

    producer = make_producer(subscribe(Slow(), "store", concurrency=2))
    for event in numbered(5):
        producer.notify(event)
    gate.wait_for(2)

    drained = producer.drain(timeout_seconds=0.0)

    assert drained.left == 5
    wait_until(lambda: lives == ["teardown"])
    assert sorted(gate.cancelled) == sorted(gate.left) == ["0", "1"]
    stats = producer.stats()["store"]
    assert (stats.dropped, stats.failed, stats.pending) == ({DRAIN_TIMEOUT: 5}, 0, 0)


def test_after_the_deadline_nothing_is_begun_that_waited_behind_a_key() -> None:
    gate = Gate()
    asked: list[str] = []

    def select(event: JobEvent) -> bool:
        asked.append(event.task_id)
        return True

    with working(
        gate.handle,
        of_customers(*"aaaa"),
        concurrency=2,
        partition_by=by_customer,
        selector=select,
    ) as crew:
        gate.wait_for(1)
        wait_until(lambda: not crew.mailbox._waiting)

        assert crew.abandon(DRAIN_TIMEOUT) == 4

        crew.finish(time.monotonic() + 10)
        assert crew._threads[0].has_ended
        assert gate.left == ["0"]
        assert asked == ["0"]


def test_a_coroutine_that_makes_an_error_of_its_cancellation_is_not_tried_again() -> None:
    tries: list[str] = []
    at_work = threading.Event()

    async def handle(event: JobEvent) -> None:
        tries.append(event.task_id)
        at_work.set()
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            raise OSError("connection lost") from None

    with working(handle, numbered(2), retry=Retry(attempts=3, wait=0.0)) as crew:
        at_work.wait(10)
        crew.abandon(DRAIN_TIMEOUT)
        crew.finish(time.monotonic() + 10)
        assert crew._threads[0].has_ended

    assert tries == ["0"]


def test_a_teardown_is_not_cancelled_with_the_calls_however_often_the_end_is_asked_for() -> None:
    lives: list[str] = []
    tearing_down, free = threading.Event(), threading.Event()

    class SlowEnd(Consumer):
        async def handle(self, event: JobEvent) -> None:
            lives.append("handle")
            await asyncio.sleep(60.0)

        async def teardown(self) -> None:
            tearing_down.set()
            await until(free.is_set)
            lives.append("teardown")

    with working(SlowEnd, numbered(1)) as crew:
        wait_until(lambda: lives == ["handle"])
        crew.abandon(DRAIN_TIMEOUT)
        tearing_down.wait(10)
        crew.stop()
        crew.abandon(DRAIN_TIMEOUT)
        free.set()
        wait_until(lambda: crew._threads[0].has_ended)

    assert lives == ["handle", "teardown"]


def test_a_cancelled_consumer_ends_with_what_is_in_flight() -> None:
    gate = Gate()

    with working(gate.handle, numbered(5), concurrency=2) as crew:
        gate.wait_for(2)
        crew.cancel()
        gate.open()
        crew.finish(time.monotonic() + 10)

        assert sorted(gate.left) == ["0", "1"]
        stats = crew.mailbox.stats()
        assert (stats.handled, stats.dropped) == (2, {CANCELLED: 3})


def test_where_there_is_no_thread_the_deadline_cancels_and_leaves_the_rest_to_be_counted() -> None:
    gate = Gate()
    crew = new_crew(gate.handle, of_customers(*"aab"), concurrency=2, partition_by=by_customer)
    life = AsyncLife(crew._station)
    crew.stop()

    assert life.live(deadline=time.monotonic() + 0.05) is None

    assert sorted(gate.cancelled) == sorted(gate.left) == ["0", "2"]
    stats = crew.mailbox.stats()
    assert (stats.failed, stats.pending) == (0, 3)


# Tries, limits, and calls that hang.


def test_a_stop_wakes_the_pause_between_tries() -> None:
    tries: list[str] = []
    tried = threading.Event()

    async def handle(event: JobEvent) -> None:
        tries.append(event.task_id)
        tried.set()
        raise OSError("no")

    with working(handle, numbered(2), retry=Retry(attempts=3, wait=3600.0)) as crew:
        tried.wait(10)
        stats = run_out(crew)

    assert tries == ["0", "0", "0", "1", "1", "1"]
    assert stats.failed == 2


def test_other_calls_go_on_while_one_waits_for_its_next_try() -> None:
    came: list[str] = []
    tries: list[str] = []

    async def handle(event: JobEvent) -> None:
        if event.task_id == "0":
            tries.append(event.task_id)
            raise OSError("no")
        came.append(event.task_id)

    retry = Retry(attempts=2, wait=3600.0)
    with working(handle, numbered(5), concurrency=2, retry=retry):
        wait_until(lambda: came == ["1", "2", "3", "4"])
    assert tries == ["0"]


class Tokens:
    """In place of a rate limit: gives what it has, and says an hour otherwise."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.asked_in_vain = 0

    def take(self) -> float:
        if not self.left:
            self.asked_in_vain += 1
            return 3600.0
        self.left -= 1
        return 0.0


def test_coroutines_share_a_limit_and_the_deadline_wakes_who_waits_for_it() -> None:
    came: list[str] = []

    async def handle(event: JobEvent) -> None:
        came.append(event.task_id)

    crew = new_crew(handle, numbered(9), concurrency=3, rate_limit="1/h")
    tokens = Tokens(4)
    crew._station.rate_limit = tokens  # type: ignore[assignment]
    crew.start()
    wait_until(lambda: tokens.asked_in_vain == 3)

    assert crew.abandon(DRAIN_TIMEOUT) == 5

    crew.finish(time.monotonic() + 10)
    assert crew._threads[0].has_ended
    assert came == ["0", "1", "2", "3"]


def test_every_try_of_a_coroutine_takes_a_token() -> None:
    async def handle(event: JobEvent) -> None:
        raise OSError("no")

    crew = new_crew(handle, numbered(2), rate_limit="1/h", retry=Retry(attempts=3, wait=0.0))
    tokens = Tokens(6)
    crew._station.rate_limit = tokens  # type: ignore[assignment]
    crew.start()

    assert run_out(crew).failed == 2
    assert tokens.left == 0


async def wait_for_the_far_end(gate: Gate, event: JobEvent) -> None:
    await gate.handle(event)


def test_a_coroutine_that_hangs_is_shown_down_to_what_it_awaits() -> None:
    gate = Gate()
    stacks: list[str] = []

    def hear(consumer: str, *, event: object, seconds: float, stack: str) -> None:
        stacks.append(stack)

    async def handle(event: JobEvent) -> None:
        await wait_for_the_far_end(gate, event)

    with (
        notices.consumer_stuck.connected_to(hear),
        working(handle, numbered(2), concurrency=2, stuck_after=100.0) as crew,
    ):
        gate.wait_for(2)
        for _ in range(2):
            crew.look(time.monotonic() + 200.0)
        gate.open()
        run_out(crew)

    assert len(stacks) == 2
    for stack in stacks:
        places = [
            stack.index(part) for part in ("in handle", "in wait_for_the_far_end", "in until")
        ]
        assert places == sorted(places)


def test_a_coroutine_that_blocks_its_event_loop_is_shown_where_it_does() -> None:
    blocks, free = threading.Event(), threading.Event()
    stacks: list[str] = []

    def hear(consumer: str, *, event: object, seconds: float, stack: str) -> None:
        stacks.append(stack)

    async def handle(event: JobEvent) -> None:
        await asyncio.sleep(0)
        block()

    def block() -> None:
        blocks.set()
        free.wait(10)

    with (
        notices.consumer_stuck.connected_to(hear),
        working(handle, numbered(1), stuck_after=100.0) as crew,
    ):
        blocks.wait(10)
        crew.look(time.monotonic() + 200.0)
        free.set()
        run_out(crew)

    (stack,) = stacks
    assert "free.wait(10)" in stack


def test_a_setup_that_hangs_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    class Hangs(Consumer):
        async def setup(self) -> None:
            await gate.handle(numbered(1)[0])

        async def handle(self, event: JobEvent) -> None: ...

    with working(Hangs, numbered(1), stuck_after=100.0) as crew:
        gate.wait_for(1)
        crew.look(time.monotonic() + 200.0)
        gate.open()
        run_out(crew)

    assert "consumer 'store' has been at its setup for " in caplog.text
    assert "in handle" in caplog.text


# Whose hands they are.


def test_coroutines_know_in_whose_hands_they_run_each_for_itself() -> None:
    seen: dict[str, object] = {}
    gate = Gate()

    async def handle(event: JobEvent) -> None:
        await gate.handle(event)
        seen[event.task_id] = await asyncio.create_task(look())

    async def look() -> object:
        return hands.get()

    crew = new_crew(handle, concurrency=2)
    for event, origin in zip(numbered(2), ("one", "two"), strict=True):
        crew.mailbox.put(celery_broadcast.dispatcher.Delivery(event, frozenset({origin})))
    crew.start()
    gate.wait_for(2)
    gate.open()
    run_out(crew)

    assert seen == {"0": {"store", "one"}, "1": {"store", "two"}}


def test_a_job_that_a_coroutine_runs_is_not_broadcast_to_it(broadcasting_app: Celery) -> None:
    came: dict[str, list[str]] = defaultdict(list)

    @broadcasting_app.task(name="shop.charge")
    def charge() -> None: ...

    @broadcasting_app.task(name="shop.note")
    def note() -> None: ...

    @on_job_event(JobFinished)
    async def store(event: JobEvent) -> None:
        await asyncio.sleep(0)
        came["store"].append(event.task_name)
        note.delay()

    @on_job_event(JobFinished)
    async def trail(event: JobEvent) -> None:
        came["trail"].append(event.task_name)

    charge.delay()
    celery_broadcast.drain()

    assert came == {"store": ["shop.charge"], "trail": ["shop.charge", "shop.note"]}


def test_a_coroutine_cannot_drain_the_broadcast(make_producer: MakeProducer) -> None:
    errors: list[BaseException] = []

    async def handle(event: JobEvent) -> None:
        await asyncio.sleep(0)
        try:
            producer.drain()
        except BroadcastError as error:
            errors.append(error)

    producer = make_producer(subscribe(handle, "store"))
    producer.notify(make_event(JobFinished))
    wait_until(lambda: bool(errors))

    assert str(errors[0]) == (
        "The consumer store can't drain the broadcast: it would wait for itself."
    )


# The process around it.


def test_a_child_is_clean_while_a_loop_runs_and_the_loop_of_the_parent_goes_on(
    make_producer: MakeProducer,
) -> None:
    came: list[tuple[int, str]] = []

    async def handle(event: JobEvent) -> None:
        await asyncio.sleep(0.001)
        came.append((os.getpid(), event.task_id))

    producer = make_producer(subscribe(handle, "store"))
    producer.notify(make_event(JobFinished, task_id="before"))
    wait_until(lambda: len(came) == 1)

    def child() -> Any:
        came.clear()
        producer.notify(make_event(JobFinished, task_id="child"))
        producer.drain()
        gc.collect()
        return [task_id for pid, task_id in came if pid == os.getpid()]

    assert in_child(child) == ["child"]
    for event in numbered(3):
        producer.notify(event)
    wait_until(lambda: len(came) == 4)
    assert [task_id for _, task_id in came] == ["before", "0", "1", "2"]


def test_an_event_loop_that_is_closed_is_called_in_vain_and_without_harm() -> None:
    called: list[str] = []
    loop = asyncio.new_event_loop()
    loop.close()

    call_on_loop(loop, lambda: called.append("late"))

    assert called == []


def test_nothing_is_left_open_where_every_warning_is_an_error() -> None:
    program = """
import asyncio, gc
import celery_broadcast
from celery_broadcast import JobFinished, Event, Consumer, Retry
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import registry
from celery_broadcast.testing import make_event

class Webhook(Consumer):
    async def setup(self): await asyncio.sleep(0)
    async def handle(self, event):
        await asyncio.sleep(0)
        if event.task_id == "3": raise SystemExit(3)
        if event.task_id == "6": await asyncio.sleep(60)
    async def teardown(self): await asyncio.sleep(0)

celery_broadcast.subscribe(Webhook, name="store", concurrency=2, retry=Retry(wait=0.0))
producer = Producer(Settings(), registry)
for number in range(6):
    producer.notify(make_event(JobFinished, task_id=str(number)))
print(producer.drain().left)
producer.notify(make_event(JobFinished, task_id="6"))
print(producer.drain(0.05).left)
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == ["0", "1"], done.stderr
    assert "Warning" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_life_that_has_not_begun_can_be_over() -> None:
    crew = new_crew(Gate().handle, numbered(1))
    station: Station = crew._station
    station.abandon(DRAIN_TIMEOUT)

    assert AsyncLife(station).live() is None


def test_what_a_crash_was_about_is_forgotten_with_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)  # a record keeps it too

    class Watched(Event, frozen=True, weakref=True):
        pass

    async def handle(event: Event) -> None:
        raise SystemExit(3)

    mailbox: Mailbox[Item] = Mailbox(None)
    deliver(mailbox, [Watched()])
    alive = weakref.ref(delivery_of(mailbox._waiting[0]).event)
    life = AsyncLife(Station(declared(handle), mailbox))

    assert isinstance(life.live(), SystemExit)

    gc.collect()
    assert alive() is None
