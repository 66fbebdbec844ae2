"""A consumer with a mailbox and threads of its own, and no producer before them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import celery_broadcast
from celery_broadcast.counts import STOPPED, ConsumerStats
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.events import Event
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.subscription import Subscription, registry


def declared(consumer: Any, **options: Any) -> Subscription:
    """Declare a consumer as users do, its options checked; the registry forgets it again."""
    subscription = celery_broadcast.subscribe(consumer, Event, **{"name": "store", **options})
    registry.remove(subscription)
    return subscription


NOBODY: frozenset[str] = frozenset()


class CrewMailbox(Mailbox[Item]):
    """Knows whether its consumer asks for batches."""

    is_batched: bool = False


def deliver(mailbox: Mailbox[Item], events: Iterable[Event]) -> None:
    """Put events into a mailbox, as the dispatcher does."""
    for event in events:
        if isinstance(mailbox, CrewMailbox) and mailbox.is_batched:
            mailbox.put(Delivery(event, dispatched_at=time.monotonic()))
        else:
            mailbox.put(event)


def new_crew(consumer: Any, events: Iterable[Event] = (), **options: Any) -> Crew:
    """Give a consumer a mailbox with these events in it, and threads that aren't started."""
    subscription = declared(consumer, **{"mailbox_size": None, **options})
    mailbox = CrewMailbox(
        subscription.mailbox_size,
        subscription.overflow or "drop_oldest",
        switch=subscription.switch,
    )
    mailbox.is_batched = subscription.batch is not None
    deliver(mailbox, events)
    return Crew(subscription, mailbox)


def run_out(crew: Crew) -> ConsumerStats:
    """Have it handle what waits, wait for its end, and return the numbers."""
    crew.stop()
    crew.finish(time.monotonic() + 10.0)
    stats = crew.mailbox.stats()
    assert crew.has_ended()
    assert conserved(stats)
    assert stats.pending == 0
    return stats


def run(consumer: Any, events: Iterable[Event], **options: Any) -> ConsumerStats:
    """Have a consumer handle these events, and return the numbers."""
    with working(consumer, events, **options) as crew:
        return run_out(crew)


@contextlib.contextmanager
def working(consumer: Any, events: Iterable[Event] = (), **options: Any) -> Iterator[Crew]:
    """Have a consumer at work in the block; what it hasn't handled after it is dropped."""
    crew = new_crew(consumer, events, **options)
    crew.start()
    try:
        yield crew
    finally:
        crew.abandon(STOPPED)
        crew.finish(time.monotonic() + 10.0)


def conserved(stats: ConsumerStats) -> bool:
    """Tell whether every event is accounted for."""
    accounted = stats.handled + stats.failed + stats.dropped_total + stats.pending
    return stats.offered == accounted
