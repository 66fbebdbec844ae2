"""One life of a consumer on one thread: set up, handle, tear down."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

from celery_broadcast import django_connections, notices, stacks
from celery_broadcast.consumer import Consumer
from celery_broadcast.intake import NO_KEY, Work
from celery_broadcast.station import Station, hands

logger: logging.Logger = logging.getLogger(__name__)


class Life:
    """Of a consumer of plain functions. Belongs to the thread that lives it."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._consumer: Consumer | None = None
        # Outlives a crash: whoever had the key of an event has it still.
        self._key: Hashable = NO_KEY

    def live(self, deadline: float | None = None) -> BaseException | None:
        """Live it; return what ended it, None if it was the stop.

        Args:
            deadline: when to end it all the same, by the monotonic clock.
        """
        try:
            self.set_up()
        except BaseException as error:  # noqa: BLE001  # theirs must not end the thread
            say_no_setup(self._station.name, error)
            return error
        try:
            while (deadline is None or time.monotonic() < deadline) and self.step():
                pass
        except BaseException as error:  # noqa: BLE001  # counted and logged in the step
            return error
        finally:
            self.tear_down()
        return None

    def set_up(self) -> None:
        """Make the consumer and set it up.

        Raises:
            BaseException: whatever the consumer raised.
        """
        with self._call("its setup"), django_connections.around_call():
            consumer = self._station.subscription.make_consumer()
            consumer.setup()
        self._consumer = consumer
        notices.send(notices.consumer_started, self._station.name)

    def step(self, wait_seconds: float | None = None) -> bool:
        """Handle what comes next; this is all a life is, again and again.

        Args:
            wait_seconds: how long to wait for it; None is without a limit.

        Returns:
            Whether there was anything. Without a limit: False once nothing
            more can come.

        Raises:
            BaseException: the consumer raised something that isn't an
                `Exception`, such as `SystemExit`. It is counted.
        """
        work = self._next(wait_seconds)
        if work is None or self._station.is_over.is_set():
            return False
        before = hands.set(self._station.hands_for(work.deliveries))
        try:
            self._handle(work)
        finally:
            hands.reset(before)
        return True

    def tear_down(self) -> None:
        """Tear the consumer down, if it was set up. What it raises is logged."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            with self._call("its teardown"), django_connections.around_call():
                consumer.teardown()
        except BaseException as error:  # noqa: BLE001  # the thread ends orderly all the same
            say_no_teardown(self._station.name, error)

    def _next(self, wait_seconds: float | None) -> Work | None:
        station = self._station
        key, self._key = self._key, NO_KEY
        work = station.intake.next_of(key) or self._take(wait_seconds)
        if work is not None:
            self._key = work.key
        return work

    def _take(self, wait_seconds: float | None) -> Work | None:
        station = self._station
        until = None if wait_seconds is None else time.monotonic() + wait_seconds
        with station.taking:
            while True:
                is_last_look = station.mailbox.is_closed
                work = station.intake.poll()
                if work is not None or is_last_look:
                    return work
                now = time.monotonic()
                if until is not None and now >= until:
                    return None
                soonest = min(
                    (due for due in (until, station.intake.due_at) if due is not None),
                    default=None,
                )
                station.mailbox.wait(
                    None if soonest is None else max(0.0, soonest - now),
                    at_least=station.intake.at_least,
                )

    def _handle(self, work: Work) -> None:
        station = self._station
        if station.subscription.batch is None and not station.is_wanted(work.deliveries[0]):
            return
        argument = station.argument(work.deliveries)
        try:
            self._call_consumer(argument)
        except BaseException as error:
            station.settle_failed(work, error)
            if not isinstance(error, Exception):
                raise
        else:
            station.mailbox.settle(handled=len(work.deliveries))

    def _call_consumer(self, argument: Any) -> None:
        station = self._station
        retry = station.subscription.retry
        if retry is None:
            self._try(argument)
        else:
            retry.call(
                partial(self._try, argument),
                pause=station.stop_requested.wait,  # a stop wakes it, and it tries at once
                say=partial(station.failures.say_retry, argument),
            )

    def _try(self, argument: Any) -> None:
        assert self._consumer is not None  # noqa: S101  # steps come after set_up
        self._keep_to_rate()
        if self._station.is_over.is_set():
            return  # and all is counted as dropped
        with self._call(argument), django_connections.around_call():
            self._consumer.handle(argument)

    def _keep_to_rate(self) -> None:
        rate_limit = self._station.rate_limit
        while rate_limit is not None and (seconds := rate_limit.take()):
            if self._station.is_over.wait(seconds):
                return

    @contextlib.contextmanager
    def _call(self, what: Any) -> Iterator[None]:
        if self._station.calls is None:
            yield
            return
        call = self._station.begin_call(what, stacks.of_this_thread())
        try:
            yield
        finally:
            self._station.end_call(call)


def say_no_setup(consumer: str, error: BaseException) -> None:
    """Say and notice that a consumer could not set up."""
    logger.error("consumer %r could not set up", consumer, exc_info=error)
    notices.send(notices.consumer_failed, consumer, event=None, error=error)


def say_no_teardown(consumer: str, error: BaseException) -> None:
    """Say and notice that a consumer could not tear down."""
    logger.error("consumer %r could not tear down; nothing is lost by it", consumer, exc_info=error)
    notices.send(notices.consumer_failed, consumer, event=None, error=error)
