"""The jobs' own numbers: how many started, how they ended, and how long they took.

Counted on the thread that runs the job, which is the only place where nothing is
missed: a mailbox may be full, and a process may be killed before its events get
anywhere. It costs a few microseconds a job. Only where metrics are served.

A pool process counts in its slot. A kill may come between any two lines, so what
is about to be counted of an attempt is written down first, beside the note of
the attempt. Whoever buries the process can tell by it what was counted, and
finishes what was begun: an attempt is counted once, its start and its end.
"""

from __future__ import annotations

import operator
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from celery_broadcast import fork
from celery_broadcast.events import EVENT_TYPES, JobEnded, JobEvent
from celery_broadcast.slots import JOB_MEMORY, Running, Slot, Slots

#: The name of the task, and of the queue, or "" where Celery doesn't tell.
Key: TypeAlias = tuple[str, str]

#: Whose rows are all given is counted as this.
OTHER: Key = ("other", "other")

#: The longest job, in seconds, of each bucket but the last, which has no bound.
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)

#: The ways to end, by the names of their events.
ENDS: tuple[str, ...] = tuple(
    name for name, event_type in EVENT_TYPES.items() if issubclass(event_type, JobEnded)
)

_END_OF: Mapping[type[JobEvent], int] = {
    EVENT_TYPES[name]: number for number, name in enumerate(ENDS)
}

# A row, as 64 bit numbers and a name. The starts are its last number, and so the
# last that is read: a job that starts and ends meanwhile isn't ended before it started.
_UNSTARTED = len(ENDS)
_NANOSECONDS = _UNSTARTED + 1
_BUCKETS = _NANOSECONDS + 1
_WAITED = _BUCKETS + len(BOUNDS) + 1  # nanoseconds
_WAITS = _WAITED + 1  # buckets of them
_STARTED = _WAITS + len(BOUNDS) + 1
_NUMBERS = _STARTED + 1
_ROW = 512
_ROW_NAME = 8 * _NUMBERS  # up to the row's end

# What is about to be counted of the attempt that has this note: whose it is, told by
# when it started; where a number is to be written, and which. A place that isn't 0 says
# that what belongs to it is complete.
_FIRST_INTENT, _INTENT = 8, 16  # where they begin, and how long each is, in numbers
_WHOSE, _START_AT, _START, _WAIT, _WAIT_SUM, _END_AT, _END, _BUCKET, _SUM = range(9)
_MOST = (1 << 64) - 1
_BITS = 16  # of a place
_PLACE = (1 << _BITS) - 1

# The memory: how many rows are given; the intents; the rows, from that byte on, of
# which the first is for all that have none.
_ROWS_GIVEN = 0
_ROWS_FROM = 3_072
_ROWS = (JOB_MEMORY - _ROWS_FROM) // _ROW

#: How many pairs of a task and a queue are told apart; the others are `OTHER`.
MOST_NAMED: int = _ROWS - 1


class JobNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the jobs of one task and queue.

    Attributes:
        started: attempts that started.
        running: those of them that haven't ended.
        ended: how many ended, by the name of the event, also of those that never started.
        buckets: how many took so long: one number for each of `BOUNDS`, and one for
            those beyond the last. Of the ended, without those that never started.
        seconds: all of these together.
        waits: how many waited so long, in the same buckets: from when they were sent, or
            due, to their start. Of those that started, where the sender told it.
        waited_seconds: all of these together.
    """

    started: int
    running: int
    ended: Mapping[str, int]
    buckets: tuple[int, ...]
    seconds: float
    waits: tuple[int, ...]
    waited_seconds: float


class Jobs:
    """Counts the jobs of this process, and adds up those of the processes below it.

    `start` and `end` may be called on any thread, the others on any by one at a time.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child counts from zero, in its own slot."""
        # Reentrant: a signal handler may run a job, inside of a job that is just counted.
        self._counting = threading.RLock()
        self._own: _Memory | None = None
        self._departed: dict[Key, list[int]] = {}
        self._named: set[Key] = set()
        # By the job and when it started, as what a start was counted whose note had no room
        # for all names. The end is yet to come.
        self._started_as: dict[tuple[str, float | None], Key] = {}

    def share(self, slots: Slots) -> None:
        """Count, in a pool process, where its main process can read it."""
        self._slots = slots
        if slots.mine is not None:
            self._own = None

    def start(
        self, facts: Mapping[str, Any], started: float, note: int | None, wait: float | None = None
    ) -> None:
        """Count that an attempt started.

        Args:
            facts: the fields of `JobEvent`.
            started: when, in seconds of the monotonic clock.
            note: of the attempt, in this process's slot. With one, twice is harmless.
            wait: seconds from when it was sent, or due, to its start; None if unknown.
        """
        with self._counting:
            self._memory().count_start(_key_of(facts), started, note, wait)

    def end(
        self,
        facts: Mapping[str, Any],
        started: float | None,
        event_type: type[JobEnded],
        runtime: float,
        note: int | None = None,
    ) -> None:
        """Count that an attempt ended.

        Args:
            facts: the fields of `JobEvent`.
            started: when it did, as above; None if that wasn't counted.
            event_type: how it ended.
            runtime: seconds.
            note: as above.
        """
        key = _key_of(facts)
        with self._counting:
            if self._started_as:
                key = self._started_as.pop((facts["task_id"], started), key)
            self._memory().count_end(key, started, _END_OF[event_type], runtime, note)

    def _memory(self) -> _Memory:
        if self._own is None:
            slot = None if self._slots is None else self._slots.mine
            memory = memoryview(bytearray(JOB_MEMORY)) if slot is None else slot.job_memory
            self._own = _Memory(memory, slot)
        return self._own

    def settle(self, slot: Slot, note: int, running: Running) -> bool:
        """Finish what a process that is gone was about to count of an attempt it had noted.

        Returns:
            Whether its end is counted.
        """
        memory, key = _Memory(slot.job_memory, slot), _key_of(running.facts)
        started = running.started_monotonic
        if not memory.finish_start(started, note):
            memory.count_start(key, started, note)
        if memory.finish_end(note):
            return True
        counted_as = memory.key_of_start(note)
        if counted_as != key:
            self._started_as[running.facts["task_id"], started] = counted_as
        return False

    def bury(self, slot: Slot) -> None:
        """Keep what a process that is gone has counted."""
        self._add(_Memory(slot.job_memory, slot), self._departed)

    def numbers(self, living: Iterable[Slot]) -> dict[Key, JobNumbers]:
        """Return the numbers of this process and of those below it, living and gone.

        Args:
            living: the slots of those that haven't been buried.
        """
        total = {key: list(numbers) for key, numbers in self._departed.items()}
        for memory in (self._memory(), *(_Memory(slot.job_memory, slot) for slot in living)):
            self._add(memory, total)
        return {key: _numbers_of(numbers) for key, numbers in total.items()}

    def _add(self, memory: _Memory, total: dict[Key, list[int]]) -> None:
        for key, numbers in memory.read():
            # Once it has its name it keeps it: what is told never goes backwards.
            if key not in self._named and len(self._named) < MOST_NAMED and key != OTHER:
                self._named.add(key)
            name = key if key in self._named else OTHER
            known = total.get(name)
            total[name] = numbers if known is None else list(map(operator.add, known, numbers))


class _Memory:
    """Counts in a piece of memory, which one process writes and any may read.

    Args:
        memory: zero, or as another of these has left it.
        slot: whose memory it is; None if no other process reads it.
    """

    def __init__(self, memory: memoryview, slot: Slot | None) -> None:
        self._bytes = memory
        self._numbers = memory.cast("Q")
        self._times = memory.cast("d")
        self._slot = slot
        # Where the numbers of each begin.
        self._places = {key: place for place, key in self._names()}

    def count_start(
        self, key: Key, started: float, note: int | None, wait: float | None = None
    ) -> None:
        """Count it, once for each note; `wait` is the seconds before it, None if nobody knows."""
        place = self._place_of(key)
        at, bucket = place + _STARTED, 0
        numbers = self._numbers
        count = numbers[at] + 1
        if wait is not None:
            bucket = place + _WAITS + bisect_left(BOUNDS, wait)
            in_bucket = numbers[bucket] + 1
            waited = numbers[place + _WAITED] + (int(wait * 1e9) if wait > 0.0 else 0)
            waited = min(waited, _MOST)
        if note is not None:
            intent = _FIRST_INTENT + note * _INTENT
            if self._times[intent + _WHOSE] != started:
                numbers[intent + _START_AT] = numbers[intent + _END_AT] = 0
                self._times[intent + _WHOSE] = started
            if numbers[intent + _START_AT]:
                self._write_start(intent)
                return
            numbers[intent + _START] = count
            if bucket:
                numbers[intent + _WAIT] = in_bucket
                numbers[intent + _WAIT_SUM] = waited
            numbers[intent + _START_AT] = (place + _WAITED << _BITS | bucket) << _BITS | at
        if bucket:
            numbers[place + _WAITED] = waited
            numbers[bucket] = in_bucket
        numbers[at] = count

    def finish_start(self, started: float, note: int) -> bool:
        """Count a start that was begun to be counted; tell whether one was."""
        intent = _FIRST_INTENT + note * _INTENT
        if self._times[intent + _WHOSE] != started or not self._numbers[intent + _START_AT]:
            return False
        self._write_start(intent)
        return True

    def key_of_start(self, note: int) -> Key:
        """Return as what the start was counted of the attempt that has this note."""
        at = self._numbers[_FIRST_INTENT + note * _INTENT + _START_AT] & _PLACE
        keys = (key for key, place in self._places.items() if place == at - _STARTED)
        return next(keys, OTHER)

    def _write_start(self, intent: int) -> None:
        numbers = self._numbers
        places = numbers[intent + _START_AT]
        bucket = places >> _BITS & _PLACE
        if bucket:
            self._raise(places >> 2 * _BITS, numbers[intent + _WAIT_SUM])
            self._raise(bucket, numbers[intent + _WAIT])
        self._raise(places & _PLACE, numbers[intent + _START])

    def count_end(
        self, key: Key, started: float | None, end: int, runtime: float, note: int | None
    ) -> None:
        """Count it, once for each note; `end` is which of `ENDS`."""
        place = self._place_of(key)
        numbers = self._numbers
        if started is None:
            numbers[place + _UNSTARTED] += 1
            numbers[place + end] += 1
            return
        bucket, end = place + _BUCKETS + bisect_left(BOUNDS, runtime), place + end
        total = place + _NANOSECONDS
        nanoseconds = numbers[total] + (int(runtime * 1e9) if runtime > 0.0 else 0)
        in_bucket, ended = numbers[bucket] + 1, numbers[end] + 1
        if note is not None:
            intent = _FIRST_INTENT + note * _INTENT
            if self._times[intent + _WHOSE] == started:
                if numbers[intent + _END_AT]:
                    self._write_end(intent)
                    return
                numbers[intent + _SUM] = nanoseconds
                numbers[intent + _BUCKET] = in_bucket
                numbers[intent + _END] = ended
                numbers[intent + _END_AT] = (total << _BITS | bucket) << _BITS | end
        numbers[total] = nanoseconds
        numbers[bucket] = in_bucket
        numbers[end] = ended

    def finish_end(self, note: int) -> bool:
        """Count an end that was begun to be counted; tell whether one was.

        Called once the start of the attempt that has the note is counted.
        """
        intent = _FIRST_INTENT + note * _INTENT
        if not self._numbers[intent + _END_AT]:
            return False
        self._write_end(intent)
        return True

    def _write_end(self, intent: int) -> None:
        numbers = self._numbers
        places = numbers[intent + _END_AT]
        self._raise(places >> 2 * _BITS, numbers[intent + _SUM])
        self._raise(places >> _BITS & _PLACE, numbers[intent + _BUCKET])
        self._raise(places & _PLACE, numbers[intent + _END])

    def _raise(self, at: int, number: int) -> None:
        if self._numbers[at] < number:  # noqa: PLR1730  # max() takes twice as long
            self._numbers[at] = number

    def _place_of(self, key: Key) -> int:
        place = self._places.get(key)
        if place is None:
            place = self._new_place(key)
        return place

    def _new_place(self, key: Key) -> int:
        if not self._places:
            self._give_row(OTHER)
        name = _name_of(key)
        has_room = self._numbers[_ROWS_GIVEN] < _ROWS and len(name) <= _ROW - _ROW_NAME
        if has_room and _split(name) == key:
            self._give_row(key)
            return self._places[key]
        return self._places[OTHER]  # and that isn't kept: there may be any number of these

    def _give_row(self, key: Key) -> None:
        row = self._numbers[_ROWS_GIVEN]
        start = _ROWS_FROM + row * _ROW
        if self._slot is not None:
            self._slot.job_memory_used = start + _ROW
        name = _name_of(key).ljust(_ROW - _ROW_NAME, b"\0")
        self._bytes[start + _ROW_NAME : start + _ROW] = name
        self._numbers[_ROWS_GIVEN] = row + 1
        self._places[key] = start // 8

    def _names(self) -> Iterator[tuple[int, Key]]:
        for row in range(min(_ROWS, self._numbers[_ROWS_GIVEN])):
            start = _ROWS_FROM + row * _ROW
            yield start // 8, _split(bytes(self._bytes[start + _ROW_NAME : start + _ROW]))

    def read(self) -> Iterator[tuple[Key, list[int]]]:
        """Return the numbers of each that has a row."""
        for place, key in self._names():
            yield key, self._numbers[place : place + _NUMBERS].tolist()


def _key_of(facts: Mapping[str, Any]) -> Key:
    return facts["task_name"], facts.get("queue") or ""


def _name_of(key: Key) -> bytes:
    return "\0".join(key).encode(errors="replace")


def _split(name: bytes) -> Key:
    task, _, queue = name.rstrip(b"\0").decode(errors="replace").partition("\0")
    return task, queue


def _numbers_of(row: list[int]) -> JobNumbers:
    ended = row[: len(ENDS)]
    started = row[_STARTED]
    return JobNumbers(
        started=started,
        # A job may start and end while this is read.
        running=max(0, started - (sum(ended) - row[_UNSTARTED])),
        ended=dict(zip(ENDS, ended, strict=True)),
        buckets=tuple(row[_BUCKETS:_WAITED]),
        seconds=row[_NANOSECONDS] / 1e9,
        waits=tuple(row[_WAITS:_STARTED]),
        waited_seconds=row[_WAITED] / 1e9,
    )
