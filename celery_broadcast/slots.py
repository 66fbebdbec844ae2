"""What each pool process writes for the main process, which outlives it: a slot of memory.

A process that is killed tells nobody what it was running, nor what its
consumers had waiting. What Celery tells of it in the main process differs from
version to version, and from one way of dying to the next. So each process has a
slot in memory that both have mapped, with a note of every attempt it runs and
with the numbers of its consumers.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from celery_broadcast import fork

if TYPE_CHECKING:
    from typing_extensions import Self

logger: logging.Logger = logging.getLogger(__name__)

#: A worker with more pool processes than this has some without a slot.
SLOTS = 1_024

#: How many attempts a process can note at once: one job, and the eager ones in it.
NOTES = 16

#: How many consumers of a process can count where the main process reads it.
ROWS = 128

#: How many numbers a row has.
NUMBERS = 112

#: How many bytes a process has for the jobs' own numbers.
JOB_MEMORY = 65_536

# The facts of an attempt that can leave the process.
_NOTED = (
    *("task_id", "task_name", "queue", "exchange", "routing_key", "retries"),
    *("root_id", "parent_id", "group_id", "worker", "pid", "started_at"),
)
_LEAST = ("task_id", "retries", "pid", "started_at")
_SHORT_NAME = 100  # characters
_noted_of = itemgetter(*_NOTED)
_encoder = msgspec.msgpack.Encoder()

# A slot, in bytes: its head; the state and the length of each note; whether its
# start was told; the notes; a row for each consumer; the jobs' own numbers. A number that another
# process reads is aligned, so that it is written in one store and nobody reads
# half of it.
_STATES, _STARTS, _NOTES_FROM, _ROWS_FROM = 64, 192, 256, 16_384
_NOTE, _ROW = 1_008, 1_024
_ROW_NAME = 8 * NUMBERS  # where in its row the name of the consumer stands, up to the row's end
_JOBS_FROM = _ROWS_FROM + ROWS * _ROW
_SLOT = _JOBS_FROM + JOB_MEMORY  # whole pages

# The head, as 32 bit numbers and, after those two, as 64 bit numbers.
_PID, _GENERATION = 0, 1
_CHANGED_AT, _PUBLISHED, _DISPATCHED, _ROWS_USED, _LAYOUT, _JOBS_USED, _OFF_SINCE = range(1, 8)
_THIS_LAYOUT = 0x63656C_62_0002  # slots of another release are not ours to read

_LAST_GENERATION = (1 << 31) - 1

# What a slot's pid says while it is no process's.
_FREE = 0
_RESERVED = -1

# A child writes its pid as soon as it is born. If it never does, it died then.
_SECONDS_TO_BE_BORN = 60.0

# What became of a process's attempts can be asked for so long after it is gone.
_SECONDS_KEPT = 15.0

#: The states of a note. Any other number: its end is being published, by that code.
CLOSED, RUNNING, ABANDONED = 0, 1, 2


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that a pool process has noted.

    Attributes:
        facts: fields of `JobEvent`, as far as they are text or numbers.
        started_monotonic: when it started, in seconds of the monotonic clock,
            which all processes of a machine share.
        eager: whether it ran inside of another job, so that Celery has no news of it.
        acks_late: whether the broker keeps its message until it has ended.
    """

    facts: Mapping[str, Any]
    started_monotonic: float
    eager: bool = False
    acks_late: bool = False


