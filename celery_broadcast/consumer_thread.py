"""The thread of one consumer: take an event, handle it, count it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Set as AbstractSet
from contextvars import ContextVar

from celery_broadcast import notices
from celery_broadcast.consumer import Consumer
from celery_broadcast.counts import GAVE_UP
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import Restarts
from celery_broadcast.subscription import Subscription
from celery_broadcast.throttle import Throttle
from celery_broadcast.waiting import wait_until_set

logger: logging.Logger = logging.getLogger(__name__)

#: The consumers in whose hands the present code runs; empty anywhere else.
hands: ContextVar[AbstractSet[str]] = ContextVar("celery_broadcast_hands", default=frozenset())

_SECONDS_BETWEEN_TRACEBACKS = 1.0


class ConsumerThread:
    """Runs one consumer until its mailbox is closed and empty, or it is given up."""

    def __init__(
        self,
        subscription: Subscription,
        mailbox: Mailbox[Delivery],
        restarts: Restarts | None = None,
    ) -> None:
        self.name: str = subscription.name
        self.mailbox = mailbox
        self._subscription = subscription
        self._restarts = Restarts() if restarts is None else restarts
        self._consumer: Consumer | None = None
        self._hands = frozenset({self.name})
        self._failures = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_TRACEBACKS)
        self._stop_requested = threading.Event()
        # Not the thread's own is_alive(): a join that Ctrl-C interrupts makes
        # Python take a living thread for a dead one (bpo-45274).
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"broadcast:{self.name}", daemon=True
        )

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system gives no further thread.
        """
        self._thread.start()

    def stop(self) -> None:
        """Ask the consumer to handle what waits and then to end; return at once."""
        self.mailbox.close()
        self._stop_requested.set()

    def finish(self, deadline: float) -> None:
        """Wait for the end of the thread, after `stop`.

        A consumer for which there was no thread is run here and now.

        Args:
            deadline: when to go on all the same, by the monotonic clock.
        """
        if self._thread.ident is not None:
            wait_until_set(self._ended, deadline)
        elif self.mailbox.stats().pending:
            self._live(deadline)

    def has_ended(self) -> bool:
        """Tell whether the consumer is done with everything."""
        return self._ended.is_set() or not self.mailbox.stats().pending

    def step(self, wait_seconds: float | None = None) -> bool:
        """Take one event and handle it; this is all the thread does, again and again.

        Args:
            wait_seconds: how long to wait for an event; None is without a limit.

        Returns:
            Whether there was one. Without a limit: False once the mailbox is
            closed and empty.

        Raises:
            BaseException: the consumer raised something that isn't an
                `Exception`, such as `SystemExit`. It is counted.
        """
        taken = self.mailbox.take(demand=1, wait_seconds=wait_seconds)
        for delivery in taken:
            before = hands.set(self._hands | delivery.origin)
            try:
                self._handle(delivery)
            finally:
                hands.reset(before)
        return bool(taken)

    def set_up(self) -> None:
        """Make the consumer and set it up.

        Raises:
            BaseException: whatever the consumer raised.
        """
        consumer = self._subscription.make_consumer()
        consumer.setup()
        self._consumer = consumer
        notices.send(notices.consumer_started, self.name)

    def tear_down(self) -> None:
        """Tear the consumer down, if it was set up. What it raises is logged."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            consumer.teardown()
        except BaseException as error:  # the thread ends orderly all the same
            logger.exception("consumer %r could not tear down; nothing is lost by it", self.name)
            notices.send(notices.consumer_failed, self.name, event=None, error=error)

    def _handle(self, delivery: Delivery) -> None:
        selector = self._subscription.selector
        try:
            if selector is not None and not selector(delivery.event):
                self.mailbox.settle(declined=1)
                return
            assert self._consumer is not None  # noqa: S101  # steps come after set_up
            self._consumer.handle(delivery.event)
        except BaseException as error:
            self.mailbox.settle(failed=1)
            self._say_failed(delivery, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.mailbox.settle(handled=1)

    def _say_failed(self, delivery: Delivery, error: BaseException) -> None:
        now = time.monotonic()
        self._failures.add(1, now)
        if self._failures.due_in(now) == 0.0:
            count, _ = self._failures.say(now)
            more = f" ({count - 1} more since the last such line)" if count > 1 else ""
            goes_on = ", the consumer goes on" if isinstance(error, Exception) else ""
            logger.error(
                "consumer %r raised on %s; this event is lost%s%s",
                self.name,
                delivery.event,
                goes_on,
                more,
                exc_info=error,
            )
        notices.send(notices.consumer_failed, self.name, event=delivery.event, error=error)

    def _run(self) -> None:
        hands.set(self._hands)
        while (crash := self._live()) is not None:
            pause = self._restarts.pause_after_crash(crash, time.monotonic())
            if pause is None:
                self._give_up(crash)
                break
            logger.error(
                "consumer %r crashed (%s). It starts again in %.1f s; its events wait meanwhile",
                self.name,
                type(crash).__name__,
                pause,
            )
            notices.send(notices.consumer_restarted, self.name, error=crash, pause=pause)
            del crash  # and with it all that its traceback keeps alive
            self._stop_requested.wait(pause)
        notices.send(notices.consumer_stopped, self.name)
        self._ended.set()

    def _live(self, deadline: float | None = None) -> BaseException | None:
        """Live one life of the consumer; return what ended it, None if it was the stop.

        Args:
            deadline: when to end it all the same, by the monotonic clock.
        """
        try:
            self.set_up()
        except BaseException as error:  # theirs must not end the thread
            logger.exception("consumer %r could not set up", self.name)
            notices.send(notices.consumer_failed, self.name, event=None, error=error)
            return error
        try:
            while (deadline is None or time.monotonic() < deadline) and self.step():
                pass
        except BaseException as error:  # noqa: BLE001  # counted and logged in the step
            return error
        finally:
            self.tear_down()
        return None

    def _give_up(self, crash: BaseException) -> None:
        """Drop what waits; the producer notices it as it does every loss."""
        lost = self.mailbox.abandon(GAVE_UP)
        logger.critical(
            "consumer %r gave up, it crashed too often (%s). %d events that waited are dropped, "
            "and so is what comes until this process restarts",
            self.name,
            type(crash).__name__,
            lost,
        )
        notices.send(notices.consumer_gave_up, self.name, error=crash)
