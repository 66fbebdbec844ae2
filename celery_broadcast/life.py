"""One life of a consumer on one thread: set up, handle, tear down."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from functools import partial
from itertools import repeat
from time import monotonic_ns
from typing import Any

from celery_broadcast import django_connections, notices
from celery_broadcast.consumer import Consumer, PatientConsumer
from celery_broadcast.counts import CANCELLED, IN_RUNS
from celery_broadcast.dispatcher import Delivery, Item, delivery_of
from celery_broadcast.durations import FIRST_BOUND_NANOSECONDS
from celery_broadcast.intake import NO_KEY, Work
from celery_broadcast.station import NotBegunError, Station, hands, refuse_coroutine

logger: logging.Logger = logging.getLogger(__name__)

# At most so many calls are timed as one.
_LARGEST_CHUNK = 1024

_REMEDY = "Write it as `async def`, and await the coroutine there"


class Life:
    """Of a consumer of plain functions. Belongs to the thread that lives it."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._consumer: Consumer | None = None
        subscription = station.subscription
        self._selects = subscription.selector is not None and subscription.batch is None
        # Whether there is nothing to be done but to call it: so it is nearly always.
        self._is_plain = False
        # And whether there is nobody else who takes its events.
        self._can_run = False
        # Outlives a crash: whoever had the key of an event has it still.
        self._key: Hashable = NO_KEY
        # Whether the last run ended before all that waits was taken.
        self._has_broken_off = False

    def live(self, deadline: float | None = None) -> BaseException | None:
        """Live it; return what ended it, None if it was the stop.

        Args:
            deadline: when to end it all the same, by the monotonic clock.
        """
        try:
            self.set_up()
        except BaseException as error:  # noqa: BLE001  # theirs must not end the thread
            self._station.mailbox.counts.note_error(error)
            say_no_setup(self._station.name, error)
            return error
        try:
            runs = self._can_run and deadline is None
            while deadline is None or time.monotonic() < deadline:
                if not (runs and self._run_when_ready()) and not self.step():
                    break
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
        with self._station.call(what="its setup"):
            consumer = self._station.subscription.make_consumer()
            if isinstance(consumer, PatientConsumer):
                consumer.situation = self._station
            refuse_coroutine(consumer.setup(), "setup", _REMEDY)
        trace = self._station.trace
        self._consumer = consumer if trace is None else trace(consumer)
        self._is_plain = self._station.is_plain() and not django_connections.is_used()
        self._can_run = self._is_plain and self._station.is_simple()
        notices.send("consumer_started", self._station.name)

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
        self._do(work)
        return True

    def tear_down(self) -> None:
        """Tear the consumer down, if it was set up. What it raises is logged."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            with self._station.call(what="its teardown"):
                refuse_coroutine(consumer.teardown(), "teardown", _REMEDY)
        except BaseException as error:  # noqa: BLE001  # the thread ends orderly all the same
            self._station.mailbox.counts.note_error(error)
            say_no_teardown(self._station.name, error)

    def _next(self, wait_seconds: float | None) -> Work | None:
        work = None
        if self._key is not NO_KEY:
            if not self._station.mailbox.wait_while_paused(wait_seconds):
                return None
            key, self._key = self._key, NO_KEY
            work = self._station.intake.next_of(key)
        if work is None:
            work = self._take(wait_seconds)
        if work is not None:
            self._key = work.key
        return work

    def _take(self, wait_seconds: float | None) -> Work | None:
        intake, mailbox = self._station.intake, self._station.mailbox
        until = None if wait_seconds is None else time.monotonic() + wait_seconds
        with self._station.taking:
            while (work := intake.poll()) is None:
                if mailbox.is_closed:
                    return intake.poll()  # what came just before
                now = time.monotonic()
                if until is not None and now >= until:
                    return None
                dues = [due for due in (until, intake.due_at) if due is not None]
                mailbox.wait(max(0.0, min(dues) - now) if dues else None, at_least=intake.at_least)
            return work

    def _do(self, work: Work) -> None:
        deliveries = work.deliveries
        if len(deliveries) == 1 and not deliveries[0].origin:  # then the hands are as ever
            self._handle(work)
            return
        before = hands.set(self._station.hands_for(deliveries))
        try:
            self._handle(work)
        finally:
            hands.reset(before)

    def _handle(self, work: Work) -> None:
        station, deliveries = self._station, work.deliveries
        if self._selects and not station.is_wanted(deliveries[0]):
            return
        try:
            if self._is_plain:
                began = monotonic_ns()
                try:
                    result = self._consumer.handle(deliveries[0].event)  # type: ignore[union-attr]
                finally:
                    station.mailbox.counts.add_calls(monotonic_ns() - began)
                if result is not None:
                    refuse_coroutine(result, "The consumer", _REMEDY)
            else:
                self._call_consumer(station.argument(deliveries))
        except NotBegunError:
            station.drop(work, CANCELLED)
        except BaseException as error:
            if self._is_crash(work, error):
                raise
        else:
            station.mailbox.settle(handled=len(deliveries))
            if station.receipts:
                station.tell(deliveries, "handled")

    def _is_crash(self, work: Work, error: BaseException) -> bool:
        """Settle and say what the consumer raised; return whether its life ends by it."""
        is_crash = not isinstance(error, Exception)
        self._station.settle_failed(work, error, is_crash=is_crash)
        return is_crash

    def _run_when_ready(self) -> bool:  # noqa: C901, PLR0912, PLR0915  # in one piece, for its speed
        """Handle what comes as `step` does, one event after the other, but faster.

        Returns:
            Whether that can be done just now.

        Raises:
            BaseException: as `step`.
        """
        mailbox, post = self._station.mailbox, self._station.post
        if not (self._has_broken_off and mailbox.is_ready()):  # else it might nap beside them
            if post is None:
                mailbox.wait()
            else:
                post.wait(mailbox)
        self._has_broken_off = False
        try:
            handle = self._consumer.handle  # type: ignore[union-attr]  # runs come after set_up
        except BaseException:  # noqa: BLE001  # theirs; it is counted in the step
            return False
        item: Item | None = None
        # Calls are timed by the chunk: the clock costs as much as a quick call. One that took
        # long is alone in its chunk, unless quick ones came right before it.
        chunk, began, timed, handled, in_doubt = 1, 0, 0, 0, 0
        add_calls = mailbox.counts.add_calls
        try:
            run = mailbox.begin_run()
            if run is None:
                return not mailbox.is_ready()
            take, numbers, handled = run
            in_runs = IN_RUNS
            is_more_to_do = False
            timed, began = handled, monotonic_ns()
            is_going_on = True
            while is_going_on:
                is_going_on = False  # unless all of the chunk is handled
                for _ in repeat(None, chunk):
                    # Not as the loop's own condition: in a jump back to its begin another thread
                    # may run, and between this and the next line none does.
                    if mailbox.is_interrupted:
                        break
                    try:
                        item = take()
                    except IndexError:
                        break
                    if is_more_to_do := type(item) is Delivery:  # more than to be called with it
                        break
                    result = handle(item)
                    if result is not None:
                        refuse_coroutine(result, "The consumer", _REMEDY)
                    if mailbox.is_interrupted:  # it may be counted as dropped: see to it with care
                        in_doubt = 1
                        break
                    handled += 1
                    numbers[in_runs] = handled
                else:
                    is_going_on = True
                    now = monotonic_ns()
                    add_calls(now - began, chunk - 1)
                    if now - began > FIRST_BOUND_NANOSECONDS:
                        chunk = 1
                    elif chunk < _LARGEST_CHUNK and 2 * (now - began) < FIRST_BOUND_NANOSECONDS:
                        chunk *= 2
                    timed, began = handled, now
            if calls := handled - timed + in_doubt:
                add_calls(monotonic_ns() - began, calls - 1)
        except BaseException as error:
            if item is not None:  # and the call with it has raised
                add_calls(monotonic_ns() - began, handled - timed)
            if self._has_crashed_in_run(item, error):
                raise
            return True
        in_hand = mailbox.end_run()
        if is_more_to_do and item is not None:
            self._has_broken_off = True
            self._do(Work([delivery_of(item)]))
        else:
            mailbox.settle(handled=in_hand)
        return True

    def _has_crashed_in_run(self, item: Item | None, error: BaseException) -> bool:
        in_hand = self._station.mailbox.end_run()
        if in_hand and item is not None:
            return self._is_crash(Work([delivery_of(item)]), error)
        self._station.mailbox.settle(failed=in_hand)  # struck by another thread, between events
        return True

    def _call_consumer(self, argument: Any) -> None:
        station = self._station
        retry = station.subscription.retry
        if retry is None:
            self._try(argument)
        else:
            retry.call(
                partial(self._try, argument),
                pause=station.stop_requested.wait,  # a stop wakes it, and it tries at once
                say=partial(station.say_retry, argument),
            )

    def _try(self, argument: Any) -> None:
        assert self._consumer is not None  # noqa: S101  # steps come after set_up
        self._keep_to_rate()
        if self._station.is_over.is_set():
            raise NotBegunError  # and all is counted as dropped
        with self._station.call(argument):
            began = monotonic_ns()
            try:
                result = self._consumer.handle(argument)
            finally:
                self._station.mailbox.counts.add_calls(monotonic_ns() - began)
            refuse_coroutine(result, "The consumer", _REMEDY)

    def _keep_to_rate(self) -> None:
        rate_limit = self._station.rate_limit
        while rate_limit is not None and (seconds := rate_limit.take()):
            if self._station.is_cancelled.wait(seconds):
                raise NotBegunError


def say_no_setup(consumer: str, error: BaseException) -> None:
    """Say and notice that a consumer could not set up."""
    logger.error("consumer %r could not set up", consumer, exc_info=error)
    notices.send("consumer_failed", consumer, event=None, error=error)


def say_no_teardown(consumer: str, error: BaseException) -> None:
    """Say and notice that a consumer could not tear down."""
    logger.error("consumer %r could not tear down; nothing is lost by it", consumer, exc_info=error)
    notices.send("consumer_failed", consumer, event=None, error=error)
