"""What one consumer raised: each noticed, said at most once a second."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery_broadcast import notices
from celery_broadcast.throttle import Throttle

logger: logging.Logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 1.0

_ENDINGS = {1: "st", 2: "nd", 3: "rd"}


class Failures:
    """Says what became of events on which the consumer raised, on any of its threads.

    Args:
        consumer: the consumer's name.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._lost = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_LINES)
        self._retried = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_LINES)
        self._saying = threading.Lock()

    def say_lost(
        self, event: Any, error: BaseException, *, is_crash: bool, comes_again: bool = False
    ) -> None:
        """Say and notice that what the consumer was called with is lost.

        Args:
            event: the event, or the list of a batch.
            error: what it raised.
            is_crash: whether the consumer ends by it.
            comes_again: whether it isn't lost at all, as the broker has it once more.
        """
        count = self._count_for_line(self._lost)
        if count:
            more = f" ({count - 1} more since the last such line)" if count > 1 else ""
            goes_on = "" if is_crash else ", the consumer goes on"
            is_lost = "these are lost" if isinstance(event, list) else "this event is lost"
            if comes_again:
                is_lost = "it comes again, or goes to the dead letters"
            logger.error(
                "consumer %r raised on %s; %s%s%s",
                self._consumer,
                text_of(event),
                is_lost,
                goes_on,
                more,
                exc_info=error,
            )
        notices.send("consumer_failed", self._consumer, event=event, error=error)

    def say_retry(self, event: Any, error: BaseException, pause: float, attempt: int) -> None:
        """Say that the consumer is called again with the same.

        Args:
            event: the event, or the list of a batch.
            error: what it raised.
            pause: how many seconds it waits before.
            attempt: how many times it has been called with it.
        """
        if self._count_for_line(self._retried):
            logger.warning(
                "consumer %r raised %s on %s, the %s time; it is called again in %.1f s",
                self._consumer,
                type(error).__name__,
                text_of(event),
                _ordinal(attempt),
                pause,
            )

    def _count_for_line(self, throttle: Throttle) -> int:
        """Count one more; return how many a line is about that is due, or 0."""
        with self._saying:
            now = time.monotonic()
            throttle.add(1, now)
            return throttle.say(now)[0] if throttle.due_in(now) == 0.0 else 0


def text_of(event: Any) -> str:
    """Return what names an event, or a batch, in a log line; never raise."""
    if isinstance(event, list):
        the_first = [f", {text_of(first)} the first" for first in event[:1]]  # or they took it out
        return "".join((f"{len(event)} events", *the_first))
    try:
        return str(event)
    except Exception as error:  # noqa: BLE001  # theirs, and no part of the handling
        return f"{type(event).__name__}, whose text raised {type(error).__name__}"


def _ordinal(number: int) -> str:
    words = {1: "first", 2: "second", 3: "third"}
    ending = "th" if number % 100 in (11, 12, 13) else _ENDINGS.get(number % 10, "th")
    return words.get(number, f"{number}{ending}")
