"""What became of one consumer's events, as numbers."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from celery_broadcast.durations import BUCKETS, Durations, bucket_of

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


#: How a consumer is in a process; besides these, "gave-up".
RUNNING = "running"
PAUSED = "paused"
STUCK = "stuck"


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
        restarts: how often it has started again after a crash.
        durations: of the calls of the consumer, those that raised too.
        processes: how many processes have it in which state: "running",
            "paused", "stuck" or "gave-up". One in which it hasn't started, or
            has ended, is in none.
        lag: for how many seconds, at least, its oldest waiting event has
            waited; 0.0 if none waits, or where nobody watches.
        last_error: what it raised last, such as "ValueError: no money"; at most
            500 characters.
        last_error_at: when that was, as unix time in seconds.
    """

    offered: int
    handled: int
    declined: int
    failed: int
    dropped: dict[str, int]
    pending: int
    restarts: int = 0
    durations: Durations = Durations()
    processes: dict[str, int] = {}
    lag: float = 0.0
    last_error: str | None = None
    last_error_at: float | None = None

    @property
    def dropped_total(self) -> int:
        """All that was dropped, whatever the reason."""
        return sum(self.dropped.values())

    def __add__(self, other: ConsumerStats) -> ConsumerStats:
        """Return the numbers of both, of the same consumer in another process."""
        newer = max(self, other, key=lambda stats: stats.last_error_at or 0.0)
        return ConsumerStats(
            offered=self.offered + other.offered,
            handled=self.handled + other.handled,
            declined=self.declined + other.declined,
            failed=self.failed + other.failed,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            pending=self.pending + other.pending,
            restarts=self.restarts + other.restarts,
            durations=self.durations + other.durations,
            processes=dict(Counter(self.processes) + Counter(other.processes)),
            lag=max(self.lag, other.lag),
            last_error=newer.last_error,
            last_error_at=newer.last_error_at,
        )


class LastError(msgspec.Struct, frozen=True, order=True):
    """What a consumer raised last. The newest of several is the greatest.

    Attributes:
        at: when, as unix time in seconds.
        text: the name of its class, and what it says.
    """

    at: float
    text: str


#: Where it is counted: in an array of this process, or in memory that others can read.
Numbers: TypeAlias = "array[int] | memoryview"

OFFERED, _HANDLED, _DECLINED, _FAILED, _FIRST_DROP = range(5)

_RESTARTS = _FIRST_DROP + len(DROP_REASONS)
_FIRST_BUCKET = _RESTARTS + 1
_NANOSECONDS = _FIRST_BUCKET + BUCKETS

#: How many numbers a consumer has that only grow, and that add up over processes.
LENGTH = _NANOSECONDS + 1

#: Behind them, how many of the handled ones were handled in runs. Nobody but the thread
#: that runs writes there, so it needs no lock.
IN_RUNS = LENGTH

# Then what tells of now: of threads that live, of calls that are stuck, whether it is paused,
# whether it gave up; when it raised last, as unix time in milliseconds.
_THREADS, _STUCK, _PAUSED, _GAVE_UP, _ERROR_AT = range(LENGTH + 1, LENGTH + 6)

# And then, as text, what it raised.
_ERROR_FROM = 32

#: How many numbers there are in all.
ROOM = 112
_ERROR_BYTES = 8 * (ROOM - _ERROR_FROM)
_ERROR_CHARACTERS = 500


