"""From Celery's signals to events: the only file that connects to them.

What each signal means, and which of them come for one attempt, differs from
one way of dying to the next. Celery's parts that matter here are
`celery/app/trace.py`, which sends the signals around a job, and
`celery/worker/request.py`, which sends those for jobs whose process died.
"""

from __future__ import annotations

import atexit
import functools
import logging
import numbers
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import celery
from celery import Celery, signals
from celery.exceptions import Reject, Retry
from celery.utils.time import maybe_make_aware

from celery_broadcast.attempts import Attempt, Attempts
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobIgnored,
    JobRejected,
    JobRetried,
    JobRevoked,
    JobStarted,
)
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.slots import Slots

logger: logging.Logger = logging.getLogger(__name__)

E = TypeVar("E", bound=JobEnded)

# How gevent and eventlet end the greenlet of a job; matched by name, so that
# neither has to be installed.
_GREENLET_EXITS = frozenset({"GreenletExit", "Timeout"})

_STATUS_OF_SIGNAL_0 = -256


def produced_events(names: tuple[str, ...] | None) -> frozenset[type[JobEvent]]:
    """Return the event types that `broadcast_events` stands for; None is all of them.

    Raises:
        ConfigurationError: there is no event type of such a name.
    """
    if names is None:
        return frozenset(EVENT_TYPES.values())
    bases: dict[str, type[JobEvent]] = {"JobEvent": JobEvent, "JobEnded": JobEnded, **EVENT_TYPES}
    for name in names:
        if name not in bases:
            known = ", ".join(bases)
            msg = f"broadcast_events names {name!r}, which is no event. There are: {known}."
            raise ConfigurationError(msg)
    wanted = tuple(bases[name] for name in names)
    return frozenset(event for event in EVENT_TYPES.values() if issubclass(event, wanted))


