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
import math
import os
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import celery
from billiard.exceptions import WorkerLostError
from celery import Celery, signals
from celery.exceptions import Reject, Retry, SoftTimeLimitExceeded

from celery_broadcast.attempts import Attempt, Attempts, News
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
from celery_broadcast.muting import is_muted
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.slots import Slots
from celery_broadcast.survivor import End, Survivor
from celery_broadcast.waiting import undisturbed

if TYPE_CHECKING:
    from celery_broadcast.jobs import Jobs

logger: logging.Logger = logging.getLogger(__name__)

_STATUS_OF_SIGNAL_0 = -256

# A replacement that waits for longer is worth a line in the log.
_LONG_DRAIN_SECONDS = 1.0

# What is told at the very end is handled within a second, if all else took too long.
_LAST_DRAIN_SECONDS = 1.0

# Of this process; it outlives a bridge, and so do the pool processes.
_slots: Slots | None = None

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
    """Keep every error of ours away from Celery, and from the job that runs.

    The soft time limit is an exception that a signal handler raises into
    whatever runs just then: what it strikes here is done again.
    """

    @functools.wraps(receiver)
    def guarded(self: Bridge, **told: Any) -> None:
        try:
            receiver(self, **told)
        except Exception as error:  # noqa: BLE001  # of ours, or one that struck
            _keep_from_celery(error, receiver.__name__, partial(receiver, self, **told))

    return guarded


def _keep_from_celery(error: Exception, receiver: str, again: Callable[[], None]) -> None:
    """Do again what the soft time limit struck; say anything else."""
    if isinstance(error, SoftTimeLimitExceeded):
        try:
            again()
        except Exception as another:  # noqa: BLE001  # as above
            error = another
        else:
            return
    logger.error(
        "broadcast failed in %s; an event is lost, the job isn't affected", receiver, exc_info=error
    )


