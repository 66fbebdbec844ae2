"""Events delivered per second in a burst, beside what one would take instead.

One thread publishes the events as fast as it can; each of the handlers gets
every event, and all do the same: they count it. The time runs from the first
event until the last handler has the last one. All threads are there before.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.peers import BROADCAST, MOST_EVENTS, OUTLETS, Handler, Outlet
from celery_broadcast.events import JobEvent, JobFinished, JobStarted

WARM_UP_EVENTS = 8

#: How many turns a round has, by the number of consumers: with few of them,
#: a turn is over in milliseconds.
TURNS = {1: 8, 4: 3, 16: 2, 64: 1}

#: These need tens of microseconds for each delivery, and get smaller bursts.
SLOW = ("ThreadPoolExecutor", "pyee", "reactivex")
SLOW_EVENTS = {1: 1024, 4: 512, 16: 256, 64: 128}


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    comparisons = []
    for consumers, turns in TURNS.items():
        measured = measure_in_turn(
            {
                _named(name, consumers): partial(
                    thousands_per_second,
                    make_outlet,
                    consumers,
                    events_of_job(SLOW_EVENTS[consumers] if name in SLOW else MOST_EVENTS),
                )
                for name, make_outlet in OUTLETS.items()
            },
            unit="1,000/s",
            rounds=rounds,
            turns=turns,
        )
        comparisons += [
            measured.compare(_named(BROADCAST, consumers), _named(peer, consumers), at_least=0.95)
            for peer in OUTLETS
            if peer != BROADCAST
        ]
    return comparisons


def _named(outlet: str, consumers: int) -> str:
    return f"{outlet}, {consumers} consumer{'s'[: consumers > 1]}"


def events_of_job(count: int) -> list[JobEvent]:
    """Make the starts and ends of jobs in turn, as a worker does."""
    events: list[JobEvent] = []
    for number in range((count + 1) // 2):
        told: Any = {"task_id": f"job-{number}", "task_name": "benchmark.noop"}
        events += [JobStarted(**told), JobFinished(**told, ended_at=0.0, runtime=0.0)]
    return events[:count]


class Counter:
    """Counts what its handler gets, on whatever threads.

    Attributes:
        handle: the handler.
        is_warm: set when it has had the first few.
        has_all: set when it has had the expected number.
    """

    def __init__(self, expected: int) -> None:
        self.is_warm = threading.Event()
        self.has_all = threading.Event()
        milestones = {WARM_UP_EVENTS: self.is_warm, expected: self.has_all}
        self._next_number = next_number = itertools.count(1).__next__  # atomic

        def handle(_: object) -> None:
            if (number := next_number()) in milestones:
                milestones[number].set()

        self.handle: Handler = handle

    def had(self) -> int:
        """Return how many it got; to be asked once, at the end."""
        return self._next_number() - 1


def thousands_per_second(
    make_outlet: Callable[[Sequence[Handler]], Outlet],
    consumers: int,
    events: Sequence[JobEvent],
    deadline_seconds: float = 60.0,
) -> float:
    """Deliver each of the events to each of so many handlers; return thousands per second.

    Raises:
        RuntimeError: a handler didn't get each event once.
    """
    expected = WARM_UP_EVENTS + len(events)
    counters = [Counter(expected) for _ in range(consumers)]
    outlet = make_outlet([counter.handle for counter in counters])
    warm_ups = [outlet.wrap(event) for event in events_of_job(WARM_UP_EVENTS)]
    to_publish = [outlet.wrap(event) for event in events]
    are_warm = [counter.is_warm for counter in counters]
    _publish(outlet, warm_ups, are_warm, deadline_seconds)
    gc.collect()
    have_all = [counter.has_all for counter in counters]
    seconds = _publish(outlet, to_publish, have_all, deadline_seconds)
    outlet.stop()
    if strays := [had for counter in counters if (had := counter.had()) != expected]:
        message = f"{len(strays)} of {consumers} handlers got {strays[0]} events, not {expected}."
        raise RuntimeError(message)
    return consumers * len(events) / seconds / 1000


def _publish(
    outlet: Outlet,
    to_publish: Sequence[object],
    are_there: Sequence[threading.Event],
    deadline_seconds: float,
) -> float:
    """Publish some, and return the seconds until they are there.

    Raises:
        RuntimeError: they aren't there in time.
    """
    publish = outlet.publish
    start = time.perf_counter()
    for each in to_publish:
        publish(each)
    outlet.flush()
    for is_there in are_there:
        if not is_there.wait(deadline_seconds):
            message = f"A handler did not get all of {len(to_publish)} events in time."
            raise RuntimeError(message)
    return time.perf_counter() - start
