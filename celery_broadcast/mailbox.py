"""Where the events of one consumer wait, and where it is counted what became of them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from celery_broadcast.bell import Bell
from celery_broadcast.counts import (
    IN_RUNS,
    MAILBOX_FULL,
    OFFERED,
    STOPPED,
    ConsumerStats,
    Counts,
    Numbers,
    stats_of,
)
from celery_broadcast.switch import Switch

T = TypeVar("T")


class Mailbox(Generic[T]):
    """The bounded buffer of one consumer.

    One thread puts, those of the consumer take, one at a time; any may ask for
    `stats`. No job's thread ever comes here.

    A signal handler or a finalizer may call a method in the middle of another,
    on the same thread. Python runs them where a call returns, so from what is
    looked at to what is changed by it, there is no call in between.

    Args:
        size: how many events may wait; None is without a bound. What the
            consumer has in its hands doesn't count, unless it was put aside.
        overflow: "drop_oldest" makes room for the newest event, "drop_newest"
            keeps what waits.
        counts: where to count; by default from zero.
        switch: while it is paused, there is nothing to take.
    """

    def __init__(
        self,
        size: int | None,
        overflow: str = "drop_oldest",
        counts: Counts | None = None,
        switch: Switch | None = None,
    ) -> None:
        self._size = size
        self._drop_oldest = overflow == "drop_oldest"
        self._counts = Counts() if counts is None else counts
        self._switch = Switch() if switch is None else switch
        self._waiting: deque[T] = deque()
        self._in_hand = 0
        self._aside = 0  # of those in hand
        #: Whether a run is to end: for a pause, or since all is counted as dropped.
        self.is_interrupted: bool = False
        self._is_running = False
        # What waited as the run began, more by what came since, less by what was dropped.
        self._stock = 0  # means nothing while none is on
        self._handled_before = 0  # in runs, as it began
        self._handled_at_most: int | None = None
        self._closed_because: str | None = None
        self._at_least = 1  # so many events are worth waking whoever waits
        self._to_call: Callable[[], None] | None = None
        #: Rings, while it is awaited, as soon as it is ready, or closed.
        self.bell: Bell = Bell()
        self._lock = self._counts.lock
        # Made through the module, so that it is the patched one under gevent.
        self._changed = threading.Condition(self._lock)
        self._waiters = 0

    @property
    def counts(self) -> Counts:
        """Where its consumer is counted."""
        return self._counts

    @property
    def is_closed(self) -> bool:
        """Whether it accepts no more."""
        return self._closed_because is not None

    @property
    def is_paused(self) -> bool:
        """Whether what waits is to wait on; the end of the mailbox is the end of that."""
        return self._switch.is_paused and self._closed_because is None

    def put(self, item: T) -> bool:
        """Add one event, as `put_all` does; return False if this lost one."""
        return not self.put_all((item,))

    def put_all(self, items: Sequence[T]) -> int:
        """Add events; never wait for the consumer, never raise.

        They leave in the order they came.

        Returns:
            How many events were lost by it, these or older ones. The loss is
            counted.
        """
        count, waiting, size = len(items), self._waiting, self._size
        dropped: Sequence[T] = ()
        refused = 0
        with self._lock:
            self._counts.numbers[OFFERED] += count
            if self._closed_because is not None:
                self._counts.drop(count, self._closed_because)
                return count
            if size is not None and len(waiting) + count + self._aside > size:
                dropped, refused = self._make_room(size, count)
            if refused:
                items = items[refused:] if self._drop_oldest else items[: count - refused]
            self._stock += count - refused
            waiting.extend(items)
            if (self.bell.is_awaited or self._waiters or self._to_call) and self.is_ready():
                self._ring()
            lost = len(dropped) + refused
        del dropped  # outside of the lock: what their finalizers do is their own affair
        return lost

    def refuse(self, count: int, reason: str) -> None:
        """Count events that were meant for this mailbox and were dropped on the way."""
        with self._lock:
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
        if wait_seconds != 0:
            self.wait(wait_seconds)
        with self._lock:
            if self._switch.is_paused and self._closed_because is None:
                return []
            waiting = self._waiting
            if demand == 1:  # by far the most
                if not waiting:
                    return []
                self._in_hand += 1
                return [waiting.popleft()]
            taken: list[T] = []
            while waiting and demand:
                demand -= 1
                self._in_hand += 1
                taken.append(waiting.popleft())
            return taken

    def begin_run(self) -> tuple[Callable[[], T], Numbers, int] | None:
        """Let the one thread of the consumer handle what waits, without the lock.

        It takes event after event, and says of each that it is handled, until
        none waits, one isn't handled, or `is_interrupted`: at that it looks right
        before it takes one, and before it says so. Then, whatever happens, it
        calls `end_run`, and settles what it still has in hand.

        Returns:
            What gives the next event, and raises `IndexError` if none waits; the
            numbers, to be told at `IN_RUNS` how many are handled; and how many
            that is now. None if nothing can be taken, or if another mailbox of
            the same consumer is at it.
        """
        with self._lock:
            self.is_interrupted = False  # before the switch is looked at
            if not self._waiting or self._counts.is_running:
                return None
            if self._switch.is_paused and self._closed_because is None:
                return None
            waiting, numbers = self._waiting, self._counts.numbers
            self._stock, self._handled_before = len(waiting), numbers[IN_RUNS]
            self._counts.is_running = self._is_running = True
            return waiting.popleft, numbers, self._handled_before

    def end_run(self) -> int:
        """Count with the lock again.

        Returns:
            How many events were taken in the run and not handled: they are in
            hand. None after `abandon`, and if there is no run.
        """
        with self._lock:
            if not self._is_running:
                return 0
            self._is_running = self._counts.is_running = False
            if self._handled_at_most is not None:  # the rest is counted as dropped
                self._counts.numbers[IN_RUNS] = self._handled_at_most
                return 0
            waiting = len(self._waiting)
            in_hand = self._stock - waiting - self._counts.numbers[IN_RUNS] + self._handled_before
            self._in_hand += in_hand
            return in_hand

    def is_ready(self) -> bool:
        """Tell whether so many events wait as somebody waits for, or no more come."""
        if self._closed_because is not None:
            return True
        return len(self._waiting) >= self._at_least and not self._switch.is_paused

    def has_enough(self, beside: int) -> bool:
        """Tell whether more waits than came last, or all that comes has to wait.

        Args:
            beside: how many events came last.
        """
        return len(self._waiting) > beside or self.is_paused or self.is_closed

    def wait(self, wait_seconds: float | None = None, *, at_least: int = 1) -> None:
        """Wait until so many events can be taken, or no more come, or the time is over.

        Args:
            wait_seconds: how long at most; None is without a limit.
            at_least: how many events are worth it; a full mailbox always is.
        """
        with self._lock:
            self._await(at_least)
            if self.is_ready():
                return
            self._waiters += 1
            try:
                self._changed.wait_for(self.is_ready, wait_seconds)
            finally:
                self._waiters -= 1

    def wait_while_paused(self, wait_seconds: float | None = None) -> bool:
        """Wait for the end of a pause, if there is one; return whether there is none now.

        Args:
            wait_seconds: how long at most; None is without a limit.
        """
        if not self.is_paused:
            return True
        with self._lock:
            self._waiters += 1
            try:
                return self._changed.wait_for(lambda: not self.is_paused, wait_seconds)
            finally:
                self._waiters -= 1

    def call_when_ready(self, function: Callable[[], None], *, at_least: int = 1) -> None:
        """Call `function` once, as soon as `take` would give something, or a pause ends.

        Now, or later on whatever thread makes it so, which must not be kept.
        """
        with self._lock:
            self._await(at_least)
            if not self.is_ready():
                self._to_call = function
                return
        function()

    def wake(self) -> None:
        """Have all who wait, or run, look again: the switch was turned."""
        with self._lock:
            self.is_interrupted = True
            if not self.is_paused:
                self._ring(all_of_them=True)  # some wait for this alone

    def put_aside(self, count: int) -> None:
        """Have events that were taken, but still wait for others, take room all the same.

        Args:
            count: how many more, or, below zero, how many fewer.
        """
        with self._lock:
            self._aside += count

    def drop_aside(self, count: int, reason: str) -> int:
        """Drop events that were put aside; return how many are counted as dropped by it."""
        self.put_aside(-count)
        return self.drop_in_hand(count, reason)

    def drop_in_hand(self, count: int, reason: str) -> int:
        """Drop events that were taken; return how many are counted as dropped by it.

        After `abandon` that is none: it has counted them.
        """
        with self._lock:
            if count > self._in_hand:  # noqa: PLR1730  # min() is a call: see above
                count = self._in_hand
            self._in_hand -= count
            self._counts.drop(count, reason)
            return count

    def settle(self, *, handled: int = 0, declined: int = 0, failed: int = 0) -> None:
        """Count what became of events that were taken; `declined` ones are handled too.

        After `abandon` it changes nothing: those events are counted as dropped.
        """
        with self._lock:
            if not self._in_hand:
                return
            self._in_hand -= handled + declined + failed
            self._counts.settle(handled, declined, failed)

    def close(self, reason: str = STOPPED) -> None:
        """Accept no more: what is put from now on is dropped for `reason`.

        What waits can still be taken, also while the switch is paused.
        """
        with self._lock:
            if self._closed_because is None:
                self._closed_because = reason
            self._ring(all_of_them=True)

    def discard(self, reason: str, tell: Callable[[Sequence[T]], None] | None = None) -> int:
        """Drop all that waits; accept no more. What is in hand is still to be settled.

        Args:
            reason: why.
            tell: called with what is dropped, without the lock.

        Returns:
            How many events were dropped.
        """
        with self._lock:
            dropped = self._discard(reason)
            left = len(dropped)
        if tell is not None:
            tell(dropped)
        del dropped  # as in `put_all`
        return left

    def abandon(self, reason: str) -> int:
        """Drop all that waits or is in the consumer's hands; accept no more.

        Returns:
            How many events were dropped.
        """
        with self._lock:
            self.is_interrupted = True  # before what was handled in the run is looked at
            dropped = self._discard(reason)
            in_hand, self._in_hand = self._in_hand, 0
            if self._is_running:
                self._handled_at_most = self._counts.numbers[IN_RUNS]
                in_hand += self._stock - (self._handled_at_most - self._handled_before)
                self._stock = self._handled_at_most - self._handled_before
            self._counts.drop(in_hand, reason)
            left = len(dropped) + in_hand
        del dropped  # as in `put_all`
        return left

    def stats(self) -> ConsumerStats:
        """Return the numbers of this moment."""
        with self._lock:
            numbers, in_runs = self._counts.snapshot_and_runs()
            pending = len(self._waiting) + self._in_hand
            if self._is_running:
                pending = max(0, self._stock - (in_runs - self._handled_before)) + self._in_hand
        return stats_of(numbers, pending)

    # With the lock held.

    def _make_room(self, size: int, count: int) -> tuple[list[T], int]:
        """Return what is dropped of what waits, and how many of so many to come are too many.

        Before those are put: a run takes without the lock, and what makes room
        afterwards could meet a new one where an old one was.
        """
        room = max(0, size - self._aside)
        if self._drop_oldest:
            dropped = self._drop(MAILBOX_FULL, keep=max(0, room - count))
            refused = max(0, count - room)
        else:
            dropped = []
            refused = max(0, count - max(0, room - len(self._waiting)))
        self._counts.drop(refused, MAILBOX_FULL)
        return dropped, refused

    def _drop(self, reason: str, keep: int) -> list[T]:
        dropped: list[T] = []
        with contextlib.suppress(IndexError):  # a run takes without the lock
            while len(self._waiting) > keep:
                dropped.append(self._waiting.popleft())
        self._stock -= len(dropped)
        self._counts.drop(len(dropped), reason)
        return dropped

    def _discard(self, reason: str) -> list[T]:
        dropped = self._drop(reason, keep=0)
        self._closed_because = reason
        self._ring(all_of_them=True)
        return dropped

    def _await(self, at_least: int) -> None:
        # A full one never has more.
        self._at_least = at_least if self._size is None else min(at_least, self._size)

    def _ring(self, *, all_of_them: bool = False) -> None:
        """Wake whoever waits."""
        self.bell.ring()
        if self._waiters:
            self._changed.notify(self._waiters if all_of_them else 1)
        if self._to_call is not None:
            function, self._to_call = self._to_call, None
            function()
