"""Parcels and dead letters as the fields of an entry in a Redis stream, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from celery_broadcast.relay.transport import LATEST_TIME, DeadLetter, Parcel

#: Bytes of what can't be opened that are kept, to be looked at.
KEPT_BYTES = 64 * 1024
#: Bytes of any field but the body.
MAX_NAME_BYTES = 4096

_NEEDED = ("type", "task", "body")
_OF_PARCELS = {*_NEEDED, "signature"}
_OF_LETTERS = ("reason", "error", "deliveries", "put_aside_at")


def fields_of(parcel: Parcel) -> list[str | bytes]:
    """Return the fields and values of a parcel's entry, one after the other."""
    fields: list[str | bytes] = [
        *("type", parcel.event_type, "task", parcel.task_name, "body", parcel.body)
    ]
    if parcel.signature:
        fields += ["signature", parcel.signature]
    return fields


def task_of(fields: Sequence[bytes]) -> str | None:
    """Return the task that an entry names, without a look at the rest; None if it can't be told."""
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"task":
            return value.decode(errors="replace") if len(value) <= MAX_NAME_BYTES else None
    return None


def parcel_of(
    fields: Sequence[bytes], event_type: str | None, max_bytes: int
) -> tuple[Parcel, str]:
    """Return the parcel of an entry, and why it isn't to be opened, "" if it is.

    Args:
        fields: as they came, whoever wrote them.
        event_type: of the stream that it came from; None is any.
        max_bytes: of a body that may be opened.
    """
    refusal = _refusal_of(fields, event_type, max_bytes)
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    if refusal:
        body = found.get(b"body") or repr(_shortened(fields)).encode()
        return Parcel(event_type=event_type or "", task_name="", body=body[:KEPT_BYTES]), refusal
    return (
        Parcel(
            event_type=found[b"type"].decode(),
            task_name=found[b"task"].decode(),
            body=found[b"body"],
            signature=found.get(b"signature", b"").decode(),
        ),
        "",
    )


def _shortened(fields: Sequence[bytes]) -> list[bytes]:
    return [field[:200] for field in fields[:20]]


def _refusal_of(fields: Sequence[bytes], event_type: str | None, max_bytes: int) -> str:
    names = [name[:100].decode(errors="replace") for name in fields[::2]]
    found = dict(zip(names, fields[1::2], strict=False))
    missing = [name for name in _NEEDED if name not in found]
    unknown = [name for name in names if name not in _OF_PARCELS]
    if missing:
        return f"it has no field {missing[0]!r}, so it is no parcel of celery-broadcast"
    if unknown:
        return f"it has a field {unknown[0]!r}, which this version doesn't know"
    if len(found) < len(names):
        return "it has a field twice"
    size = len(found.pop("body"))
    if size > max_bytes:
        return f"its body has {size} bytes, more than the {max_bytes} that are opened"
    return _refusal_of_names(found, event_type)


def _refusal_of_names(found: Mapping[str, bytes], event_type: str | None) -> str:
    """Return what is wrong with the fields but the body."""
    for name, value in found.items():
        if len(value) > MAX_NAME_BYTES:
            return f"its field {name!r} has {len(value)} bytes, more than {MAX_NAME_BYTES}"
        try:
            value.decode()
        except UnicodeDecodeError:
            return f"its field {name!r} isn't UTF-8"
    written = found["type"].decode()
    if event_type is not None and written != event_type:
        return f"it says it is a {written}, among those of {event_type}"
    return ""


def fields_of_letter(letter: DeadLetter) -> list[str | bytes]:
    """Return the fields and values of a dead letter's entry, one after the other."""
    return [
        *fields_of(letter.parcel),
        *("reason", letter.reason, "error", letter.error),
        *("deliveries", str(letter.deliveries), "put_aside_at", repr(letter.put_aside_at)),
    ]


def letter_of(fields: Sequence[bytes], letter_id: str, max_bytes: int) -> DeadLetter:
    """Return the dead letter of an entry, whoever wrote it."""
    pairs = list(zip(fields[::2], fields[1::2], strict=False))
    own = {name.decode(errors="replace"): value for name, value in pairs}
    of_parcel = [
        part
        for name, value in pairs
        if name.decode(errors="replace") not in _OF_LETTERS
        for part in (name, value)
    ]
    parcel, refusal = parcel_of(of_parcel, None, max_bytes)
    reason, error = (own.get(name, b"").decode(errors="replace") for name in ("reason", "error"))
    return DeadLetter(
        parcel=parcel,
        reason=reason or "refused",
        error=error or refusal,
        deliveries=int(_number(own.get("deliveries"))),
        put_aside_at=_number(own.get("put_aside_at")),
        letter_id=letter_id,
    )


def _number(text: bytes | None) -> float:
    try:
        number = float(text or b"0")
    except ValueError:
        return 0.0
    return number if 0 <= number <= LATEST_TIME else 0.0  # neither NaN nor infinity
