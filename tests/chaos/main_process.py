"""The main process of a worker, from outside: its pool, and what it holds."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

MEBIBYTE = 1 << 20

# How much more may be in use after all jobs than after one of each kind: what
# Celery remembers of jobs, and what malloc doesn't give back; and the semaphores
# of dead processes that Python hasn't collected yet, some for each process.
MOST_GROWTH_BYTES = 8 * MEBIBYTE
MOST_MORE_MAPPINGS = 64

# By one for each of its processes: Celery watches some with a further pipe.
MOST_MORE_FILES = 5


@dataclass(frozen=True)
class Holdings:
    """What a process holds at one moment.

    Attributes:
        threads: how many.
        files: open file descriptors by what they are, such as "socket".
        shared_mappings: how many pieces of memory it shares with its children
            that are no files; Celery's semaphores are.
        mappings: all mappings, how many.
        resident_bytes: the memory it uses.
    """

    threads: int
    files: Counter[str]
    shared_mappings: int
    mappings: int
    resident_bytes: int

    def more_than(self, before: Holdings) -> list[str]:
        """Return what was held on to since then, a text for each; little memory is not."""
        growth = self.resident_bytes - before.resident_bytes
        more_files = self.files - before.files
        more = {
            "threads": self.threads - before.threads,
            "open files": dict(more_files) if more_files.total() > MOST_MORE_FILES else {},
            "shared mappings": self.shared_mappings - before.shared_mappings,
            "mappings": max(0, self.mappings - before.mappings - MOST_MORE_MAPPINGS),
            "MiB of memory": growth / MEBIBYTE if growth > MOST_GROWTH_BYTES else 0,
        }
        return [
            f"The main process has more {what}: {how_many}"
            for what, how_many in more.items()
            if (how_many > 0 if isinstance(how_many, int | float) else how_many)
        ]


class MainProcess:
    """The process that forks the others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)
        self._folder = Path(f"/proc/{pid}")

    def children(self) -> list[int]:
        """Return the pids of the pool's living processes, the oldest first."""
        born: list[tuple[float, int]] = []
        for child in self._process.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died meanwhile
                if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                    born.append((child.create_time(), child.pid))
        return [pid for _, pid in sorted(born)]

    def holdings(self) -> Holdings:
        """Return what it holds now."""
        maps = [line.split(maxsplit=5) for line in self._read("maps").splitlines()]
        return Holdings(
            threads=len(list((self._folder / "task").iterdir())),
            files=Counter(self._open_files()),
            # Such as "7f0c-7f0d rw-s 00000000 00:01 42  /memfd:celery-broadcast (deleted)".
            shared_mappings=sum("/memfd:celery-broadcast" in parts[-1] for parts in maps),
            mappings=len(maps),
            resident_bytes=int(self._read("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        )

    def _open_files(self) -> list[str]:
        files = []
        for file in (self._folder / "fd").iterdir():
            try:
                target = str(file.readlink())
            except FileNotFoundError:  # closed meanwhile
                continue
            files.append(target.partition(":[")[0])  # "socket:[4711]"
        return files

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text()
