"""What is done with an event: by a consumer, which gets it, or by a receiver of a signal."""

from __future__ import annotations

import time


def sleep(*_: object, **__: object) -> None:
    """Be slow without being busy, as who waits for a service."""
    time.sleep(0.01)


def ignore(*_: object, **__: object) -> None:
    """Do nothing."""
