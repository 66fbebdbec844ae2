"""What one consumer lost: noted at once, said now and then, never once an event."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from celery_broadcast import notices
from celery_broadcast.counts import (
    CANCELLED,
    DRAIN_TIMEOUT,
    GAVE_UP,
    INBOX_FULL,
    MAILBOX_FULL,
    PROCESS_DIED,
    STOPPED,
)
from celery_broadcast.throttle import Throttle

logger: logging.Logger = logging.getLogger(__name__)

_SECONDS_BEFORE_FIRST_LINE = 1.0
_SECONDS_BETWEEN_LINES = 60.0

_REMEDIES = {
    MAILBOX_FULL: "It is behind: raise its mailbox_size or make it faster",
    INBOX_FULL: "Something keeps this process from running any other thread",
    STOPPED: "They came after the broadcast had stopped",
    DRAIN_TIMEOUT: "Raise broadcast_drain_timeout, or the timeout of drain(), to keep them",
    GAVE_UP: "It crashed too often; see its error above",
    CANCELLED: "Its subscription was cancelled, or it ended itself",
}


class Losses:
    """The dropped events of one consumer that nobody has been told of yet.

    Belongs to the producer's thread, and to the one that drains after it.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._throttle = Throttle(_SECONDS_BEFORE_FIRST_LINE, _SECONDS_BETWEEN_LINES)
        self._said: Counter[str] = Counter()

    def note(self, now: float) -> None:
        """Note that something was dropped; `now` is in seconds of the monotonic clock."""
        self._throttle.add(1, now)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until it is time to say so; None if there is nothing to say."""
        return self._throttle.due_in(now)

    def say(self, dropped: Mapping[str, int], now: float) -> None:
        """Log and notice what was dropped since the last time.

        Args:
            dropped: all that was ever dropped, by reason.
            now: the time, in seconds of the monotonic clock.
        """
        _, seconds = self._throttle.say(now)
        for reason, count in (Counter(dropped) - self._said).items():
            logger.log(
                logging.INFO if reason == CANCELLED else logging.WARNING,  # somebody wanted it
                "consumer %r lost %d events within %.0f s (%s). %s. "
                "Jobs and other consumers are not affected",
                self._consumer,
                count,
                seconds,
                reason,
                _REMEDIES[reason],
            )
            notices.send("events_dropped", self._consumer, count=count, reason=reason)
        self._said = Counter(dropped)


def say_died(pid: int, lost: Mapping[str, int], not_offered: int) -> None:
    """Log and notice what a pool process that is gone took with it.

    Args:
        pid: the process.
        lost: how many events each consumer had pending there.
        not_offered: how many events hadn't been offered to anyone.
    """
    shares = [f"{name}: {count}" for name, count in lost.items()]
    if not_offered:
        shares.append(f"offered to nobody: {not_offered}")
    logger.warning(
        "pool process %d died with %d events unhandled (%s)",
        pid,
        sum(lost.values()) + not_offered,
        ", ".join(shares),
    )
    for name, count in lost.items():
        notices.send("events_dropped", name, count=count, reason=PROCESS_DIED)
    if not_offered:
        notices.send("events_dropped", count=not_offered, reason=PROCESS_DIED)
