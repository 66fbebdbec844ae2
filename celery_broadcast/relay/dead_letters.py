"""What a group has put aside: listed, shown, sent to it again, or thrown away."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.transport import DeadLetter, Group, Parcel, Transport

# How many are asked for at once.
_AT_ONCE = 100

# Where datetime ends, in seconds since 1970.
_END_OF_TIME = 253_402_300_800.0

# What is nested more deeply is shown as it came: writing it as JSON could be too much.
_MOST_LEVELS = 50

_DECODING_ERRORS = (ValueError, OverflowError, RecursionError, MemoryError)


class DeadLetters:
    """Those of one group.

    Args:
        transport: where they are.
        group: whose they are.
        signer: signs what is sent again; None if nobody asks for that.
        verifier: tells what was signed rightly, however long ago.
    """

    def __init__(
        self,
        transport: Transport,
        group: Group,
        signer: Signer | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._transport = transport
        self._group = group
        self._signer = signer
        self._verifier = verifier

    def oldest(self, limit: int) -> list[DeadLetter]:
        """Return so many of them.

        Raises:
            RelayError: the broker.
        """
        return self._transport.dead_letters(self._group, limit)

    def with_ids(self, letter_ids: Collection[str]) -> list[DeadLetter]:
        """Return those of these ids that are there.

        Raises:
            RelayError: the broker.
        """
        letters, limit = self.oldest(_AT_ONCE), _AT_ONCE
        while len(letters) == limit and not set(letter_ids) <= {each.letter_id for each in letters}:
            limit *= 10
            letters = self.oldest(limit)
        return [letter for letter in letters if letter.letter_id in letter_ids]

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """Send them to the group alone, as if they had never failed; return how many.

        What is sent is removed after that: it may be sent twice, and is never lost.

        Raises:
            RelayError: the broker.
        """
        self._transport.send_to(self._group, [self._fresh(letter) for letter in letters])
        self._transport.remove_dead_letters(self._group, letters)
        return len(letters)

    def purge(self, letters: Sequence[DeadLetter]) -> int:
        """Remove them; return how many were still there.

        Raises:
            RelayError: the broker.
        """
        return self._transport.remove_dead_letters(self._group, letters)

    def all_so_far(self) -> Iterator[list[DeadLetter]]:
        """Give those that are there now, some at a time, each to be removed before the next.

        Raises:
            RelayError: the broker.
        """
        began = time.time()
        before: set[str] = set()
        while letters := self.oldest(_AT_ONCE):
            # A time that is none, as only a stranger writes it, is not later than now either.
            older = [each for each in letters if not began < each.put_aside_at < _END_OF_TIME]
            ids = {letter.letter_id for letter in older}
            if not older or ids <= before:  # they have come back, or can't be removed
                return
            before = ids
            yield older

    def _fresh(self, letter: DeadLetter) -> Parcel:
        parcel = without_failures(letter.parcel)
        if self._signer is None:
            return parcel
        # Whoever may write to the broker can't have it signed by way of the dead letters.
        return self._signer.sign(parcel) if self._is_signed(letter.parcel) else letter.parcel

    def _is_signed(self, parcel: Parcel) -> bool:
        return self._verifier is not None and not self._verifier.refusal(parcel)


def without_failures(parcel: Parcel) -> Parcel:
    """Return the parcel with events that never failed; as it is, if it can't be read."""
    try:
        events = msgspec.json.decode(parcel.body, type=list[dict[str, msgspec.Raw]])
    except _DECODING_ERRORS:
        return parcel
    for event in events:
        event.pop("failures", None)
        event.pop("error", None)
    return msgspec.structs.replace(parcel, body=msgspec.json.encode(events), signature="")


def shown(letter: DeadLetter) -> dict[str, Any]:
    """Return all that is known of one, as what JSON can say."""
    try:
        events = msgspec.json.decode(letter.parcel.body)
    except _DECODING_ERRORS:
        events = None
    if _is_too_deep(events):
        events = None
    return {
        "id": letter.letter_id,
        "reason": letter.reason,
        "deliveries": letter.deliveries,
        "put_aside_at": _time_of(letter),
        "event_type": letter.parcel.event_type,
        "task_name": letter.parcel.task_name,
        "error": letter.error,
        "events": events,
        "body": letter.parcel.body.decode(errors="backslashreplace") if events is None else None,
    }


def printable(text: str) -> str:
    """Return a text with which nobody can write over a terminal: lines of what can be seen."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text
    )


def _time_of(letter: DeadLetter) -> str:
    if not 0 <= letter.put_aside_at < _END_OF_TIME:
        return "unknown"
    moment = datetime.fromtimestamp(letter.put_aside_at, tz=timezone.utc)
    return moment.isoformat(timespec="seconds")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            item
            for each in level
            if isinstance(each, list | dict)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
