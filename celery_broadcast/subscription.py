"""Who wants what: `@on_job_event`, and the registry of what it declared."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import CodeType
from typing import Any, Protocol, TypeVar, overload

from celery_broadcast import settings
from celery_broadcast.consumer import Consumer, FunctionConsumer
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import EVENT_TYPES, JobEvent

E = TypeVar("E", bound=JobEvent)
E2 = TypeVar("E2", bound=JobEvent)
E3 = TypeVar("E3", bound=JobEvent)
R = TypeVar("R")
C = TypeVar("C", bound=type[Consumer])

#: Stands for "as `broadcast_mailbox_size` says", since None means no bound.
FROM_SETTINGS = -1


@dataclass(frozen=True)
class Subscription:
    """One consumer and the events it wants.

    Attributes:
        name: the consumer's name, one of its kind in a process.
        make_consumer: makes the consumer; called on the consumer's own thread.
        events: the event types; those below them count too.
        tasks: globs of task names; none is every task.
        queues: globs of queue names; none is every queue.
        selector: says whether the consumer wants an event; called on the
            consumer's own thread, after all the rest matched.
        mailbox_size: events that may wait; None is no bound, `FROM_SETTINGS`
            is what the settings say.
        overflow: what a full mailbox drops; None is what the settings say.
        declared_at: the file and line of the declaration.
        code: of the function, or of the class's `handle`; None if that isn't Python's.
    """

    name: str
    make_consumer: Callable[[], Consumer]
    events: tuple[type[JobEvent], ...] = (JobEvent,)
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    selector: Callable[[Any], object] | None = None
    mailbox_size: int | None = FROM_SETTINGS
    overflow: str | None = None
    declared_at: str = ""
    code: CodeType | None = None

    def is_again(self, known: Subscription) -> bool:
        """Tell whether this is `known` itself, whose module was imported again.

        Its place is the same then, but its code was compiled anew. In a loop,
        the code would be the same too.
        """
        return self.declared_at == known.declared_at and (
            self.code is None or self.code is not known.code
        )

    def wants(self, event_type: type[JobEvent], task_name: str, queue: str | None) -> bool:
        """Tell whether events of this kind go to the consumer's mailbox.

        The answer is the same for ever, so the dispatcher asks once a kind.
        """
        return (
            issubclass(event_type, self.events)
            and _matches(task_name, self.tasks)
            and _matches(queue, self.queues)
        )


def _matches(name: str | None, globs: tuple[str, ...]) -> bool:
    if not globs:
        return True
    return name is not None and any(fnmatchcase(name, glob) for glob in globs)


class Registry:
    """The declared subscriptions of a process, in the order of their declaration.

    Filled while modules are imported. `subscriptions` is replaced, never
    changed, so that a reader on another thread sees a whole one, and can tell
    by `is` whether there is anything new.
    """

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()

    def add(self, subscription: Subscription) -> None:
        """Add a subscription; if its module was imported again, it replaces itself.

        Raises:
            ConfigurationError: another consumer has the same name.
        """
        others = {known.name: known for known in self.subscriptions}
        known = others.pop(subscription.name, None)
        if known is not None and not subscription.is_again(known):
            msg = (
                f"Two consumers are named {known.name!r} "
                f"({known.declared_at} and {subscription.declared_at}). "
                'Give one of them name="...".'
            )
            raise ConfigurationError(msg)
        self.subscriptions = (*others.values(), subscription)

    def clear(self) -> None:
        """Forget every subscription."""
        self.subscriptions = ()


#: What `@on_job_event` declared in this process.
registry: Registry = Registry()


class Decorator(Protocol[E]):
    """Declares what it decorates and gives it back untouched."""

    @overload
    def __call__(self, consumer: C, /) -> C: ...
    @overload
    def __call__(self, consumer: Callable[[E], R], /) -> Callable[[E], R]: ...


# No, two and three events have overloads of their own: of any number of types mypy
# makes their common base, and a function of `JobFailed | JobFinished` takes less.
@overload
def on_job_event(consumer: C, /) -> C: ...
@overload
def on_job_event(consumer: Callable[[JobEvent], R], /) -> Callable[[JobEvent], R]: ...
@overload
def on_job_event(
    *,
    task: str | Iterable[str] | None = None,
    queue: str | Iterable[str] | None = None,
    selector: Callable[[JobEvent], object] | None = None,
    name: str | None = None,
    mailbox_size: int | None = ...,
    overflow: str | None = None,
) -> Decorator[JobEvent]: ...
@overload
def on_job_event(
    first: type[E],
    second: type[E2],
    /,
    *,
    task: str | Iterable[str] | None = None,
    queue: str | Iterable[str] | None = None,
    selector: Callable[[E | E2], object] | None = None,
    name: str | None = None,
    mailbox_size: int | None = ...,
    overflow: str | None = None,
) -> Decorator[E | E2]: ...
@overload
def on_job_event(
    first: type[E],
    second: type[E2],
    third: type[E3],
    /,
    *,
    task: str | Iterable[str] | None = None,
    queue: str | Iterable[str] | None = None,
    selector: Callable[[E | E2 | E3], object] | None = None,
    name: str | None = None,
    mailbox_size: int | None = ...,
    overflow: str | None = None,
) -> Decorator[E | E2 | E3]: ...
@overload
def on_job_event(
    *events: type[E],
    task: str | Iterable[str] | None = None,
    queue: str | Iterable[str] | None = None,
    selector: Callable[[E], object] | None = None,
    name: str | None = None,
    mailbox_size: int | None = ...,
    overflow: str | None = None,
) -> Decorator[E]: ...
def on_job_event(*arguments: Any, **options: Any) -> Any:
    """Declare a consumer: a function that takes one event, or a `Consumer` class.

    ```python
    @on_job_event(JobFailed, task="shop.payments.*")
    def page_oncall(event: JobFailed) -> None: ...
    ```

    The function or class comes back untouched. While the broadcast is off,
    nothing ever calls it.

    Args:
        *arguments: the event types wanted, those below them included; none is
            every event. Or, with the bare `@on_job_event`, the consumer.
        **options: `task` and `queue`, a glob or several of which one must
            match, case-sensitive; `selector`, a callable that takes the event
            and says whether the consumer wants it, called on the consumer's
            thread; `name`, by default the function's or class's own;
            `mailbox_size`, in events, None for no bound, and `overflow`,
            "drop_oldest" or "drop_newest", by default what the settings say.

    Raises:
        ConfigurationError: the consumer, an event type or an option is wrong,
            or another consumer has the same name.
    """
    if len(arguments) == 1 and not options and not _is_event_type(arguments[0]):
        consumer = arguments[0]
        if inspect.isclass(consumer) or callable(consumer):
            return _declare(consumer, (), {})

    events = _check_events(arguments)
    checked = _check_options(options)

    def decorate(consumer: Any) -> Any:
        return _declare(consumer, events, checked)

    return decorate


def _declare(consumer: Any, events: tuple[type[JobEvent], ...], options: dict[str, Any]) -> Any:
    """Add the consumer to the registry, and return it as it came."""
    if not callable(consumer):
        msg = f"on_job_event got {consumer!r}. Decorate a function or a Consumer class."
        raise ConfigurationError(msg)
    called = _consumer_name(consumer)
    name = options.get("name") or called
    if not name or name == "<lambda>":
        msg = f'{consumer!r} has no name of its own. Give it one: on_job_event(..., name="...").'
        raise ConfigurationError(msg)
    make_consumer: Callable[[], Consumer]
    if isinstance(consumer, type):
        make_consumer = _check_consumer_class(consumer)
    else:
        _check_handles_one_event(consumer, called or name)
        make_consumer = partial(FunctionConsumer, consumer)
    registry.add(
        Subscription(
            **{**options, "name": name},
            make_consumer=make_consumer,
            events=events or (JobEvent,),
            declared_at=_place_of_declaration(),
            code=_code_of(consumer),
        )
    )
    return consumer


def _is_event_type(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, JobEvent)


def _code_of(consumer: Any) -> CodeType | None:
    function = inspect.unwrap(getattr(consumer, "handle", consumer))
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _consumer_name(consumer: Any) -> str | None:
    name = getattr(consumer, "__name__", None)
    return name if isinstance(name, str) else None


def _check_events(arguments: tuple[object, ...]) -> tuple[type[JobEvent], ...]:
    for argument in arguments:
        if _is_event_type(argument):
            continue
        if isinstance(argument, str) and argument in ("JobEvent", "JobEnded", *EVENT_TYPES):
            remedy = f"Pass the class: from celery_broadcast import {argument}."
        elif isinstance(argument, JobEvent):
            remedy = f"Pass its class, {type(argument).__name__}."
        else:
            remedy = "Pass event types, such as JobFailed, or none for every event."
        msg = f"on_job_event got {argument!r} ({type(argument).__name__}). {remedy}"
        raise ConfigurationError(msg)
    return arguments  # type: ignore[return-value]  # each was checked above


_OPTIONS = ("task", "queue", "selector", "name", "mailbox_size", "overflow")


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as fields of a `Subscription`."""
    for option in options:
        if option not in _OPTIONS:
            msg = f"on_job_event has no option {option!r}. There are: {', '.join(_OPTIONS)}."
            raise ConfigurationError(msg)
    name = options.get("name")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        msg = f"name={name!r} is not a name. Use some text, such as name='payments-audit'."
        raise ConfigurationError(msg)
    selector = options.get("selector")
    if selector is not None:
        if not callable(selector):
            msg = f"selector={selector!r} can't be called. Write: selector=lambda event: ..."
            raise ConfigurationError(msg)
        _check_is_plain(selector, "selector")
        _check_takes_one_event(selector, "selector", "a selector", "lambda event: ...")
    checked: dict[str, Any] = {
        "name": name,
        "tasks": _check_globs("task", options.get("task")),
        "queues": _check_globs("queue", options.get("queue")),
        "selector": selector,
    }
    if "mailbox_size" in options:
        size = settings.check_mailbox_size("mailbox_size", options["mailbox_size"])
        checked["mailbox_size"] = size
    if options.get("overflow") is not None:
        checked["overflow"] = settings.check_overflow("overflow", options["overflow"])
    return checked


