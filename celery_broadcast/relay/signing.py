"""Proof that a parcel comes from who has the key, and is not an old one sent again.

A signature covers what is in a parcel and where it belongs (event type and
task), when it was signed, and a number that is used once. It reads
`v1;t=1763842052;n=NONCE;MAC`, with the time in seconds since 1970 and an
HMAC-SHA256, both of the others in hexadecimal.

Against an old one sent again, three things, since a broker may deliver the same
parcel twice and that is right:

- what was signed longer ago than the broker keeps anything, and clocks may
  differ, is refused;
- a process remembers the parcels that it has acknowledged, the last
  `MOST_REMEMBERED` of them, and refuses those: after that, the broker has no
  reason to deliver one again but a lost acknowledgement. One that was received
  and not acknowledged passes, however often it comes;
- every event's `event_id` is under the signature, so that what another replica
  or one before a restart has handled is known to a handler that remembers ids.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from celery_broadcast.relay.transport import Parcel
from celery_broadcast.settings import check_key

MOST_REMEMBERED = 100_000
"""Parcels that a verifier knows again; some 20 MB."""

MOST_SECONDS_APART = 300.0
"""By how much the clock of who signs may be ahead or behind."""

SENT_AGAIN = "The parcel has been acknowledged here before: it was sent again."
"""Why `Verifier.refusal` refuses what is known: the only reason to forget a parcel at once."""

_VERSION = "v1"
_LONGEST_SIGNATURE = 200
_LONGEST_TIME = 12  # digits
_NONCE_BYTES = 16
_MAC_BYTES = 32

#: A key, or several of them while one takes over from another: all are accepted, the first signs.
Key: TypeAlias = str | bytes | Sequence[str | bytes]


class Signer:
    """Signs parcels. May be used on any thread.

    Args:
        key: `broadcast_relay_key`; of several, the first.
        clock: tells the time, in seconds since 1970.

    Raises:
        ConfigurationError: the key is none, or too short.
    """

    def __init__(self, key: Key, clock: Callable[[], float] = time.time) -> None:
        self._key = check_key("broadcast_relay_key", key)[0]
        self._clock = clock

    def sign(self, parcel: Parcel) -> Parcel:
        """Return the parcel with a new signature."""
        signed_at, nonce = str(int(self._clock())), secrets.token_hex(_NONCE_BYTES)
        mac = _mac(self._key, parcel, signed_at, nonce)
        signature = f"{_VERSION};t={signed_at};n={nonce};{mac.hex()}"
        return msgspec.structs.replace(parcel, signature=signature)


class Verifier:
    """Tells which parcels to open. For one group, and one thread.

    Each group needs its own: all of them get the same parcels.

    Args:
        key: `broadcast_relay_key`; of several, each is good.
        max_age: seconds after which a signature counts no more, and
            `MOST_SECONDS_APART`. Not less than the broker keeps a parcel for,
            `Limits.ttl`: what has waited is no replay.
        clock: tells the time, in seconds since 1970.

    Raises:
        ConfigurationError: the key is none, or too short.
    """

    def __init__(self, key: Key, max_age: float, clock: Callable[[], float] = time.time) -> None:
        self._keys = check_key("broadcast_relay_key", key)
        self._max_age = max_age
        self._clock = clock
        self._acknowledged: OrderedDict[str, None] = OrderedDict()

    def refusal(self, parcel: Parcel) -> str:
        """Return why a parcel isn't to be opened; "" if it is. Never raises."""
        if not parcel.signature:
            return "The parcel is not signed, and with broadcast_relay_key set all must be."
        parts = _parts_of(parcel.signature)
        if parts is None:
            return "The signature of the parcel has no form that is known."
        signed_at, nonce, mac = parts
        # Every key is tried, so that how long it takes tells nothing.
        matches = [
            hmac.compare_digest(_mac(key, parcel, signed_at, nonce), mac) for key in self._keys
        ]
        if not any(matches):
            return (
                "The signature of the parcel is not by broadcast_relay_key: it was changed on its "
                "way, or who sent it has another key."
            )
        if nonce in self._acknowledged:
            return SENT_AGAIN
        return self._refusal_of_age(self._clock() - int(signed_at))

    def _refusal_of_age(self, age: float) -> str:
        if age > self._max_age + MOST_SECONDS_APART:
            return (
                f"The parcel was signed {age:.0f} s ago, and at most {self._max_age:.0f} s are "
                "accepted: it is an old one that was sent again, or the clocks differ."
            )
        if age < -MOST_SECONDS_APART:
            return f"The parcel was signed {-age:.0f} s ahead of now: the clocks differ."
        return ""

    def acknowledged(self, parcel: Parcel) -> None:
        """Remember a parcel that was opened and is acknowledged: it is not to come again.

        Not one that was refused: whoever has changed it would have the real one refused, too.
        """
        parts = _parts_of(parcel.signature)
        if parts is None:
            return
        self._acknowledged[parts[1]] = None
        while len(self._acknowledged) > MOST_REMEMBERED:
            self._acknowledged.popitem(last=False)


def _mac(key: bytes, parcel: Parcel, signed_at: str, nonce: str) -> bytes:
    parts = [
        *(text.encode("utf-8", "surrogatepass") for text in (_VERSION, signed_at, nonce)),
        *(text.encode("utf-8", "surrogatepass") for text in (parcel.event_type, parcel.task_name)),
        parcel.body,
    ]
    # Each behind its length, so that no two parcels make the same bytes.
    signed = b"".join(piece for part in parts for piece in (b"%d:" % len(part), part))
    return hmac.digest(key, signed, "sha256")


def _parts_of(signature: str) -> tuple[str, str, bytes] | None:
    """Return when it was signed, the nonce and the MAC; None if that is no signature."""
    if len(signature) > _LONGEST_SIGNATURE or not signature.isascii():
        return None
    parts = signature.split(";")
    if len(parts) != 4 or parts[0] != _VERSION:  # noqa: PLR2004  # version, time, nonce, MAC
        return None
    signed_at, nonce = parts[1].removeprefix("t="), parts[2].removeprefix("n=")
    if not (signed_at.isdigit() and len(signed_at) <= _LONGEST_TIME):
        return None
    mac = _bytes_of(parts[3])
    if len(_bytes_of(nonce)) != _NONCE_BYTES or len(mac) != _MAC_BYTES:
        return None
    return signed_at, nonce, mac


def _bytes_of(hexadecimal: str) -> bytes:
    try:
        return bytes.fromhex(hexadecimal)
    except ValueError:
        return b""
