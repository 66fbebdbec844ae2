"""Plain receivers of Celery's signals, as users have them: they report to the test."""

from __future__ import annotations

import traceback
from functools import partial
from types import TracebackType

from celery import Task, signals
from celery.app.task import Context
from celery.worker.consumer import Consumer
from reports import SignalReport, send

RECEIVED = (
    "task_received",
    "task_prerun",
    "task_success",
    "task_failure",
    "task_retry",
    "task_rejected",
    "task_revoked",
    "task_unknown",
    "task_internal_error",
    "task_postrun",
)


def report(name: str, *, signal: object, **arguments: object) -> None:  # in each
    """Report one signal, its arguments as text."""
    texts = {argument: text(value) for argument, value in arguments.items()}
    send(SignalReport(signal=name, arguments=texts))


def text(value: object) -> str:
    """Return a text that is the same for the same job in another worker."""
    if isinstance(value, Task):
        return f"task {value.name}"
    if isinstance(value, Context):
        return f"request {value.id}"
    if isinstance(value, TracebackType):
        return "".join(traceback.format_tb(value))
    if isinstance(value, Consumer):
        return "the worker"
    if isinstance(value, float):
        return "seconds"
    return repr(value)


for name in RECEIVED:
    getattr(signals, name).connect(partial(report, name), weak=False)
