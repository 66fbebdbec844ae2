"""What it costs the job's thread that each attempt has exactly one end.

Without the events themselves: to know what has started and not ended, and to
note it where the main process of the worker can read it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from functools import partial

import msgspec
from celery import signals

from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.pool_process import ignore, noop
from celery_broadcast.attempts import Attempt, Attempts
from celery_broadcast.events import JobFinished, JobStarted
from celery_broadcast.slots import Slot, Slots

TURNS = 50
ATTEMPTS = 200  # a turn


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    slots = Slots(count=1)
    attempts = Attempts()
    attempts.share(slots)
    slot = slots.mine = slots.free_slot()
    assert slot is not None  # noqa: S101  # there is one, of one
    signals.task_prerun.connect(ignore, weak=False)
    try:
        measured = measure_in_turn(
            {
                "the bookkeeping": partial(per_event, partial(keep_books, attempts, slot)),
                "an empty receiver": partial(per_event, send_to_receiver),
            },
            unit="µs",
            rounds=rounds,
            turns=TURNS,
        )
    finally:
        signals.task_prerun.disconnect(ignore)
    return [measured.compare("the bookkeeping", "an empty receiver", value_at_most=2.0)]


def per_event(two_events: Callable[[Attempt], None]) -> float:
    """Return the microseconds of one of the two events of an attempt."""
    seconds = 0.0
    for _ in range(ATTEMPTS):
        attempt = new_attempt()
        start = time.perf_counter()
        two_events(attempt)
        seconds += time.perf_counter() - start
    return seconds / ATTEMPTS / 2 * 1e6


def new_attempt() -> Attempt:
    """Return an attempt as the bridge makes them."""
    task_id = str(uuid.uuid4())
    event = JobStarted(
        task_id=task_id,
        task_name="benchmark.noop",
        queue="celery",
        exchange="",
        routing_key="celery",
        root_id=task_id,
        worker="celery@localhost",
        pid=os.getpid(),
        started_at=time.time(),
    )
    return Attempt(facts=msgspec.structs.asdict(event), started_monotonic=time.monotonic())


def keep_books(attempts: Attempts, slot: Slot, attempt: Attempt) -> None:
    """Do what `task_prerun` and `task_postrun` of one job cause."""
    slot.count_published()
    attempts.start(attempt, attempt)
    attempts.end(attempt)
    slot.count_published()
    note = attempts.tell(attempt, JobFinished)
    if note is not None:
        slot.close(note)  # as the broadcast's own thread does


def send_to_receiver(attempt: Attempt) -> None:
    """Send two of Celery's signals to a receiver that does nothing."""
    for _ in range(2):
        signals.task_prerun.send(sender=noop, task_id=attempt.facts["task_id"], task=noop)
