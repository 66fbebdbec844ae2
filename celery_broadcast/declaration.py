"""How a consumer is declared: `@on_job_event`, or `subscribe` at run time."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer, FunctionConsumer
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import Event, JobEvent
from celery_broadcast.options import (
    RUN_TIME_OPTIONS,
    check_group_name,
    check_is_no_generator,
    check_options,
    check_takes_one_event,
    is_coroutine_function,
)
from celery_broadcast.restarts import Restart
from celery_broadcast.selection import is_event_type
from celery_broadcast.subscription import Subscription, registry

E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
E3 = TypeVar("E3", bound=Event)
R = TypeVar("R")
A = TypeVar("A")
C = TypeVar("C", bound=type[Consumer])

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import TypedDict, Unpack

    from celery_broadcast.retry import Retry

    class StreamOptions(TypedDict, Generic[E], total=False):
        """Which events are wanted, and where they wait: docs/consumers.md."""

        task: str | Iterable[str] | None
        queue: str | Iterable[str] | None
        exception: type[BaseException] | str | Iterable[type[BaseException] | str] | None
        state: str | Iterable[str] | None
        selector: Callable[[E], object] | None
        name: str | None
        mailbox_size: int | None
        overflow: Literal["drop_oldest", "drop_newest"] | None

    class Options(StreamOptions[E], Generic[E], total=False):
        """All that a consumer can ask for: docs/consumers.md."""

        concurrency: int | None
        partition_by: Callable[[E], Hashable] | None
        retry: Retry | None
        rate_limit: str | float | None
        stuck_after: float | None
        restart: Restart | None

    class DeclaredOptions(Options[E], Generic[E], total=False):
        """And what only a consumer can that is declared: docs/consumers.md."""

        remote: bool | None
        payload: Literal["text", "json"] | None

    class Decorator(Protocol[A]):
        """Declares what it decorates and gives it back untouched."""

        @overload
        def __call__(self, consumer: C, /) -> C: ...
        @overload
        def __call__(self, consumer: Callable[[A], R], /) -> Callable[[A], R]: ...


# Two and three events have overloads of their own: of any number of types mypy
# makes their common base, and a function of `JobFailed | JobFinished` takes less.
@overload
def on_job_event(consumer: C, /) -> C: ...
@overload
def on_job_event(**options: Unpack[DeclaredOptions[JobEvent]]) -> Decorator[JobEvent]: ...
@overload
def on_job_event(
    *, batch: Batch, **options: Unpack[DeclaredOptions[JobEvent]]
) -> Decorator[list[JobEvent]]: ...
@overload
def on_job_event(
    first: type[E], second: type[E2], /, **options: Unpack[DeclaredOptions[E | E2]]
) -> Decorator[E | E2]: ...
@overload
def on_job_event(
    first: type[E], second: type[E2], /, *, batch: Batch, **options: Unpack[DeclaredOptions[E | E2]]
) -> Decorator[list[E | E2]]: ...
@overload
def on_job_event(
    first: type[E],
    second: type[E2],
    third: type[E3],
    /,
    **options: Unpack[DeclaredOptions[E | E2 | E3]],
) -> Decorator[E | E2 | E3]: ...
@overload
def on_job_event(
    first: type[E],
    second: type[E2],
    third: type[E3],
    /,
    *,
    batch: Batch,
    **options: Unpack[DeclaredOptions[E | E2 | E3]],
) -> Decorator[list[E | E2 | E3]]: ...
@overload
def on_job_event(  # type: ignore[overload-overlap]  # a class can be called, too
    first: type[E], /, *events: type[E], **options: Unpack[DeclaredOptions[E]]
) -> Decorator[E]: ...
@overload
def on_job_event(
    first: type[E], /, *events: type[E], batch: Batch, **options: Unpack[DeclaredOptions[E]]
) -> Decorator[list[E]]: ...
@overload
def on_job_event(consumer: Callable[[JobEvent], R], /) -> Callable[[JobEvent], R]: ...
def on_job_event(*arguments: Any, **options: Any) -> Any:
    """Declare a consumer: a function of one event, `async` or not, or a `Consumer` class.

    ```python
    @on_job_event(JobFailed, task="shop.payments.*")
    def page_oncall(event: JobFailed) -> None: ...
    ```

    The function or class comes back untouched. While the broadcast is off,
    nothing ever calls it.

    Args:
        *arguments: the event types wanted, those below them included; none is
            every event of a job. Or, with the bare `@on_job_event`, the consumer.
        **options: which events, by `task`, `queue`, `exception`, `state` and
            `selector`; where they wait, by `name`, `mailbox_size` and `overflow`;
            how they come, by `batch`, `concurrency`, `partition_by`, `retry`,
            `rate_limit`, `stuck_after` and `restart`; and whether it runs in
            another process, by `remote` and `payload`. docs/consumers.md has each
            with its unit and default.

    Raises:
        ConfigurationError: the consumer, an event type or an option is wrong,
            or another consumer has the same name.
    """
    if len(arguments) == 1 and not options and not is_event_type(arguments[0]):
        consumer = arguments[0]
        if inspect.isclass(consumer) or callable(consumer):
            _declare("on_job_event", consumer, check_options("on_job_event", (), {}))
            return consumer

    checked = check_options("on_job_event", arguments, options)

    def decorate(consumer: Any) -> Any:
        _declare("on_job_event", consumer, checked)
        return consumer

    return decorate


@overload
def subscribe(
    consumer: type[Consumer],
    /,
    *events: type[Event],
    batch: Batch | None = None,
    **options: Unpack[Options[Any]],
) -> Subscription: ...
@overload
def subscribe(
    consumer: Callable[[JobEvent], object], /, **options: Unpack[Options[JobEvent]]
) -> Subscription: ...
@overload
def subscribe(
    consumer: Callable[[list[JobEvent]], object],
    /,
    *,
    batch: Batch,
    **options: Unpack[Options[JobEvent]],
) -> Subscription: ...
@overload
def subscribe(
    consumer: Callable[[E | E2], object],
    first: type[E],
    second: type[E2],
    /,
    **options: Unpack[Options[E | E2]],
) -> Subscription: ...
@overload
def subscribe(
    consumer: Callable[[E], object],
    first: type[E],
    /,
    *events: type[E],
    **options: Unpack[Options[E]],
) -> Subscription: ...
@overload
def subscribe(
    consumer: Callable[[list[E]], object],
    first: type[E],
    /,
    *events: type[E],
    batch: Batch,
    **options: Unpack[Options[E]],
) -> Subscription: ...
def subscribe(consumer: Any, /, *events: Any, **options: Any) -> Subscription:
    """Subscribe a consumer at run time, in this process and those forked from it later.

    ```python
    subscription = celery_broadcast.subscribe(page_oncall, JobFailed, task="shop.*")
    ...
    subscription.cancel()
    ```

    It gets what is published from now on, and what was published just before,
    if that has not been moved on yet. While the broadcast is off, nothing ever
    calls it. May be called on any thread, also by a consumer.

    Args:
        consumer: a function of one event, `async` or not, or a `Consumer` class.
        *events: the event types wanted; none is every event of a job.
        **options: as those of `on_job_event`, but for `remote` and `payload`.

    Returns:
        The subscription, to pause, resume and cancel it.

    Raises:
        ConfigurationError: as `on_job_event`.
    """
    checked = check_options("subscribe", events, options, RUN_TIME_OPTIONS)
    return _declare("subscribe", consumer, checked)


def _declare(caller: str, consumer: Any, fields: dict[str, Any]) -> Subscription:
    """Add the consumer to the registry."""
    if not callable(consumer):
        remedy = (
            "Pass a function or a Consumer class, and the event types after it"
            if caller == "subscribe"
            else "Decorate a function or a Consumer class"
        )
        msg = f"{caller} got {consumer!r}. {remedy}."
        raise ConfigurationError(msg)
    called = _consumer_name(consumer)
    name = fields["name"] or called
    if not name or name == "<lambda>":
        msg = f'{consumer!r} has no name of its own. Give it one: {caller}(..., name="...").'
        raise ConfigurationError(msg)
    if fields.get("remote"):
        check_group_name(name)
    make_consumer: Callable[[], Consumer]
    if isinstance(consumer, type):
        make_consumer, is_async = _check_consumer_class(consumer)
    else:
        check_is_no_generator(consumer, f"{called or name}()")
        check_takes_one_event(
            consumer, f"{called or name}()", "a consumer", f"def {called or name}(event): ..."
        )
        make_consumer = partial(FunctionConsumer, consumer)
        is_async = is_coroutine_function(consumer)
    declared_at = place_of_declaration()
    subscription = Subscription(
        **{**fields, "name": name},
        make_consumer=make_consumer,
        is_async=is_async,
        declared_at=declared_at,
        code=_code_of(consumer, declared_at),
        is_at_run_time=caller == "subscribe",
    )
    registry.add(subscription)
    return subscription


def _code_of(consumer: Any, declared_at: str) -> CodeType | None:
    function = inspect.unwrap(getattr(consumer, "handle", consumer))
    code = getattr(function, "__code__", None)
    if code is None:  # a partial, or an instance that can be called
        while isinstance(function, partial):
            function = inspect.unwrap(function.func)
        code = getattr(function, "__code__", None)
        code = code or getattr(type(function).__call__, "__code__", None)
        # That of another file stays the same when this one is imported again.
        if isinstance(code, CodeType) and not declared_at.startswith(f"{code.co_filename}:"):
            return None
    return code if isinstance(code, CodeType) else None


def _consumer_name(consumer: Any) -> str | None:
    name = getattr(consumer, "__name__", None)
    return name if isinstance(name, str) else None


def _check_consumer_class(consumer: type) -> tuple[type[Consumer], bool]:
    """Return the class, and whether its methods are coroutines."""
    name = consumer.__name__
    if is_event_type(consumer):
        msg = f"{name} is an event type, not a consumer. Write: subscribe(function, {name})."
        raise ConfigurationError(msg)
    if issubclass(consumer, BaseException):
        msg = (
            f"{name} is an exception, not a consumer. Write: "
            f"on_job_event(JobFailed, exception={name})."
        )
        raise ConfigurationError(msg)
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
    is_async = is_coroutine_function(consumer.handle)
    for method in ("setup", "handle", "teardown"):
        function = getattr(consumer, method)
        check_is_no_generator(function, f"{name}.{method}()")
        if is_coroutine_function(function) and not is_async:
            msg = (
                f"{name}.{method}() is a coroutine function, but {name}.handle() is not, and its "
                f"thread runs no event loop. Write: async def handle(self, event): ..."
            )
            raise ConfigurationError(msg)
    is_method = inspect.isfunction(inspect.getattr_static(consumer, "handle"))
    check_takes_one_event(
        consumer.handle,
        f"{name}.handle()",
        "a consumer",
        "def handle(self, event): ...",
        before_it=(None,) if is_method else (),
    )
    return consumer, is_async


def place_of_declaration() -> str:
    """Return file and line of the nearest caller outside of this package."""
    places = (
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_stack(inspect.currentframe())
        if frame.f_globals.get("__package__") != __package__
    )
    return next(places, "?")