class Bridge:
    """Turns what Celery tells of the jobs of this process into events for the producer.

    Its receivers run where Celery sends the signals: on the thread that runs
    the job, and on the main thread of a worker for jobs whose process died.
    Nothing they do ever raises into Celery.
    """

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self.settings = settings
        self.producer = producer
        #: Whether it tells nothing of what starts now, since another is in its place.
        self.is_quiet: bool = False
        self._attempts = Attempts()
        self._produced = produced_events(settings.events)
        self._facts = Facts(settings)
        self._survivor = Survivor(
            producer.ledger,
            publish=self._publish_for_gone,
            died=self._died,
            report=producer.report_died,
        )
        self._slots: Slots | None = None
        # Since when it is switched off, as unix time in milliseconds; 0 is on.
        self._switch: array[int] | memoryview = array("Q", (0,))
        self._drain_until = math.inf
        self._receivers: tuple[tuple[Any, Callable[..., None]], ...] = (
            (signals.task_prerun, self.on_task_prerun),
            (signals.task_postrun, self.on_task_postrun),
            (signals.task_failure, self.on_task_failure),
            (signals.task_retry, self.on_task_retry),
            (signals.task_revoked, self.on_task_revoked),
            (signals.worker_init, self.on_worker_init),
            (signals.worker_before_create_process, self.on_worker_before_create_process),
            (signals.worker_process_shutdown, self.on_worker_process_shutdown),
            (signals.worker_shutdown, self.on_worker_shutdown),
        )
        self._jobs: Jobs | None = None
        if settings.metrics_port is not None or settings.opentelemetry:
            from celery_broadcast.jobs import Jobs  # noqa: PLC0415  # nobody else pays for it

            producer.ledger.jobs = self._jobs = Jobs()
            self._receivers += ((signals.before_task_publish, self.on_before_task_publish),)

    def connect(self) -> None:
        """Connect to Celery's signals, each once however often this is called."""
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False, dispatch_uid=self._uid(signal))
        atexit.register(self._on_exit)
        if _slots is not None and _slots.are_below():
            self._share(_slots)
        elif _in_pool_process():  # a spawned one: a forked one inherits all this
            slots = Slots.of_parent()
            if slots is None or slots.mine is None:
                logger.warning(
                    "broadcast has no memory that it shares with the worker's main process, in "
                    "pid %d. If this process dies, its job may have no end and its events aren't "
                    "counted",
                    os.getpid(),
                )
            self._share(slots)

    def disconnect(self) -> None:
        """Leave Celery's signals as they were before."""
        for signal, _ in self._receivers:
            signal.disconnect(dispatch_uid=self._uid(signal))
        atexit.unregister(self._on_exit)
        self._survivor.stop()

    def _uid(self, signal: Any) -> str:
        """Return what tells its receiver from that of another bridge, which is quiet now."""
        return f"celery_broadcast.{signal.name}.{id(self)}"

    def _is_muted(self) -> bool:
        return self.is_quiet or self._switch[0] != 0 or is_muted()

    @property
    def off_since(self) -> int:
        """Since when it is switched off, as unix time in milliseconds; 0 is on.

        Nothing is told of what starts meanwhile. It holds for all processes of the worker.
        """
        return self._switch[0]

    @off_since.setter
    def off_since(self, milliseconds: int) -> None:
        self._switch[0] = milliseconds

    def _share(self, slots: Slots | None) -> None:
        """Let the processes of the pool and the main process know of each other."""
        global _slots  # noqa: PLW0603  # a process has one
        _slots = self._slots = slots
        if slots is not None:
            self._switch = slots.switch
            self._attempts.share(slots)
            self._survivor.share(slots)
            self.producer.share(slots)

    # Around a job, on the thread that runs it.

    # Written out, where `_border` would pack and unpack what is told twice for each event.

    def on_task_prerun(
        self,
        signal: Any = None,  # noqa: ARG002  # or it would go into a dict
        sender: Any = None,  # noqa: ARG002
        task: Any = None,
        task_id: Any = None,
        args: Any = None,
        kwargs: Any = None,
        **_: Any,
    ) -> None:
        """Publish `JobStarted`."""
        try:
            self._start(task, task_id, args, kwargs)
        except Exception as error:  # noqa: BLE001  # of ours, or one that struck
            again = partial(self._start, task, task_id, args, kwargs, again=True)
            _keep_from_celery(error, "on_task_prerun", again)

    def _start(
        self, task: Any, task_id: Any, args: Any, kwargs: Any, *, again: bool = False
    ) -> None:
        request = task.request
        attempt = self._attempts.find(request) if again else None
        if attempt is None:
            attempt = self._new_attempt(task, request, task_id, args, kwargs)
        self._attempts.start(request, attempt)
        if self._jobs is not None and attempt.started_monotonic is not None and not attempt.muted:
            from celery_broadcast.due import wait_of  # noqa: PLC0415  # as the jobs' numbers

            wait = wait_of(request.headers, attempt.facts["started_at"])
            self._jobs.start(attempt.facts, attempt.started_monotonic, attempt.note, wait)
        if not attempt.muted and self._is_told(JobStarted, attempt):
            if attempt.start is None:
                attempt.start = self.producer.delivery(JobStarted(**attempt.facts), attempt.note)
            self.producer.put(attempt.start)
        else:
            self._attempts.leave_start_untold(attempt)
        if again:
            logger.warning(
                "soft time limit of %s[%s] struck while the broadcast was told of its start, where "
                "no receiver of a signal can pass it on: the job runs without it",
                attempt.facts["task_name"],
                task_id,
            )

    def _new_attempt(
        self, task: Any, request: Any, task_id: Any, args: Any, kwargs: Any
    ) -> Attempt:
        started_at, started_monotonic = time.time(), time.monotonic()
        facts = self._facts.of_job(
            task,
            request,
            task_id=task_id,
            args=args,
            kwargs=kwargs,
            pid=self._attempts.pid,
            started_at=started_at,
        )
        return Attempt(
            facts=facts,
            started_monotonic=started_monotonic,
            eager=bool(getattr(request, "is_eager", False)),
            acks_late=bool(getattr(task, "acks_late", False)),
            muted=self._is_muted(),
        )

    @_border
    def on_before_task_publish(self, headers: Any = None, **_: Any) -> None:
        """Note when a job is sent, for whoever counts how long it waits."""
        from celery_broadcast.due import note_due  # noqa: PLC0415  # as above

        note_due(headers)

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
        request = sender.request
        attempt = self._attempts.find(request)
        if attempt is not None:
            # Text that Celery has formatted anyway; its end follows in task_postrun.
            attempt.traceback = traceback_text(einfo)
        elif not isinstance(exception, Reject):  # that one was ended by its own postrun
            self._hear(
                News(
                    event_type=JobFailed,
                    facts=self._facts.of_job(
                        sender, request, task_id=task_id, args=args, kwargs=kwargs
                    ),
                    details=self._facts.of_exception(exception, traceback_text(einfo)),
                    had_started=True,
                    # Celery before 5.7 sends this with an empty request.
                    retries=request.retries if getattr(request, "id", None) else None,
                )
            )

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
        # A cold shutdown cancelled it, and Celery gives no reason and no
        # traceback; or its process was lost and the task has `retry_on_worker_lost`.
        retry = Retry("cancelled by Celery") if reason is None else reason
        self._hear(
            News(
                event_type=JobRetried,
                facts=self._facts.of_request(sender, request),
                details=self._facts.of_retry(retry, traceback_text(einfo), sender.app),
                had_started=True,
                retries=request.retries,
            )
        )

    def on_task_postrun(
        self,
        signal: Any = None,  # noqa: ARG002
        sender: Any = None,  # noqa: ARG002
        task: Any = None,
        task_id: Any = None,  # noqa: ARG002
        args: Any = None,  # noqa: ARG002
        kwargs: Any = None,  # noqa: ARG002
        retval: Any = None,
        state: Any = None,
        **_: Any,
    ) -> None:
        """Publish the end of a job that ended here."""
        try:
            self._finish(task, retval, state)
        except Exception as error:  # noqa: BLE001  # as above
            again = partial(self._finish, task, retval, state)
            _keep_from_celery(error, "on_task_postrun", again)

    def _finish(self, task: Any, retval: Any, state: Any) -> None:
        request = task.request
        if state is None:
            self._on_aborted(task, request)
            return
        attempt = self._attempts.find(request)
        if attempt is None:
            return
        if state == "SUCCESS":
            self._end(JobFinished, attempt, self._facts.of_result(retval))
        elif state == "FAILURE":
            self._end_failed(attempt, retval)
        elif state == "RETRY":
            self._end_retried(attempt, retval, task.app)
        elif state == "REJECTED":
            requeue = bool(getattr(retval, "requeue", False))
            self._end(JobRejected, attempt, {"requeue": requeue})
        elif state == "IGNORED":
            self._end(JobIgnored, attempt, {})
        self._attempts.end(request)

    def _on_aborted(self, task: Any, request: Any) -> None:
        """End, or leave to the news to come, an attempt for which Celery knows no state."""
        attempt = self._attempts.find(request)
        if attempt is None:
            return
        flying = sys.exc_info()[1]
        if attempt.news is not None:
            self._end(attempt.news.event_type, attempt, attempt.news.details)
            self._attempts.end(request)
        elif flying is None or (not attempt.eager and _is_stopped(flying, task, request, attempt)):
            # task_failure or task_revoked follow, in this process.
            forgotten = self._attempts.leave_to_news(request)
            if forgotten is not None:
                self._end_failed(forgotten, flying)
        elif not attempt.eager and self._is_told_by_parent(flying):
            self._attempts.leave_to_parent(request)
        else:
            self._end_failed(attempt, flying)
            self._attempts.end(request)

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
        expired: Any = None,
        **_: Any,
    ) -> None:
        """Publish the end of a job that was revoked, whether or not it had started."""
        self._hear(
            News(
                event_type=JobRevoked,
                facts=self._facts.of_request(sender, request),
                details={"terminated": bool(terminated), "expired": bool(expired)},
                had_started=bool(terminated),
                retries=request.retries,
            )
        )

    def _hear(self, news: News) -> None:
        """End an attempt that is over in another process, or in a greenlet that is gone."""
        attempt = self._attempts.end_by_news(news.facts["task_id"]) if news.had_started else None
        if attempt is not None:
            self._end(news.event_type, attempt, news.details)
        elif (running := self._attempts.running(news)) is not None:
            running.news = news  # until it is over, its own thread has the last word
        elif not self._is_muted() and not self._attempts.was_ended(news):
            self._survivor.hear(news)

    # The process begins and ends.

    @_border
    def on_worker_init(self, sender: Any = None, **_: Any) -> None:
        """Map the memory in which pool processes note what they run, before the first fork."""
        conf = getattr(getattr(sender, "app", None), "conf", {})
        self._survivor.wait_longer_than(conf.get("worker_lost_wait") or 0.0)
        if self._slots is not None and self._slots.are_below():
            return  # another worker of this process, in a test
        try:
            self._share(Slots())
        except OSError as error:
            logger.warning(
                "broadcast gets no memory to share with the pool's processes: %s. Jobs whose "
                "process dies may have no end, or one that doesn't tell when they had started, "
                "and what such a process had waiting isn't counted",
                error,
            )

    @_border
    def on_worker_before_create_process(self, sender: Any = None, **_: Any) -> None:
        """End the attempts of processes that are gone: Celery has told what it knows of them.

        It looks after those that have ended, and takes them from its list,
        before it makes new ones (billiard/pool.py, `_maintain_pool`). One that
        is in the list still may have ended since: its news are yet to come.
        """
        pool = getattr(sender, "_pool", ())
        self._survivor.note_that_all_is_told(but=[process.pid for process in pool])

    @_border
    def on_worker_process_shutdown(self, exitcode: Any = None, **_: Any) -> None:
        """Drain a pool process: it leaves by `os._exit`, so nothing later would run."""
        from billiard.pool import EX_RECYCLE  # noqa: PLC0415  # no pool's process lacks it

        started = time.monotonic()
        with undisturbed():
            self.producer.drain()
        seconds = time.monotonic() - started
        if exitcode == EX_RECYCLE and seconds > _LONG_DRAIN_SECONDS:
            logger.warning(
                "broadcast held back the replacement of pool process %d for %.1f s, until its "
                "consumers were done. A shorter broadcast_drain_timeout limits that",
                os.getpid(),
                seconds,
            )

    @_border
    def on_worker_shutdown(self, **_: Any) -> None:
        """Drain the main process of a worker."""
        self._end_what_was_cut_off()
        self._survivor.look()
        self._drain_until = time.monotonic() + self.settings.drain_timeout
        with undisturbed():
            self.producer.drain()

    @_border
    def _on_exit(self) -> None:
        """Drain whatever is left: a cold shutdown sends no signal in most pools."""
        self._end_what_was_cut_off()
        self._survivor.leave()
        # What the drain of `worker_shutdown` has left of the time, if it was that late.
        left_seconds = max(_LAST_DRAIN_SECONDS, self._drain_until - time.monotonic())
        with undisturbed():
            self.producer.drain(min(left_seconds, self.settings.drain_timeout), last=True)

    def _end_what_was_cut_off(self) -> None:
        """End the jobs whose greenlets a cold shutdown has stopped; Celery fails to say so."""
        for attempt in self._attempts.give_up_waiting():
            self._end_retried(attempt, Retry("cancelled by Celery"), celery.current_app)

    # The end.

    def _end_failed(self, attempt: Attempt, exception: Any) -> None:
        self._end(JobFailed, attempt, self._facts.of_exception(exception, attempt.traceback))

    def _end_retried(self, attempt: Attempt, retry: Any, app: Celery) -> None:
        self._end(JobRetried, attempt, self._facts.of_retry(retry, attempt.traceback, app))

    def _end(
        self, event_type: type[JobEnded], attempt: Attempt, details: Mapping[str, Any]
    ) -> None:
        """Publish the one end of an attempt. Twice is harmless."""
        if attempt.is_over:  # it was struck before its note was closed
            self._attempts.close(attempt)
            return
        if attempt.end is None:
            if not self._attempts.can_end(attempt):
                return
            now = time.monotonic()
            if attempt.muted or not self._is_told(event_type, attempt):
                self._count_end(event_type, attempt, now)
                attempt.is_over = True
                self._attempts.close(attempt)
                return
            event = _event(event_type, attempt, details, time.time(), now)
            note = self._attempts.tell(attempt, event_type)
            self._count_end(event_type, attempt, now)
            attempt.end = self.producer.delivery(event, note)
        self.producer.put(attempt.end)
        if attempt.end.note is None:
            self._attempts.close(attempt)

    def _is_told(self, event_type: type[JobEvent], attempt: Attempt) -> bool:
        """Tell whether an event is made: what nobody wants costs the job nothing more.

        An end is, wherever the start was: the note behind both is closed by it.
        """
        if event_type not in self._produced:
            return False
        return attempt.start is not None or self.producer.wants(event_type)

    def _count_end(self, event_type: type[JobEnded], attempt: Attempt, now: float) -> None:
        """Count it, before its note may serve another attempt."""
        if self._jobs is not None and not attempt.muted:
            since, note = attempt.started_monotonic, attempt.note
            self._jobs.end(attempt.facts, since, event_type, _runtime(since, now), note)

    # For a process that is gone, on any thread of the main process.

    def _publish_for_gone(self, end: End) -> None:
        if not end.is_start_told and JobStarted in self._produced:
            self.producer.notify(JobStarted(**end.attempt.facts))
        event = _event(end.event_type, end.attempt, end.details, end.ended_at, end.ended_monotonic)
        if end.event_type in self._produced:
            self.producer.notify(event)
        if self._jobs is not None and not end.is_counted:
            since, until = end.attempt.started_monotonic, end.ended_monotonic
            runtime = _runtime(since, until)
            self._jobs.end(end.attempt.facts, since, end.event_type, runtime)
        if end.of_gone:
            self.producer.announce("attempt_lost", event=event)

    def _died(self, pid: int) -> dict[str, Any]:
        return self._facts.of_exception(WorkerLostError(f"Pool process {pid} died."), "")


def _event(
    event_type: type[JobEnded],
    attempt: Attempt,
    details: Mapping[str, Any],
    ended_at: float,
    ended_monotonic: float,
) -> JobEnded:
    runtime = _runtime(attempt.started_monotonic, ended_monotonic)
    return event_type(**attempt.facts, **details, ended_at=ended_at, runtime=runtime)


def _runtime(since: float | None, until: float) -> float:
    return 0.0 if since is None else until - since


def _in_pool_process() -> bool:
    """Tell whether a parent process will report what happens to this one."""
    billiard = sys.modules.get("billiard.process")
    return billiard is not None and "PoolWorker" in billiard.current_process().name


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
