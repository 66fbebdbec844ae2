"""What each pool process is running, in memory that its parent can read when it is gone.

A process that is killed tells nobody what it ran, and what Celery tells of it
in the parent differs: with Celery 5.4 the request is empty. So each notes it in
a slot of its own, in memory that was mapped before the fork.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import msgspec

from celery_broadcast import fork

#: A worker with more pool processes than this has some without a slot.
SLOTS = 1_024

# The facts of an attempt that can leave the process.
_NOTED = (
    *("task_id", "task_name", "queue", "exchange", "routing_key", "retries"),
    *("root_id", "parent_id", "group_id", "worker", "pid", "started_at"),
)
_LEAST = ("task_id", "pid", "started_at")
_noted_of = itemgetter(*_NOTED)
_encoder = msgspec.msgpack.Encoder()

# A slot: the pid of the process, the length of the note, and the note. The
# first two are written each in one store, so that nobody reads half of one.
_SLOT_BYTES = 1_024
_NUMBERS_PER_SLOT = _SLOT_BYTES // 4
_HEAD_BYTES = 2 * 4
_NOTE_BYTES = _SLOT_BYTES - _HEAD_BYTES

_FREE = 0
_RESERVED = -1


class Running(msgspec.Struct, frozen=True):
    """An attempt that a pool process was running.

    Attributes:
        facts: fields of `JobEvent`, as far as they are text or numbers.
        started_monotonic: when it started, in seconds of the monotonic clock,
            which all processes of a machine share.
    """

    facts: Mapping[str, Any]
    started_monotonic: float


class Slots:
    """One slot for each process forked from the one that made this.

    Raises:
        OSError: the system gives no memory that processes can share.
    """

    def __init__(self, count: int = SLOTS) -> None:
        self._memory = memoryview(mmap.mmap(-1, count * _SLOT_BYTES))
        self._numbers = self._memory.cast("i")
        self._count = count
        self._used = 0  # no slot from this one on was ever reserved
        self._owner = os.getpid()
        self._mine: int | None = None
        # Of the forking thread: several threads may fork at once.
        self._reserved = threading.local()
        self._reserving = threading.Lock()
        fork.starts_clean(self)

    def before_fork(self) -> None:
        """Reserve a slot for the child; called in the parent, on the forking thread."""
        self._reserved.slot = None
        if os.getpid() != self._owner:
            return  # a pool process that forks: its child is none of the pool's
        with self._reserving:
            slot = self._free_slot()
            if slot is not None:
                self._set_length(slot, 0)
                self._set_pid(slot, _RESERVED)
                self._used = max(self._used, slot + 1)
            self._reserved.slot = slot

    def forget(self) -> None:
        """Take the slot that the parent has reserved; called in the child."""
        self._mine = getattr(self._reserved, "slot", None)
        if self._mine is not None:
            self._set_pid(self._mine, os.getpid())

    def is_in_child(self) -> bool:
        """Tell whether this process has a slot of its own."""
        return self._mine is not None

    def are_used(self) -> bool:
        """Tell whether any process was forked; those that are spawned have no slots."""
        return self._used > 0

    def start(self, facts: Mapping[str, Any], started_monotonic: float) -> bool:
        """Note the attempt that starts; called in a pool process.

        Args:
            facts: the fields of `JobEvent`.
            started_monotonic: the present, in seconds of the monotonic clock.

        Returns:
            Whether it is noted; not in a process without a slot.
        """
        if self._mine is None:
            return False
        note = _encode(facts, started_monotonic)
        start = self._mine * _SLOT_BYTES + _HEAD_BYTES
        self._memory[start : start + len(note)] = note
        self._set_length(self._mine, len(note))
        return bool(note)

    def end(self) -> bool:
        """Note that the attempt that was noted has ended; called in a pool process.

        Returns:
            False if the parent has taken the note meanwhile, and told of the end.
        """
        if self._mine is None or not self._length(self._mine):
            return False
        self._set_length(self._mine, 0)
        return True

    def is_running(self, task_id: str) -> bool:
        """Tell whether a living process has noted this task; called in the parent."""
        return any(_is_alive(self._pid(slot)) for slot, _ in self._notes_of(task_id))

    def take(self, task_id: str) -> Running | None:
        """Return, once, what a process was running of this task; None if none was.

        Called in the parent, which has the news that the attempt is over. Of
        several attempts it is the last that started. Nobody ever told of those
        before it whose processes have died; the living ones will end their own.
        """
        notes = sorted(self._notes_of(task_id), key=lambda note: note[1].started_monotonic)
        if not notes:
            return None
        taken, running = notes.pop()
        for slot in (taken, *(slot for slot, _ in notes if not _is_alive(self._pid(slot)))):
            self._set_length(slot, 0)
        return running

    def _notes_of(self, task_id: str) -> list[tuple[int, Running]]:
        notes = []
        for slot in range(self._used):
            running = self._note(slot)
            if running is not None and running.facts.get("task_id") == task_id:
                notes.append((slot, running))
        return notes

    def _free_slot(self) -> int | None:
        """Return a slot that nobody uses, else that of the attempt that died longest ago."""
        for slot in range(self._count):
            pid = self._pid(slot)
            if pid == _FREE or (pid > 0 and not self._length(slot) and not _is_alive(pid)):
                return slot
        dead = [
            (running.started_monotonic if running else 0.0, slot)
            for slot, running in ((slot, self._note(slot)) for slot in range(self._count))
            if self._pid(slot) != _RESERVED and not _is_alive(self._pid(slot))
        ]
        return min(dead)[1] if dead else None

    def _note(self, slot: int) -> Running | None:
        length = self._length(slot)
        if not 0 < length <= _NOTE_BYTES:
            return None
        start = slot * _SLOT_BYTES + _HEAD_BYTES
        return _decode(bytes(self._memory[start : start + length]))

    def _pid(self, slot: int) -> int:
        return self._numbers[slot * _NUMBERS_PER_SLOT]

    def _set_pid(self, slot: int, pid: int) -> None:
        self._numbers[slot * _NUMBERS_PER_SLOT] = pid

    def _length(self, slot: int) -> int:
        return self._numbers[slot * _NUMBERS_PER_SLOT + 1]

    def _set_length(self, slot: int, length: int) -> None:
        self._numbers[slot * _NUMBERS_PER_SLOT + 1] = length


def _encode(facts: Mapping[str, Any], started_monotonic: float) -> bytes:
    """Return the note of an attempt: all, else the bare minimum, else nothing.

    Not all need fit, or be text and numbers: a foreign client may have put
    anything into the request.
    """
    note = _encode_noted(facts, started_monotonic)
    if not note:
        least = {**dict.fromkeys(_NOTED), **{name: facts[name] for name in _LEAST}}
        note = _encode_noted(least, started_monotonic)
    return note


def _encode_noted(facts: Mapping[str, Any], started_monotonic: float) -> bytes:
    try:
        note = _encoder.encode((started_monotonic, *_noted_of(facts)))
    except (TypeError, ValueError, OverflowError):
        return b""
    return note if len(note) <= _NOTE_BYTES else b""


def _decode(note: bytes) -> Running | None:
    """Return what a note says; None if it is rubbish."""
    try:
        started_monotonic, *noted = msgspec.msgpack.decode(note)
        facts = dict(zip(_NOTED, noted, strict=True))
    except (TypeError, ValueError):  # msgspec's errors are ValueErrors
        return None
    if not isinstance(started_monotonic, float):
        return None
    return Running(
        {name: fact for name, fact in facts.items() if fact is not None}, started_monotonic
    )


def _is_alive(pid: int) -> bool:
    if pid <= 0:  # to kill(2) that means a group of processes
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
