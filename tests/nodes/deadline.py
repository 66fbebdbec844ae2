"""Wait for a fact that nothing announces, with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_AGAIN_SECONDS = 0.01


def wait_until(
    fact: Callable[[], object],
    timeout_seconds: float = 60.0,
    failure: Callable[[], str] = lambda: "it did not become true",
) -> None:
    """Return as soon as the fact is true.

    Such as a line in the log of another process; where something does announce
    it, wait for the event or the condition instead. The deadline is for what
    never comes true: beside others on a busy machine, milliseconds may be many seconds.

    Raises:
        TimeoutError: with what `failure` tells, asked after the deadline.
    """
    deadline = time.monotonic() + timeout_seconds
    never = threading.Event()
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(failure())
        never.wait(LOOK_AGAIN_SECONDS)
