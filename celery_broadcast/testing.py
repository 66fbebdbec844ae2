"""What your own tests need: events made up, events kept, and the whole broadcast for one test.

For pytest there are fixtures, `job_events` and `broadcast`, which need no
import; they are these context managers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import msgspec

from celery_broadcast import installation, settings
from celery_broadcast.bridge import Bridge
from celery_broadcast.counts import ConsumerStats
from celery_broadcast.dispatcher import Item, delivery_of
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobRetried,
    JobRevoked,
    qualified_name,
)
from celery_broadcast.notices import Notice
from celery_broadcast.producer import Drained, Producer
from celery_broadcast.subscription import Registry, registry

E = TypeVar("E", bound=Event)

# The first second of 2026, UTC: the same in every run.
_STARTED_AT = 1_767_225_600.0
_RUNTIME_SECONDS = 1.0

_MADE_UP: Mapping[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, bytes: b""}


def make_event(event_type: type[E], **fields: Any) -> E:
    """Make a valid event from as little as a test cares about.

    ```python
    page_oncall(make_event(JobFailed, task_name="shop.refund"))
    ```

    What isn't given is made up, the same each time, and agrees with what is:
    an end comes `runtime` after its start, the type of an exception is its
    class's name, and what was revoked before it started has no start.

    Args:
        event_type: the type of the event; your own are filled in too, if the
            fields without a default are of simple types.
        **fields: fields of the event.

    Raises:
        ConfigurationError: this is no event type, it has no such field, or
            there is a field that can't be made up.
    """
    _check_event_type("make_event", event_type)
    known = {field.name: field for field in msgspec.structs.fields(event_type)}
    for name in fields:
        if name not in known:
            msg = f"{event_type.__name__} has no field {name!r}. It has: {', '.join(known)}."
            raise ConfigurationError(msg)
    filled = {**_facts(event_type, fields), **fields}
    for name, field in known.items():
        if field.required and name not in filled:
            filled[name] = _made_up(event_type, field)
    return event_type(**filled)


def _facts(event_type: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is made up for an event of ours, to agree with the fields given."""
    if not issubclass(event_type, JobEvent):
        return {}
    facts: dict[str, Any] = {"task_id": "id-1", "task_name": "task"}
    if issubclass(event_type, JobEnded):
        facts |= _times(event_type, fields)
    else:
        facts["started_at"] = _STARTED_AT
    if issubclass(event_type, JobFailed | JobRetried):
        kind = fields.get("exception_class", Exception)
        facts |= {"exception_class": kind, "exception_type": qualified_name(kind)}
    return facts


def _times(event_type: type[JobEnded], fields: Mapping[str, Any]) -> dict[str, Any]:
    started_at, ended_at = fields.get("started_at"), fields.get("ended_at")
    runtime = fields.get("runtime")
    never_started = "started_at" in fields or (
        issubclass(event_type, JobRevoked) and not fields.get("terminated") and not runtime
    )
    if started_at is None and never_started:
        return {"started_at": None, "ended_at": _STARTED_AT, "runtime": 0.0}
    if runtime is None:
        runtime = _RUNTIME_SECONDS
        if started_at is not None and ended_at is not None:
            runtime = ended_at - started_at
    if started_at is None:
        started_at = _STARTED_AT if ended_at is None else ended_at - runtime
    return {"started_at": started_at, "ended_at": started_at + runtime, "runtime": runtime}


def _made_up(event_type: type[Any], field: msgspec.structs.FieldInfo) -> Any:
    if field.type in _MADE_UP:
        return _MADE_UP[field.type]
    msg = (
        f"make_event can't make up the field {field.name!r} of {event_type.__name__}. "
        f"Pass it: make_event({event_type.__name__}, {field.name}=...)."
    )
    raise ConfigurationError(msg)


def _check_event_type(function: str, event_type: object) -> None:
    if isinstance(event_type, type) and issubclass(event_type, Event):
        return
    msg = (
        f"{function} got {event_type!r} ({type(event_type).__name__}). "
        "Pass an event type, such as JobFailed."
    )
    raise ConfigurationError(msg)


