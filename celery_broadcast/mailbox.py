"""Where the events of one consumer wait, and where it is counted what became of them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from celery_broadcast.counts import MAILBOX_FULL, STOPPED, ConsumerStats, Counts

T = TypeVar("T")


class Mailbox(Generic[T]):
    """The bounded buffer of one consumer.

    One thread puts, the consumer's thread takes; any may ask for `stats`. No
    job's thread ever comes here.

    Args:
        size: how many events may wait; None is without a bound. What the
            consumer has in its hands doesn't count.
        overflow: "drop_oldest" makes room for the newest event, "drop_newest"
            keeps what waits.
        counts: where to count; by default from zero.
    """

    def __init__(
        self, size: int | None, overflow: str = "drop_oldest", counts: Counts | None = None
    ) -> None:
        self._size = size
        self._drop_oldest = overflow == "drop_oldest"
        self._counts = Counts() if counts is None else counts
        self._waiting: deque[T] = deque()
        self._in_hand = 0
        self._closed_because: str | None = None
        # Made through the module, so that it is the patched one under gevent.
        self._changed = threading.Condition(threading.Lock())

    def put(self, item: T) -> bool:
        """Add one event; never wait for the consumer, never raise.

        Events leave in the order they came.

        Returns:
            False if this lost an event, this one or the oldest. The loss is
            counted.
        """
        dropped = None  # outlives the lock: what its finalizers do is their own affair
        with self._changed:
            self._counts.offer()
            if self._closed_because is not None:
                self._counts.drop(1, self._closed_because)
                return False
            room = self._size is None or len(self._waiting) < self._size
            if not room:
                self._counts.drop(1, MAILBOX_FULL)
                if not self._drop_oldest:
                    return False
                dropped = self._waiting.popleft()
            self._waiting.append(item)
            self._changed.notify()
        del dropped
        return room

    def refuse(self, count: int, reason: str) -> None:
        """Count events that were meant for this mailbox and were dropped on the way."""
        with self._changed:
            self._counts.offer(count)
            self._counts.drop(count, reason)

    def take(self, demand: int, wait_seconds: float | None = None) -> list[T]:
        """Take at most `demand` events into the consumer's hands.

        Waits until there is one, for at most `wait_seconds`; None is without
        a limit. Each event taken must be settled.

        Returns:
            The events; none if the time is over, or if the mailbox is closed
            and empty.
        """
        with self._changed:
            if not self._waiting and self._closed_because is None:
                self._changed.wait_for(
                    lambda: self._waiting or self._closed_because is not None, wait_seconds
                )
            taken = [self._waiting.popleft() for _ in range(min(demand, len(self._waiting)))]
            self._in_hand += len(taken)
            return taken

    def settle(self, *, handled: int = 0, declined: int = 0, failed: int = 0) -> None:
        """Count what became of events that were taken; `declined` ones are handled too.

        After `abandon` it changes nothing: those events are counted as dropped.
        """
        with self._changed:
            if not self._in_hand:
                return
            self._in_hand -= handled + declined + failed
            self._counts.settle(handled, declined, failed)

    def close(self, reason: str = STOPPED) -> None:
        """Accept no more: what is put from now on is dropped for `reason`.

        What waits can still be taken.
        """
        with self._changed:
            if self._closed_because is None:
                self._closed_because = reason
            self._changed.notify_all()

    def abandon(self, reason: str) -> int:
        """Drop all that waits or is in the consumer's hands; accept no more.

        Returns:
            How many events were dropped.
        """
        with self._changed:
            dropped, self._waiting = self._waiting, deque()  # as in `put`
            left = len(dropped) + self._in_hand
            self._counts.drop(left, reason)
            self._in_hand = 0
            self._closed_because = reason
            self._changed.notify_all()
        return left

    def stats(self) -> ConsumerStats:
        """Return the numbers of this moment."""
        with self._changed:
            return self._counts.stats(pending=len(self._waiting) + self._in_hand)
