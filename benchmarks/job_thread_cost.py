"""What an event costs the thread that runs the job, through Celery's own signals.

In a row: one job after the other, so many that the first ones hardly count. Paused:
each job finds all consumers asleep and the processor's caches cold, as other
processes ran meanwhile. The events then cost several times as much, like all else.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.pool_process import Crowd, pool_process

TURNS = 40
PACES = {"in a row": 200, "paused": 1}  # jobs from one pause to the next

RECEIVER = "an empty receiver"
ONE = "1 idle consumer"
CROWDS = {
    RECEIVER: None,
    ONE: Crowd(idle=1),
    "64 idle consumers": Crowd(idle=64),
    "64 stuck, with full mailboxes": Crowd(stuck=64),
    "64 that don't want it": Crowd(unwanting=64),
}


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(pool_process(crowd)) for name, crowd in CROWDS.items()
        }
        measured = measure_in_turn(
            {
                f"{name}, {pace}": partial(microseconds_per_event, jobs)
                for pace, jobs in PACES.items()
                for name, microseconds_per_event in processes.items()
            },
            unit="µs",
            rounds=rounds,
            turns=TURNS,
        )
    comparisons = []
    for pace, to_reach in (("in a row", 4.0), ("paused", None)):
        comparisons += [
            measured.compare(f"{ONE}, {pace}", f"{RECEIVER}, {pace}", at_most=to_reach),
            *(
                measured.compare(f"{name}, {pace}", f"{ONE}, {pace}", at_most=1.3)
                for name in CROWDS
                if name not in {RECEIVER, ONE}
            ),
        ]
    return comparisons
