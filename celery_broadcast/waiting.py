"""Waiting for something until a deadline, if need be whatever strikes the thread meanwhile."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

logger: logging.Logger = logging.getLogger(__name__)


_is_undisturbed: ContextVar[bool] = ContextVar("celery_broadcast_is_undisturbed", default=False)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no exception end the waits in the block, but an exit.

    For a process that ends. It may still be struck by the soft time limit of a
    job that is over: an exception, raised by a signal handler into whatever the
    main thread does. Anywhere else such a limit is meant for the very code that
    waits.
    """
    before = _is_undisturbed.set(True)
    try:
        yield
    finally:
        _is_undisturbed.reset(before)


def wait_until_set(event: threading.Event, deadline: float) -> bool:
    """Wait for an event; return whether it is set.

    Args:
        event: what to wait for.
        deadline: when to go on all the same, by the monotonic clock.

    Raises:
        BaseException: what a signal handler raised meanwhile; in a block that
            is `undisturbed`, only Ctrl-C and other exits.
    """
    while not event.is_set():
        try:
            seconds = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            if not event.wait(seconds):
                return False
        except Exception as strike:  # a signal handler's, of any kind
            if not _is_undisturbed.get():
                raise
            logger.debug("%r struck a thread that waits; it goes on", strike)
    return True


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call it on an event loop that waits for it, on any thread; one that is closed doesn't."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
