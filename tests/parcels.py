"""Events of every kind, and what becomes of them on their way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st
from recorder import make_event

from celery_broadcast.events import EVENT_TYPES, JobEvent, JobFailed, JobRetried, qualified_name
from celery_broadcast.relay.transport import Limits, Parcel
from celery_broadcast.relay.wire import Arrived, Writer, read

LIMITS = Limits()


def make_writer(**options: Any) -> Writer:
    return Writer("producer-1", "/celery/shop/web-1", **options)


def only(parcels: list[Parcel]) -> Parcel:
    (parcel,) = parcels
    return parcel


def parcel_of(events: Iterable[JobEvent], writer: Writer | None = None) -> Parcel:
    """Return the one parcel that these events make."""
    return only((writer or Writer("producer", "/celery/tests")).parcels(events))


def sent(*events: JobEvent, payload: str = "text", **options: Any) -> list[Arrived]:
    """Return the events as they arrive, through one parcel."""
    parcel = only(make_writer(**options).parcels(events, payload))
    contents = read(parcel, LIMITS)
    assert contents.refused == []
    return contents.arrived


def as_json(parcel: Parcel) -> list[dict[str, Any]]:
    decoded: list[dict[str, Any]] = msgspec.json.decode(parcel.body)
    return decoded


def with_body(parcel: Parcel, body: Any) -> Parcel:
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return msgspec.structs.replace(parcel, body=encoded)


def changed(parcel: Parcel, **attributes: Any) -> Parcel:
    """Return the parcel with these attributes in each of its events; None takes one away."""
    events = [{**event, **attributes} for event in as_json(parcel)]
    return with_body(
        parcel,
        [{key: value for key, value in event.items() if value is not None} for event in events],
    )


class Unshowable:
    """What can't be shown."""

    def __repr__(self) -> str:
        msg = "no"
        raise LookupError(msg)


class Endless:
    """What shows another of its kind, and that one another."""

    def __repr__(self) -> str:
        return f"[{Endless()!r}]"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_texts = st.text(max_size=20)
numbers = st.floats(-1e12, 1e12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
odd_values = st.recursive(
    st.sampled_from([Unshowable, Endless, set, list]).flatmap(st.builds)
    | st.sampled_from([b"\xff" * 5000, "\udc80", object, {1}])
    | st.floats()
    | st.integers()
    | st.integers(3, 5000).map(lambda digits: 10**digits)
    | any_texts
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(any_texts | st.integers(), inner),
    max_leaves=8,
)
exception_classes = st.sampled_from([Exception, KeyError, SystemExit, json.JSONDecodeError])


def events(values: st.SearchStrategy[Any], strings: st.SearchStrategy[str] = texts) -> Any:
    """Return a strategy for events of every type, with such values and texts in them."""
    return st.sampled_from(list(EVENT_TYPES.values())).flatmap(
        lambda event_type: _events_of(event_type, values, strings)
    )


def _events_of(
    event_type: type[JobEvent], values: st.SearchStrategy[Any], strings: st.SearchStrategy[str]
) -> Any:
    fields: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("task_id", "task_name", "worker"), strings),
        **dict.fromkeys(("queue", "exchange", "routing_key"), st.none() | strings),
        **dict.fromkeys(("root_id", "parent_id", "group_id"), st.none() | strings),
        "args": st.none() | st.lists(values, max_size=4).map(tuple),
        "kwargs": st.none() | st.dictionaries(strings, values, max_size=4),
        "headers": st.none() | st.dictionaries(strings, values, max_size=4),
        **dict.fromkeys(("retries", "pid"), st.integers(0, 2**31)),
        "started_at": st.none() | numbers,
    }
    own: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("ended_at", "runtime"), numbers),
        "result": values,
        **dict.fromkeys(("state", "exception_message", "traceback"), strings),
        "eta": st.none() | numbers,
        **dict.fromkeys(("requeue", "terminated", "expired"), st.booleans()),
    }
    fields |= {name: own[name] for name in event_type.__struct_fields__ if name in own}
    drawn = st.fixed_dictionaries(fields)
    if issubclass(event_type, JobFailed | JobRetried):
        return st.tuples(drawn, exception_classes).map(
            lambda both: make_event(
                event_type,
                exception_class=both[1],
                exception_type=qualified_name(both[1]),
                **both[0],
            )
        )
    return drawn.map(lambda given: make_event(event_type, **given))
