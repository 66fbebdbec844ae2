"""What each pool process is running, in memory that its parent can read when it is gone.

A process that is killed tells nobody when its attempt had started. So each
notes it in a slot of its own, in memory that was mapped before the fork.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading

import msgspec

from celery_broadcast import fork

#: A worker with more pool processes than this has some without a slot.
SLOTS = 1_024

# The pid of the process, when its attempt started (since 1970, and by the
# monotonic clock, which all processes of a machine share), and the task's id.
_HEAD = struct.Struct("=iddH")
_SLOT_BYTES = 256
_ID_BYTES = _SLOT_BYTES - _HEAD.size

_FREE = 0
_RESERVED = -1


class Running(msgspec.Struct, frozen=True):
    """An attempt that a pool process was running.

    Attributes:
        pid: that process.
        started_at: when the attempt started, in seconds since 1970, UTC.
        started_monotonic: the same in seconds of the monotonic clock.
    """

    pid: int
    started_at: float
    started_monotonic: float


class Slots:
    """One slot for each process forked from the one that made this.

    Raises:
        OSError: the system gives no memory that processes can share.
    """

    def __init__(self, count: int = SLOTS) -> None:
        self._memory = mmap.mmap(-1, count * _SLOT_BYTES)
        self._count = count
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
                    self._reserved.slot = slot
                    return

    def forget(self) -> None:
        """Take the slot that the parent has reserved; called in the child."""
        self._mine = getattr(self._reserved, "slot", None)
        if self._mine is not None:
            self._write(self._mine, os.getpid())

    def start(self, task_id: str, started_at: float, started_monotonic: float) -> None:
        """Note the attempt that starts; called in a pool process. Without a slot: nothing."""
        if self._mine is not None:
            self._write(self._mine, os.getpid(), task_id, started_at, started_monotonic)

    def end(self) -> None:
        """Note that the attempt has ended; called in a pool process."""
        if self._mine is not None:
            self._write(self._mine, os.getpid())

    def take(self, task_id: str) -> Running | None:
        """Return, once, which process was running the task; None if none was.

        Called in the parent, which has the news that the attempt is over.
        """
        wanted = _id_bytes(task_id)
        for slot in range(self._count):
            pid, started_at, started_monotonic, length = self._read(slot)
            if pid > 0 and length == len(wanted) and self._id(slot, length) == wanted:
                self._write(slot, pid)
                return Running(pid, started_at, started_monotonic)
        return None

    def _is_free(self, slot: int) -> bool:
        pid, _, _, length = self._read(slot)
        return pid == _FREE or (pid > 0 and not length and not _is_alive(pid))

    def _read(self, slot: int) -> tuple[int, float, float, int]:
        pid, started_at, started_monotonic, length = _HEAD.unpack_from(
            self._memory, slot * _SLOT_BYTES
        )
        return pid, started_at, started_monotonic, min(length, _ID_BYTES)

    def _id(self, slot: int, length: int) -> bytes:
        start = slot * _SLOT_BYTES + _HEAD.size
        return self._memory[start : start + length]

    def _write(
        self,
        slot: int,
        pid: int,
        task_id: str = "",
        started_at: float = 0.0,
        started_monotonic: float = 0.0,
    ) -> None:
        text = _id_bytes(task_id)
        start = slot * _SLOT_BYTES
        if text:  # before the head, which says that it is there
            self._memory[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._memory, start, pid, started_at, started_monotonic, len(text))


def _id_bytes(task_id: str) -> bytes:
    return task_id.encode("utf-8", "surrogatepass")[:_ID_BYTES]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
