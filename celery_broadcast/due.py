"""When a job was sent, or is due if that is later: a header of ours, as Celery has none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery_broadcast.facts import DUE_AT

# A clock that is further off has never been set, and would be all that is seen in a sum.
_LONGEST_WAIT_SECONDS = 366 * 86_400.0


def note_due(headers: object) -> None:
    """Write into the headers of a message that is about to be sent when its job is due.

    In seconds since 1970, UTC. Called on the thread that sends it. A copy of an
    earlier message, as a retry is, has it anew.
    """
    if not isinstance(headers, dict):  # of Celery's first protocol
        return
    now = time.time()
    headers[DUE_AT] = max(now, _seconds_of(headers.get("eta")) or now)


def wait_of(headers: object, started_at: float) -> float | None:
    """Return for how many seconds a job waited; None if its sender doesn't tell.

    Args:
        headers: of its message; whoever sent it may have put anything in them.
        started_at: when it started, in seconds since 1970, UTC. By the clock of another
            machine than the sender's that may be before it was due: then it is 0.0. If one
            of the two clocks is off by more than a year, nobody knows how long it waited.
    """
    due_at: Any = headers.get(DUE_AT) if isinstance(headers, Mapping) else None
    if type(due_at) is not float or not abs(started_at - due_at) <= _LONGEST_WAIT_SECONDS:
        return None  # nor if it is no number
    return max(0.0, started_at - due_at)


def _seconds_of(eta: object) -> float | None:
    """Return the time of an eta as Celery writes it; None if it isn't one."""
    try:
        return datetime.fromisoformat(eta).timestamp() if isinstance(eta, str) else None
    except (ValueError, OverflowError):  # which Celery finds too, and says
        return None
