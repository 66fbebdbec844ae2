"""A broker in memory, that forgets everything with the test: groups, deliveries, leases."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.routing import wants
from celery_broadcast.relay.transport import DeadLetter, Group, Limits, Parcel, Received


class _Entry(msgspec.Struct):
    """A parcel in one group: who has it, until when, and how often it was handed out."""

    parcel: Parcel
    number: int
    deliveries: int = 0
    holder: object | None = None
    leased_until: float = 0.0
    refusal: str = ""
    is_sent_alone: bool = False


class MemoryBroker:
    """Shared by the transports of a test; as a broker does, it counts what it hands out.

    Attributes:
        acknowledged: the numbers of parcels that are done, by group.
        is_away: whether every call fails.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.changed = threading.Condition()
        self.groups: dict[str, Group] = {}
        self.waiting: dict[str, deque[_Entry]] = {}
        self.held: dict[str, dict[int, _Entry]] = {}
        self.letters: dict[str, list[DeadLetter]] = {}
        self.acknowledged: dict[str, int] = {}
        self.is_away = False
        self.readers: dict[str, set[MemoryTransport]] = {}
        self.renewals = 0
        self.numbers = itertools.count(1)
        self.published: list[Received] = []

    def add(
        self,
        group: str,
        parcel: Parcel,
        refusal: str = "",
        *,
        deliveries: int = 0,
        is_sent_alone: bool = False,
    ) -> None:
        """Have a parcel wait in a group."""
        with self.changed:
            entry = _Entry(
                parcel,
                next(self.numbers),
                deliveries=deliveries,
                refusal=refusal,
                is_sent_alone=is_sent_alone,
            )
            self.waiting.setdefault(group, deque()).append(entry)
            self.changed.notify_all()

    def show(self, parcel: Parcel, refusal: str = "") -> None:
        """Let those who watch see a parcel."""
        with self.changed:
            self.published.append(
                Received(parcel=parcel, deliveries=0, token=None, refusal=refusal)
            )
            self.changed.notify_all()

    def is_empty(self, group: str) -> bool:
        """Tell whether everything of a group is acknowledged."""
        with self.changed:
            return not self.waiting.get(group) and not self.held.get(group)

    def kill(self, transport: MemoryTransport) -> None:
        """Do what a broker does when a replica dies: hand out anew what it had."""
        with self.changed:
            transport.is_dead = True
            for readers in self.readers.values():
                readers.discard(transport)
            for group, held in self.held.items():
                for entry in [entry for entry in held.values() if entry.holder is transport]:
                    self._requeue(group, entry)
            self.changed.notify_all()

    def cut(self, transport: MemoryTransport) -> None:
        """Do what RabbitMQ does as a connection is lost: hand out anew what it had."""
        with self.changed:
            for group, held in self.held.items():
                for entry in [entry for entry in held.values() if entry.holder is transport]:
                    transport.lost.add(entry.number)
                    # Under another number: what has the old one can't be told of it.
                    self.held[group].pop(entry.number)
                    entry.number = next(self.numbers)
                    self._requeue(group, entry)
            self.changed.notify_all()

    def _requeue(self, group: str, entry: _Entry, *, counts: bool = True) -> None:
        self.held[group].pop(entry.number, None)
        entry.deliveries += counts
        entry.holder = None
        self.waiting[group].appendleft(entry)

    def next_of(self, group: str, transport: MemoryTransport) -> _Entry | None:
        """Hand a parcel out, first one whose lease is over."""
        now = time.monotonic()
        held = self.held.setdefault(group, {})
        for entry in list(held.values()):
            if entry.leased_until < now:
                self._requeue(group, entry)
        if not self.waiting.setdefault(group, deque()):
            return None
        entry = self.waiting[group].popleft()
        entry.holder, entry.leased_until = transport, now + self.limits.lease
        held[entry.number] = entry
        return entry


