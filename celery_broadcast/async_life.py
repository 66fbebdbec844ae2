"""One life of a consumer of coroutines: its thread runs an event loop of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Hashable
from functools import partial
from time import monotonic_ns
from typing import Any

from celery_broadcast import django_connections, notices, stacks
from celery_broadcast.consumer import Consumer
from celery_broadcast.counts import CANCELLED
from celery_broadcast.intake import Work
from celery_broadcast.life import say_no_setup, say_no_teardown
from celery_broadcast.station import NotBegunError, Station, hands
from celery_broadcast.waiting import call_on_loop

logger: logging.Logger = logging.getLogger(__name__)

# How long a crash waits for the other calls in flight: one may hang.
_SECONDS_AFTER_CRASH = 5.0


class AsyncLife:
    """Has up to `concurrency` calls in flight, each a task of its own.

    Everything in it runs on the consumer's thread, but for `_turn`.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self._consumer: Consumer | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._crash: BaseException | None = None
        self._is_cut_off = False
        self._is_given_up = False
        # Outlive a crash and a pause: whoever had the key of an event has it still.
        self._keys: list[Hashable] = []

    def live(self, deadline: float | None = None) -> BaseException | None:
        """Live it; return what ended it, None if it was the stop.

        Args:
            deadline: when to end it all the same, by the monotonic clock.
        """
        self._crash, self._is_cut_off, self._is_given_up = None, False, False
        try:
            asyncio.run(self._live(deadline))
        except BaseException as error:  # noqa: BLE001  # theirs must not end the thread
            return None if self._is_over else error
        finally:
            self._station.on_turn = None
            # Not kept: its traceback keeps the event alive.
            crash, self._crash = self._crash, None
        return crash

    @property
    def _is_over(self) -> bool:
        """Whether it is to do no more, not even with what it has in its hands."""
        return self._is_cut_off or self._station.is_over.is_set()

    async def _live(self, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        self._stop_requested, self._is_cancelled = asyncio.Event(), asyncio.Event()
        self._look_again = asyncio.Event()
        self._station.on_turn = partial(call_on_loop, loop, partial(self._turn, main))
        self._turn(main)  # what came before
        timer = None
        if deadline is not None and main is not None:
            seconds = max(0.0, deadline - time.monotonic())
            timer = loop.call_later(seconds, self._cut_off, main)
        hands.set(frozenset({self._station.name}))
        await self._set_up()
        try:
            await self._handle_all()
        finally:
            if timer is not None:
                timer.cancel()
            await self._cancel_in_flight()
            await self._tear_down()

    def _turn(self, main: asyncio.Task[Any] | None) -> None:
        """Look at what was asked of the consumer; on its event loop."""
        if self._station.stop_requested.is_set():
            self._stop_requested.set()
        if self._station.is_cancelled.is_set():
            self._is_cancelled.set()
        if self._station.is_over.is_set() and main is not None:
            self._cut_off(main)

    def _cut_off(self, main: asyncio.Task[Any]) -> None:
        """Cancel all that goes on. Only once: a second time would strike the teardown."""
        if not self._is_cut_off:
            self._is_cut_off = True
            main.cancel()

    async def _set_up(self) -> None:
        try:
            async with self._call(what="its setup"), django_connections.around_async_call():
                consumer = self._station.subscription.make_consumer()
                await _awaited(consumer.setup())
        except BaseException as error:
            if not self._is_over:
                self._station.mailbox.counts.note_error(error)
                say_no_setup(self._station.name, error)
            raise
        trace = self._station.trace
        self._consumer = consumer if trace is None else trace(consumer)
        notices.send("consumer_started", self._station.name)

    async def _tear_down(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            async with self._call(what="its teardown"), django_connections.around_async_call():
                await _awaited(consumer.teardown())
        except BaseException as error:  # noqa: BLE001  # the thread ends orderly all the same
            self._station.mailbox.counts.note_error(error)
            say_no_teardown(self._station.name, error)

    async def _handle_all(self) -> None:
        while self._crash is None:
            if len(self._in_flight) >= self._station.subscription.concurrency:
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                continue
            work = await self._next()
            if work is None:
                break
            task = asyncio.create_task(self._work_through(work))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
            del work, task  # or the last event, and its result, would live on
        if self._crash is not None:
            await self._wait_after_crash(self._crash)
        elif self._in_flight:
            await asyncio.wait(self._in_flight)

    async def _wait_after_crash(self, crash: BaseException) -> None:
        """Let the other calls in flight end, if they do so soon; the rest is cancelled."""
        others = [task for task in self._in_flight if not task.done()]
        if not others:
            return
        logger.error(
            "consumer %r crashed (%s) with others in flight (%d): they have %.1f s to end before "
            "they are cancelled",
            self._station.name,
            type(crash).__name__,
            len(others),
            _SECONDS_AFTER_CRASH,
        )
        await asyncio.wait(others, timeout=_SECONDS_AFTER_CRASH)

    async def _next(self) -> Work | None:
        station = self._station
        loop = asyncio.get_running_loop()
        while True:
            self._look_again.clear()
            is_last_look = station.mailbox.is_closed
            work = self._poll()
            if work is not None or is_last_look or self._crash is not None:
                return work
            station.mailbox.call_when_ready(
                partial(call_on_loop, loop, self._look_again.set), at_least=station.intake.at_least
            )
            due_at = station.intake.due_at
            seconds = None if due_at is None else max(0.0, due_at - time.monotonic())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_again.wait(), seconds)

    def _poll(self) -> Work | None:
        intake = self._station.intake
        while self._keys and not self._station.mailbox.is_paused:
            work = intake.next_of(self._keys.pop())
            if work is not None:
                return work
        try:
            return intake.poll()
        except BaseException as error:  # noqa: BLE001  # counted and logged where it was raised
            self._crash = self._crash or error
            return None

    async def _work_through(self, work: Work | None) -> None:
        """Handle it, and then what waits behind its key."""
        while work is not None:
            hands.set(self._station.hands_for(work.deliveries))
            try:
                await self._handle(work)
            except BaseException as error:  # noqa: BLE001  # counted and logged where it was raised
                # asyncio would let an exit out of the event loop at once.
                self._crash = self._crash or error
                self._look_again.set()
            if self._is_over:
                return
            if self._crash is not None or self._station.mailbox.is_paused:
                self._keys.append(work.key)  # what waits behind it comes in the next life, or later
                return
            work = self._station.intake.next_of(work.key)

    async def _handle(self, work: Work) -> None:
        station = self._station
        if station.subscription.batch is None and not station.is_wanted(work.deliveries[0]):
            return
        argument = station.argument(work.deliveries)
        try:
            await self._call_consumer(argument)
        except NotBegunError:
            station.drop(work, CANCELLED)
        except BaseException as error:
            if self._is_over:
                return  # cancelled; whoever cut it off counts it
            is_crash = not isinstance(error, Exception | asyncio.CancelledError)
            # What a crash has cancelled doesn't go on either; the event is not to blame for it.
            is_innocent = self._is_given_up and isinstance(error, asyncio.CancelledError)
            station.settle_failed(
                work,
                error,
                is_crash=is_crash or self._is_given_up,
                outcome="dropped" if is_innocent else "failed",
            )
            if is_crash:
                raise
        else:
            station.settle_handled(work)

    async def _call_consumer(self, argument: Any) -> None:
        retry = self._station.subscription.retry
        if retry is None:
            await self._try(argument)
        else:
            await retry.call_async(
                partial(self._try, argument),
                pause=self._pause,
                say=partial(self._station.say_retry, argument),
            )

    async def _try(self, argument: Any) -> None:
        assert self._consumer is not None  # noqa: S101  # set up before
        await self._keep_to_rate()
        if self._is_over or self._is_given_up:
            # And the consumer has made something else of its cancellation.
            raise asyncio.CancelledError
        async with self._call(argument), django_connections.around_async_call():
            began = monotonic_ns()
            try:
                await _awaited(self._consumer.handle(argument))
            finally:
                self._station.mailbox.counts.add_calls(monotonic_ns() - began)

    async def _pause(self, seconds: float) -> None:
        await _wait(self._stop_requested, seconds)

    async def _keep_to_rate(self) -> None:
        rate_limit = self._station.rate_limit
        while rate_limit is not None and (seconds := rate_limit.take()):
            if await _wait(self._is_cancelled, seconds):
                raise NotBegunError

    async def _cancel_in_flight(self) -> None:
        self._is_given_up = True
        self._stop_requested.set()  # nobody waits for another try
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    @contextlib.asynccontextmanager
    async def _call(self, event: Any = None, what: str | None = None) -> AsyncIterator[None]:
        if self._station.calls is None:
            yield
            return
        stack = stacks.of_task(asyncio.current_task())
        call = self._station.begin_call(event, what, stack)
        try:
            yield
        finally:
            self._station.end_call(call)


async def _awaited(result: Any) -> Any:
    """Return what a method gives, which may be a coroutine or not."""
    return await result if inspect.isawaitable(result) else result


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, so long at most; return whether it is set."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