def _border(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep every error of ours away from Celery, and from the job that runs."""

    @functools.wraps(receiver)
    def guarded(self: Bridge, **told: Any) -> None:
        try:
            receiver(self, **told)
        except Exception:
            logger.exception(
                "broadcast failed in %s; an event is lost, the job isn't affected",
                receiver.__name__,
            )

    return guarded


class Bridge:
    """Turns what Celery tells of the jobs of this process into events for the producer.

    Its receivers run where Celery sends the signals: on the thread that runs
    the job, and on the main thread of a worker for jobs whose process died.
    Nothing they do ever raises into Celery.
    """

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self.settings = settings
        self.producer = producer
        self._attempts = Attempts()
        self._slots: Slots | None = None
        self._produced = produced_events(settings.events)
        self._queues: dict[tuple[Celery, str, str], str | None] = {}
        self._receivers: tuple[tuple[Any, Callable[..., None]], ...] = (
            (signals.task_prerun, self.on_task_prerun),
            (signals.task_postrun, self.on_task_postrun),
            (signals.task_failure, self.on_task_failure),
            (signals.task_retry, self.on_task_retry),
            (signals.task_revoked, self.on_task_revoked),
            (signals.worker_init, self.on_worker_init),
            (signals.worker_process_shutdown, self.on_worker_process_shutdown),
            (signals.worker_shutdown, self.on_worker_shutdown),
        )

    def connect(self) -> None:
        """Connect to Celery's signals, each once however often this is called."""
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False, dispatch_uid=f"celery_broadcast.{signal.name}")
        atexit.register(self._on_exit)

    def disconnect(self) -> None:
        """Leave Celery's signals as they were before."""
        for signal, _ in self._receivers:
            signal.disconnect(dispatch_uid=f"celery_broadcast.{signal.name}")
        atexit.unregister(self._on_exit)

    # Around a job, on the thread that runs it.

    @_border
    def on_task_prerun(
        self, task: Any = None, task_id: Any = None, args: Any = None, kwargs: Any = None, **_: Any
    ) -> None:
        """Publish `JobStarted`."""
        request = task.request
        started_at, started_monotonic = time.time(), time.monotonic()
        facts = self._facts(task, request, task_id, args, kwargs, os.getpid(), started_at)
        self._attempts.start(request, Attempt(facts=facts, started_monotonic=started_monotonic))
        if self._slots is not None and not getattr(request, "is_eager", False):
            self._slots.start(facts, started_monotonic)
        if JobStarted in self._produced:
            self.producer.notify(JobStarted(**facts))

    @_border
    def on_task_failure(
        self,
        sender: Any = None,
        task_id: Any = None,
        exception: Any = None,
        args: Any = None,
        kwargs: Any = None,
        einfo: Any = None,
        **_: Any,
    ) -> None:
        """Note the traceback of a job that runs here, or publish the end of one that died."""
        attempt = self._attempts.find(sender.request)
        if attempt is not None:
            # Text that Celery has formatted anyway; its end follows in task_postrun.
            attempt.traceback = _traceback_text(einfo)
        elif not isinstance(exception, Reject):  # that one was ended by its own postrun
            attempt = self._ended_elsewhere(sender, sender.request, task_id, args, kwargs)
            if attempt is not None:
                attempt.traceback = _traceback_text(einfo)
                self._end(JobFailed, attempt, **self._failure(exception, attempt))

    @_border
    def on_task_retry(
        self,
        sender: Any = None,
        request: Any = None,
        reason: Any = None,
        einfo: Any = None,
        **_: Any,
    ) -> None:
        """Note the traceback of a retry, or publish the end of a job that was cancelled."""
        attempt = self._attempts.find(request)
        if attempt is not None:
            attempt.traceback = _traceback_text(einfo)
            return
        # A cold shutdown cancelled it: Celery gives no reason and no traceback.
        attempt = self._ended_elsewhere(sender, request, request.id, request.args, request.kwargs)
        if attempt is not None:
            retry = Retry("cancelled by Celery") if reason is None else reason
            self._end(JobRetried, attempt, **self._failure(retry, attempt))

    @_border
    def on_task_postrun(
        self, task: Any = None, retval: Any = None, state: Any = None, **_: Any
    ) -> None:
        """Publish the end of a job that ended here."""
        request = task.request
        if state is None:
            self._on_aborted(request)
            return
        attempt = self._attempts.end(request)
        if attempt is None:
            return
        if self._slots is not None and not getattr(request, "is_eager", False):
            self._slots.end()
        if state == "SUCCESS":
            result = retval if self.settings.payload else None
            self._end(JobFinished, attempt, result=result)
        elif state == "FAILURE":
            self._end(JobFailed, attempt, **self._failure(retval, attempt))
        elif state == "RETRY":
            self._end_retried(attempt, retval, task.app)
        elif state == "REJECTED":
            self._end(JobRejected, attempt, requeue=bool(getattr(retval, "requeue", False)))
        elif state == "IGNORED":
            self._end(JobIgnored, attempt)

    def _on_aborted(self, request: Any) -> None:
        """End, or leave to the news to come, an attempt for which Celery knows no state."""
        attempt = self._attempts.find(request)
        if attempt is None:
            return
        flying = sys.exc_info()[1]
        if flying is None or type(flying).__name__ in _GREENLET_EXITS:
            self._attempts.abort(request)  # task_failure or task_revoked follow in this process
        elif _in_pool_process() and not request.is_eager and not _is_untold_exit(flying):
            self._attempts.end(request)  # the parent process has the news
        else:
            self._attempts.end(request)
            if self._slots is not None and not request.is_eager:
                self._slots.end()
            self._end(JobFailed, attempt, **self._failure(flying, attempt))

    # For a job whose process died, or that never started; on the main thread of a worker.

    @_border
    def on_task_revoked(
        self,
        sender: Any = None,
        request: Any = None,
        terminated: Any = None,
        expired: Any = None,
        **_: Any,
    ) -> None:
        """Publish the end of a job that was revoked, whether or not it had started."""
        attempt = self._ended_elsewhere(sender, request, request.id, request.args, request.kwargs)
        if attempt is not None:
            self._end(JobRevoked, attempt, terminated=bool(terminated), expired=bool(expired))

    def _ended_elsewhere(
        self, task: Any, request: Any, task_id: Any, args: Any, kwargs: Any
    ) -> Attempt | None:
        """Return the attempt whose end just became known here; None if it has ended before."""
        attempt = self._attempts.end_aborted(str(task_id))
        if attempt is not None:
            return attempt
        running = self._slots.take(str(task_id)) if self._slots is not None else None
        told_before = not self._attempts.end_remote(str(task_id))
        if running is None and told_before:
            return None
        facts = self._facts(task, request, task_id, args, kwargs, 0, None)
        if running is None:  # it never started, as far as anybody can tell
            return Attempt(facts=facts, started_monotonic=time.monotonic())
        return Attempt(
            facts={**facts, **running.facts}, started_monotonic=running.started_monotonic
        )

    # The process begins and ends.

    @_border
    def on_worker_init(self, **_: Any) -> None:
        """Map the memory in which pool processes note what they run, before the first fork."""
        if self._slots is None:
            try:
                self._slots = Slots()
            except OSError as error:
                logger.warning(
                    "broadcast gets no shared memory: %s. The ends of jobs whose process died "
                    "won't tell when they had started",
                    error,
                )

    def on_worker_process_shutdown(self, **_: Any) -> None:
        """Drain a pool process: it leaves by `os._exit`, so nothing later would run."""
        self.producer.drain()

    def on_worker_shutdown(self, **_: Any) -> None:
        """Drain the main process of a worker."""
        self.producer.drain()

    def _on_exit(self) -> None:
        """Drain whatever is left: a cold shutdown sends no signal in most pools."""
        self.producer.drain(last=True)

    # What the events say.

    def _facts(
        self,
        task: Any,
        request: Any,
        task_id: Any,
        args: Any,
        kwargs: Any,
        pid: int,
        started_at: float | None,
    ) -> dict[str, Any]:
        """Return the fields of `JobEvent`, with what there is.

        Copied now: the request changes after the signal, when the task likes.
        """
        delivery = getattr(request, "delivery_info", None) or {}
        exchange, routing_key = delivery.get("exchange"), delivery.get("routing_key")
        headers = getattr(request, "headers", None)
        payload = self.settings.payload
        return {
            "task_id": "" if task_id is None else str(task_id),
            "task_name": getattr(task, "name", None) or "",
            "args": args if payload else None,
            "kwargs": kwargs if payload else None,
            "queue": self._queue(task.app, exchange, routing_key),
            "exchange": exchange,
            "routing_key": routing_key,
            "retries": getattr(request, "retries", None) or 0,
            "root_id": getattr(request, "root_id", None),
            "parent_id": getattr(request, "parent_id", None),
            "group_id": getattr(request, "group", None),
            "worker": getattr(request, "hostname", None) or "",
            "pid": pid,
            "headers": dict(headers) if headers else None,
            "started_at": started_at,
        }

    def _queue(self, app: Celery, exchange: str | None, routing_key: str | None) -> str | None:
        """Return the name of the queue; None where only a pattern binds it.

        A message tells its exchange and routing key, not its queue. On the
        default exchange the routing key is the queue; else a declared queue
        of the app may have both.
        """
        if exchange is None or routing_key is None:
            return None
        if not exchange:
            return routing_key
        key = (app, exchange, routing_key)
        if key not in self._queues:
            self._queues[key] = next(
                (
                    name
                    for name, queue in app.amqp.queues.items()
                    if queue.exchange.name == exchange and queue.routing_key == routing_key
                ),
                None,
            )
        return self._queues[key]

    def _failure(self, exception: Any, attempt: Attempt) -> dict[str, Any]:
        """Return the fields that tell of an exception, as text: it is never kept itself."""
        kept = self.settings.traceback_limit
        return {
            **_exception_facts(exception),
            "traceback": attempt.traceback[-kept:] if kept else "",
        }

    def _end_retried(self, attempt: Attempt, retry: Any, app: Celery) -> None:
        cause = getattr(retry, "exc", None) or getattr(retry, "__cause__", None) or retry
        self._end(JobRetried, attempt, **self._failure(cause, attempt), eta=_eta(retry, app))

    def _end(self, event_type: type[E], attempt: Attempt, **facts: Any) -> None:
        """Publish the one end of an attempt."""
        if event_type not in self._produced:
            return
        started = attempt.facts["started_at"] is not None
        self.producer.notify(
            event_type(
                **attempt.facts,
                **facts,
                ended_at=time.time(),
                runtime=time.monotonic() - attempt.started_monotonic if started else 0.0,
            )
        )