class JobEvents(Sequence[Event]):
    """The events that were published, in their order. May be used on any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def add(self, event: Event) -> None:
        """Keep an event."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget what was published so far."""
        with self._changed:
            self._events.clear()

    def of(self, *event_types: type[E]) -> list[E]:
        """Return the events of any of these types; a base stands for all below it."""
        for event_type in event_types:
            _check_event_type("of", event_type)
        return [event for event in self if isinstance(event, event_types)]

    def only(self, event_type: type[E]) -> E:
        """Return the one event of this type.

        Raises:
            AssertionError: there is none, or more than one; it says what was published.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not this one
        _check_event_type("only", event_type)
        published = list(self)
        found = [event for event in published if isinstance(event, event_type)]
        if len(found) != 1:
            count = f"{len(found)} were" if found else "none was"
            _fail(f"one {event_type.__name__} was expected, {count} published", published)
        return found[0]

    def wait_for(self, event_type: type[E], timeout: float = 5.0) -> E:
        """Return the first event of this type, as soon as there is one.

        Args:
            event_type: the type.
            timeout: how many seconds another thread has to publish it.

        Raises:
            AssertionError: there is none in time; it says what was published.
            ConfigurationError: the timeout is no number of seconds.
        """
        __tracebackhide__ = True
        _check_event_type("wait_for", event_type)
        timeout = settings.check_seconds("timeout", timeout)
        with self._changed:
            if not self._changed.wait_for(lambda: self.of(event_type), timeout):
                _fail(f"no {event_type.__name__} was published in {timeout} s", self._events)
            return self.of(event_type)[0]

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._events[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events.copy())

    def __repr__(self) -> str:
        return f"<JobEvents: {', '.join(map(str, self)) or 'none'}>"


def _fail(what: str, published: Sequence[object]) -> None:
    __tracebackhide__ = True
    lines = "".join(f"\n  {_line(event)}" for event in published) or " nothing at all."
    msg = f"{what}. There was:{lines}"
    raise AssertionError(msg)


def _line(event: object) -> str:
    if isinstance(event, JobFailed | JobRetried):  # what somebody who waits for a success wants
        return f"{event}: {event.exception_type}: {event.exception_message}"
    return str(event)


class _KeepingProducer(Producer):
    """Keeps what is published, instead of moving it on: without a thread, without consumers.

    Attributes:
        events: what was published.
    """

    def __init__(self, loaded: settings.Settings) -> None:
        super().__init__(loaded, Registry())

    def forget(self) -> None:
        """Be as new: what a forked child publishes, it keeps for itself."""
        super().forget()
        self.events = JobEvents()

    @property
    def is_over(self) -> bool:
        """Always: nothing reaches a consumer."""
        return True

    def put(self, item: Item) -> None:
        delivery = delivery_of(item)
        if delivery.taken:
            return
        self.events.add(delivery.event)
        delivery.taken = True
        self._say_told(delivery)

    def announce(self, notice: Notice, **facts: Any) -> None:
        """Tell nobody: that would need a thread."""

    def report_died(self, pid: int, lost: Mapping[str, int], not_offered: int) -> None:
        """Say nothing, as above."""

    def drain(
        self,
        timeout_seconds: float | None = None,  # noqa: ARG002
        *,
        last: bool = False,  # noqa: ARG002
    ) -> Drained:
        """Do nothing: nothing waits."""
        return Drained()


@contextlib.contextmanager
def job_events() -> Iterator[JobEvents]:
    """Keep what is published in the block, for the test to look at.

    No thread runs, and no consumer gets anything, also where the app under
    test has its broadcast on. Eager jobs are there as soon as they have run;
    for a worker in another thread there is `wait_for`.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
    """
    loaded = installation.settings_of_block()
    producer = _KeepingProducer(loaded)
    with installation.replaced_by(Bridge(loaded, producer)):
        yield producer.events


class Broadcast:
    """The broadcast that is on, for a test to wait for."""

    def drain(self, timeout: float | None = None) -> Drained:
        """Wait until the consumers have handled what waits, as `celery_broadcast.drain`."""
        return installation.drain(timeout)

    def stats(self) -> dict[str, ConsumerStats]:
        """Return the numbers of each consumer, as `celery_broadcast.stats`."""
        return installation.stats()


@contextlib.contextmanager
def broadcast() -> Iterator[Broadcast]:
    """Have the real broadcast on in the block, consumers, threads and all.

    The consumers that are declared in the block are forgotten after it, those
    declared before it take part. Remote ones run here as the others do, with the
    event itself: no broker is needed, and what they are is what is tested.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
    """
    declared = registry.subscriptions
    try:
        with installation.broadcasting():
            yield Broadcast()
    finally:
        # A cancel is for good, and a stream was over as the block began.
        registry.subscriptions = tuple(
            known for known in declared if not known.switch.is_cancelled and known.reader is None
        )
