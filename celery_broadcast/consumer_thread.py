"""A thread of a consumer: it lives one life after the other, until there is nothing to live for."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from celery_broadcast import django_connections, notices
from celery_broadcast.counts import CANCELLED, GAVE_UP
from celery_broadcast.life import Life
from celery_broadcast.restarts import Restarts, ended_on_purpose
from celery_broadcast.station import Station, hands
from celery_broadcast.waiting import wait_until_set

if TYPE_CHECKING:
    from celery_broadcast.async_life import AsyncLife

logger: logging.Logger = logging.getLogger(__name__)


class ConsumerThread:
    """Runs a consumer until nothing more can come, or it is given up.

    Args:
        station: what it shares with the other threads of the consumer.
        name: the name of the thread.
        restarts: when the consumer may start again.
    """

    def __init__(self, station: Station, name: str, restarts: Restarts) -> None:
        self._station = station
        self._restarts = restarts
        self._life = _new_life(station)
        # Not the thread's own is_alive(): a join that Ctrl-C interrupts makes
        # Python take a living thread for a dead one (bpo-45274).
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def has_started(self) -> bool:
        """Whether the system gave it a thread."""
        return self._thread.ident is not None

    @property
    def has_ended(self) -> bool:
        """Whether it has handled its last event."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system gives no further thread.
        """
        self._thread.start()

    def wait_for_end(self, deadline: float) -> bool:
        """Wait for the end of the thread; return whether that has come.

        Args:
            deadline: when to go on all the same, by the monotonic clock.
        """
        return wait_until_set(self._ended, deadline)

    def live_here(self, deadline: float) -> None:
        """Live one life on the present thread: there was none to be had."""
        before = hands.set(frozenset({self._station.name}))
        try:
            self._life.live(deadline)
        finally:
            hands.reset(before)

    def _run(self) -> None:
        hands.set(frozenset({self._station.name}))
        counts = self._station.mailbox.counts
        counts.add_threads(1)
        try:
            self._live_on()
            notices.send("consumer_stopped", self._station.name)
        finally:  # whatever a handler of the log raises
            counts.add_threads(-1)
            self._ended.set()

    def _live_on(self) -> None:
        station = self._station
        while (crash := self._live()) is not None:
            pause = self._restarts.pause_after_crash(crash, time.monotonic())
            if pause is None:
                self._give_up(crash)
                break
            station.mailbox.counts.add_restart()
            with contextlib.suppress(Exception):  # a handler of the log may raise
                self._say_restart(crash, pause)
            del crash  # and with it all that its traceback keeps alive
            station.stop_requested.wait(pause)

    def _live(self) -> BaseException | None:
        try:
            with django_connections.of_this_thread():
                return self._life.live()
        except BaseException as error:  # noqa: BLE001  # a handler of the log raised in it
            return error

    def _say_restart(self, crash: BaseException, pause: float) -> None:
        name = self._station.name
        logger.error(
            "consumer %r crashed (%s). It starts again in %.1f s; its events wait meanwhile",
            name,
            type(crash).__name__,
            pause,
        )
        notices.send("consumer_restarted", name, error=crash, pause=pause)

    def _give_up(self, crash: BaseException) -> None:
        """Drop what waits; the producer notices it as it does every loss."""
        station = self._station
        is_on_purpose = ended_on_purpose(crash)
        lost = station.give_up(CANCELLED if is_on_purpose else GAVE_UP)
        if lost is None:
            return  # another thread of this consumer has said it
        if is_on_purpose:
            logger.info(
                "consumer %r ended itself. %d events that waited are dropped, and so is what comes "
                "until this process restarts",
                station.name,
                lost,
            )
            return
        logger.critical(
            "consumer %r gave up, it crashed%s (%s). %d events that waited are dropped, "
            "and so is what comes until this process restarts",
            station.name,
            "" if station.subscription.restart.kind == "temporary" else " too often",
            type(crash).__name__,
            lost,
        )
        notices.send("consumer_gave_up", station.name, error=crash)


def _new_life(station: Station) -> Life | AsyncLife:
    if not station.subscription.is_async:
        return Life(station)
    # Who has no coroutines shall not pay for loading asyncio.
    from celery_broadcast.async_life import AsyncLife  # noqa: PLC0415

    return AsyncLife(station)
