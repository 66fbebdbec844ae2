"""Which code is muted: what starts there isn't broadcast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_muted: ContextVar[bool] = ContextVar("celery_broadcast_muted", default=False)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Broadcast nothing of the jobs that start inside of the block.

    For eager jobs, in a script or a test. Only the block's own context is
    muted (`contextvars`): other threads and greenlets are not, nor is a worker
    that is sent a job. It is decided when an attempt starts and holds for its
    end, so no end is told without its start: a job that had started before the
    block is told to its end.
    """
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def is_muted() -> bool:
    """Tell whether the code that runs now is in the block of a `muted()`."""
    return _muted.get()
