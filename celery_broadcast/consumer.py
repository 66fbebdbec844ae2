"""What a consumer is: something that is set up, handles events, and is torn down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_broadcast.events import JobEvent


class Consumer:
    """A consumer with a life of its own; make a subclass and override `handle`.

    Every process that has events makes its own instance, and makes a new one
    when the consumer is restarted. All three methods, and `__init__`, are
    called on the consumer's own thread.
    """

    def setup(self) -> None:
        """Get ready: called before the first event, and again after a restart.

        If it raises, the consumer is restarted after a pause.
        """

    def handle(self, event: Any) -> None:
        """Handle one event, whose type is one of those subscribed to.

        If it raises, the event is counted as failed and the next one comes.
        """
        raise NotImplementedError

    def teardown(self) -> None:
        """Let go of what `setup` took: called at the drain and before a restart."""


class FunctionConsumer(Consumer):
    """A plain function, as a consumer."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function

    def handle(self, event: JobEvent) -> None:
        """Call the function with the event."""
        self._function(event)
