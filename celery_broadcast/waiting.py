"""Waiting for something until a deadline, whatever strikes the thread meanwhile."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

logger: logging.Logger = logging.getLogger(__name__)


def wait_until_set(event: threading.Event, deadline: float) -> bool:
    """Wait for an event; return whether it is set.

    A process that stops may still be struck by the soft time limit of a job
    that is over: an exception, raised by a signal handler into whatever the
    main thread does. That is nothing to end the waiting for; Ctrl-C is, and
    any other exit.

    Args:
        event: what to wait for.
        deadline: when to go on all the same, by the monotonic clock.
    """
    while not event.is_set():
        try:
            seconds = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            if not event.wait(seconds):
                return False
        except Exception as strike:  # noqa: BLE001  # a signal handler's, of any kind
            logger.debug("%r struck a thread that waits; it goes on", strike)
    return True


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call it on an event loop that waits for it, on any thread; one that is closed doesn't."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
