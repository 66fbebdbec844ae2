"""The trace context of a job, as W3C has it, in headers and on the wire.

It travels as CloudEvents' distributed tracing extension says, whether or not
anybody has OpenTelemetry. What isn't of W3C's shape doesn't travel, and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

_PARENT = r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$"
_MOST_OF_STATE = 512  # characters, as many as W3C has everybody pass on
_STATE = r"^[ -~\t]+$"

_fits_parent = re.compile(_PARENT.removesuffix("$")).fullmatch
_fits_state = re.compile(_STATE.removesuffix("$")).fullmatch


def _of_text(description: str, **more: Any) -> msgspec.Meta:
    return msgspec.Meta(
        description=description, extra_json_schema={"type": ["string", "null"], **more}
    )


#: What a schema says of them.
TRACEPARENT: msgspec.Meta = _of_text(
    "the span that sent the job, as W3C's Trace Context has it; another is ignored", pattern=_PARENT
)
TRACESTATE: msgspec.Meta = _of_text(
    "what tracing systems have added to it", pattern=_STATE, maxLength=_MOST_OF_STATE
)


def parent_in(headers: Mapping[str, Any] | None) -> str | None:
    """Return the `traceparent` of headers if it is one."""
    return _parent(_value(headers, "traceparent"))


def state_in(headers: Mapping[str, Any] | None) -> str | None:
    """Return the `tracestate` of headers if it may be one."""
    return _state(_value(headers, "tracestate"))


def with_context(
    headers: Mapping[str, Any] | None, parent: object, state: object
) -> Mapping[str, Any] | None:
    """Return headers with what has come beside them, as far as it fits.

    Args:
        headers: those of the job, as they came.
        parent: a `traceparent`, or what a stranger has put in its place.
        state: a `tracestate`, likewise; without a parent it says nothing.
    """
    its_parent = _parent(parent)
    if its_parent is None:
        return headers
    context = {"traceparent": its_parent}
    its_state = _state(state)
    if its_state is not None:
        context["tracestate"] = its_state
    others = dict(headers or {})
    others.pop("tracestate", None)  # of another parent
    return {**others, **context}


def _parent(value: object) -> str | None:
    return value if type(value) is str and _fits_parent(value) else None


def _state(value: object) -> str | None:
    if type(value) is str and len(value) <= _MOST_OF_STATE and _fits_state(value):
        return value
    return None


def _value(headers: object, name: str) -> object:
    """Return one of the headers; a redaction may have put anything in their place."""
    return headers.get(name) if type(headers) is dict else None
