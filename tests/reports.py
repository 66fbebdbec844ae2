"""What a worker reports to the test: one datagram each, to the socket of a `Listener`.

A datagram to a Unix socket waits while the receiver is behind, and is there
when the sender has gone on: the test knows what its worker did without asking
again and again.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TypeAlias

import msgspec

from celery_broadcast import ConsumerStats

# The environment variable with the path of the listener's socket.
LISTENER = "JOB_APP_LISTENER"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened in this process of a worker, on this thread."""

    pid: int = msgspec.field(default_factory=os.getpid)
    thread: str = msgspec.field(default_factory=lambda: threading.current_thread().name)


class EventReport(Report, frozen=True, kw_only=True, tag=True):
    """A consumer got an event; a field that the event hasn't is None."""

    consumer: str
    event: str
    task_id: str
    task_name: str
    queue: str | None = None
    retries: int | None = None
    worker: str | None = None
    started_at: float | None = None
    job_pid: int | None = None  # the event's own `pid`, which need not be that of the consumer
    state: str | None = None
    ended_at: float | None = None
    runtime: float | None = None
    exception_type: str | None = None
    exception_message: str | None = None


class CallReport(Report, frozen=True, kw_only=True, tag=True):
    """A consumer was set up or torn down; `call` says which."""

    consumer: str
    call: str


class SignalReport(Report, frozen=True, kw_only=True, tag=True):
    """A plain receiver got one of Celery's signals; its arguments are text."""

    signal: str
    task_id: str | None
    arguments: dict[str, str]


class HandledReport(Report, frozen=True, kw_only=True, tag=True):
    """A call of a consumer returned.

    Attributes:
        events: what it got, one or those of a batch, as the app names them.
        began_at: in seconds of the monotonic clock, which all processes of a machine share.
        ended_at: the same.
    """

    consumer: str
    events: list[str]
    began_at: float
    ended_at: float


class NoticeReport(Report, frozen=True, kw_only=True, tag=True):
    """A receiver got a notice; what it tells is text."""

    notice: str
    consumer: str | None
    facts: dict[str, str]


class NumbersReport(Report, frozen=True, kw_only=True, tag=True):
    """The main process of a worker stops, and has these numbers of each consumer."""

    numbers: dict[str, ConsumerStats]


AnyReport: TypeAlias = (
    EventReport | CallReport | SignalReport | HandledReport | NoticeReport | NumbersReport
)


_decoder: msgspec.json.Decoder[AnyReport] = msgspec.json.Decoder(AnyReport)


def send(report: Report) -> None:
    """Report to the test that started this worker."""
    # A socket of its own for each, or greenlets would wait for one together.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ[LISTENER])
        # Not `send`: gevent's gives up, without a word, when another was faster.
        sender.sendall(msgspec.json.encode(report))


def decode(datagram: bytes) -> Report:
    """Return what was sent."""
    return _decoder.decode(datagram)
