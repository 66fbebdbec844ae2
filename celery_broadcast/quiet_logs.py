"""No child is forked while another thread writes to a log.

A log's file has a buffer, and the buffer a lock, which a forked child inherits
as it is: held, if a thread of the parent was writing at that moment, and for
ever, since that thread doesn't exist in the child. CPython makes the locks of
`logging` anew there, but not this one; the child hangs at its first line.
Seen with Python 3.10 to 3.13, with a file and with a buffered stderr. A pool
process of Celery has no other threads where it is forked; the broadcast's are
there, and log. So the thread that forks first takes the handlers' locks, which
is as good: nobody writes without them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from typing import Any

TIMEOUT_SECONDS = 1.0
"""How long a fork waits, at most and in all; a log that can't be written is no reason for more."""


class _Held(threading.local):
    """The locks that this thread holds while it forks; another may fork at the same time."""

    def __init__(self) -> None:
        self.locks: list[Any] = []


_held = _Held()


def take() -> None:
    """Wait until no thread writes to a log, and keep them from it; on the thread that forks.

    The lock of the module `logging` comes first, as in `logging.config`. Its
    own hook takes it after this one, the other way round, and waits for ever;
    so whoever has it for long goes on with the handlers.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    if not _take(getattr(logging, "_lock", None), deadline):
        return
    for handler in _handlers():
        _take(handler.lock, deadline)


def _take(lock: Any, deadline: float) -> bool:
    remaining = max(deadline - time.monotonic(), 0.0)
    with contextlib.suppress(Exception):  # a handler's lock is what its class makes it
        if lock is not None and lock.acquire(timeout=remaining):
            _held.locks.append(lock)
            return True
    return False


def _handlers() -> list[logging.Handler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.copy().values()]
    found = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    return list(dict.fromkeys(found))


def give_back() -> None:
    """Let them write again; in the child, `logging` has made most of the locks anew."""
    while _held.locks:
        with contextlib.suppress(RuntimeError):  # made anew
            _held.locks.pop().release()


@functools.cache
def keep_logs_quiet_in_forks() -> None:
    """From now on, let no child of this process be forked while a thread writes to a log."""
    os.register_at_fork(before=take, after_in_parent=give_back, after_in_child=give_back)
