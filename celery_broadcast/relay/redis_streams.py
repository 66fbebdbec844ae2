"""The relay through Redis 6.2 or newer: a stream for each event type, a consumer group for each
remote consumer.

A group has its place in the stream of each event type that it wants, and a
stream of its own for what is sent to it alone. What a replica got stays
pending in its name until it is acknowledged; who is silent about it for the
lease loses it to another.

**What the bounds mean.** All groups share an event type's stream, and Redis
drops its oldest entries, whoever hasn't read them. Each process that publishes
has the server measure the stream, all of it, after every 64th of `max_bytes`
that it has sent there, and drop what is too much; so a stream takes `max_bytes`,
and for a while up to a 64th more for each such process. What is handled stays
until then too. `ttl` is applied with it, and about once a second by those who
receive. A group's own stream and its dead letters have `max_bytes` each; dead
letters have no `ttl`.
"""  # noqa: D205  # the first line says its one job

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import redis
from redis.exceptions import ResponseError

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.redis_entries import (
    fields_of,
    fields_of_letter,
    letter_of,
    parcel_of,
    task_of,
)
from celery_broadcast.relay.redis_errors import FULL, explained, is_of_server
from celery_broadcast.relay.redis_scripts import GIVE_BACK, RENEW, SWEEP, TAKE, TRIM
from celery_broadcast.relay.redis_servers import RedisServers
from celery_broadcast.relay.transport import DeadLetter, Group, Limits, Parcel, Received

logger: logging.Logger = logging.getLogger(__name__)

PREFIX = "celery-broadcast:"

#: In whose name is pending what a replica gave back.
NOBODY = "given-back"
_LONG_SILENT = 30 * 86_400 * 1000  # milliseconds; Redis takes it for longer than any lease

#: Seconds between looks for what silent replicas have, at most.
LOOK_SECONDS = 1.0
#: Seconds for which parcels are skipped that the group doesn't want, before `receive` returns.
SKIP_SECONDS = 1.0
#: A stream is measured after this part of its bound was sent there, and after so many seconds.
MEASURED_PARTS = 64
MEASURED_SECONDS = 60.0

#: Entries of one stream that come in a row, while others wait.
TURNS = 8

Command: TypeAlias = tuple[Any, ...]

_WATCHING = "read what is published"


class Token(NamedTuple):
    """By which a received parcel is known again."""

    key: str
    entry_id: str


class _Entry(NamedTuple):
    """An entry of a stream that this replica got."""

    key: str
    entry_id: str
    fields: list[bytes]
    deliveries: int


class _Sent:
    """What this process has sent to a stream since it was measured."""

    def __init__(self, measured_at: float) -> None:
        self.bytes = 0
        self.measured_at = measured_at


# Whoever has got a parcel in so many milliseconds counts as a replica.
_LATELY = 15_000


