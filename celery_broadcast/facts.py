"""What Celery's objects say of an attempt, as the fields of events.

All of it is copied when it is said: a request changes after the signal, and an
exception or a traceback that is kept keeps the job's memory.
"""

from __future__ import annotations

import numbers
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery import Celery
from celery.utils.serialization import UnpickleableExceptionWrapper
from celery.utils.time import maybe_make_aware

from celery_broadcast.events import qualified_name
from celery_broadcast.settings import Settings

#: The header of ours that says when a job was due. It is not of the user's, so not an event's.
DUE_AT = "celery-broadcast-due-at"

# Routing keys can be made up at run time without end.
_MOST_QUEUES_REMEMBERED = 10_000


class Facts:
    """Reads what the settings let events carry.

    Called on the thread that runs the job, so it asks for each thing once.
    """

    def __init__(self, settings: Settings) -> None:
        self._payload = settings.payload
        self._traceback_limit = settings.traceback_limit
        self._queues: dict[tuple[Celery, str, str], str | None] = {}

    def of_job(
        self,
        task: Any,
        request: Any,
        *,
        task_id: Any,
        args: Any,
        kwargs: Any,
        pid: int = 0,
        started_at: float | None = None,
    ) -> dict[str, Any]:
        """Return the fields of `JobEvent`, with what there is.

        Args:
            task: the task.
            request: its request; may be empty, or lack anything.
            task_id: as the signal gives it, and so are `args` and `kwargs`.
            args: positional arguments of the job.
            kwargs: keyword arguments of the job.
            pid: the process that runs it.
            started_at: when it started, in seconds since 1970, UTC; None if it never did.
        """
        delivery = _mapping(getattr(request, "delivery_info", None))
        exchange, routing_key = _text(delivery.get("exchange")), _text(delivery.get("routing_key"))
        headers = _mapping(getattr(request, "headers", None))
        return {
            "task_id": "" if task_id is None else str(task_id),
            "task_name": _text(getattr(task, "name", None)) or "",
            "args": args if self._payload else None,
            "kwargs": kwargs if self._payload else None,
            # On the default exchange, the routing key is the queue's name.
            "queue": routing_key if exchange == "" else self._queue(task, exchange, routing_key),
            "exchange": exchange,
            "routing_key": routing_key,
            "retries": getattr(request, "retries", None) or 0,
            "root_id": getattr(request, "root_id", None),
            "parent_id": getattr(request, "parent_id", None),
            "group_id": getattr(request, "group", None),
            "worker": getattr(request, "hostname", None) or "",
            "pid": pid,
            "headers": _of_the_user(headers) if headers else None,
            "started_at": started_at,
        }

    def of_request(self, task: Any, request: Any) -> dict[str, Any]:
        """Return the fields of `JobEvent` of a job that another process ran, or nobody."""
        return self.of_job(
            task, request, task_id=request.id, args=request.args, kwargs=request.kwargs
        )

    def of_result(self, result: Any) -> dict[str, Any]:
        """Return the fields that `JobFinished` adds."""
        return {"result": result if self._payload else None}

    def of_exception(self, exception: Any, traceback: str) -> dict[str, Any]:
        """Return the fields that `JobFailed` adds: text, and the exception's class.

        Args:
            exception: what was raised.
            traceback: as text, of any length.
        """
        kind = type(exception)
        name = qualified_name(kind)
        if isinstance(exception, UnpickleableExceptionWrapper):  # it stands for another
            name = f"{exception.exc_module}.{exception.exc_cls_name}".removeprefix("builtins.")
        try:
            message = str(exception)
        except Exception:  # noqa: BLE001  # theirs, and it may do anything
            message = f"<{name}: its str() raised>"
        return {
            "exception_class": kind,
            "exception_type": name,
            "exception_message": message,
            "traceback": traceback[-self._traceback_limit :] if self._traceback_limit else "",
        }

    def of_retry(self, retry: Any, traceback: str, app: Celery) -> dict[str, Any]:
        """Return the fields that `JobRetried` adds.

        Args:
            retry: Celery's `Retry`, which has the exception that asked for it, if any.
            traceback: as text, of any length.
            app: knows the time zone of an eta that doesn't say its own.
        """
        cause = getattr(retry, "exc", None) or getattr(retry, "__cause__", None) or retry
        return {**self.of_exception(cause, traceback), "eta": _eta(retry, app)}

    def _queue(self, task: Any, exchange: str | None, routing_key: str | None) -> str | None:
        """Return the name of the queue; None where only a pattern binds it.

        A message tells its exchange and routing key, not its queue. A declared
        queue of the app may have both.
        """
        if exchange is None or routing_key is None:
            return None
        app: Celery = task.app
        key = (app, exchange, routing_key)
        if key not in self._queues:
            if len(self._queues) >= _MOST_QUEUES_REMEMBERED:
                self._queues.clear()
            self._queues[key] = next(
                (
                    name
                    for name, queue in app.amqp.queues.items()
                    if queue.exchange.name == exchange and queue.routing_key == routing_key
                ),
                None,
            )
        return self._queues[key]


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return what a foreign client may have sent as something else."""
    if type(value) is dict:
        return value
    # Headers are None as a rule, and to ask for an abstract class takes long when caches are cold.
    return value if value is not None and isinstance(value, Mapping) else {}


def _of_the_user(headers: Mapping[str, Any]) -> dict[str, Any] | None:
    own = dict(headers)
    own.pop(DUE_AT, None)
    return own or None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def traceback_text(einfo: Any) -> str:
    """Return the traceback that Celery has formatted, if there is one."""
    text = getattr(einfo, "traceback", None)
    return text if isinstance(text, str) else ""


def _eta(retry: Any, app: Celery) -> float | None:
    """Return when the next attempt is due, in seconds since 1970, if Celery says."""
    when = getattr(retry, "when", None)
    if isinstance(when, numbers.Real):
        return time.time() + float(when)
    if isinstance(when, datetime):
        return float(maybe_make_aware(when, app.timezone).timestamp())
    return None
