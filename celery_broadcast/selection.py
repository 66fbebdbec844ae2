"""Which events a subscription wants, by what can be told of an event without asking anybody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeAlias

import msgspec

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobRetried,
    qualified_name,
)
from celery_broadcast.settings import shown

#: What a selection looks at: event type, task name, queue, state, and of the exception its class,
#: its qualified name and, where the class isn't there, those of the classes above it. Events of
#: one kind go the same way.
Kind: TypeAlias = tuple[
    type[Event],
    str | None,
    str | None,
    str | None,
    type[BaseException] | None,
    str | None,
    tuple[str, ...],
]

_WITH_EXCEPTION = (JobFailed, JobRetried)


def kind_of(event: Event) -> Kind:
    """Return the kind of an event."""
    if not isinstance(event, JobEvent):
        return type(event), None, None, None, None, None, ()
    state = event.state if isinstance(event, JobEnded) else None
    if isinstance(event, _WITH_EXCEPTION):
        return (
            *(type(event), event.task_name, event.queue, state),
            *(event.exception_class, event.exception_type, event.exception_bases),
        )
    return type(event), event.task_name, event.queue, state, None, None, ()


class Selection(msgspec.Struct, frozen=True):
    """What a subscription says of the events it wants; all of it must match.

    Attributes:
        events: the event types; those below them count too.
        tasks: globs of task names; none is every task.
        queues: globs of queue names; none is every queue.
        states: Celery's words for the outcome; none is every one.
        exceptions: classes, those below them count too, or qualified names; none
            is every one. A class is known by its name as well, so that an event
            matches where the exception's own module isn't there.
    """

    events: tuple[type[Event], ...] = (JobEvent,)
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    exceptions: tuple[type[BaseException] | str, ...] = ()

    @property
    def is_of_types(self) -> bool:
        """Whether it looks at nothing but the type of an event."""
        return not (self.tasks or self.queues or self.states or self.exceptions)

    def wants(self, kind: Kind) -> bool:
        """Tell whether events of this kind are wanted.

        The answer is the same for ever, so the dispatcher asks once a kind.
        """
        event_type, task_name, queue, state, *_ = kind
        return (
            issubclass(event_type, self.events)
            and _matches(task_name, self.tasks)
            and _matches(queue, self.queues)
            and (not self.states or state in self.states)
            and (not self.exceptions or self._wants_exception(*kind[4:]))
        )

    def _wants_exception(
        self,
        exception_class: type[BaseException] | None,
        exception_type: str | None,
        exception_bases: tuple[str, ...],
    ) -> bool:
        bases = () if exception_class is None else exception_class.__mro__
        names = {exception_type, *map(qualified_name, bases), *exception_bases}
        return any(
            wanted in names if isinstance(wanted, str) else _is_below(wanted, bases, names)
            for wanted in self.exceptions
        )


class AnyOf(Selection, frozen=True):
    """What any of several selections wants, of the event types of jobs.

    `events` has theirs, and the rest of it is as if they had asked for nothing else.

    Attributes:
        selections: the several.
    """

    selections: tuple[Selection, ...] = ()

    @property
    def is_of_types(self) -> bool:
        """Whether they look at nothing but the type of an event."""
        return all(selection.is_of_types for selection in self.selections)

    def wants(self, kind: Kind) -> bool:
        """Tell whether any of them wants events of this kind."""
        return EVENT_TYPES.get(kind[0].__name__) is kind[0] and any(
            selection.wants(kind) for selection in self.selections
        )


def any_of(selections: Iterable[Selection]) -> AnyOf:
    """Return what any of them wants."""
    several = tuple(selections)
    events = dict.fromkeys(event_type for each in several for event_type in each.events)
    return AnyOf(events=tuple(events), selections=several)


def _is_below(wanted: type[BaseException], bases: tuple[type, ...], names: set[str | None]) -> bool:
    return wanted in bases or qualified_name(wanted) in names


def _matches(name: str | None, globs: tuple[str, ...]) -> bool:
    if not globs:
        return True
    return name is not None and any(fnmatchcase(name, glob) for glob in globs)


def check_selection(
    caller: str, events: tuple[object, ...], asked: Mapping[str, object]
) -> Selection:
    """Return what a declaration says of the events it wants.

    Args:
        caller: what the user called, for the messages.
        events: the event types.
        asked: the options `task`, `queue`, `state` and `exception`, those given.

    Raises:
        ConfigurationError: something of it is wrong, or no event can ever match.
    """
    selection = Selection(
        events=_check_events(caller, events) or (JobEvent,),
        tasks=_check_globs("task", asked.get("task")),
        queues=_check_globs("queue", asked.get("queue")),
        states=_check_states(asked.get("state")),
        exceptions=_check_exceptions(asked.get("exception")),
    )
    _check_that_some_event_matches(selection, asked)
    return selection


def is_event_type(value: object) -> bool:
    """Tell whether something is an event type, rather than a consumer."""
    return isinstance(value, type) and issubclass(value, Event)


def _check_events(caller: str, values: tuple[object, ...]) -> tuple[type[Event], ...]:
    for value in values:
        if is_event_type(value):
            continue
        if isinstance(value, str) and value in {"Event", "JobEvent", "JobEnded", *EVENT_TYPES}:
            remedy = f"Pass the class: from celery_broadcast import {value}."
        elif isinstance(value, type) and issubclass(value, BaseException):
            remedy = f"Write: {caller}(JobFailed, exception={value.__name__})."
        elif isinstance(value, Event):
            remedy = f"Pass its class, {type(value).__name__}."
        else:
            remedy = "Pass event types, such as JobFailed, or none for every event."
        msg = f"{caller} got {value!r} ({type(value).__name__}). {remedy}"
        raise ConfigurationError(msg)
    return values  # type: ignore[return-value]  # each was checked above


def _check_globs(option: str, value: object) -> tuple[str, ...]:
    globs = _several(value)
    if all(isinstance(glob, str) and glob for glob in globs) and (globs or value is None):
        return globs
    name = getattr(value, "name", None)  # a task's, or a queue's
    remedy = f"{name!r}, its name" if name and isinstance(name, str) else "'shop.*'"
    msg = f"{option}={value!r} is not a glob. Use {option}={remedy}, or a list of such."
    raise ConfigurationError(msg)


def _check_states(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    states = _several(value)
    known = sorted(state for state in map(_state_of, EVENT_TYPES.values()) if state)
    if states and all(state in known for state in states):
        return states
    msg = (
        f"state={value!r} is not how an attempt ends. Use one of {', '.join(known)}, "
        "or a list of such."
    )
    raise ConfigurationError(msg)


def _check_exceptions(value: object) -> tuple[type[BaseException] | str, ...]:
    exceptions = tuple(map(_without_builtins, _several(value)))
    if all(_is_exception(each) for each in exceptions) and (exceptions or value is None):
        return exceptions
    msg = (
        f"exception={value!r} is not an exception. Use a class, such as OSError, its qualified "
        "name, such as 'shop.errors.CardDeclined', or a list of such."
    )
    raise ConfigurationError(msg)


def _without_builtins(exception: Any) -> Any:
    """Return a name as events have it: `qualified_name` leaves that module out."""
    return exception.removeprefix("builtins.") if isinstance(exception, str) else exception


def _is_exception(value: object) -> bool:
    if isinstance(value, str):
        return bool(value) and not set(value) & set("*?[ ")  # it is no glob
    return isinstance(value, type) and issubclass(value, BaseException)


def _several(value: Any) -> tuple[Any, ...]:
    """Return the values of an option that takes one or several."""
    if value is None:
        return ()
    if isinstance(value, str | type) or not isinstance(value, Iterable):
        return (value,)
    try:
        return tuple(value)
    except TypeError:  # Celery's proxy of a task looks as if it were iterable
        return (value,)


@cache  # to ask takes longer than all the rest of a declaration
def _state_of(event_type: type[Event]) -> str | None:
    """Return the state that an end of this type has."""
    fields = msgspec.structs.fields(event_type)
    state = next((field.default for field in fields if field.name == "state"), None)
    return state if isinstance(state, str) else None


def _check_that_some_event_matches(selection: Selection, asked: Mapping[str, object]) -> None:
    """Refuse what no event of a job can match; other events are their author's."""
    is_of_job = selection.tasks or selection.queues or selection.states or selection.exceptions
    if not is_of_job:
        return
    ours = {JobEvent, JobEnded, *EVENT_TYPES.values()}
    if any(issubclass(wanted, JobEvent) and wanted not in ours for wanted in selection.events):
        return  # a type of the user's own, below one of these
    known = [known for known in EVENT_TYPES.values() if issubclass(known, selection.events)]
    for event_type in known:
        has_state = not selection.states or _state_of(event_type) in selection.states
        has_exception = not selection.exceptions or issubclass(event_type, _WITH_EXCEPTION)
        if has_state and has_exception:
            return
    names = ", ".join(event_type.__name__ for event_type in selection.events)
    given = [
        f"{option}={shown(asked[option])}"
        for option in ("task", "queue", "state", "exception")
        if asked.get(option) is not None
    ]
    msg = (
        f"No event is {names} with {' and '.join(given)}. Of a job's events only JobFailed and "
        "JobRetried have an exception, each end has one state, and events of your own have no "
        "task. Leave out what doesn't fit, or declare two consumers."
    )
    raise ConfigurationError(msg)