class Counts:
    """A consumer's numbers, one after another; they outlive its mailboxes.

    Args:
        numbers: where to count; by default in an array of its own.

    Attributes:
        lock: whoever writes holds it; a mailbox shares it with the next one of
            the same consumer, which may begin before the last has ended. It is
            reentrant: a signal handler, or a finalizer, may ask for the numbers.
        numbers: they themselves, behind them what was handled in runs, and then what
            tells of now.
        is_running: whether a run is on, of whichever of its mailboxes.
    """

    def __init__(self, numbers: Numbers | None = None) -> None:
        # Made through the module, so that it is the patched one under gevent.
        self.lock: threading.RLock = threading.RLock()
        own = array("Q", bytes(8 * ROOM))
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

    def add_calls(self, nanoseconds: int, others: int = 0) -> None:
        """Count calls that are over.

        Args:
            nanoseconds: how long they took, all together.
            others: how many there were besides the one that may have been slow.
        """
        bucket = _FIRST_BUCKET + bucket_of(nanoseconds)
        with self.lock:
            numbers = self.numbers
            numbers[bucket] += 1
            numbers[_FIRST_BUCKET] += others
            numbers[_NANOSECONDS] += nanoseconds

    def add_restart(self) -> None:
        """Count that it starts again after a crash."""
        with self.lock:
            self.numbers[_RESTARTS] += 1

    def add_threads(self, count: int) -> None:
        """Note that so many threads of it have begun; below zero, that they have ended."""
        with self.lock:
            self.numbers[_THREADS] += count

    def add_stuck(self, count: int) -> None:
        """Note that so many calls more are stuck; below zero, fewer."""
        with self.lock:
            self.numbers[_STUCK] += count

    def set_paused(self, *, is_paused: bool) -> None:
        """Note whether its events only pile up for now."""
        self.numbers[_PAUSED] = is_paused

    def set_gave_up(self, *, has_given_up: bool) -> None:
        """Note whether it crashed too often."""
        self.numbers[_GAVE_UP] = has_given_up

    def note_error(self, error: BaseException) -> None:
        """Note what it raised, and that it did so now; never raise."""
        text = _text_of(error).encode(errors="replace")[:_ERROR_BYTES]
        text += bytes(_ERROR_BYTES - len(text))
        now = time.time_ns() // 1_000_000
        with self.lock:
            numbers = memoryview(self.numbers)
            numbers[_ERROR_AT] = 0  # who reads just now sees that it isn't whole
            numbers.cast("B")[8 * _ERROR_FROM :] = text
            numbers[_ERROR_AT] = now

    def last_error(self) -> LastError | None:
        """Return what it raised last; None if nothing, or if it is just being written."""
        numbers = memoryview(self.numbers)
        at = numbers[_ERROR_AT]
        text = bytes(numbers.cast("B")[8 * _ERROR_FROM :])
        if not at or numbers[_ERROR_AT] != at:
            return None
        return LastError(at / 1e3, text.rstrip(b"\0").decode(errors="ignore"))

    def state(self) -> str | None:
        """Return how it is in its process; None if it hasn't started there, or has ended."""
        numbers = self.numbers
        if numbers[_GAVE_UP]:
            return GAVE_UP
        if not numbers[_THREADS]:
            return None
        if numbers[_STUCK]:
            return STUCK
        return PAUSED if numbers[_PAUSED] else RUNNING

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
        state = self.state()
        processes = {} if state is None else {state: 1}
        return stats_of(self.snapshot(), pending, processes, self.last_error())


def stats_of(
    numbers: list[int],
    pending: int | None = None,
    processes: dict[str, int] | None = None,
    last_error: LastError | None = None,
) -> ConsumerStats:
    """Return numbers by name; `pending` is as in `Counts.stats`."""
    drops = zip(DROP_REASONS, numbers[_FIRST_DROP:_RESTARTS], strict=True)
    return ConsumerStats(
        offered=numbers[OFFERED],
        handled=numbers[_HANDLED],
        declined=numbers[_DECLINED],
        failed=numbers[_FAILED],
        dropped={reason: count for reason, count in drops if count},
        pending=pending_of(numbers) if pending is None else pending,
        restarts=numbers[_RESTARTS],
        durations=Durations(
            buckets=tuple(numbers[_FIRST_BUCKET:_NANOSECONDS]),
            seconds=numbers[_NANOSECONDS] / 1e9,
        ),
        processes=processes or {},
        last_error=None if last_error is None else last_error.text,
        last_error_at=None if last_error is None else last_error.at,
    )


def pending_of(numbers: list[int]) -> int:
    """Return how many of the offered events are not accounted for."""
    settled = numbers[_HANDLED] + numbers[_FAILED] + sum(numbers[_FIRST_DROP:_RESTARTS])
    return max(0, numbers[OFFERED] - settled)


def drop_pending(numbers: list[int], reason: str) -> list[int]:
    """Return the numbers with what is pending counted as dropped."""
    numbers = numbers.copy()
    numbers[_FIRST_DROP + DROP_REASONS.index(reason)] += pending_of(numbers)
    return numbers


def total_of(several: Iterable[list[int]]) -> list[int]:
    """Return the sums of each number."""
    return [sum(column) for column in zip([0] * LENGTH, *several, strict=True)]


def _text_of(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception as another:  # noqa: BLE001  # theirs, and it only names the first
        text = f"{type(error).__name__}, whose text raised {type(another).__name__}"
    return text[:_ERROR_CHARACTERS].rstrip(": ").replace("\0", " ")
