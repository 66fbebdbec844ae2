"""Who gets an event: chooses the mailboxes, without a thread and without a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from celery_broadcast.events import Event
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.selection import Kind, Selection, kind_of

if TYPE_CHECKING:
    from celery_broadcast.receipt import Receipt

# Task and queue names can be made up at run time without end.
_MOST_KINDS_REMEMBERED = 10_000


class Delivery(msgspec.Struct):
    """An event on its way, of which more is to be known than itself.

    Attributes:
        event: the event.
        origin: the consumers in whose hands the job of this event was run, if
            any. They don't get it, or they would feed themselves for ever.
        note: the note, in this process's slot, of the attempt that starts or ends.
        taken: whether the producer's thread has it. It may be published twice,
            when what published it was interrupted and can't tell how far it came.
        dispatched_at: when it came to the mailboxes, in seconds of the monotonic
            clock; 0.0 while no consumer asks for batches.
        receipt: is told what becomes of it; None if nobody waits for that.
    """

    event: Event
    origin: AbstractSet[str] = frozenset()
    note: int | None = None
    taken: bool = False
    dispatched_at: float = 0.0
    receipt: Receipt | None = None


#: What goes from hand to hand: an event, with its delivery only where there is more to it.
Item: TypeAlias = Event | Delivery


def delivery_of(item: Item) -> Delivery:
    """Return all that is known of an event on its way."""
    return item if isinstance(item, Delivery) else Delivery(item)


#: The consumers that want an event, with their mailboxes.
Route: TypeAlias = tuple[tuple[str, Mailbox[Item]], ...]


class Dispatcher:
    """Knows every mailbox and which kinds of events go there.

    Not thread-safe: the producer's thread owns it.
    """

    def __init__(self) -> None:
        self._mailboxes: dict[str, tuple[Selection, Mailbox[Item]]] = {}
        # One object for each: those of one run of events are told by it.
        self._routes: dict[Route, Route] = {}
        self._routes_of_kinds: dict[Kind, Route] = {}
        #: Those that are known; none while somebody looks at more than the type of an event.
        self.routes_of_types: dict[type, Route] = {}
        self._do_types_suffice = True

    def add(self, consumer: str, selection: Selection, mailbox: Mailbox[Item]) -> None:
        """Send the events that are wanted to the consumer's mailbox from now on."""
        self._mailboxes[consumer] = (selection, mailbox)
        self._forget_routes()

    def remove(self, consumer: str) -> None:
        """Send the consumer nothing from now on."""
        self._mailboxes.pop(consumer, None)
        self._forget_routes()

    def dispatch(
        self, items: Sequence[Item], failed: Callable[[Item, Exception], None]
    ) -> set[str]:
        """Put events into every mailbox that wants them, in their order.

        Args:
            items: the events.
            failed: called with one that can't be put anywhere, and why.

        Returns:
            The consumers that lost an event by it: a full mailbox dropped one.
        """
        losers: set[str] = set()
        if len(items) == 1:
            only = self.routes_of_types.get(type(items[0]))
        else:
            routes = {self.routes_of_types.get(each) for each in set(map(type, items))}
            only = routes.pop() if len(routes) == 1 else None
        if only is not None:
            _put_all(items, only, losers)
            return losers
        run: list[Item] = []  # of events that go the same way
        route: Route = ()
        for item in items:
            try:
                its_route = self._route_of(item)
            except Exception as error:  # noqa: BLE001  # by whatever an event is made of
                failed(item, error)
                continue
            if its_route is not route:
                _put_all(run, route, losers)
                run, route = [], its_route
            run.append(item)
        _put_all(run, route, losers)
        return losers

    def refuse(self, kind: Kind, count: int, reason: str) -> list[str]:
        """Count events that were dropped before they could be dispatched.

        Returns:
            The consumers that lost them.
        """
        route = self._route_of_kind(kind)
        for _, mailbox in route:
            mailbox.refuse(count, reason)
        return [name for name, _ in route]

    def _forget_routes(self) -> None:
        self._routes_of_kinds.clear()
        self.routes_of_types.clear()
        self._routes.clear()
        selections = [selection for selection, _ in self._mailboxes.values()]
        self._do_types_suffice = all(selection.is_of_types for selection in selections)

    def _route_of(self, item: Item) -> Route:
        if not isinstance(item, Delivery):
            return self._route_of_event(item)
        route = self._route_of_event(item.event)
        if item.origin:
            return tuple(way for way in route if way[0] not in item.origin)
        return route

    def _route_of_event(self, event: Event) -> Route:
        route = self.routes_of_types.get(type(event))
        if route is None:
            route = self._route_of_kind(kind_of(event))
            if self._do_types_suffice:
                self.routes_of_types[type(event)] = route
        return route

    def _route_of_kind(self, kind: Kind) -> Route:
        route = self._routes_of_kinds.get(kind)
        if route is None:
            if len(self._routes_of_kinds) >= _MOST_KINDS_REMEMBERED:
                self._routes_of_kinds.clear()
            wanted = tuple(
                (name, mailbox)
                for name, (selection, mailbox) in self._mailboxes.items()
                if selection.wants(kind)
            )
            route = self._routes_of_kinds[kind] = self._routes.setdefault(wanted, wanted)
        return route


def _put_all(run: Sequence[Item], route: Route, losers: set[str]) -> None:
    if run:
        for name, mailbox in route:
            if mailbox.put_all(run):
                losers.add(name)
