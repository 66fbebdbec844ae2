"""Receivers of notices, which write them into the worker's log."""

from __future__ import annotations

import logging
from typing import Any

from celery_broadcast import JobEvent
from celery_broadcast.notices import attempt_lost, events_dropped

logger = logging.getLogger(__name__)


@events_dropped.connect
def say_dropped(consumer: str | None, *, count: int, reason: str, **_: Any) -> None:
    """Say how many, and why."""
    logger.info("noticed %s %d %s", consumer, count, reason)


@attempt_lost.connect
def say_lost(consumer: None, *, event: JobEvent, **_: Any) -> None:
    """Say how it ended."""
    logger.info("noticed the loss of %s", event)
