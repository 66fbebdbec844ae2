"""The end of a stream that the producer knows: it takes events, and never runs a thread."""

from __future__ import annotations

import threading

from celery_broadcast import fork
from celery_broadcast.counts import CANCELLED
from celery_broadcast.dispatcher import Delivery, Item, delivery_of
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.station import Station
from celery_broadcast.subscription import Subscription, registry
from celery_broadcast.waiting import wait_until_set


class Reader:
    """Belongs to the thread, or the event loop, that reads the stream.

    Args:
        subscription: of the stream.
        mailbox: where its events wait.
    """

    def __init__(self, subscription: Subscription, mailbox: Mailbox[Item]) -> None:
        self.subscription = subscription
        self.mailbox: Mailbox[Item] = mailbox
        self.name: str = subscription.name
        self._station = Station(subscription, mailbox)
        self._thread = threading.get_ident()
        self._has_one_in_hand = False
        self._closed = threading.Event()
        subscription.switch.attach(self)
        fork.starts_clean(self)

    def forget(self) -> None:
        """Leave the stream to the parent; in the forked child it is over."""
        self._has_one_in_hand = False
        self.mailbox = Mailbox[Item](size=None)  # the parent's may be locked for ever
        self.mailbox.close()
        self._closed = threading.Event()

    # For whoever reads.

    def poll(self) -> Delivery | None:
        """Settle the event in hand; return the next one that is wanted, None if none is there."""
        self.settle()
        while taken := self.mailbox.take(1, wait_seconds=0):
            self._has_one_in_hand = True
            delivery = delivery_of(taken[0])
            if self._station.is_wanted(delivery):
                return delivery
            self._has_one_in_hand = False  # it was settled
        return None

    def settle(self, *, failed: bool = False) -> None:
        """Count the event in hand, if there is one, as handled or failed."""
        if self._has_one_in_hand:
            self._has_one_in_hand = False
            self.mailbox.settle(handled=not failed, failed=failed)

    def close(self) -> None:
        """Read no more."""
        self.subscription.switch.cancel()  # first, as every cancel
        registry.remove(self.subscription)
        self.mailbox.abandon(CANCELLED)  # what a signal handler's exception tore from its hands
        self._closed.set()

    # For the producer, and for a drain.

    def start(self) -> None:
        """Nothing starts: it is read by somebody else."""

    def stop(self) -> None:
        """Let what waits be read, and then the stream be over."""
        registry.remove(self.subscription)
        self.mailbox.close()

    def cancel(self) -> None:
        """Drop what waits."""
        self.mailbox.discard(CANCELLED)

    def abandon(self, reason: str) -> int:
        """Count all that wasn't read as dropped; return how many events that were."""
        return self.mailbox.abandon(reason)

    def wake(self) -> None:
        """Look at the subscription's switch again."""
        self.mailbox.wake()

    def finish(self, deadline: float) -> bool:
        """Wait until all is read, unless the present thread is who reads; return as `has_ended`."""
        if not self.is_in_these_hands() and self.mailbox.stats().pending:
            wait_until_set(self._closed, deadline)
        return self.has_ended()

    def has_ended(self) -> bool:
        """Tell whether all is read, or will be, by the present thread."""
        return not self.mailbox.stats().pending or self.is_in_these_hands()

    def is_over(self) -> bool:
        """Tell whether the stream has been closed."""
        return self._closed.is_set()

    def is_gone(self) -> bool:
        """Tell whether there is nothing to wait for."""
        return self.has_ended()

    def is_in_these_hands(self) -> bool:
        """Tell whether the present thread is who reads."""
        return self._thread == threading.get_ident()

    def look(self, _now: float) -> None:
        """Say nothing of whoever reads: its pace is its own."""
