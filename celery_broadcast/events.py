"""What can happen to a job: the event types.

Every event is frozen and tells all there is to know by itself, so that it can
be read on any thread, at any time, without asking Celery. None holds an
exception, a traceback or a request: those keep the job's memory alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from celery_broadcast.errors import ConfigurationError

# The job's own data, and what may be as private: in an event, but in no log line.
_KEPT_OUT_OF_REPR = frozenset({"args", "kwargs", "headers", "result", "traceback"})


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something happened; the base of all events, and of those of your own.

    ```python
    class Incident(Event, frozen=True, kw_only=True):
        task_name: str
        failures: int
    ```

    `celery_broadcast.notify(Incident(...))` publishes one. What subscribes to
    `Event` gets both.
    """

    def __str__(self) -> str:
        """Name the event in a log line: "Incident"."""
        return type(self).__name__


class JobEvent(Event, frozen=True, kw_only=True, tag=True):
    """Something happened to one attempt to run a job; the base of all events of jobs.

    `args`, `kwargs` and `result` are the job's own objects, not copies: read
    them, don't change them. They are None with `broadcast_payload = False`.

    Attributes:
        task_id: the id of the job; "" if Celery gave none. A retry and a
            redelivery are further attempts under the same id.
        task_name: the registered name, such as "shop.tasks.charge".
        args: positional arguments, as the task got them.
        kwargs: keyword arguments, as the task got them.
        queue: the name of the queue the job came from. None for an eager job,
            and where only a pattern binds the queue: then `exchange` and
            `routing_key` say what is known.
        exchange: the exchange the message was published to; "" is the default one.
        routing_key: the routing key the message was published with.
        retries: how many attempts were retried before this one.
        root_id: the id of the first job of the workflow.
        parent_id: the id of the job that sent this one.
        group_id: the id of the group that the job is a member of.
        worker: the name of the node, such as "celery@web-1".
        pid: the process that ran the attempt.
        headers: the headers that the sender of the job added.
        started_at: when the attempt started, in seconds since 1970, UTC. None
            if it never did: then it was revoked, had expired, or its process
            died before the job began.
        event_id: what a remote consumer knows the event by, the same however
            often it is delivered; "" for one that has not left its process.
    """

    task_id: str
    task_name: str
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    retries: int = 0
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    worker: str = ""
    pid: int = 0
    headers: Mapping[str, Any] | None = None
    started_at: float | None = None
    event_id: str = ""

    def __str__(self) -> str:
        """Name the event in a log line: "JobFailed shop.tasks.charge[5f3c...]"."""
        return f"{type(self).__name__} {self.task_name}[{self.task_id}]"

    def __repr__(self) -> str:
        """Show every field but those with the job's own data in them."""
        shown = (f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Give the same fields to rich, which shows them in its tracebacks."""
        return [
            (name, getattr(self, name))
            for name in self.__struct_fields__
            if name not in _KEPT_OUT_OF_REPR
        ]


class JobStarted(JobEvent, frozen=True, kw_only=True, tag=True):
    """An attempt starts."""


class JobEnded(JobEvent, frozen=True, kw_only=True, tag=True):
    """An attempt ended; the base of every end, of which an attempt has one.

    Attributes:
        state: Celery's word for the outcome, such as "SUCCESS".
        ended_at: when it ended, in seconds since 1970, UTC.
        runtime: how long it ran, in seconds of the monotonic clock; 0.0 if it
            never started.
    """

    state: str
    ended_at: float
    runtime: float


class JobFinished(JobEnded, frozen=True, kw_only=True, tag=True):
    """The attempt returned.

    Attributes:
        result: what it returned, the object itself.
    """

    state: str = "SUCCESS"
    result: Any = None


class JobFailed(JobEnded, frozen=True, kw_only=True, tag=True):
    """The attempt failed for good: no further one follows.

    It raised, ran out of retries, passed its time limit, lost its process,
    called `sys.exit`, or gave a result that can't be encoded.

    Attributes:
        exception_class: the class of the exception. Never an instance: that
            would keep the job's memory alive.
        exception_type: its qualified name, such as "shop.errors.CardDeclined".
        exception_message: the exception as text.
        traceback: the traceback as text, at most `broadcast_traceback_limit`
            characters, of which the last are kept.
        exception_bases: the qualified names of the classes above it, for a
            remote consumer: classes don't travel, so `exception_class` is the
            nearest one above it that Python itself has. () if it is the class.
    """

    state: str = "FAILURE"
    exception_class: type[BaseException]
    exception_type: str
    exception_message: str
    traceback: str = ""
    exception_bases: tuple[str, ...] = ()


class JobRetried(JobEnded, frozen=True, kw_only=True, tag=True):
    """The attempt failed and another follows, or a cold shutdown sent it back.

    Attributes:
        exception_class: the class of the exception that asked for the retry;
            `celery.exceptions.Retry` if there was no other.
        exception_type: its qualified name.
        exception_message: the exception as text.
        traceback: the traceback as text, limited as in `JobFailed`.
        eta: when the next attempt is due, in seconds since 1970, UTC; None if
            Celery didn't say.
        exception_bases: as in `JobFailed`.
    """

    state: str = "RETRY"
    exception_class: type[BaseException]
    exception_type: str
    exception_message: str
    traceback: str = ""
    eta: float | None = None
    exception_bases: tuple[str, ...] = ()


class JobRejected(JobEnded, frozen=True, kw_only=True, tag=True):
    """The task raised `celery.exceptions.Reject`.

    Attributes:
        requeue: whether the message goes back to its queue.
    """

    state: str = "REJECTED"
    requeue: bool = False


class JobIgnored(JobEnded, frozen=True, kw_only=True, tag=True):
    """The task raised `celery.exceptions.Ignore`."""

    state: str = "IGNORED"


class JobRevoked(JobEnded, frozen=True, kw_only=True, tag=True):
    """The job was revoked.

    If it had not started, there was no `JobStarted` and `started_at` is None.

    Attributes:
        terminated: whether it was running and was stopped.
        expired: whether it was dropped because its expiry time had passed.
    """

    state: str = "REVOKED"
    terminated: bool = False
    expired: bool = False


class JobLost(JobEnded, frozen=True, kw_only=True, tag=True):
    """The process died under the attempt, and for Celery the job has not failed.

    As a rule the broker delivers it again: the task has `acks_late` and
    `reject_on_worker_lost`. A process that dies before Celery has heard that
    the job began loses it to another process; and Celery 5.7 counts a job whose
    result was stored as done, though its process died before it could say so.
    Any other whose process dies has failed.
    """

    state: str = "PENDING"


def qualified_name(kind: type) -> str:
    """Return the name of a class as events have it, such as "shop.errors.CardDeclined"."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def check_event(value: object) -> None:
    """Refuse what can't be published.

    Raises:
        ConfigurationError: it is not an instance of a frozen subclass of `Event`.
    """
    kind = value if isinstance(value, type) else type(value)
    if not issubclass(kind, Event) or kind is Event:
        msg = (
            f"{value!r} ({kind.__name__}) is not an event. Make a subclass of "
            "celery_broadcast.Event, and publish an instance of it."
        )
        raise ConfigurationError(msg)
    if isinstance(value, type):
        msg = f"{kind.__name__} is an event type. Publish an instance: {kind.__name__}(...)."
        raise ConfigurationError(msg)
    if not kind.__struct_config__.frozen:
        msg = (
            f"{kind.__name__} is not frozen, but several threads read its events. Write: "
            f"class {kind.__name__}(Event, frozen=True): ..."
        )
        raise ConfigurationError(msg)


#: Every event type that an attempt can give, by its name.
EVENT_TYPES: Mapping[str, type[JobEvent]] = {
    event_type.__name__: event_type
    for event_type in (
        JobStarted,
        JobFinished,
        JobFailed,
        JobRetried,
        JobRejected,
        JobIgnored,
        JobRevoked,
        JobLost,
    )
}
