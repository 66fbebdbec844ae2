"""The test's end of what the workers report."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from reports import Report, decode

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_DATAGRAM = 1 << 20  # bytes
_MARK = b"mark"  # what begins so is no report, but JSON does not

R = TypeVar("R", bound=Report)


class Listener:
    """Receives the reports of workers, from `with` to its end.

    Attributes:
        received: the reports so far, in the order they came.
        worker_log: returns what to show when a report doesn't come.
    """

    def __init__(self) -> None:
        self.received: list[Report] = []
        self.worker_log: Callable[[], str] = str
        # In the machine's temporary folder: pytest's own have long paths, and
        # that of a socket has at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="celery-broadcast-")
        self.path = str(Path(self._folder.name) / "listener")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._arrival = threading.Condition()
        self._last_mark = b""
        # Reads all the time, not only while a test waits for something: with
        # about ten datagrams unread the kernel makes the workers wait.
        self._thread = threading.Thread(target=self._receive, name="listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._send(b"")  # the last one
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()

    def reports(self, report_type: type[R], **fields: object) -> list[R]:
        """Return the reports so far that are of this type and have these fields."""
        return [
            report
            for report in self.received
            if isinstance(report, report_type)
            and all(getattr(report, name) == value for name, value in fields.items())
        ]

    def wait_for(
        self,
        number: int,
        report_type: type[R],
        *,
        timeout_seconds: float = 60,
        **fields: object,
    ) -> list[R]:
        """Return `reports(...)` as soon as there is this number of them, or more.

        Raises:
            AssertionError: as in `wait_until`.
        """
        self.wait_until(
            lambda: len(self.reports(report_type, **fields)) >= number,
            timeout_seconds=timeout_seconds,
        )
        return self.reports(report_type, **fields)

    def wait_until(self, fact: Callable[[], object], *, timeout_seconds: float = 60) -> None:
        """Return as soon as a report makes the fact true.

        Raises:
            AssertionError: none does in time; the message has all that came,
                and the end of the worker's log.
        """
        if self.hears(fact, timeout_seconds=timeout_seconds):
            return
        with self._arrival:
            arrived = "\n".join(map(repr, self.received))
        message = (
            f"Not within {timeout_seconds} s. What came:\n{arrived}\n"
            f"What the worker wrote:\n{self.worker_log()[-5000:]}"
        )
        raise AssertionError(message)

    def hears(self, fact: Callable[[], object], *, timeout_seconds: float = 60) -> bool:
        """Return True as soon as a report makes the fact true; False if none does in time."""
        with self._arrival:
            return bool(self._arrival.wait_for(fact, timeout_seconds))

    def catch_up(self) -> None:
        """Return when all is received that was sent before: a process that ended may be ahead."""
        mark = os.urandom(8)
        self._send(_MARK + mark)
        self.wait_until(lambda: self._last_mark == mark)

    def _send(self, datagram: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, self.path)

    def _receive(self) -> None:
        while datagram := self._socket.recv(LARGEST_DATAGRAM):
            if datagram.startswith(_MARK):
                with self._arrival:
                    self._last_mark = datagram.removeprefix(_MARK)
                    self._arrival.notify_all()
                continue
            report = decode(datagram)
            with self._arrival:
                self.received.append(report)
                self._arrival.notify_all()
