"""What the relay asks of a broker, whichever it is, and what it gives to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

MEDIA_TYPE = "application/cloudevents-batch+json"
"""Of a parcel's body."""

LATEST_TIME = 253_402_300_799.0
"""The last second of the year 9999, since 1970, UTC: no later one can be shown."""


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one type and one task that travel together.

    Attributes:
        event_type: the name of their type, such as "JobFailed".
        task_name: the name of their task, such as "shop.tasks.charge".
        body: a JSON array of CloudEvents, one for each event.
        signature: what proves who has sent it; "" if nobody asked for that.
    """

    event_type: str
    task_name: str
    body: bytes
    signature: str = ""


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A parcel that a group got, and that is its own until it says what became of it.

    Attributes:
        parcel: the parcel.
        deliveries: how often it had been handed out before, to whichever replica.
        token: by which the transport knows it again.
        refusal: why it isn't one that can be opened (too big, compressed, no
            JSON by its own account, foreign); "" if it is. Then `body` holds
            what could safely be kept of it, and the other fields may be "".
        is_sent_alone: whether it was sent to this group alone, and so is one that
            it had before, or a part of it.
    """

    parcel: Parcel
    deliveries: int
    token: Any
    refusal: str = ""
    is_sent_alone: bool = False


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A remote consumer as the broker knows it; its replicas share the work.

    Attributes:
        name: the consumer's name.
        event_types: the names of the event types that it wants.
        tasks: globs of the names of the tasks that it wants; None is all.
    """

    name: str
    event_types: tuple[str, ...]
    tasks: tuple[str, ...] | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What was put aside, and why.

    Attributes:
        parcel: as a rule with a single event in it.
        reason: a word: "raised", "killed", "refused".
        error: what is known of it, as text.
        deliveries: how often it was handed out.
        put_aside_at: when, in seconds since 1970, UTC, from 0 to `LATEST_TIME`.
        letter_id: by which the transport knows it; "" until it has it.
    """

    parcel: Parcel
    reason: str
    error: str
    deliveries: int
    put_aside_at: float
    letter_id: str = ""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the relay.

    Attributes:
        max_bytes: of waiting parcels, in bytes, of each group or event type.
        ttl: seconds after which a waiting parcel is dropped.
        lease: seconds after which what a silent replica has goes to another.
        timeout: seconds that any one exchange with the broker may take.
        max_parcel_bytes: of a parcel that is opened, in bytes.
    """

    max_bytes: int = 256 * 1024 * 1024
    ttl: float = 7 * 86_400.0
    lease: float = 60.0
    timeout: float = 5.0
    max_parcel_bytes: int = 2 * 1024 * 1024


class Transport(Protocol):
    """A broker. Belongs to one thread; opens its own connection with the first call.

    Every method but `close` raises `RelayError` if the broker can't be reached,
    refuses, is full, or takes longer than the timeout; the next call connects
    anew. None waits for ever.
    """

    def publish(self, parcels: Sequence[Parcel]) -> None:
        """Send parcels to every group that wants them; return once the broker has confirmed all.

        Raises:
            RelayError: it has not; some of them may have arrived all the same.
        """

    def declare(self, group: Group) -> None:
        """Have the broker keep from now on what the group wants. Twice is harmless.

        Raises:
            RelayError: also if it exists with other limits; the text says what to do.
        """

    def receive(self, group: Group, wait_seconds: float) -> Received | None:
        """Return the next parcel for the group, None if there is none for so long.

        What a silent replica had for longer than the lease comes first. The
        group is declared anew if the broker has forgotten it.
        """

    def renew(self, group: Group, received: Sequence[Received]) -> None:
        """Say that these are still being handled: their lease begins anew.

        But not that of what is lost, which is none of the errors.
        """

    def is_lost(self, received: Received) -> bool:
        """Tell whether the broker can't be told any more what became of it.

        As the connection is gone over which it came: the broker hands it out again.
        Never raises.
        """

    def acknowledge(self, group: Group, received: Received) -> None:
        """Have the broker forget a parcel: all in it is handled, or is sent again by itself."""

    def give_back(self, group: Group, received: Received) -> None:
        """Let another replica have it at once."""

    def send_to(self, group: Group, parcels: Sequence[Parcel]) -> None:
        """Send parcels to this group alone; return once the broker has confirmed all."""

    def put_aside(self, group: Group, letters: Sequence[DeadLetter]) -> None:
        """Add to the group's dead letters; return once the broker has confirmed all."""

    def dead_letters(self, group: Group, limit: int) -> list[DeadLetter]:
        """Return the oldest dead letters of the group; they stay where they are."""

    def remove_dead_letters(self, group: Group, letters: Sequence[DeadLetter]) -> int:
        """Remove dead letters; return how many were still there."""

    def replicas(self, group: Group) -> int:
        """Return how many have got parcels for the group lately, or may get the next one.

        Whoever gets one in the seconds before this is called is among them.
        """

    def watch(self, watched: Group, wait_seconds: float) -> Received | None:
        """Return the next parcel that is published, None if there is none for so long.

        Of what is published after the first call, in its order; always with the
        same `watched`, whose name means nothing. Every group gets it all the same:
        nothing is to be said of what became of it, and nothing of the watching is
        left on the broker. What is watched too slowly may be passed over.
        """

    def close(self) -> None:
        """Close the connection. Never raises; twice is harmless."""
