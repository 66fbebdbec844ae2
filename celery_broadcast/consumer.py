"""What a consumer is: something that is set up, handles events, and is torn down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from typing import Protocol

    class Situation(Protocol):
        """How a consumer stands in its process."""

        stop_requested: threading.Event
        is_over: threading.Event

        def dropped(self) -> int:
            """Return how many of its events were ever dropped."""


class Consumer:
    """A consumer with a life of its own; make a subclass and override `handle`.

    Every process that has events makes its own instance, and makes a new one
    when the consumer is restarted. All three methods, and `__init__`, are
    called on the consumer's own thread. With `concurrency`, each of its threads
    has an instance of its own.

    If `handle` is `async def`, the thread runs an event loop, and one instance
    handles up to `concurrency` events at once; `setup` and `teardown` may then
    be `async def` too.
    """

    def setup(self) -> Awaitable[None] | None:
        """Get ready: called before the first event, and again after a restart.

        If it raises, the consumer is restarted after a pause.
        """

    def handle(self, event: Any, /) -> Awaitable[None] | None:
        """Handle one event, whose type is one of those subscribed to.

        With `batch`, a list of events. If it raises, the event, or each of the
        list, is counted as failed and the next one comes.
        """
        raise NotImplementedError

    def teardown(self) -> Awaitable[None] | None:
        """Let go of what `setup` took: called at the drain and before a restart."""


class PatientConsumer(Consumer):
    """One of our own, which waits within `handle` until it can do what it has to.

    Attributes:
        situation: tells it when to hurry, since a stop was requested, and when to
            leave it at that, since what it has in hand is counted as dropped. Set
            before `setup`.
    """

    situation: Situation


class FunctionConsumer(Consumer):
    """A function, or a coroutine function, as a consumer."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        vars(self)["handle"] = function  # in place of the method, and of a call around it
