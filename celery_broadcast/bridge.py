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
import os
import sys
import time
from collections.abc import Callable
from signal import SIGUSR1
from typing import Any, TypeVar

import celery
from celery import Celery, signals
from celery.exceptions import Reject, Retry

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
from celery_broadcast.facts import Facts, traceback_text
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings

logger: logging.Logger = logging.getLogger(__name__)

E = TypeVar("E", bound=JobEnded)

_STATUS_OF_SIGNAL_0 = -256

# gevent starts the clock of a limit a little before the job.
_LIMIT_SLACK_SECONDS = 0.5


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
        self._produced = produced_events(settings.events)
        self._facts = Facts(settings)
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
        facts = self._facts.of_job(
            task,
            request,
            task_id=task_id,
            args=args,
            kwargs=kwargs,
            pid=os.getpid(),
            started_at=started_at,
        )
        attempt = Attempt(
            facts=facts,
            started_monotonic=started_monotonic,
            eager=bool(getattr(request, "is_eager", False)),
        )
        self._attempts.start(request, attempt)
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
            attempt.traceback = traceback_text(einfo)
        elif not isinstance(exception, Reject):  # that one was ended by its own postrun
            attempt = self._end_by_news(
                sender, sender.request, task_id, args, kwargs, had_started=True
            )
            if attempt is not None:
                attempt.traceback = traceback_text(einfo)
                self._end_failed(attempt, exception)

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
            attempt.traceback = traceback_text(einfo)
            return
        # A cold shutdown cancelled it: Celery gives no reason and no traceback.
        attempt = self._end_by_news(
            sender, request, request.id, request.args, request.kwargs, had_started=True
        )
        if attempt is not None:
            retry = Retry("cancelled by Celery") if reason is None else reason
            self._end_retried(attempt, retry, sender.app)

    @_border
    def on_task_postrun(
        self, task: Any = None, retval: Any = None, state: Any = None, **_: Any
    ) -> None:
        """Publish the end of a job that ended here."""
        request = task.request
        if state is None:
            self._on_aborted(task, request)
            return
        attempt = self._attempts.end(request)
        if attempt is None:
            return
        if state == "SUCCESS":
            self._end(JobFinished, attempt, **self._facts.of_result(retval))
        elif state == "FAILURE":
            self._end_failed(attempt, retval)
        elif state == "RETRY":
            self._end_retried(attempt, retval, task.app)
        elif state == "REJECTED":
            self._end(JobRejected, attempt, requeue=bool(getattr(retval, "requeue", False)))
        elif state == "IGNORED":
            self._end(JobIgnored, attempt)

    def _on_aborted(self, task: Any, request: Any) -> None:
        """End, or leave to the news to come, an attempt for which Celery knows no state."""
        attempt = self._attempts.find(request)
        if attempt is None:
            return
        flying = sys.exc_info()[1]
        if flying is None or (not attempt.eager and _is_stopped(flying, task, request, attempt)):
            # task_failure or task_revoked follow, in this process.
            forgotten = self._attempts.leave_to_news(request)
            if forgotten is not None:
                self._end_failed(forgotten, flying)
        elif not attempt.eager and self._is_told_by_parent(flying):
            self._attempts.leave_to_parent(request)
        elif self._attempts.end(request) is not None:
            self._end_failed(attempt, flying)

    def _is_told_by_parent(self, flying: BaseException) -> bool:
        """Tell whether this pool process is dying, of which its parent will tell.

        What else goes wrong here, this process tells itself: Celery before 5.7
        has no word for a task that exits, and the next job may start before
        the parent has read of this one. A spawned process can't be overruled:
        nobody but its parent knows what it has told.
        """
        if not _in_pool_process():
            return False
        return _is_ended_by_signal(flying) or not self._attempts.are_told_to_parent()

    # For a job whose process died, or that never started; on the main thread of a worker.

    @_border
    def on_task_revoked(
        self,
        sender: Any = None,
        request: Any = None,
        terminated: Any = None,
        signum: Any = None,
        expired: Any = None,
        **_: Any,
    ) -> None:
        """Publish the end of a job that was revoked, whether or not it had started."""
        if signum == SIGUSR1 and self._attempts.is_running_in_child(request.id):
            return  # the soft time limit's signal ends no process: its own will tell
        attempt = self._end_by_news(
            sender,
            request,
            request.id,
            request.args,
            request.kwargs,
            had_started=bool(terminated),
        )
        if attempt is not None:
            self._end(JobRevoked, attempt, terminated=bool(terminated), expired=bool(expired))

    def _end_by_news(
        self, task: Any, request: Any, task_id: Any, args: Any, kwargs: Any, *, had_started: bool
    ) -> Attempt | None:
        """End an attempt that is over in another process, or in a greenlet that is gone."""
        news = self._facts.of_job(task, request, task_id=task_id, args=args, kwargs=kwargs)
        return self._attempts.end_by_news(news, had_started=had_started)

    # The process begins and ends.

    @_border
    def on_worker_init(self, **_: Any) -> None:
        """Map the memory in which pool processes note what they run, before the first fork."""
        try:
            self._attempts.expect_children()
        except OSError as error:
            logger.warning(
                "broadcast gets no shared memory: %s. The ends of jobs whose process died won't "
                "tell when they had started",
                error,
            )

    @_border
    def on_worker_process_shutdown(self, **_: Any) -> None:
        """Drain a pool process: it leaves by `os._exit`, so nothing later would run."""
        self.producer.drain()

    @_border
    def on_worker_shutdown(self, **_: Any) -> None:
        """Drain the main process of a worker."""
        self._end_what_was_cut_off()
        self.producer.drain()

    @_border
    def _on_exit(self) -> None:
        """Drain whatever is left: a cold shutdown sends no signal in most pools."""
        self._end_what_was_cut_off()
        self.producer.drain(last=True)

    def _end_what_was_cut_off(self) -> None:
        """End the jobs whose greenlets a cold shutdown has stopped; Celery fails to say so."""
        for attempt in self._attempts.give_up_waiting():
            self._end_retried(attempt, Retry("cancelled by Celery"), celery.current_app)

    # The end.

    def _end_failed(self, attempt: Attempt, exception: Any) -> None:
        self._end(JobFailed, attempt, **self._facts.of_exception(exception, attempt.traceback))

    def _end_retried(self, attempt: Attempt, retry: Any, app: Celery) -> None:
        self._end(JobRetried, attempt, **self._facts.of_retry(retry, attempt.traceback, app))

    def _end(self, event_type: type[E], attempt: Attempt, **facts: Any) -> None:
        """Publish the one end of an attempt."""
        if event_type not in self._produced:
            return
        since = attempt.started_monotonic
        runtime = 0.0 if since is None else time.monotonic() - since
        self.producer.notify(
            event_type(**attempt.facts, **facts, ended_at=time.time(), runtime=runtime)
        )


