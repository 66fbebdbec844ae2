"""Where a thread, a greenlet or a task of asyncio is just now, as text."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def of_this_thread() -> Callable[[], str]:
    """Return what tells, on any other thread, where this one is then.

    Under gevent and eventlet a thread is a greenlet, and one that waits isn't
    among those that Python knows of (`sys._current_frames`).
    """
    greenlets = sys.modules.get("greenlet")
    greenlet = None if greenlets is None else greenlets.getcurrent()
    ident = threading.get_ident()

    def tell() -> str:
        frame = None if greenlet is None else greenlet.gr_frame
        if frame is None:
            frame = sys._current_frames().get(ident)  # noqa: SLF001  # documented for this
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    return tell


def of_task(task: Any) -> Callable[[], str]:
    """Return what tells where a task of asyncio is, down to what it awaits.

    Called on the thread of its event loop. What runs just now awaits nothing:
    then it is the stack of that thread.
    """
    tell_of_thread = of_this_thread()

    def tell() -> str:
        if task.get_coro().cr_running:
            return tell_of_thread()
        return "".join(
            traceback.format_list(
                traceback.StackSummary.extract((f, f.f_lineno) for f in _awaiting(task))
            )
        )

    return tell


def _awaiting(task: Any) -> Iterator[FrameType]:
    """Yield the frame of each coroutine, each of which awaits the next one."""
    coroutine = task.get_coro()
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "cr_await", None)
