"""The consumers of the worker that is put to the test: one behaves, the others do their worst.

What each does with an event follows from the seed and the event alone. Each
writes down an event as the last thing before it returns or raises. So where a
process lives on, what is counted and what is written down are the same; where
one is killed in between, the line is there and the event isn't counted as
handled: at most one for each consumer and process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from celery_broadcast import Consumer, JobEvent, on_job_event
from celery_broadcast.notices import broadcast_drained
from chaos.journal import JOURNAL, Drained, Handled, Pen
from chaos.load import SEED

# How often each does its worst, of all events.
RAISES = 0.1
EXITS = 0.01
HANGS = 0.05

LONGEST_HANG_SECONDS = 0.05

# More than the drain's timeout, so that a process may end meanwhile.
LONG_HANG_SECONDS = 2.5

_seed = os.environ[SEED]
_pen = Pen(os.environ[JOURNAL])
_hung = Path(os.environ[JOURNAL]).with_suffix(".hung")


def luck_of(consumer: str, event: JobEvent) -> Random:
    """Return what decides on this event, the same in each run with this seed."""
    return Random(f"{_seed} {consumer} {type(event).__name__} {event.task_id} {event.retries}")


def write_down(consumer: str, event: JobEvent, *, raised: bool = False) -> None:
    _pen.write(
        Handled(
            consumer=consumer,
            event=type(event).__name__,
            task_id=event.task_id,
            started_at=event.started_at,
            raised=raised,
        )
    )


@on_job_event
def trail(event: JobEvent) -> None:
    """Behave."""
    write_down("trail", event)


@on_job_event
def raises(event: JobEvent) -> None:
    """Raise at random."""
    raised = luck_of("raises", event).random() < RAISES
    write_down("raises", event, raised=raised)
    if raised:
        raise ValueError("at random")


@on_job_event(mailbox_size=20)
def hangs(event: JobEvent) -> None:
    """Take a while at random, once in a run a long one; too few events may wait for that."""
    luck = luck_of("hangs", event)
    if luck.random() < HANGS:
        time.sleep(LONG_HANG_SECONDS if is_first_hang() else luck.uniform(0, LONGEST_HANG_SECONDS))
    write_down("hangs", event)


def is_first_hang() -> bool:
    """Tell, once, that no process of this worker has asked before."""
    try:
        _hung.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@on_job_event(name="exits")
class Exits(Consumer):
    """Exits at random, so that it is started again, or given up."""

    def handle(self, event: JobEvent) -> None:
        raised = luck_of("exits", event).random() < EXITS
        write_down("exits", event, raised=raised)
        if raised:
            raise SystemExit


@broadcast_drained.connect
def write_down_drain(sender: object, *, left: int, **_: object) -> None:
    _pen.write(Drained(left=left))