class Slot:
    """The slot of one process. That process writes it, the main process reads it.

    Args:
        memory: all the slots.
        index: which of them.
    """

    def __init__(self, memory: memoryview, index: int) -> None:
        self.index = index
        self._memory = memory[index * _SLOT : (index + 1) * _SLOT]
        self._ints = self._memory.cast("i")
        self._longs = self._memory.cast("Q")
        self._free_notes = deque(range(NOTES))
        self._is_lack_of_rows_said = False
        self._next_published = itertools.count(1).__next__  # counts for several threads

    # Who has it.

    @property
    def pid(self) -> int:
        """The process whose slot it is; not positive while it is nobody's."""
        return self._ints[_PID]

    @property
    def generation(self) -> int:
        """How many processes have had it."""
        return self._ints[_GENERATION]

    def reserve(self) -> None:
        """Keep it for a process that is about to be born, and clean it."""
        self._longs[_PUBLISHED] = self._longs[_DISPATCHED] = self._longs[_ROWS_USED] = 0
        self._memory[_JOBS_FROM : _JOBS_FROM + self.job_memory_used] = bytes(self.job_memory_used)
        self.job_memory_used = 0
        for note in range(NOTES):
            self.set_state(note, CLOSED)  # what they say is kept, for `has_ended`
        self._ints[_GENERATION] = self._ints[_GENERATION] % _LAST_GENERATION + 1
        self._set_pid(_RESERVED)

    def occupy(self) -> None:
        """Make it this process's own."""
        self._set_pid(os.getpid())

    def free(self) -> None:
        """Leave it to a process to come."""
        self._set_pid(_FREE)

    def idle_seconds(self) -> float:
        """Return the seconds since it was reserved, occupied or freed."""
        return (time.monotonic_ns() - self._longs[_CHANGED_AT]) / 1e9

    def _set_pid(self, pid: int) -> None:
        self._longs[_CHANGED_AT] = time.monotonic_ns()
        self._ints[_PID] = pid

    # The attempts.

    def take_note(self) -> int | None:
        """Return the number of a note that is free; None if none is."""
        try:
            note = self._free_notes.popleft()
        except IndexError:
            return None
        self._ints[_STARTS // 4 + note] = 0
        return note

    def write(self, note: int, running: Running) -> bool:
        """Note an attempt that starts. What doesn't fit, or can't be written, is left out.

        Returns:
            False if not even the job's id can be written: then nothing is noted.
        """
        text = _encode(running)
        if not text:
            return False
        start, state = _NOTES_FROM + note * _NOTE, _STATES // 4 + 2 * note
        self._memory[start : start + len(text)] = text
        self._ints[state + 1] = len(text)
        self._ints[state] = RUNNING
        return True

    def state(self, note: int) -> int:
        """Return the state of a note."""
        return self._ints[_STATES // 4 + 2 * note]

    def set_state(self, note: int, state: int) -> None:
        """Say what becomes of an attempt."""
        self._ints[_STATES // 4 + 2 * note] = state

    def say_start_told(self, note: int) -> None:
        """Say that the start of an attempt is about to reach its consumers."""
        self._ints[_STARTS // 4 + note] = 1

    def is_start_told(self, note: int) -> bool:
        """Tell whether a consumer may have heard of the start."""
        return self._ints[_STARTS // 4 + note] != 0

    def close(self, note: int) -> None:
        """Say that an attempt has ended; the note may serve another."""
        self.set_state(note, CLOSED)
        self.give_back(note)

    def give_back(self, note: int) -> None:
        """Let the note, which is closed, serve another attempt."""
        self._free_notes.append(note)

    def has_few_notes(self) -> bool:
        """Tell whether most of the notes are in use."""
        return len(self._free_notes) < NOTES // 2

    def open_notes(self) -> list[tuple[int, Running | None]]:
        """Return the attempts that haven't ended, None for one that can't be read."""
        return [(note, self.read(note)) for note in range(NOTES) if self.state(note) != CLOSED]

    def notes_of(self, task_id: str) -> list[tuple[int, Running]]:
        """Return what it says of a job, of attempts that have ended too."""
        told, found = task_id.encode(errors="replace"), []
        for note in range(NOTES):
            if told in self._text(note):
                running = self.read(note)
                if running is not None and running.facts["task_id"] == task_id:
                    found.append((note, running))
        return found

    def read(self, note: int) -> Running | None:
        """Return the attempt; None if what stands there is rubbish."""
        return _decode(self._text(note))

    def _text(self, note: int) -> bytes:
        length = self._ints[_STATES // 4 + 2 * note + 1]
        start = _NOTES_FROM + note * _NOTE
        return bytes(self._memory[start : start + length]) if 0 < length <= _NOTE else b""

    # The numbers.

    def count_published(self) -> None:
        """Count an event that is about to be published. Called on any thread."""
        self._longs[_PUBLISHED] = self._next_published()

    def count_dispatched(self, count: int = 1) -> None:
        """Count events that every consumer that wants them has been offered."""
        self._longs[_DISPATCHED] += count

    def not_dispatched(self) -> int:
        """Return how many events were published and not offered to anyone."""
        return max(0, self._longs[_PUBLISHED] - self._longs[_DISPATCHED])

    def new_row(self, name: str) -> memoryview | None:
        """Return numbers, all zero, that the main process can read too; None if all are given."""
        used = self._longs[_ROWS_USED]
        if used >= ROWS:
            if not self._is_lack_of_rows_said:
                self._is_lack_of_rows_said = True
                logger.warning(
                    "broadcast has memory for the numbers of %d consumers in pid %d, and there "
                    "were more names than that. stats() of the worker's main process leaves out "
                    "the others, such as %r",
                    ROWS,
                    os.getpid(),
                    name,
                )
            return None
        start = _ROWS_FROM + used * _ROW
        row = self._memory[start : start + _ROW]
        row[:] = bytes(_ROW)
        text = row_key(name).encode()
        row[_ROW_NAME : _ROW_NAME + len(text)] = text
        self._longs[_ROWS_USED] = used + 1
        return row.cast("Q")[:NUMBERS]

    def rows(self) -> Iterator[tuple[str, memoryview]]:
        """Return each consumer's name, as `row_key` gives it, and numbers."""
        for number in range(min(ROWS, self._longs[_ROWS_USED])):
            start = _ROWS_FROM + number * _ROW
            row = self._memory[start : start + _ROW]
            name = bytes(row[_ROW_NAME:]).rstrip(b"\0").decode(errors="replace")
            yield name, row.cast("Q")[:NUMBERS]

    # The jobs' own numbers.

    @property
    def job_memory(self) -> memoryview:
        """Its bytes for the jobs' own numbers: zero at first, up to what was said to be used."""
        return self._memory[_JOBS_FROM : _JOBS_FROM + JOB_MEMORY]

    @property
    def job_memory_used(self) -> int:
        """How many of these bytes may be other than zero; whoever writes there says so before."""
        return min(JOB_MEMORY, self._longs[_JOBS_USED])

    @job_memory_used.setter
    def job_memory_used(self, size: int) -> None:
        self._longs[_JOBS_USED] = size

    # Of the first slot, which the main process has.

    @property
    def switch(self) -> memoryview:
        """One number: since when the broadcast is switched off, or 0, which is on."""
        return self._longs[_OFF_SINCE : _OFF_SINCE + 1]

    def sign(self) -> None:
        """Say whose slots these are, and what they look like."""
        self._longs[_LAYOUT] = _THIS_LAYOUT
        self.occupy()

    def is_signed_by(self, pid: int) -> bool:
        """Tell whether they are this process's, and look as this release expects."""
        return self.pid == pid and self._longs[_LAYOUT] == _THIS_LAYOUT


class Slots:
    """The slots of the pool processes of this one, whether forked or spawned.

    Args:
        count: how many there are, besides the first, which is this process's.

    Raises:
        OSError: the system gives no memory that processes can share.
    """

    def __init__(self, count: int = SLOTS) -> None:
        self._set_up(_new_memory((1 + count) * _SLOT), owner=os.getpid())
        self._slot(0).sign()

    def _set_up(self, memory: mmap.mmap, owner: int) -> None:
        self._memory = memoryview(memory)
        self._owner = owner
        self._count = len(memory) // _SLOT
        self._made: dict[int, Slot] = {}  # by index; few of so many are ever asked for
        self._used = 1  # no slot from this one on was ever anybody's
        self._refused = 0  # processes for which there was none
        # Of the forking thread: several threads may fork at once.
        self._reserved = threading.local()
        self._reserving = threading.Lock()
        fork.starts_clean(self)
        #: The slot of this process, if it is a pool process.
        self.mine: Slot | None = None

    @classmethod
    def of_parent(cls) -> Self | None:
        """Return the slots of the process that spawned this one, of which one is now its own.

        Returns:
            None if there is none to be had.
        """
        for descriptor in _memories_of(os.getppid()):
            with contextlib.suppress(OSError, ValueError), descriptor.open("r+b") as file:
                slots = cls.__new__(cls)
                slots._set_up(mmap.mmap(file.fileno(), 0), owner=os.getppid())  # noqa: SLF001
                if slots._count and slots._slot(0).is_signed_by(os.getppid()):  # noqa: SLF001
                    fcntl.lockf(file, fcntl.LOCK_EX)  # others are being born
                    slots.mine = slots.free_slot()
                    if slots.mine is not None:
                        slots.mine.reserve()
                        slots.mine.occupy()
                    return slots
        return None

    @property
    def switch(self) -> memoryview:
        """One number: since when all these processes are switched off, as unix time in ms.

        0 is on. The main process writes it, the others read it at each job.
        """
        return self._slot(0).switch

    def before_fork(self) -> None:
        """Reserve a slot for the child; called in the parent, on the forking thread."""
        self._reserved.slot = None
        if os.getpid() != self._owner:
            return  # a pool process that forks: its child is none of the pool's
        with self._reserving:
            slot = self.free_slot()
            if slot is None:
                self._refused += 1
                if self._refused == 1:
                    logger.warning(
                        "broadcast has memory for %d pool processes, and this worker has more. If "
                        "one of the others dies, its job may have no end and its events aren't "
                        "counted",
                        self._count - 1,
                    )
                return
            slot.reserve()
            self._reserved.slot = slot, slot.generation

    def forget(self) -> None:
        """Take the slot that the parent has reserved; called in the child."""
        slot, generation = getattr(self._reserved, "slot", None) or (None, 0)
        is_reserved = slot is not None and slot.pid == _RESERVED and slot.generation == generation
        self.mine = slot if is_reserved else None
        self._reserving = threading.Lock()
        if self.mine is not None:
            self.mine.occupy()

    def are_below(self) -> bool:
        """Tell whether this is the process whose pool processes have them."""
        return os.getpid() == self._owner

    def are_used(self) -> bool:
        """Tell whether any process ever had one."""
        return len(self._ever_used()) > 0

    @property
    def refused(self) -> int:
        """How many processes there were for which there was no slot."""
        return self._refused

    def living(self) -> list[Slot]:
        """Return the slots of processes that have not been buried yet."""
        return [slot for slot in self._ever_used() if slot.pid > 0]

    def gone(self, *, reaped: bool = True) -> list[Slot]:
        """Return the slots of processes that are gone; called in their parent.

        Args:
            reaped: whether the parent has asked the system how they ended.
        """
        living = self.living()
        newest: dict[int, Slot] = {}
        for slot in living:  # a pid can be given again
            other = newest.setdefault(slot.pid, slot)
            if slot.idle_seconds() < other.idle_seconds():
                newest[slot.pid] = slot
        return [
            slot for slot in living if newest[slot.pid] is not slot or _is_gone(slot.pid, reaped)
        ]

    def has_ended(self, task_id: str, retries: int | None) -> bool:
        """Tell whether some process, not long ago, has noted this attempt and its end.

        Args:
            task_id: the job.
            retries: which attempt; None if that isn't known.
        """
        return any(
            slot.state(note) not in {RUNNING, ABANDONED}
            and (retries is None or retries == running.facts.get("retries"))
            for slot in self._ever_used()
            for note, running in slot.notes_of(task_id)
        )

    def _ever_used(self) -> list[Slot]:
        while self._used < self._count and self._slot(self._used).generation:
            self._used += 1  # spawned processes take theirs themselves
        return [self._slot(index) for index in range(1, self._used)]

    def _slot(self, index: int) -> Slot:
        """Return a slot, to every thread the same."""
        made = self._made.get(index)
        return self._made.setdefault(index, Slot(self._memory, index)) if made is None else made

    def free_slot(self) -> Slot | None:
        """Return a slot for a new process: one that is long free, a new one, any free one."""
        ever_used = self._ever_used()
        stillborn = (
            slot
            for slot in ever_used
            if slot.pid == _RESERVED and slot.idle_seconds() > _SECONDS_TO_BE_BORN
        )
        free = [slot for slot in ever_used if slot.pid == _FREE]
        long_free = (slot for slot in free if slot.idle_seconds() > _SECONDS_KEPT)
        new = (self._slot(index) for index in range(self._used, self._count))
        return next(itertools.chain(stillborn, long_free, new, free), None)


def row_key(name: str) -> str:
    """Return as much of a consumer's name as fits into its row."""
    text = name.encode(errors="replace")[: _ROW - _ROW_NAME].rstrip(b"\0")
    return text.decode(errors="ignore")


def _new_memory(size: int) -> mmap.mmap:
    """Return memory that forked processes share, and spawned ones too where Linux lets them.

    It has no name in any folder, so nothing of it can be left behind.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            descriptor = os.memfd_create("celery-broadcast")
            try:
                os.ftruncate(descriptor, size)
                return mmap.mmap(descriptor, size)  # which keeps a duplicate
            finally:
                os.close(descriptor)
    return mmap.mmap(-1, size)


def _memories_of(pid: int) -> list[Path]:
    """Return the descriptors by which a process has such memory, as paths; none but on Linux."""
    found = []
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()).startswith("/memfd:celery-broadcast"):
                    found.append(descriptor)
    return found


def _encode(running: Running) -> bytes:
    """Return the text of a note: all, else the bare minimum, else nothing.

    Not all need fit, or be text and numbers: a foreign client may have put
    anything into the request.
    """
    text = _encode_noted(running, running.facts)
    if not text:
        least = {name: running.facts[name] for name in _LEAST}
        name = str(running.facts["task_name"])[:_SHORT_NAME]
        least["task_name"] = name.encode(errors="replace").decode()
        text = _encode_noted(running, {**dict.fromkeys(_NOTED), **least})
    return text


def _encode_noted(running: Running, facts: Mapping[str, Any]) -> bytes:
    try:
        text = _encoder.encode(
            (
                running.started_monotonic,
                running.eager,
                running.acks_late,
                *_noted_of(facts),
            )
        )
    except (TypeError, ValueError, OverflowError):
        return b""
    return text if len(text) <= _NOTE else b""


def _decode(text: bytes) -> Running | None:
    try:
        started_monotonic, eager, acks_late, *noted = msgspec.msgpack.decode(text)
        facts = dict(zip(_NOTED, noted, strict=True))
    except (TypeError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    if not isinstance(started_monotonic, float) or not isinstance(facts["task_id"], str):
        return None
    return Running(
        facts={name: fact for name, fact in facts.items() if fact is not None},
        started_monotonic=started_monotonic,
        eager=bool(eager),
        acks_late=bool(acks_late),
    )


def _is_gone(pid: int, reaped: bool) -> bool:  # noqa: FBT001  # says what it asks
    """Tell whether a child of this process is gone, and if need be that its status was asked for.

    Looks, and leaves the status to whom it is for.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return ended is not None and not reaped
