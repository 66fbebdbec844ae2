"""What each pool process is running, in memory that its parent can read when it is gone.

A process that is killed tells nobody what it ran, and what Celery tells of it
in the parent differs: with Celery 5.4 the request is empty. So each notes it in
a slot of its own, in memory that was mapped before the fork.
"""

from __future__ import annotations

import mmap
import os
import struct
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

# A slot: the pid of the process, the length of the note, and the note.
_HEAD = struct.Struct("=iI")
_SLOT_BYTES = 1_024
_NOTE_BYTES = _SLOT_BYTES - _HEAD.size

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
        self._memory = mmap.mmap(-1, count * _SLOT_BYTES)
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
            for slot in range(self._count):
                if self._is_free(slot):
                    self._write(slot, _RESERVED)
                    self._used = max(self._used, slot + 1)
                    self._reserved.slot = slot
                    return

    def forget(self) -> None:
        """Take the slot that the parent has reserved; called in the child."""
        self._mine = getattr(self._reserved, "slot", None)
        if self._mine is not None:
            self._write(self._mine, os.getpid())

    def start(self, facts: Mapping[str, Any], started_monotonic: float) -> None:
        """Note the attempt that starts; called in a pool process. Without a slot: nothing.

        Args:
            facts: the fields of `JobEvent`.
            started_monotonic: the present, in seconds of the monotonic clock.
        """
        if self._mine is not None:
            self._write(self._mine, os.getpid(), _encode(facts, started_monotonic))

    def end(self) -> None:
        """Note that the attempt has ended; called in a pool process."""
        if self._mine is not None:
            self._write(self._mine, os.getpid())

    def is_running(self, task_id: str) -> bool:
        """Tell whether a process has noted this task, and not its end; called in the parent."""
        return self._find(task_id) is not None

    def take(self, task_id: str) -> Running | None:
        """Return, once, what a process was running of this task; None if none was.

        Called in the parent, which has the news that the attempt is over.
        """
        found = self._find(task_id)
        if found is None:
            return None
        slot, running = found
        self._write(slot, self._read(slot)[0])
        return running

    def _find(self, task_id: str) -> tuple[int, Running] | None:
        for slot in range(self._used):
            pid, note = self._read(slot)
            if pid > 0 and note:
                running = _decode(note)
                if running is not None and running.facts["task_id"] == task_id:
                    return slot, running
        return None

    def _is_free(self, slot: int) -> bool:
        pid, note = self._read(slot)
        return pid == _FREE or (pid > 0 and not note and not _is_alive(pid))

    def _read(self, slot: int) -> tuple[int, bytes]:
        start = slot * _SLOT_BYTES
        pid, length = _HEAD.unpack_from(self._memory, start)
        note = start + _HEAD.size
        return pid, self._memory[note : note + min(length, _NOTE_BYTES)]

    def _write(self, slot: int, pid: int, note: bytes = b"") -> None:
        start = slot * _SLOT_BYTES
        if note:  # before the head, which says that it is there
            self._memory[start + _HEAD.size : start + _HEAD.size + len(note)] = note
        _HEAD.pack_into(self._memory, start, pid, len(note))


def _encode(facts: Mapping[str, Any], started_monotonic: float) -> bytes:
    """Return the note of an attempt: all, else the bare minimum, else nothing.

    Not all need fit, or be text and numbers: a foreign client may have put
    anything into the request.
    """
    least = {**dict.fromkeys(_NOTED), **{name: facts[name] for name in _LEAST}}
    for noted in (facts, least):
        try:
            note = msgspec.msgpack.encode((started_monotonic, *_noted_of(noted)))
        except (TypeError, ValueError, OverflowError):
            continue
        if len(note) <= _NOTE_BYTES:
            return note
    return b""


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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
