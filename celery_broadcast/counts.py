"""What became of one consumer's events, as numbers."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

#: Why an event can be dropped.
MAILBOX_FULL = "mailbox-full"
INBOX_FULL = "inbox-full"
STOPPED = "stopped"
DRAIN_TIMEOUT = "drain-timeout"
GAVE_UP = "gave-up"
PROCESS_DIED = "process-died"
CANCELLED = "cancelled"
DROP_REASONS = (
    *(MAILBOX_FULL, INBOX_FULL, STOPPED, DRAIN_TIMEOUT, GAVE_UP, PROCESS_DIED),
    CANCELLED,
)


class ConsumerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a consumer's events, at one moment.

    `offered == handled + failed + dropped_total + pending`, always.

    Attributes:
        offered: events of the kinds that it wants.
        handled: events it is done with: it returned, or its selector declined.
        declined: those of the handled that its selector turned away.
        failed: events on which it, or its selector, raised.
        dropped: events that it never got, by reason.
        pending: events in its mailbox or in its hands.
    """

    offered: int
    handled: int
    declined: int
    failed: int
    dropped: dict[str, int]
    pending: int

    @property
    def dropped_total(self) -> int:
        """All that was dropped, whatever the reason."""
        return sum(self.dropped.values())

    def __add__(self, other: ConsumerStats) -> ConsumerStats:
        """Return the numbers of both, of the same consumer in another process."""
        return ConsumerStats(
            offered=self.offered + other.offered,
            handled=self.handled + other.handled,
            declined=self.declined + other.declined,
            failed=self.failed + other.failed,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            pending=self.pending + other.pending,
        )


#: Where it is counted: in an array of this process, or in memory that others can read.
Numbers: TypeAlias = "array[int] | memoryview"

OFFERED, _HANDLED, _DECLINED, _FAILED, _FIRST_DROP = range(5)

#: How many numbers a consumer has.
LENGTH = _FIRST_DROP + len(DROP_REASONS)

#: Behind them, how many of the handled ones were handled in runs. Nobody but the thread
#: that runs writes there, so it needs no lock.
IN_RUNS = LENGTH


class Counts:
    """A consumer's numbers, one after another; they outlive its mailboxes.

    Args:
        numbers: where to count; by default in an array of its own.

    Attributes:
        lock: whoever writes holds it; a mailbox shares it with the next one of
            the same consumer, which may begin before the last has ended. It is
            reentrant: a signal handler, or a finalizer, may ask for the numbers.
        numbers: they themselves, and behind them what was handled in runs.
        is_running: whether a run is on, of whichever of its mailboxes.
    """

    def __init__(self, numbers: Numbers | None = None) -> None:
        # Made through the module, so that it is the patched one under gevent.
        self.lock: threading.RLock = threading.RLock()
        own = array("Q", bytes(8 * (LENGTH + 1)))
        self.numbers: Numbers = own if numbers is None else numbers
        self.is_running: bool = False

    def offer(self, count: int = 1) -> None:
        """Count events that it wants."""
        self.numbers[OFFERED] += count

    def settle(self, handled: int, declined: int, failed: int) -> None:
        """Count events that it is done with; `declined` ones are handled too."""
        numbers = self.numbers
        if handled or declined:
            numbers[_HANDLED] += handled + declined
            numbers[_DECLINED] += declined
        if failed:
            numbers[_FAILED] += failed

    def drop(self, count: int, reason: str) -> None:
        """Count events that it will never get."""
        self.numbers[_FIRST_DROP + DROP_REASONS.index(reason)] += count

    def snapshot(self) -> list[int]:
        """Return the numbers; another process may be writing them."""
        numbers, _ = self.snapshot_and_runs()
        return numbers

    def snapshot_and_runs(self) -> tuple[list[int], int]:
        """Return the numbers, and how many of the handled were handled in runs."""
        *numbers, in_runs = self.numbers.tolist()[: LENGTH + 1]
        numbers[_HANDLED] += in_runs
        # Last, so that never more are done with than were offered.
        numbers[OFFERED] = self.numbers[OFFERED]
        return numbers, in_runs

    def stats(self, pending: int | None = None) -> ConsumerStats:
        """Return the numbers by name.

        Args:
            pending: how many are pending; None is what is not accounted for.
        """
        return stats_of(self.snapshot(), pending)


def stats_of(numbers: list[int], pending: int | None = None) -> ConsumerStats:
    """Return numbers by name; `pending` is as in `Counts.stats`."""
    drops = zip(DROP_REASONS, numbers[_FIRST_DROP:], strict=True)
    return ConsumerStats(
        offered=numbers[OFFERED],
        handled=numbers[_HANDLED],
        declined=numbers[_DECLINED],
        failed=numbers[_FAILED],
        dropped={reason: count for reason, count in drops if count},
        pending=pending_of(numbers) if pending is None else pending,
    )


def pending_of(numbers: list[int]) -> int:
    """Return how many of the offered events are not accounted for."""
    settled = numbers[_HANDLED] + numbers[_FAILED] + sum(numbers[_FIRST_DROP:])
    return max(0, numbers[OFFERED] - settled)


def drop_pending(numbers: list[int], reason: str) -> list[int]:
    """Return the numbers with what is pending counted as dropped."""
    numbers = numbers.copy()
    numbers[_FIRST_DROP + DROP_REASONS.index(reason)] += pending_of(numbers)
    return numbers


def total_of(several: Iterable[list[int]]) -> list[int]:
    """Return the sums of each number."""
    return [sum(column) for column in zip([0] * LENGTH, *several, strict=True)]
