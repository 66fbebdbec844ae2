"""How long calls took: the buckets, and the calls of real consumers."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from nodes.deadline import wait_until
from recorder import Recorder, numbered

import celery_broadcast
from celery_broadcast import Batch, ConsumerStats, Event, JobFinished, Restart
from celery_broadcast.counts import Counts
from celery_broadcast.durations import BOUNDS, BUCKETS, Durations, bucket_of

pytestmark = pytest.mark.usefixtures("broadcast_is_on")


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [(0, 0), (1_000_000, 0), (1_000_001, 1), (60_000_000_000, 9), (60_000_000_001, 10)],
)
def test_a_call_is_in_the_bucket_whose_bound_it_does_not_pass(
    nanoseconds: int, bucket: int
) -> None:
    assert bucket_of(nanoseconds) == bucket
    assert len(BOUNDS) + 1 == BUCKETS


def test_durations_add_up() -> None:
    once = Durations(buckets=(1, 2, *[0] * 8, 3), seconds=0.5)

    assert (once + once).buckets == (2, 4, *[0] * 8, 6)
    assert (once + once).seconds == 1.0
    assert once.count == 6
    assert Durations().count == 0


def test_a_row_of_calls_counts_one_of_them_as_slow() -> None:
    counts = Counts()

    counts.add_calls(2_000_000, others=3)

    assert counts.stats().durations == Durations(buckets=(3, 1, *[0] * 9), seconds=0.002)


# Of real consumers.


def publish(count: int) -> None:
    for event in numbered(count):
        celery_broadcast.notify(event)


def drained(name: str = "store") -> ConsumerStats:
    celery_broadcast.drain()
    return celery_broadcast.stats()[name]


def test_every_call_of_a_plain_consumer_is_timed() -> None:
    celery_broadcast.subscribe(Recorder().handle, name="store")
    publish(1_000)

    durations = drained().durations

    assert durations.count == 1_000
    assert durations.seconds > 0


def test_a_slow_call_is_in_its_bucket_and_the_quick_ones_before_it_are_not() -> None:
    napping = threading.Event()

    def store(event: Event) -> None:
        if isinstance(event, JobFinished) and event.task_id == "5":
            napping.wait(0.02)

    celery_broadcast.subscribe(store, name="store")
    publish(10)

    durations = drained().durations

    assert durations.count == 10
    assert durations.seconds >= 0.02
    assert sum(durations.buckets[3:]) >= 1


@pytest.mark.parametrize("failing", [Exception("no money"), SystemExit(3)], ids=["error", "crash"])
def test_a_call_that_raises_is_timed_too(failing: BaseException) -> None:
    def store(event: Event) -> None:
        if isinstance(event, JobFinished) and event.task_id == "2":
            raise failing

    celery_broadcast.subscribe(store, name="store", restart=Restart(within=0.1))
    publish(5)
    wait_until(lambda: celery_broadcast.stats()["store"].pending == 0)

    stats = drained()

    assert (stats.handled, stats.failed, stats.durations.count) == (4, 1, 5)


def test_a_batch_is_one_call() -> None:
    celery_broadcast.subscribe(
        lambda events: None, name="store", batch=Batch(max_events=10, max_wait=60.0)
    )
    publish(30)

    assert drained().durations.count == 3


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 3}, {"selector": lambda event: True}, {"stuck_after": 60.0}],
    ids=["threads", "selector", "stuck_after"],
)
def test_calls_are_timed_one_by_one_where_there_is_more_to_do(options: dict[str, Any]) -> None:
    celery_broadcast.subscribe(Recorder().handle, name="store", **options)
    publish(20)

    assert drained().durations.count == 20


def test_the_calls_of_coroutines_are_timed_while_they_wait() -> None:
    async def store(_: Event) -> None:
        await asyncio.sleep(0.01)

    celery_broadcast.subscribe(store, name="store", concurrency=5)
    publish(5)

    durations = drained().durations

    assert durations.count == 5
    assert durations.seconds >= 0.05