class MemoryTransport:
    """A `Transport` of one thread."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.is_dead = False
        self.is_closed = False
        #: Called before each exchange, with its name; may raise.
        self.before: Callable[[str], None] = lambda _: None
        #: The tokens of what came over a connection that is gone.
        self.lost: set[int] = set()
        self._watched_to: int | None = None

    def _exchange(self, what: str, *received: Received) -> None:
        self.before(what)
        if self.is_dead or self.broker.is_away:
            msg = f"The broker in memory: could not {what}. It is away."
            raise RelayError(msg)
        if any(map(self.is_lost, received)):
            msg = f"The broker in memory: could not {what}. It is lost."
            raise RelayError(msg)

    def publish(self, parcels: Sequence[Parcel]) -> None:
        self._exchange("publish")
        for parcel in parcels:
            self.broker.show(parcel)
            for name, group in self.broker.groups.items():
                if wants(group, parcel.event_type, parcel.task_name):
                    self.broker.add(name, parcel)

    def declare(self, group: Group) -> None:
        self._exchange("declare")
        self.broker.groups[group.name] = group

    def receive(self, group: Group, wait_seconds: float) -> Received | None:
        self._exchange("receive")
        self.broker.readers.setdefault(group.name, set()).add(self)
        with self.broker.changed:
            self.broker.changed.wait_for(
                lambda: self.broker.waiting.get(group.name), min(wait_seconds, 0.05)
            )
            entry = self.broker.next_of(group.name, self)
        if entry is None:
            return None
        return Received(
            parcel=entry.parcel,
            deliveries=entry.deliveries,
            token=entry.number,
            refusal=entry.refusal,
            is_sent_alone=entry.is_sent_alone,
        )

    def renew(self, group: Group, received: Sequence[Received]) -> None:
        self._exchange("renew")
        with self.broker.changed:
            self.broker.renewals += 1
            for each in received:
                entry = self.broker.held[group.name].get(each.token)
                if entry is not None and entry.holder is self:
                    entry.leased_until = time.monotonic() + self.broker.limits.lease

    def is_lost(self, received: Received) -> bool:
        return received.token in self.lost

    def acknowledge(self, group: Group, received: Received) -> None:
        self._exchange("acknowledge", received)
        with self.broker.changed:
            self.broker.held[group.name].pop(received.token, None)
            self.broker.acknowledged[group.name] = self.broker.acknowledged.get(group.name, 0) + 1

    def give_back(self, group: Group, received: Received) -> None:
        self._exchange("give back", received)
        with self.broker.changed:
            entry = self.broker.held[group.name].get(received.token)
            if entry is not None:
                self.broker._requeue(group.name, entry, counts=False)
                self.broker.changed.notify_all()

    def send_to(self, group: Group, parcels: Sequence[Parcel]) -> None:
        self._exchange("send to")
        for parcel in parcels:
            self.broker.add(group.name, parcel, is_sent_alone=True)

    def put_aside(self, group: Group, letters: Sequence[DeadLetter]) -> None:
        self._exchange("put aside")
        kept = self.broker.letters.setdefault(group.name, [])
        for letter in letters:
            letter_id = str(next(self.broker.numbers))
            kept.append(msgspec.structs.replace(letter, letter_id=letter_id))

    def dead_letters(self, group: Group, limit: int) -> list[DeadLetter]:
        self._exchange("look at dead letters")
        return self.broker.letters.get(group.name, [])[:limit]

    def remove_dead_letters(self, group: Group, letters: Sequence[DeadLetter]) -> int:
        self._exchange("remove dead letters")
        kept = self.broker.letters.get(group.name, [])
        unwanted = {letter.letter_id for letter in letters}
        self.broker.letters[group.name] = [each for each in kept if each.letter_id not in unwanted]
        return len(kept) - len(self.broker.letters[group.name])

    def replicas(self, group: Group) -> int:
        self._exchange("count replicas")
        return len(self.broker.readers.get(group.name, ()))

    def watch(self, watched: Group, wait_seconds: float) -> Received | None:
        self._exchange("watch")
        with self.broker.changed:
            published = self.broker.published
            place = len(published) if self._watched_to is None else self._watched_to
            self.broker.changed.wait_for(lambda: len(published) > place, min(wait_seconds, 0.05))
            self._watched_to = len(published)
            for number, received in enumerate(published[place:], place + 1):
                if wants(watched, received.parcel.event_type, received.parcel.task_name):
                    self._watched_to = number
                    return received
        return None

    def close(self) -> None:
        for readers in self.broker.readers.values():
            readers.discard(self)
        self.is_closed = True
