"""The calls of one consumer that are going on, and which of them take too long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from celery_broadcast import notices
from celery_broadcast.failures import text_of

logger: logging.Logger = logging.getLogger(__name__)


class Call(msgspec.Struct, eq=False):
    """One call of a consumer.

    Attributes:
        what: what is called, in words; None is the consumer itself.
        event: the event, or the list of a batch; None in setup and teardown.
        began_at: when it began, in seconds of the monotonic clock.
        stack: tells where its thread is, as text.
        is_said: whether it was said that it takes too long.
    """

    what: str | None
    event: Any
    began_at: float
    stack: Callable[[], str]
    is_said: bool = False

    def __str__(self) -> str:
        about = None if self.event is None else text_of(self.event)
        return ", asked about ".join(text for text in (self.what, about) if text)


class Calls:
    """Begun and ended on the consumer's threads, looked at on the producer's.

    Args:
        consumer: the consumer's name.
        stuck_after: after how many seconds a call is said to be stuck.
        add_stuck: told how many calls more are stuck, or, below zero, fewer.
    """

    def __init__(
        self, consumer: str, stuck_after: float, add_stuck: Callable[[int], None] | None = None
    ) -> None:
        self._consumer = consumer
        self._stuck_after = stuck_after
        self._add_stuck = add_stuck
        self._going_on: dict[int, Call] = {}
        # Held to say of a call that it is stuck, or over: it can't be both.
        self._turning = threading.RLock()

    def begin(self, call: Call) -> None:
        """Note that a call begins."""
        self._going_on[id(call)] = call

    def end(self, call: Call) -> None:
        """Note that it is over, however it ended."""
        with self._turning:
            is_known = self._going_on.pop(id(call), None) is not None
            if is_known and call.is_said and self._add_stuck is not None:
                self._add_stuck(-1)

    def look(self, now: float, *, is_busy: bool) -> float | None:
        """Say which calls are stuck, each once.

        Args:
            now: the time, in seconds of the monotonic clock.
            is_busy: whether the consumer has anything to do; while it has, a
                call may begin at any time.

        Returns:
            The seconds after which to look again; None if there is no need.
        """
        waits = [self._stuck_after] if is_busy else []
        for call in list(self._going_on.values()):
            if call.is_said:
                continue
            seconds = now - call.began_at
            if seconds < self._stuck_after:
                waits.append(self._stuck_after - seconds)
            else:
                self._note_stuck(call)
                self._say_stuck(call, seconds)
        return min(waits, default=None)

    def _note_stuck(self, call: Call) -> None:
        with self._turning:
            call.is_said = True
            if id(call) in self._going_on and self._add_stuck is not None:
                self._add_stuck(1)

    def _say_stuck(self, call: Call, seconds: float) -> None:
        stack = call.stack()
        logger.warning(
            "consumer %r has been at %s for %.1f s; it goes on. Just now it is here:\n%s",
            self._consumer,
            call,
            seconds,
            stack.rstrip(),
        )
        notices.send(
            "consumer_stuck", self._consumer, event=call.event, seconds=seconds, stack=stack
        )
