"""The time from the publishing of an event to the start of its handler.

Idle: every thread has fallen asleep before the next event. Paced: there are a
thousand events a second. Beside it, the least there can be between two threads:
a queue, a thread that gets what is put there, and a call.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.burst import events_of_job
from benchmarks.measure import Comparison, measure_all_in_turn
from benchmarks.peers import Handler, Outlet, broadcast
from celery_broadcast.events import JobEvent

TURNS = 3
EVENTS = 300
WARM_UP_EVENTS = 10
IDLE_SECONDS = 0.002
PACE_SECONDS = 0.001
DEADLINE_SECONDS = 10.0

OURS = "the broadcast"
HOP = "a hop through a SimpleQueue"
PACES = ("idle", "1,000 events/s")
PERCENTILES = (50, 99)


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    measured = measure_all_in_turn(
        [
            partial(microseconds, name, make_outlet, pace)
            for pace in PACES
            for name, make_outlet in ((OURS, broadcast), (HOP, simple_queue))
        ],
        unit="µs",
        rounds=rounds,
        turns=TURNS,
    )
    return [
        measured.compare(named(OURS, pace, percent), named(HOP, pace, percent), at_most=2.0)
        for pace in PACES
        for percent in PERCENTILES
    ]


def named(outlet: str, pace: str, percent: int) -> str:
    """Return the name of a measurement."""
    return f"{outlet}, {pace}, p{percent}"


def simple_queue(handlers: Sequence[Handler]) -> Outlet:
    """Have a queue and a thread for the one handler."""
    (handler,) = handlers
    waiting: queue.SimpleQueue[JobEvent | None] = queue.SimpleQueue()

    def serve() -> None:
        while (event := waiting.get()) is not None:
            handler(event)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def stop() -> None:
        waiting.put(None)
        thread.join()

    return Outlet(waiting.put, stop)


def microseconds(
    name: str, make_outlet: Callable[[Sequence[Handler]], Outlet], pace: str
) -> Mapping[str, float]:
    """Publish some hundred events, and return the percentiles by the names of the measurements.

    Raises:
        RuntimeError: the handler didn't get all of them in time.
    """
    handled: list[float] = []
    has_all = threading.Event()
    total = WARM_UP_EVENTS + EVENTS

    def handle(_: object) -> None:
        handled.append(time.perf_counter())
        if len(handled) == total:
            has_all.set()

    outlet = make_outlet([handle])
    events = events_of_job(total)
    published = publish_idle(outlet, events) if pace == "idle" else publish_paced(outlet, events)
    if not has_all.wait(DEADLINE_SECONDS):
        message = f"{name} handled {len(handled)} of {total} events."
        raise RuntimeError(message)
    outlet.stop()
    took = [end - start for start, end in zip(published, handled, strict=True)][WARM_UP_EVENTS:]
    return {named(name, pace, percent): percentile(took, percent) * 1e6 for percent in PERCENTILES}


def publish_idle(outlet: Outlet, events: Sequence[JobEvent]) -> list[float]:
    """Publish each when all is asleep, and return when."""
    published = []
    for event in events:
        time.sleep(IDLE_SECONDS)
        published.append(time.perf_counter())
        outlet.publish(event)
    return published


def publish_paced(outlet: Outlet, events: Sequence[JobEvent]) -> list[float]:
    """Publish each at the next tick, and return when."""
    published = []
    next_tick = time.perf_counter()
    for event in events:
        next_tick += PACE_SECONDS
        time.sleep(max(0.0, next_tick - time.perf_counter()))
        published.append(time.perf_counter())
        outlet.publish(event)
    return published


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent don't exceed: one of them, the nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
