"""Jobs that don't use the database; their consumers do."""

from __future__ import annotations

import os
import signal

from celery import shared_task


@shared_task
def sell() -> None:
    """End at once."""


@shared_task
def sell_slowly() -> None:
    """End at once too; it is the consumer that is slow."""


@shared_task
def die() -> None:
    """Leave it to the main process to tell of the end."""
    os.kill(os.getpid(), signal.SIGKILL)