def _in_pool_process() -> bool:
    """Tell whether a parent process will report what happens to this one."""
    billiard = sys.modules.get("billiard.process")
    return billiard is not None and billiard.current_process().name != "MainProcess"


def _is_untold_exit(flying: BaseException) -> bool:
    """Tell whether the task itself asks to exit, of which no parent before 5.7 tells.

    billiard lets SIGTERM exit with a status that has the signal in it
    (billiard/common.py, `_shutdown_cleanup`); of that the parent does tell.
    """
    if celery.VERSION >= (5, 7) or not isinstance(flying, SystemExit | KeyboardInterrupt):
        return False
    code = getattr(flying, "code", None)
    by_signal = isinstance(code, int) and _STATUS_OF_SIGNAL_0 <= code < _STATUS_OF_SIGNAL_0 + 65
    return not by_signal


def _traceback_text(einfo: Any) -> str:
    """Return the traceback that Celery has formatted, if there is one."""
    text = getattr(einfo, "traceback", None)
    return text if isinstance(text, str) else ""


def _exception_facts(exception: Any) -> dict[str, Any]:
    """Return class, qualified name and message of an exception."""
    kind = type(exception)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(exception)
    except Exception:  # noqa: BLE001  # theirs, and it may do anything
        message = f"<{name}: its str() raised>"
    return {
        "exception_class": kind,
        "exception_type": name.removeprefix("builtins."),
        "exception_message": message,
    }


def _eta(retry: Any, app: Celery) -> float | None:
    """Return when the next attempt is due, in seconds since 1970, if Celery says."""
    when = getattr(retry, "when", None)
    if isinstance(when, numbers.Real):
        return time.time() + float(when)
    if isinstance(when, datetime):
        return float(maybe_make_aware(when, app.timezone).timestamp())
    return None