class _Busy:
    """The stream that a group's last entry came from, and the turns that it has in a row."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.turns = TURNS


class RedisStreams:
    """A Redis as a `Transport`.

    Belongs to one thread, with a connection of its own, opened by the first
    call. In a forked child it opens another, as another replica.

    What waits longer than redis-py's timeout for the server gives up and counts
    as undone, though the server may still do it: a parcel can then be there
    twice, or be in the name of a replica that never saw it, until its lease ends.
    """

    def __init__(self, servers: RedisServers, limits: Limits) -> None:
        self._servers = servers
        self._limits = limits
        self._lease_milliseconds = max(1, round(limits.lease * 1000))
        self._ttl_milliseconds = max(1, round(limits.ttl * 1000))
        self._look_seconds = min(LOOK_SECONDS, limits.lease / 4)
        self._client: redis.Redis | None = None
        self._start_clean()
        # Streams that were there: one that isn't any more was there for somebody.
        self._known: set[str] = set()
        # Where a group goes on in a stream, should Redis have forgotten it.
        self._reached: dict[tuple[str, str], str] = {}
        # Up to where each stream was watched, and what of it wasn't returned yet.
        self._watched_to: dict[str, str] = {}
        self._watched: deque[_Entry] = deque()

    @classmethod
    def from_app_settings(
        cls,
        url: str | Sequence[str],
        transport_options: Mapping[str, Any],
        use_ssl: object,
        limits: Limits,
    ) -> RedisStreams:
        """Return one for what the app has as its broker.

        Args:
            url: broker_url, or broadcast_relay_url in its place.
            transport_options: broker_transport_options.
            use_ssl: broker_use_ssl.
            limits: what bounds the relay.

        Raises:
            ConfigurationError: one of them can't be meant so.
        """
        return cls(RedisServers(url, transport_options, use_ssl), limits)

    # What a worker does.

    def publish(self, parcels: Sequence[Parcel]) -> None:
        """See `Transport`. Of a type that no group was ever declared for, nothing is kept."""
        tried = f"publish {_counted(parcels, 'parcel')}"
        pairs = [(self._events_key(parcel.event_type), fields_of(parcel)) for parcel in parcels]
        ids = self._add(tried, pairs, create=False)
        lost = [
            pair
            for pair, entry_id in zip(pairs, ids, strict=True)
            if entry_id is None and pair[0] in self._known
        ]
        if lost:  # the server has lost the stream; its groups will go on with a new one
            self._add(tried, lost, create=True)
        self._known.update(
            key for (key, _), entry_id in zip(pairs, ids, strict=True) if entry_id is not None
        )

    def send_to(self, group: Group, parcels: Sequence[Parcel]) -> None:
        """See `Transport`."""
        key = self._own_key(group)
        tried = f"send {_counted(parcels, 'parcel')} to the group {group.name!r}"
        self._add(tried, [(key, fields_of(parcel)) for parcel in parcels], create=True)

    # What a replica does.

    def declare(self, group: Group) -> None:
        """See `Transport`. It gets what is published from now on; twice is harmless."""
        keys = self._event_keys(group)
        commands: list[Command] = [
            # Whatever is in its own stream is for it, and not handled yet.
            ("XGROUP", "CREATE", self._own_key(group), group.name, "0", "MKSTREAM")
        ]
        for key in keys:
            start = self._reached.get((group.name, key), "$")
            commands.append(("XGROUP", "CREATE", key, group.name, start, "MKSTREAM"))
        tried = f"declare the group {group.name!r}"
        expected = ("BUSYGROUP", *FULL)
        now, *replies = self._exchange(tried, [("TIME",), *commands], expected=expected)
        full = [reply for reply in replies if str(reply).startswith(FULL)]
        if full and not self._is_declared(group):
            raise self._error(tried, full[0])
        milliseconds = int(now[0]) * 1000 + int(now[1]) // 1000
        for key in keys:
            self._reached.setdefault((group.name, key), f"{milliseconds}-0")
        self._known.update(keys)

    def _is_declared(self, group: Group) -> bool:
        """Tell whether the group is there already; a full server can be asked for that, too."""
        keys = [self._own_key(group), *self._event_keys(group)]
        commands: list[Command] = [("XPENDING", key, group.name) for key in keys]
        tried = f"look for the group {group.name!r}"
        replies = self._exchange(tried, commands, expected=("NOGROUP",))
        return not any(isinstance(reply, ResponseError) for reply in replies)

    def receive(self, group: Group, wait_seconds: float) -> Received | None:
        """See `Transport`.

        What was sent to the group alone comes before the rest, the event types
        take turns, of some parcels each. Parcels of tasks that the group
        doesn't want are acknowledged here, unopened.
        """
        self._sweep_if_due(group)
        deadline = time.monotonic() + wait_seconds
        skip_deadline = time.monotonic() + max(wait_seconds, SKIP_SECONDS)
        unwanted: list[Command] = []
        while True:
            entry = self._take(group, unwanted)
            while entry is None and (remaining := deadline - time.monotonic()) > 0:
                entry = self._wait_for(group, remaining)
                if entry is None and self._look_in(group) <= 0:
                    entry = self._take(group)
            if entry is None:
                return None
            if self._wants(group, entry):
                return self._received(group, entry)
            unwanted = [("XACK", entry.key, group.name, entry.entry_id)]
            if time.monotonic() >= skip_deadline:
                self._exchange("acknowledge what isn't wanted", unwanted)
                return None

    def renew(self, group: Group, received: Sequence[Received]) -> None:
        """See `Transport`. What another replica has taken over meanwhile is left to it."""
        consumer = self._consumer
        renewals: list[Command] = [
            ("EVAL", RENEW, 1, each.token.key, group.name, consumer, each.token.entry_id)
            for each in received
        ]
        replies = self._exchange(f"renew {_counted(received, 'parcel')}", renewals)
        lost = len(replies) - sum(replies)
        if lost:
            logger.warning(
                "consumer %r has %d parcels that aren't its own any more: another replica took "
                "them over, or Redis has lost them. They can be handled twice. "
                "Raise broadcast_relay_lease",
                *(group.name, lost),
            )

    def is_lost(self, received: Received) -> bool:  # noqa: ARG002  # the transport's
        """See `Transport`. Redis knows a parcel by its number, whatever the connection."""
        return False

    def acknowledge(self, group: Group, received: Received) -> None:
        """See `Transport`."""
        key, entry_id = received.token
        commands: list[Command] = [("XACK", key, group.name, entry_id)]
        if key == self._own_key(group):  # nobody else has a use for it
            commands.append(("XDEL", key, entry_id))
        self._exchange("acknowledge a parcel", commands)

    def give_back(self, group: Group, received: Received) -> None:
        """See `Transport`. Another replica has it with its next look, within a second."""
        key, entry_id = received.token
        returned = self._return(group, key, entry_id, received.deliveries)
        self._exchange("give a parcel back", [returned])
        self._looked_at.pop(group.name, None)  # if it comes here again, then before later ones

    # Dead letters.

    def put_aside(self, group: Group, letters: Sequence[DeadLetter]) -> None:
        """See `Transport`."""
        key = self._letters_key(group)
        tried = f"put {_counted(letters, 'dead letter')} of {group.name!r} aside"
        pairs = [(key, fields_of_letter(letter)) for letter in letters]
        self._add(tried, pairs, create=True, has_ttl=False)

    def dead_letters(self, group: Group, limit: int) -> list[DeadLetter]:
        """See `Transport`."""
        key = self._letters_key(group)
        command = ("XRANGE", key, "-", "+", "COUNT", limit)
        (entries,) = self._exchange(f"read the dead letters of {group.name!r}", [command])
        return [
            letter_of(fields, entry_id.decode(), self._limits.max_parcel_bytes)
            for entry_id, fields in entries
        ]

    def remove_dead_letters(self, group: Group, letters: Sequence[DeadLetter]) -> int:
        """See `Transport`."""
        if not letters:
            return 0
        key = self._letters_key(group)
        command = ("XDEL", key, *(letter.letter_id for letter in letters))
        (removed,) = self._exchange(f"remove dead letters of {group.name!r}", [command])
        return int(removed)

    def replicas(self, group: Group) -> int:
        """See `Transport`. Before 7.2, Redis knows only of those that have got something."""
        keys = self._event_keys(group)
        commands: list[Command] = [("XINFO CONSUMERS", key, group.name) for key in keys]
        replies = self._exchange(
            f"count the replicas of the consumer {group.name!r}",
            commands,
            expected=("NOGROUP", "ERR no such key", "no such key"),
        )
        names: set[bytes] = set()
        for reply in replies:
            for fields in reply if isinstance(reply, list) else ():
                consumer = dict(zip(fields[::2], fields[1::2], strict=False))
                is_lively = consumer[b"idle"] < max(self._lease_milliseconds, _LATELY)
                if is_lively or consumer[b"pending"]:
                    names.add(consumer[b"name"])
        names.discard(NOBODY.encode())
        return len(names)

    def watch(self, watched: Group, wait_seconds: float) -> Received | None:
        """See `Transport`. It goes on where it was, also with another connection."""
        if not self._watched_to:
            keys = self._event_keys(watched)
            commands: list[Command] = [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in keys]
            last = self._exchange(_WATCHING, commands)
            self._watched_to = {
                key: entries[0][0].decode() if entries else "0-0"
                for key, entries in zip(keys, last, strict=True)
            }
        deadline = time.monotonic() + wait_seconds
        while True:
            if not self._watched:
                self._read_along(deadline - time.monotonic())
            while self._watched:
                entry = self._watched.popleft()
                if self._wants(watched, entry):
                    return self._received(watched, entry)
            if time.monotonic() >= deadline:
                return None

    def _read_along(self, seconds: float) -> None:
        """Wait for entries of the streams that are watched, one of each."""
        # Below the socket's timeout, so that this is no silence of the server; 0 would be for ever.
        milliseconds = max(1, round(min(seconds, self._limits.timeout / 2) * 1000))
        places = (*self._watched_to, *self._watched_to.values())
        command = ("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *places)
        (reply,) = self._exchange(_WATCHING, [command], expected=("UNBLOCKED",))
        if isinstance(reply, ResponseError):
            return
        for key, entries in reply or ():
            for entry_id, fields in entries:
                self._watched_to[key.decode()] = entry_id.decode()
                self._watched.append(_Entry(key.decode(), entry_id.decode(), fields, 0))

    def close(self) -> None:
        """See `Transport`. Takes this replica off the groups' lists if it holds nothing."""
        if self._client is not None and self._pid == os.getpid():
            sweeps: list[Command] = [
                ("EVAL", SWEEP, len(keys), *keys, name, _LONG_SILENT, self._consumer, "leaves")
                for name, keys in self._read_keys.items()
            ]
            with contextlib.suppress(RelayError):
                self._exchange("leave", sweeps)
        self._disconnect()

    # Streams.

    def _events_key(self, event_type: str) -> str:
        return f"{self._servers.key_prefix}{PREFIX}events:{event_type}"

    def _own_key(self, group: Group) -> str:
        return f"{self._servers.key_prefix}{PREFIX}group:{group.name}"

    def _letters_key(self, group: Group) -> str:
        return f"{self._servers.key_prefix}{PREFIX}dead-letters:{group.name}"

    def _event_keys(self, group: Group) -> list[str]:
        return [self._events_key(event_type) for event_type in group.event_types]

    def _add(
        self,
        tried: str,
        pairs: Sequence[tuple[str, list[str | bytes]]],
        *,
        create: bool,
        has_ttl: bool = True,
    ) -> list[bytes | None]:
        """Add entries to streams, and return their ids; None where there is no such stream.

        Args:
            tried: what it is for, for the error.
            pairs: the key of the stream and the fields of the entry.
            create: whether a stream that isn't there is made.
            has_ttl: whether it drops what is too old.
        """
        options = () if create else ("NOMKSTREAM",)
        commands: list[Command] = [("XADD", key, *options, "*", *fields) for key, fields in pairs]
        keys = list(dict.fromkeys(key for key, _ in pairs))
        now = time.monotonic()
        try:
            # Before anything is sent: a stream that can't be measured, or is none, would be an
            # error after the entries are there, and they would be there again with each try.
            unknown = [key for key in keys if key not in self._sent]
            self._exchange(tried, [self._trim(key, has_ttl=has_ttl) for key in unknown])
            for key, fields in pairs:
                self._sent.setdefault(key, _Sent(now)).bytes += sum(map(len, fields))
            due = [key for key in keys if self._is_due(key, now)]
            trims = [self._trim(key, has_ttl=has_ttl) for key in due]
            replies = self._exchange(tried, [*commands, *trims], to_confirm=len(pairs))
        except RelayError:
            for key in keys:
                self._sent.pop(key, None)
            raise
        self._sent.update((key, _Sent(now)) for key in due)
        return replies[: len(pairs)]

    def _is_due(self, key: str, now: float) -> bool:
        """Tell whether a stream is to be measured again."""
        sent = self._sent[key]
        part = self._limits.max_bytes / MEASURED_PARTS
        return sent.bytes >= part or now - sent.measured_at >= MEASURED_SECONDS

    def _trim(self, key: str, *, has_ttl: bool) -> Command:
        ttl = self._ttl_milliseconds if has_ttl else ""
        return ("EVAL", TRIM, 1, key, self._limits.max_bytes, ttl)

    # Reading.

    def _take(self, group: Group, first: Sequence[Command] = ()) -> _Entry | None:
        """Return an entry that is there, without waiting; send other commands along."""
        looks = self._look_in(group) <= 0
        busy = self._busy.get(group.name)
        if busy and not looks:
            if entry := self._take_next(group, busy, first):
                return entry
            first = ()
        return self._take_any(group, first, looks=looks)

    def _take_next(self, group: Group, busy: _Busy, first: Sequence[Command]) -> _Entry | None:
        """Return the next entry of the stream that had the last one.

        A script has the entry copied twice, which for one of 50 kB takes as long
        as all the rest. The others wait for some turns only.
        """
        busy.turns -= 1
        if not busy.turns:
            del self._busy[group.name]
        options = ("COUNT", 1, "STREAMS", busy.key, ">")
        command = ("XREADGROUP", "GROUP", group.name, self._consumer, *options)
        *_, reply = self._exchange(_reading(group), [*first, command], expected=("NOGROUP",))
        if reply and not isinstance(reply, ResponseError):
            ((key, ((entry_id, fields),)),) = reply
            return self._reached_at(group, key, entry_id, fields, 0)
        self._busy.pop(group.name, None)
        return None

    def _take_any(self, group: Group, first: Sequence[Command], *, looks: bool) -> _Entry | None:
        """Return an entry of any stream, one that a silent replica has if it is time to look."""
        lease = self._lease_milliseconds if looks else ""
        for is_last in (False, True):
            keys = self._keys_in_turn(group)
            take: Command = ("EVAL", TAKE, len(keys), *keys, group.name, self._consumer)
            commands = [*first, (*take, lease, self._ttl_milliseconds)]
            expected = () if is_last else ("NOGROUP",)
            reply = self._exchange(_reading(group), commands, expected=expected)[-1]
            if not isinstance(reply, ResponseError):
                break
            self._declare_anew(group)
        if looks:
            self._looked_at[group.name] = time.monotonic()
        gone, *entry = reply
        if gone:
            logger.warning(
                "consumer %r: %d parcels were dropped from Redis while a replica had them; "
                "should it have died with them, their events are lost. "
                "Raise broadcast_relay_max_bytes or broadcast_relay_ttl",
                *(group.name, gone),
            )
        if not entry:
            return None
        taken = self._reached_at(group, *entry)
        if taken.key != self._own_key(group):
            self._busy[group.name] = _Busy(taken.key)
        return taken

    def _wait_for(self, group: Group, seconds: float) -> _Entry | None:
        """Return the next new entry; None if there is none until it is time for a look."""
        # Below the socket's timeout, so that this is no silence of the server.
        seconds = min(seconds, self._look_in(group), self._limits.timeout / 2)
        milliseconds = max(1, round(seconds * 1000))  # 0 would be for ever
        keys = self._keys_in_turn(group)
        options = ("COUNT", 1, "BLOCK", milliseconds, "STREAMS", *keys, *(">" for _ in keys))
        command = ("XREADGROUP", "GROUP", group.name, self._consumer, *options)
        expected = ("NOGROUP", "UNBLOCKED")
        (reply,) = self._exchange(_reading(group), [command], expected=expected)
        if isinstance(reply, ResponseError):
            self._declare_anew(group)
            return None
        if not reply:
            return None
        # One of each stream, where several got one at once: the others' turn comes.
        found = [
            self._reached_at(group, key, entry_id, fields, 0)
            for key, entries in reply
            for entry_id, fields in entries
        ]
        if len(found) > 1:
            back = [self._return(group, each.key, each.entry_id, 0) for each in found[1:]]
            self._exchange("give parcels back", back)
            self._looked_at.pop(group.name, None)
        return found[0]

    def _keys_in_turn(self, group: Group) -> list[str]:
        """Return the group's own stream, and the others from the one after the last on."""
        keys = self._event_keys(group)
        own = self._own_key(group)
        self._read_keys[group.name] = [own, *keys]
        last = self._last_key.get(group.name)
        turn = keys.index(last) + 1 if last in keys else 0
        return [own, *keys[turn:], *keys[:turn]]

    def _reached_at(
        self, group: Group, key: bytes, entry_id: bytes, fields: list[bytes], deliveries: int
    ) -> _Entry:
        entry = _Entry(key.decode(), entry_id.decode(), fields, deliveries)
        if entry.key == self._own_key(group):
            return entry
        self._last_key[group.name] = entry.key
        if not deliveries:
            self._reached[group.name, entry.key] = entry.entry_id
        return entry

    def _declare_anew(self, group: Group) -> None:
        if any((group.name, key) in self._reached for key in self._event_keys(group)):
            logger.warning(
                "Redis has forgotten the consumer %r (it was restarted empty, or something was "
                "deleted); it is declared anew. What waited for it there is lost",
                group.name,
            )
        self.declare(group)

    def _look_in(self, group: Group) -> float:
        """Return the seconds until it is time to look for what silent replicas have."""
        looked_at = self._looked_at.get(group.name)
        return 0.0 if looked_at is None else looked_at + self._look_seconds - time.monotonic()

    def _wants(self, group: Group, entry: _Entry) -> bool:
        """Tell whether an entry is for the group; one that can't be opened is."""
        if not group.tasks or entry.key == self._own_key(group):
            return True
        task = task_of(entry.fields)
        return task is None or any(fnmatchcase(task, glob) for glob in group.tasks)

    def _received(self, group: Group, entry: _Entry) -> Received:
        types = {self._events_key(event_type): event_type for event_type in group.event_types}
        parcel, refusal = parcel_of(
            entry.fields, types.get(entry.key), self._limits.max_parcel_bytes
        )
        return Received(
            parcel=parcel,
            deliveries=entry.deliveries,
            token=Token(entry.key, entry.entry_id),
            refusal=refusal,
            is_sent_alone=entry.key == self._own_key(group),
        )

    def _return(self, group: Group, key: str, entry_id: str, deliveries: int) -> Command:
        arguments = (group.name, self._consumer, entry_id, NOBODY, _LONG_SILENT, deliveries)
        return ("EVAL", GIVE_BACK, 1, key, *arguments)

    def _sweep_if_due(self, group: Group) -> None:
        """Remove replicas that are gone from the group's lists, once in the time of a lease."""
        now = time.monotonic()
        if now - self._swept_at.get(group.name, float("-inf")) < self._limits.lease:
            return
        self._swept_at[group.name] = now
        keys = self._keys_in_turn(group)
        arguments = (group.name, self._lease_milliseconds, self._consumer, "")
        self._exchange(_reading(group), [("EVAL", SWEEP, len(keys), *keys, *arguments)])

    # The connection.

    def _start_clean(self) -> None:
        self._pid = os.getpid()
        self._consumer = f"{socket.gethostname()}-{self._pid}-{secrets.token_hex(4)}"
        self._sent: dict[str, _Sent] = {}
        self._looked_at: dict[str, float] = {}
        self._swept_at: dict[str, float] = {}
        self._read_keys: dict[str, list[str]] = {}
        self._busy: dict[str, _Busy] = {}
        self._last_key: dict[str, str] = {}

    def _connected(self) -> redis.Redis:
        if self._pid != os.getpid():
            self._disconnect()
            self._start_clean()
        if self._client is None:
            self._client = self._servers.connect(self._limits.timeout)
        return self._client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(Exception):  # it is given up, whatever it says to that
            client.connection_pool.disconnect()  # in a forked child without a word to the server

    def _exchange(
        self,
        tried: str,
        commands: Sequence[Command],
        *,
        expected: tuple[str, ...] = (),
        to_confirm: int = 0,
    ) -> list[Any]:
        """Send commands at once, and return the reply to each.

        Args:
            tried: what for, for the error.
            commands: commands with their arguments.
            expected: beginnings of errors that are given back as replies.
            to_confirm: how many of them, the first, each send a parcel.

        Raises:
            RelayError: the server can't be reached, or another reply is an error.
        """
        if not commands:
            return []
        try:
            pipeline = self._connected().pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        except Exception as error:  # also what a credential provider or a host's name makes of it
            self._disconnect()
            raise self._error(tried, error) from error
        errors = [
            (reply, command)
            for reply, command in zip(replies, commands, strict=True)
            if isinstance(reply, Exception) and not str(reply).startswith(expected)
        ]
        if errors:
            refusal, command = errors[0]
            refused = sum(isinstance(reply, Exception) for reply in replies[:to_confirm])
            arrived = to_confirm - refused
            if is_of_server(refusal):
                self._disconnect()  # the next call finds another, or this one recovered
                self._servers.avoid_last()
            also = f" {arrived} of {to_confirm} arrived." if arrived else ""
            raise self._error(tried, refusal, _key_of(command), also) from refusal
        return replies

    def _error(self, tried: str, error: Exception, key: str = "", also: str = "") -> RelayError:
        why = explained(error, key, self._limits.timeout).rstrip(".")
        return RelayError(f"Redis at {self._servers.shown}: could not {tried}: {why}.{also}")


def _reading(group: Group) -> str:
    return f"read for the consumer {group.name!r}"


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _key_of(command: Command) -> str:
    if command[0] == "XREADGROUP":
        return f"{PREFIX}*"  # one of several; the next call tells which
    return str(command[{"EVAL": 3, "XGROUP": 2}.get(command[0], 1)])
