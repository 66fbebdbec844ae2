"""No child is forked while another thread writes to a log.

A log's file has a buffer, and the buffer a lock, which a forked child inherits
as it is: held, if a thread of the parent was writing at that moment, and for
ever, since that thread doesn't exist in the child. CPython makes the locks of
`logging` anew there, but not this one; the child hangs at its first line.
Seen with Python 3.10 to 3.13, with a file and with a buffered stderr. A pool
process of Celery has no other threads where it is forked; the broadcast's are
there, and log. So the thread that forks first takes the handlers' locks: nobody
writes through `logging` without them.

What other packages have registered to be called before a fork, before this one
was imported, is called while this thread holds them.
"""

from __future__ import annotations

import contextlib
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
    so if another thread keeps that lock, no handler's is taken.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    if not _is_wanted or not _take(getattr(logging, "_lock", None), deadline):
        return
    for handler in _handlers():
        _take(getattr(handler, "lock", None), deadline)


def _take(lock: Any, deadline: float) -> bool:
    remaining = max(deadline - time.monotonic(), 0.0)
    _held.locks.append(lock)  # before it is: whatever strikes this thread, it is given back
    with contextlib.suppress(Exception):  # a handler's lock is what its class makes it
        if lock is not None and lock.acquire(timeout=remaining):
            return True
        _held.locks.remove(lock)
    return False


def _handlers() -> list[logging.Handler]:
    """Return every handler, as `logging` lists them, and what else is attached to a logger."""
    listed = [reference() for reference in list(getattr(logging, "_handlerList", ()))]
    loggers = [logging.root, *logging.root.manager.loggerDict.copy().values()]
    attached = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    found = {id(handler): handler for handler in (*listed, *attached) if handler is not None}
    return list(found.values())


def give_back() -> None:
    """Let them write again; in the child, `logging` has made most of the locks anew."""
    while _held.locks:
        with contextlib.suppress(Exception):  # made anew, or never taken
            _held.locks.pop().release()


def keep_logs_quiet_in_forks() -> None:
    """From now on, let no child of this process be forked while a thread writes to a log."""
    global _is_wanted  # noqa: PLW0603  # a process has one
    _is_wanted = True


_is_wanted = False

# At the import, so that whatever is registered later, and may log, is called before.
os.register_at_fork(before=take, after_in_parent=give_back, after_in_child=give_back)
