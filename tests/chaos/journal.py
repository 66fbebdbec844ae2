"""What the processes of the worker write down while they live, one line for each thing.

A line is one write(2) to a file that is only ever appended to: it is there, and
whole, when the process is killed right after it, and the order of the lines is
the order in which things happened, whichever process wrote them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import msgspec

# The environment variable with the path of the journal.
JOURNAL = "CHAOS_JOURNAL"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened in this process; `writer` is its pid."""

    writer: int = msgspec.field(default_factory=os.getpid)


class Published(Line, frozen=True, kw_only=True, tag=True):
    """An event is about to be published."""

    event: str
    task_name: str
    task_id: str
    pid: int
    started_at: float | None


class Closed(Line, frozen=True, kw_only=True, tag=True):
    """The end of an attempt was published, and nobody else can publish another one."""

    event: str
    task_id: str
    pid: int
    started_at: float | None


class Handled(Line, frozen=True, kw_only=True, tag=True):
    """A consumer is about to return from an event, or to raise on it."""

    consumer: str
    event: str
    task_id: str
    started_at: float | None
    raised: bool = False


class Drained(Line, frozen=True, kw_only=True, tag=True):
    """A drain is over; `left` events were dropped by it."""

    left: int


AnyLine: TypeAlias = Published | Closed | Handled | Drained
DECODER: msgspec.json.Decoder[AnyLine] = msgspec.json.Decoder(AnyLine)

L = TypeVar("L")

_encoder = msgspec.json.Encoder()


class Pen:
    """Writes into the journal; survives a fork, and may be used on any thread."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, line: Line) -> None:
        """Write one line."""
        os.write(self._file, _encoder.encode(line) + b"\n")


class Journal(Generic[L]):
    """Reads what was written so far.

    Args:
        path: of the file.
        decoder: of its lines.
    """

    def __init__(self, path: Path, decoder: msgspec.json.Decoder[L]) -> None:
        self.path = path
        self.lines: list[L] = []
        self._decoder = decoder
        self._offset = 0
        path.touch()

    def read_on(self) -> list[L]:
        """Return the lines since the last call; they are added to `lines`."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        read = self._decoder.decode_lines(whole)
        self.lines += read
        return read