def _in_pool_process() -> bool:
    """Tell whether a parent process will report what happens to this one."""
    billiard = sys.modules.get("billiard.process")
    return billiard is not None and billiard.current_process().name != "MainProcess"


def _is_stopped(flying: BaseException, task: Any, request: Any, attempt: Attempt) -> bool:
    """Tell whether Celery has stopped a greenlet, and will say why.

    With an exception that is matched by name, so that neither gevent nor
    eventlet has to be installed. gevent's `Timeout` may as well be the task's
    own: it is Celery's once the job's hard limit has passed, of which Celery
    tells from 5.7 on.
    """
    if isinstance(flying, Exception):  # another's, of the same name
        return False
    name = type(flying).__name__
    if name != "Timeout" or celery.VERSION < (5, 7) or attempt.started_monotonic is None:
        return name == "GreenletExit"
    limits = getattr(request, "timelimit", None) or (None,)
    limit = limits[0] or getattr(task, "time_limit", None)
    runtime = time.monotonic() - attempt.started_monotonic
    return limit is not None and runtime > limit - _LIMIT_SLACK_SECONDS


def _is_ended_by_signal(flying: BaseException) -> bool:
    """Tell whether a SIGTERM ends this pool process.

    billiard makes it exit with a status that has the signal in it
    (billiard/common.py, `_shutdown_cleanup`).
    """
    code = getattr(flying, "code", None) if isinstance(flying, SystemExit) else None
    return isinstance(code, int) and _STATUS_OF_SIGNAL_0 <= code < _STATUS_OF_SIGNAL_0 + 65
