"""Reading events in a loop of one's own, instead of being called with them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from celery_broadcast import installation
from celery_broadcast.consumer import Consumer
from celery_broadcast.declaration import place_of_declaration
from celery_broadcast.errors import BroadcastError, ConfigurationError
from celery_broadcast.events import Event, JobEvent
from celery_broadcast.options import STREAM_OPTIONS, check_options
from celery_broadcast.reader import Reader
from celery_broadcast.subscription import Subscription, registry
from celery_broadcast.waiting import call_on_loop

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from celery_broadcast.declaration import StreamOptions
    from celery_broadcast.producer import Producer

logger: logging.Logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
E3 = TypeVar("E3", bound=Event)
E_co = TypeVar("E_co", bound=Event, covariant=True)


class Stream(Generic[E_co]):
    """The events of this process, as something to iterate over within `with`.

    For one thread, or one task of asyncio, at a time. An event counts as
    handled when the next one is asked for, and as failed if the block raises.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._reader: Reader | None = None
        self._is_entered = False

    def __enter__(self) -> Self:
        """Begin: what is published from now on can be read.

        And what was published just before, if it has not been moved on yet.
        """
        if self._is_entered:
            msg = "This stream has been used. Make another: with celery_broadcast.stream(...)."
            raise BroadcastError(msg)
        self._is_entered = True
        producer = installation.current_producer()
        if producer is None:
            logger.warning(
                "a stream was opened in %s, but the broadcast is off in this process, so it is "
                "over at once. Set broadcast_enabled, and install the app",
                self._subscription.declared_at,
            )
            return self
        for number in itertools.count(1):
            named = self._subscription
            if not named.name:
                named = msgspec.structs.replace(named, name=f"stream-{number}")
                if any(known.name == named.name for known in registry.subscriptions):
                    continue
            try:
                self._reader = self._open(named, producer)
            except ConfigurationError:
                if self._subscription.name:
                    raise
                continue  # another thread was faster
            break
        return self

    def _open(self, subscription: Subscription, producer: Producer) -> Reader:
        reader = Reader(subscription, producer.consumers.mailbox_for(subscription))
        registry.add(msgspec.structs.replace(subscription, reader=reader))
        if producer.is_over:  # asked afterwards: from now on a last drain finds the stream
            reader.stop()
            logger.warning(
                "a stream was opened in %s, where no event is moved on: the process is about to "
                "end, or a test keeps its events. It is over at once",
                subscription.declared_at,
            )
        return reader

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End: what waits is dropped, and counted as cancelled."""
        if self._reader is not None:
            self._reader.settle(failed=error is not None)
            self._reader.close()

    def __iter__(self) -> Self:
        """Iterate over the events to come."""
        return self

    def __next__(self) -> E_co:
        """Wait for the next event.

        Raises:
            StopIteration: a drain has ended the stream, and all is read.
        """
        while True:
            reader, event = self._look(StopIteration)
            if event is not None:
                return event
            reader.mailbox.wait()

    async def __aenter__(self) -> Self:
        """Begin, as `__enter__`."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End, as `__exit__`."""
        self.__exit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        """Iterate over the events to come."""
        return self

    async def __anext__(self) -> E_co:
        """Wait for the next event, as `__next__`, while the event loop goes on.

        Raises:
            StopAsyncIteration: a drain has ended the stream, and all is read.
        """
        while True:
            reader, event = self._look(StopAsyncIteration)
            if event is not None:
                return event
            ready = asyncio.Event()
            loop = asyncio.get_running_loop()
            reader.mailbox.call_when_ready(partial(call_on_loop, loop, ready.set))
            await ready.wait()

    def _look(self, the_end: type[Exception]) -> tuple[Reader, E_co | None]:
        """Return who reads, and the next event if it is there; raise `the_end` if none will be."""
        reader = self._reader_within()
        if reader is None:
            raise the_end
        is_last_look = reader.mailbox.is_closed
        delivery = reader.poll()
        if delivery is not None:
            return reader, delivery.event  # type: ignore[return-value]  # of the types asked for
        if is_last_look:
            reader.close()
            raise the_end
        return reader, None

    def _reader_within(self) -> Reader | None:
        """Return the reader, None while the broadcast is off."""
        if not self._is_entered:
            msg = (
                "A stream is read within a with block. Write: "
                "with celery_broadcast.stream(...) as events: ..."
            )
            raise BroadcastError(msg)
        return self._reader


@overload
def stream(**options: Unpack[StreamOptions[JobEvent]]) -> Stream[JobEvent]: ...
@overload
def stream(
    first: type[E], second: type[E2], /, **options: Unpack[StreamOptions[E | E2]]
) -> Stream[E | E2]: ...
@overload
def stream(
    first: type[E],
    second: type[E2],
    third: type[E3],
    /,
    **options: Unpack[StreamOptions[E | E2 | E3]],
) -> Stream[E | E2 | E3]: ...
@overload
def stream(
    first: type[E], /, *events: type[E], **options: Unpack[StreamOptions[E]]
) -> Stream[E]: ...
def stream(*events: Any, **options: Any) -> Stream[Any]:
    """Read the events of this process in a loop, instead of being called with them.

    ```python
    with celery_broadcast.stream(JobFailed) as events:
        for event in events:
            ...
    ```

    Or `async with` and `async for`. The loop waits for each event, and ends with
    a drain. While the broadcast is off, in `testing.job_events()` and after the
    last drain of a process, it ends at once. May be called on any thread.

    Args:
        *events: the event types wanted; none is every event of a job.
        **options: `task`, `queue`, `exception`, `state`, `selector`, `name`,
            `mailbox_size` and `overflow`, as those of `on_job_event`.

    Raises:
        ConfigurationError: an event type or an option is wrong, or, as the
            block begins, a consumer has the same name.
    """
    fields = check_options("stream", events, options, STREAM_OPTIONS)
    return Stream(
        Subscription(
            **{**fields, "name": fields["name"] or ""},
            make_consumer=Consumer,
            declared_at=place_of_declaration(),
            is_at_run_time=True,
        )
    )
