"""What an event costs as work grows: with subscriptions that don't match, and with globs.

The job's thread: as in `job_thread_cost`, in a row. All threads: the time from
the first to the last event of a burst, as in `burst`, with one consumer that
gets them; the producer's thread has to find out that the others don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.burst import events_of_job, thousands_per_second
from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.peers import MOST_EVENTS, Handler, Outlet, started_broadcast
from benchmarks.pool_process import Crowd, pool_process

JOBS = 50
TURNS_OF_JOBS = 25
TURNS_OF_BURSTS = 4

BESIDE = {f"beside {n:,} that don't match": Crowd(idle=1, unwanting=n) for n in (10, 100, 1000)}
WITH_GLOBS = {f"with {n} glob{'s'[: n > 1]}": Crowd(idle=1, globs=n) for n in (1, 10, 100)}


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    crowds = BESIDE | WITH_GLOBS
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(pool_process(crowd)) for name, crowd in crowds.items()
        }
        of_jobs = measure_in_turn(
            {
                f"job's thread, {name}": partial(microseconds_per_event, JOBS)
                for name, microseconds_per_event in processes.items()
            },
            unit="µs",
            rounds=rounds,
            turns=TURNS_OF_JOBS,
        )
    of_bursts = measure_in_turn(
        {
            f"all threads, {name}": partial(microseconds_in_burst, crowd)
            for name, crowd in crowds.items()
        },
        unit="µs",
        rounds=rounds,
        turns=TURNS_OF_BURSTS,
    )
    return [
        measured.compare(f"{where}, {name}", f"{where}, {first}", at_most=1.3)
        for where, measured in (("job's thread", of_jobs), ("all threads", of_bursts))
        for first, *others in (BESIDE, WITH_GLOBS)
        for name in others
    ]


def microseconds_in_burst(crowd: Crowd) -> float:
    """Return the microseconds from one event of a burst to the next."""

    def make_outlet(handlers: Sequence[Handler]) -> Outlet:
        (handler,) = handlers
        return started_broadcast(partial(crowd.declare, handler))

    return 1000 / thousands_per_second(make_outlet, 1, events_of_job(MOST_EVENTS))
