"""Waiting for something until a deadline, whatever strikes the thread meanwhile."""

from __future__ import annotations

import logging
import threading
import time

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
            if not event.wait(max(0.0, deadline - time.monotonic())):
                return False
        except Exception as strike:  # noqa: BLE001  # a signal handler's, of any kind
            logger.debug("%r struck a thread that waits; it goes on", strike)
    return True
