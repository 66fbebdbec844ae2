"""All threads of one consumer in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from celery_broadcast.consumer_thread import ConsumerThread
from celery_broadcast.counts import CANCELLED
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.inbox import Post
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import Restarts
from celery_broadcast.station import Station, hands
from celery_broadcast.subscription import Subscription

if TYPE_CHECKING:
    from celery_broadcast.consumer import Consumer
    from celery_broadcast.rate_limit import RateLimit

logger: logging.Logger = logging.getLogger(__name__)


class Crew:
    """As many threads as the subscription asks for; for coroutines, one.

    Args:
        subscription: what the consumer asks for.
        mailbox: where its events wait.
        before: the crew of the same subscription that a drain has stopped, if any.
        post: where its thread waits while it is idle; None is its mailbox.
        trace: makes of a consumer one that runs in the trace context of the job.
    """

    def __init__(
        self,
        subscription: Subscription,
        mailbox: Mailbox[Item],
        before: Crew | None = None,
        post: Post | None = None,
        trace: Callable[[Consumer], Consumer] | None = None,
    ) -> None:
        self.subscription = subscription
        self.mailbox = mailbox
        self._station = Station(subscription, mailbox, post)
        self._station.trace = trace
        if before is not None:
            self._station.rate_limit = before.rate_limit
        # Reentrant: a signal handler may cancel what it interrupted in its start.
        self._starting = threading.RLock()
        count = 1 if subscription.is_async else subscription.concurrency
        name = f"broadcast:{subscription.name}"
        self._threads = [
            ConsumerThread(
                self._station,
                name if count == 1 else f"{name}-{number}",
                Restarts(subscription.restart),
            )
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        """Start the threads; those that the system doesn't give are done without."""
        self.subscription.switch.attach(self)
        with self._starting:
            if self._station.is_cancelled.is_set():
                return
            self.mailbox.counts.set_gave_up(has_given_up=False)  # as one of its name may have
            self._note_pause()
            try:
                for thread in self._threads:
                    thread.start()
            except RuntimeError:
                if any(thread.has_started for thread in self._threads):
                    logger.exception("consumer %r has fewer threads than it asks for", self.name)
                else:
                    logger.exception(
                        "consumer %r has no thread; its events wait for the drain", self.name
                    )

    @property
    def rate_limit(self) -> RateLimit | None:
        """What its calls are counted against, which a drain doesn't begin anew."""
        return self._station.rate_limit

    @property
    def has_given_up(self) -> bool:
        """Whether it is to handle nothing more in this process, drained or not."""
        return self._station.has_given_up

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self.subscription.name

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Have the consumer handle events whose receipts somebody waits for; on any thread."""
        self._station.accept(deliveries)

    def stop(self) -> None:
        """Ask the consumer to handle what waits and then to end; return at once."""
        self._station.stop()

    def cancel(self) -> None:
        """Ask the consumer to end after what is in hand; return at once."""
        with self._starting:
            self._station.cancel(CANCELLED)

    def abandon(self, reason: str) -> int:
        """Count all that isn't handled as dropped; return how many events that were."""
        return self._station.abandon(reason)

    def wake(self) -> None:
        """Look at the subscription's switch again."""
        self._note_pause()
        self.mailbox.wake()

    def _note_pause(self) -> None:
        self.mailbox.counts.set_paused(is_paused=self.subscription.switch.is_paused)

    def finish(self, deadline: float) -> bool:
        """Wait for the end of the threads, after `stop` or `cancel`; return whether it has come.

        A consumer for which there was no thread is run here and now.

        Args:
            deadline: when to go on all the same, by the monotonic clock.
        """
        started = [thread for thread in self._threads if thread.has_started]
        for thread in started:
            thread.wait_for_end(deadline)
        if not started and self.mailbox.stats().pending:
            self._threads[0].live_here(deadline)
        return all(thread.has_ended for thread in started)

    def has_ended(self) -> bool:
        """Tell whether the consumer is done with every event."""
        return self.is_over() or not self.mailbox.stats().pending

    def is_over(self) -> bool:
        """Tell whether its threads have ended, all that it had."""
        started = [thread for thread in self._threads if thread.has_started]
        return bool(started) and all(thread.has_ended for thread in started)

    def is_gone(self) -> bool:
        """Tell whether there is nothing to wait for: no event, and no thread that tears down."""
        threads = [thread for thread in self._threads if thread.has_started]
        return not self.mailbox.stats().pending and all(thread.has_ended for thread in threads)

    def is_in_these_hands(self) -> bool:
        """Tell whether the present code is a consumer's, this one's or another's.

        Two that wait for each other would do so for ever.
        """
        return bool(hands.get())

    def look(self, now: float) -> float | None:
        """Say which calls are stuck; return the seconds after which to look again."""
        calls = self._station.calls
        if calls is None:
            return None
        return calls.look(now, is_busy=bool(self.mailbox.stats().pending))