def _check_globs(option: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    globs = (value,) if isinstance(value, str) else value
    if isinstance(globs, Iterable):
        globs = tuple(globs)
        if globs and all(isinstance(glob, str) and glob for glob in globs):
            return globs
    msg = f"{option}={value!r} is not a glob. Use {option}='shop.*', or a list of such."
    raise ConfigurationError(msg)


def _check_handles_one_event(function: Any, name: str) -> None:
    _check_is_plain(function, f"{name}()")
    _check_takes_one_event(function, f"{name}()", "a consumer", f"def {name}(event): ...")


def _check_is_plain(function: Any, name: str) -> None:
    """Refuse what only makes something to be run by somebody else."""
    for is_kind, kind in (
        (inspect.iscoroutinefunction, "a coroutine function"),
        (inspect.isasyncgenfunction, "an asynchronous generator"),
        (inspect.isgeneratorfunction, "a generator"),
    ):
        if is_kind(function) or is_kind(type(function).__call__):
            msg = f"{name} is {kind}: calling it runs nothing. Write it as a plain function."
            raise ConfigurationError(msg)


def _check_consumer_class(consumer: type) -> type[Consumer]:
    name = consumer.__name__
    if not issubclass(consumer, Consumer):
        msg = f"{name} is a class, but not a Consumer. Write: class {name}(Consumer): ..."
        raise ConfigurationError(msg)
    if consumer.handle is Consumer.handle:
        msg = f"{name} handles nothing. Write: def handle(self, event): ..."
        raise ConfigurationError(msg)
    try:
        inspect.signature(consumer).bind()
    except TypeError:
        msg = f"{name}() needs arguments, but a consumer is made without any. Give them defaults."
        raise ConfigurationError(msg) from None
    _check_is_plain(consumer.handle, f"{name}.handle()")
    is_method = inspect.isfunction(inspect.getattr_static(consumer, "handle"))
    _check_takes_one_event(
        consumer.handle,
        f"{name}.handle()",
        "a consumer",
        "def handle(self, event): ...",
        before_it=(None,) if is_method else (),
    )
    return consumer


def _check_takes_one_event(
    function: Any, name: str, role: str, remedy: str, before_it: tuple[object, ...] = ()
) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C, without a signature to read
    try:
        signature.bind(*before_it, object())
    except TypeError:
        takes = f"takes {signature}" if signature.parameters else "takes no arguments"
        msg = f"{name} {takes}, but {role} is called with one event. Write: {remedy}"
        raise ConfigurationError(msg) from None


def _place_of_declaration() -> str:
    """Return file and line of the nearest caller outside of this module."""
    places = (
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_stack(inspect.currentframe())
        if frame.f_code.co_filename != __file__
    )
    return next(places, "?")
