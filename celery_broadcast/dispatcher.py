"""Who gets an event: chooses the mailboxes, without a thread and without a clock."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec

from celery_broadcast.events import Event
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.selection import Kind, Selection, kind_of

# Task and queue names can be made up at run time without end.
_MOST_KINDS_REMEMBERED = 10_000


class Delivery(msgspec.Struct):
    """An event on its way.

    Attributes:
        event: the event.
        origin: the consumers in whose hands the job of this event was run, if
            any. They don't get it, or they would feed themselves for ever.
        note: the note, in this process's slot, of the attempt that starts or ends.
        taken: whether the producer's thread has it. It may be published twice,
            when what published it was interrupted and can't tell how far it came.
        dispatched_at: when it came to the mailboxes, in seconds of the monotonic
            clock; 0.0 while no consumer asks for batches.
    """

    event: Event
    origin: AbstractSet[str]
    note: int | None = None
    taken: bool = False
    dispatched_at: float = 0.0


class Dispatcher:
    """Knows every mailbox and which kinds of events go there.

    Not thread-safe: the producer's thread owns it.
    """

    def __init__(self) -> None:
        self._mailboxes: dict[str, tuple[Selection, Mailbox[Delivery]]] = {}
        self._routes: dict[Kind, tuple[tuple[str, Mailbox[Delivery]], ...]] = {}

    def add(self, consumer: str, selection: Selection, mailbox: Mailbox[Delivery]) -> None:
        """Send the events that are wanted to the consumer's mailbox from now on."""
        self._mailboxes[consumer] = (selection, mailbox)
        self._routes.clear()

    def remove(self, consumer: str) -> None:
        """Send the consumer nothing from now on."""
        self._mailboxes.pop(consumer, None)
        self._routes.clear()

    def dispatch(self, delivery: Delivery) -> list[str]:
        """Put the event into every mailbox that wants it.

        Returns:
            The consumers that lost an event by it: a full mailbox dropped one.
        """
        return [
            name
            for name, mailbox in self._route(kind_of(delivery.event))
            if name not in delivery.origin and not mailbox.put(delivery)
        ]

    def refuse(self, kind: Kind, count: int, reason: str) -> list[str]:
        """Count events that were dropped before they could be dispatched.

        Returns:
            The consumers that lost them.
        """
        route = self._route(kind)
        for _, mailbox in route:
            mailbox.refuse(count, reason)
        return [name for name, _ in route]

    def _route(self, kind: Kind) -> tuple[tuple[str, Mailbox[Delivery]], ...]:
        route = self._routes.get(kind)
        if route is None:
            if len(self._routes) >= _MOST_KINDS_REMEMBERED:
                self._routes.clear()
            route = self._routes[kind] = tuple(
                (name, mailbox)
                for name, (selection, mailbox) in self._mailboxes.items()
                if selection.wants(kind)
            )
        return route
