"""Plain receivers of Celery's signals, as users have them: they report to the test."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

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


def report(name: str, /, *, signal: object, **arguments: object) -> None:  # in each
    """Report one signal, its arguments as text."""
    texts = {argument: text(value) for argument, value in arguments.items()}
    send(SignalReport(signal=name, task_id=task_id_of(arguments), arguments=texts))


def task_id_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the id of the job that a signal is about, which each tells in its own way."""
    for name in ("task_id", "id"):
        if name in arguments:
            return str(arguments[name])
    request = arguments.get("request") or arguments["sender"].request
    return str(request["id"] if isinstance(request, dict) else request.id)


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
