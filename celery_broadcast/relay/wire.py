"""Events as they travel: a parcel is a JSON array of CloudEvents 1.0, the batch form.

```json
[{"specversion": "1.0", "type": "io.celery.task.failed", "source": "/celery/shop/web-1",
  "id": "b1946ac9:17", "subject": "shop.tasks.charge", "time": "2026-11-22T20:27:32.25Z",
  "datacontenttype": "application/json", "schemaversion": "1.0", "producer": "b1946ac9",
  "sequence": "0000000000000017", "tasksequence": "0000000000000003", "taskid": "5f3c...",
  "data": {"exception_type": "shop.errors.CardDeclined", "args": ["42"], "...": "..."}}]
```

`data` has the fields of the event under their own names, but for those that are
attributes of the CloudEvent: `taskid`, `subject` (the task's name), `rootid` and
`id`. The trace context in the job's headers is in attributes too, those of
CloudEvents' distributed tracing extension. What has its default value is left
out. The type is that of the event in lower case without "Job", after
"io.celery.task.".

What is read makes the event types of `EVENT_TYPES` and plain JSON values,
nothing else: no class is looked up but Python's own exceptions, nothing is
imported. Unknown attributes and fields are ignored. A later schema version
adds fields as long as the number before its dot is the same.
"""

from __future__ import annotations

import builtins
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from celery_broadcast.errors import ConfigurationError, WireError
from celery_broadcast.events import EVENT_TYPES, Event, JobEnded, JobEvent, qualified_name
from celery_broadcast.relay.payload import (
    MOST_CHARACTERS,
    converter,
    cut,
    encodable,
    items_of,
    pairs_of,
    text_of,
)
from celery_broadcast.relay.redaction import Redact, Redaction, without_data
from celery_broadcast.relay.trace_context import (
    TRACEPARENT,
    TRACESTATE,
    parent_in,
    state_in,
    with_context,
)
from celery_broadcast.relay.transport import Limits, Parcel
from celery_broadcast.settings import shown

logger: logging.Logger = logging.getLogger(__name__)

SCHEMA_VERSION = "1.0"
"""Of what is written. What has another number before the dot is not read."""

MOST_EVENTS = 100
"""In a parcel that is written."""

MOST_BYTES = 1024 * 1024
"""Of a parcel that is written."""

MOST_EVENTS_READ = 1000
"""In a parcel that is read."""

TYPE_PREFIX = "io.celery.task."

_MOST_OF_MESSAGE = 10_000  # characters of an exception's message
_MOST_OF_TEXT = 65_536  # and of its traceback, of which the last are kept
_MOST_OF_ERROR = 300  # of why something isn't read
_MOST_OF_NAME = 255  # of a producer or a source
_MOST_BASES = 64  # of the classes above an exception's
_MOST_DIGITS = 20
_DEEPEST = 4  # what is in an event: the CloudEvent, data, args, an argument

#: The fields of an event that are attributes of its CloudEvent, or don't travel.
_NOT_IN_DATA = frozenset({"task_id", "task_name", "root_id", "event_id", "exception_class"})
_TYPES_IN_DATA: Mapping[str, Any] = {
    "args": tuple[Any, ...] | None,
    "kwargs": dict[str, Any] | None,
    "headers": dict[str, Any] | None,
}

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Number = Annotated[str, msgspec.Meta(min_length=1, max_length=_MOST_DIGITS)]

#: What decoding what a stranger has written may raise: never all of it, but no more than that.
_DECODING_ERRORS = (
    *(msgspec.MsgspecError, UnicodeError),
    *(OverflowError, RecursionError, MemoryError),
)


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class CloudEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event on its way.

    `data` has an event's fields, but for those that are attributes here. Those
    with their default value may be left out, unknown ones are to be ignored.
    """

    specversion: Literal["1.0"]
    id: Annotated[_Name, _about("producer, a colon, and sequence: the same on every delivery")]
    source: Annotated[_Name, _about("the app or the node that the event comes from")]
    type: str
    schemaversion: Annotated[str, _about("of this schema; the same number before the dot fits")]
    producer: Annotated[_Name, _about("the process that the event comes from, each start its own")]
    sequence: Annotated[_Number, _about("counts the events of the producer, from 1")]
    tasksequence: Annotated[
        _Number | None, _about("counts those of them with the same type and subject, from 1")
    ] = None
    data: Any
    subject: Annotated[str, _about("the name of the task")] = ""
    time: Annotated[
        Annotated[datetime, msgspec.Meta(tz=True)] | None, _about("when it happened")
    ] = None
    datacontenttype: Literal["application/json"] | None = None
    taskid: Annotated[str, _about("the id of the job")] = ""
    rootid: Annotated[str | None, _about("the id of the first job of the workflow")] = None
    payload: Annotated[str, _about("how the job's values travel: text, or json")] = "text"
    failures: Annotated[
        int, msgspec.Meta(ge=0, le=2**31 - 1), _about("how often a consumer raised on it")
    ] = 0
    error: Annotated[str, _about("what it raised the last time, as text")] = ""
    # Of any kind, so that what is none is ignored, and not the event with it.
    traceparent: Annotated[Any, TRACEPARENT] = None
    tracestate: Annotated[Any, TRACESTATE] = None


class _Versioned(msgspec.Struct):
    """What an event of any version has."""

    schemaversion: Any = None


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was read.

    Attributes:
        event: the event; its `event_id` is set.
        event_id: the same on every delivery.
        producer: the process that it comes from, each start its own.
        sequence: its number among the events of that producer, from 1.
        task_sequence: its number among those with the same type and task, which
            go the same way: a gap is what was dropped or not delivered yet. 0
            if the sender didn't say.
        payload: how the job's values came, "text" or "json".
        failures: how often a consumer of this group raised on it.
        error: what it raised the last time, as text; "" if it never did.
    """

    event: JobEvent
    event_id: str
    producer: str
    sequence: int
    task_sequence: int = 0
    payload: str = "text"
    failures: int = 0
    error: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """An event that can't be read, in a parcel of its own, and why."""

    parcel: Parcel
    error: str


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a parcel had in it, in its order."""

    arrived: list[Arrived]
    refused: list[Refused] = []


class _Codec:
    """How events of one type are written and read."""

    def __init__(self, event_type: type[JobEvent]) -> None:
        # The required ones first, as a struct wants them that is made by place.
        fields = sorted(
            (
                field
                for field in msgspec.structs.fields(event_type)
                if field.name not in _NOT_IN_DATA
            ),
            key=lambda field: not field.required,
        )
        names = [field.name for field in fields]
        literal: Any = Literal
        many: Any = list
        self.event_type: type[JobEvent] = event_type
        self.cloud_type: str = TYPE_PREFIX + event_type.__name__.removeprefix("Job").lower()
        self.has_result: bool = "result" in names
        self.has_exception: bool = "exception_type" in names
        self.values_of = attrgetter(*names)
        self.data: Any = msgspec.defstruct(
            f"{event_type.__name__}Data",
            [_field_of_data(field) for field in fields],
            omit_defaults=True,
            module=__name__,
        )
        self.cloud_event: Any = msgspec.defstruct(
            event_type.__name__,
            [("type", literal[self.cloud_type]), ("data", self.data)],
            bases=(CloudEvent,),
            namespace={"__doc__": inspect.getdoc(CloudEvent)},
            kw_only=True,
            omit_defaults=True,
            module=__name__,
        )
        self.decode_one: Callable[[bytes], Any] = msgspec.json.Decoder(self.cloud_event).decode
        self.decode_several: Callable[[bytes], Any] = msgspec.json.Decoder(
            many[self.cloud_event]
        ).decode


def _field_of_data(field: msgspec.structs.FieldInfo) -> Any:
    kind = _TYPES_IN_DATA.get(field.name, field.type)
    return (field.name, kind) if field.required else (field.name, kind, field.default)


_CODECS = {name: _Codec(event_type) for name, event_type in EVENT_TYPES.items()}
_encode = msgspec.json.Encoder().encode
_decode_version = msgspec.json.Decoder(_Versioned).decode
# Not a list: that keeps all that is there, and sixteen million bytes of "0,0," become a thousand.
_decode_raws = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Raws",
        [(f"event_{number}", msgspec.Raw, None) for number in range(MOST_EVENTS_READ + 1)],
        array_like=True,
    )
).decode
_decode_attributes = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def cloud_event_type(event_type: str) -> Any:
    """Return the struct of a CloudEvent that an event of a type of that name travels in."""
    return _CODECS[event_type].cloud_event


def names_on_the_wire(events: Iterable[type[Event]]) -> tuple[str, ...]:
    """Return the names of the event types that a remote consumer gets which asks for these."""
    wanted = tuple(events)
    return tuple(name for name, known in EVENT_TYPES.items() if issubclass(known, wanted))


# Writing.


class Writer:
    """Makes parcels out of the events of one process. Belongs to one thread.

    Args:
        producer_id: names this process, and this start of it; no other has the same.
        source: what it is a process of, such as "/celery/shop/web-1".
        redact: the user's function that sees every event before it leaves.

    Attributes:
        redaction: asks it, and counts.
        shortened: how many events went without the job's data, as they were too big.
        foreign: how many were none of `EVENT_TYPES`, and were left out.

    Raises:
        ConfigurationError: the producer or the source is no name.
    """

    def __init__(self, producer_id: str, source: str, redact: Redact | None = None) -> None:
        self._producer = _name("producer_id", producer_id)
        self._source = quote(_name("source", source), safe="/:@!$&'()*+,;=-._~")
        self.redaction: Redaction = Redaction(redact)
        self.shortened: int = 0
        self.foreign: int = 0
        self._sequence = 0
        self._task_sequences: dict[tuple[str, str], int] = {}

    def parcels(self, events: Iterable[Event], payload: str = "text") -> list[Parcel]:
        """Return parcels with these events, each with the next number of this process.

        Events of one type and one task go together, in their order, at most
        `MOST_EVENTS` and `MOST_BYTES` of them. Whatever an event has in it, this
        doesn't raise.

        Args:
            events: the events.
            payload: how the job's values travel, "text" or "json".
        """
        latest: dict[tuple[str, str], _Bundle] = {}
        bundles: list[_Bundle] = []
        for event in events:
            redacted = self._redacted(event)
            if redacted is None:
                continue
            lane = type(redacted).__name__, _text(redacted.task_name)
            parent = parent_in(event.headers)  # type: ignore[attr-defined]  # one of a job
            encoded = self._encoded(redacted, lane, payload, parent)
            bundle = latest.get(lane)
            if bundle is None or not bundle.has_room_for(encoded):
                bundle = latest[lane] = _Bundle(lane)
                bundles.append(bundle)
            bundle.add(encoded)
        return [bundle.parcel() for bundle in bundles]

    def _redacted(self, event: Event) -> JobEvent | None:
        if isinstance(event, JobEvent) and EVENT_TYPES.get(type(event).__name__) is type(event):
            return self.redaction.apply(event)
        if not self.foreign:
            logger.warning(
                "%s is not sent to remote consumers: only the events of jobs travel, and none "
                "of your own. It is said once",
                type(event).__name__,
            )
        self.foreign += 1
        return None

    def _encoded(
        self, event: JobEvent, lane: tuple[str, str], payload: str, parent: str | None
    ) -> bytes:
        self._sequence += 1
        self._task_sequences[lane] = self._task_sequences.get(lane, 0) + 1
        try:
            encoded = _encode(self._cloud_event(event, lane, payload, parent))
        except Exception:  # noqa: BLE001  # nearly always a text that UTF-8 can't say
            bare = self._cloud_event(event, lane, "text", parent)
            encoded = _encode(_plain(bare, _MOST_OF_TEXT))
        if len(encoded) + 2 > MOST_BYTES:
            self.shortened += 1
            bare = self._cloud_event(without_data(event), lane, "text", parent)
            encoded = _encode(_plain(bare, MOST_CHARACTERS))
        return encoded

    def _cloud_event(
        self, event: JobEvent, lane: tuple[str, str], payload: str, parent: str | None
    ) -> Any:
        event_type, task_name = lane
        codec = _CODECS[event_type]
        data = codec.data(*codec.values_of(event))
        _prepare(data, codec, event, payload)
        return codec.cloud_event(
            specversion="1.0",
            id=f"{self._producer}:{self._sequence}",
            source=self._source,
            type=codec.cloud_type,
            subject=task_name,
            time=_time_of(event),
            datacontenttype="application/json",
            schemaversion=SCHEMA_VERSION,
            producer=self._producer,
            # Of one length, so that their order as texts is theirs as numbers.
            sequence=f"{self._sequence:016d}",
            tasksequence=f"{self._task_sequences[lane]:016d}",
            taskid=_text(event.task_id),
            rootid=_text_or_none(event.root_id),
            payload=payload,
            data=data,
            # A redaction may take the headers, but these are numbers, and of nobody.
            traceparent=parent,
            tracestate=None if parent is None else state_in(event.headers),
        )


class _Bundle:
    """The encoded events that will be a parcel."""

    def __init__(self, lane: tuple[str, str]) -> None:
        self._lane = lane
        self._encoded: list[bytes] = []
        self._bytes = 2

    def has_room_for(self, encoded: bytes) -> bool:
        return len(self._encoded) < MOST_EVENTS and self._bytes + len(encoded) < MOST_BYTES

    def add(self, encoded: bytes) -> None:
        self._encoded.append(encoded)
        self._bytes += len(encoded) + 1

    def parcel(self) -> Parcel:
        event_type, task_name = self._lane
        return Parcel(event_type=event_type, task_name=task_name, body=_array_of(self._encoded))


def _array_of(encoded: Sequence[bytes]) -> bytes:
    return b"[%b]" % b",".join(encoded)


def _name(option: str, value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= _MOST_OF_NAME:
        return encodable(value)
    msg = f"{option}={shown(value)} is no name. Pass a text of 1 to {_MOST_OF_NAME} characters."
    raise ConfigurationError(msg)


def _prepare(data: Any, codec: _Codec, event: JobEvent, payload: str) -> None:
    """Make what only this process understands, or is too long, into what can travel."""
    if data.args is not None:
        data.args = items_of(data.args, converter(payload))
    if data.kwargs is not None:
        data.kwargs = pairs_of(data.kwargs, converter(payload))
    if data.headers is not None:
        data.headers = pairs_of(data.headers, text_of)
    # A client that is not Celery may have sent anything as these, and a redaction left it.
    data.parent_id = _text_or_none(data.parent_id)
    data.group_id = _text_or_none(data.group_id)
    data.worker = _text(data.worker)
    data.retries = data.retries if type(data.retries) is int else 0
    if codec.has_result and data.result is not None:
        data.result = converter(payload)(data.result)
    if codec.has_exception:
        data.exception_message = cut(_text(data.exception_message), _MOST_OF_MESSAGE)
        data.traceback = _text(data.traceback)[-_MOST_OF_TEXT:]
        if not data.exception_bases:
            kind = event.exception_class  # type: ignore[attr-defined]
            data.exception_bases = _names_above(kind) if isinstance(kind, type) else ()


@lru_cache(maxsize=1024)
def _names_above(kind: type[BaseException]) -> tuple[str, ...]:
    return tuple(qualified_name(base) for base in kind.__mro__[1:-1])[:_MOST_BASES]


def _text(value: Any) -> str:
    return value if type(value) is str else text_of(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _time_of(event: JobEvent) -> datetime | None:
    """Return when it happened, None if it doesn't say or says no time."""
    seconds = event.ended_at if isinstance(event, JobEnded) else event.started_at
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError, TypeError):
        return None


def _plain(value: Any, most: int, depth: int = 0) -> Any:
    """Return a value with no text in it that is longer, or that UTF-8 can't say.

    What JSON can't say, or is deeper than an event is, becomes text.
    """
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if value is None or isinstance(value, bool | float | datetime):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, dict) and depth < _DEEPEST:
        items = value.items()
        return {_plain(_text(key), most): _plain(item, most, depth + 1) for key, item in items}
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return [_plain(item, most, depth + 1) for item in value]
    return cut(encodable(value if isinstance(value, str) else text_of(value)), most)


# Reading.


def read(parcel: Parcel, limits: Limits) -> Contents:
    """Return what is in a parcel; what can't be read of it beside what can.

    Raises:
        WireError: nothing of it can be told apart; says what is wrong.
    """
    codec = _codec_of(parcel)
    _check_size(parcel, limits)
    try:
        cloud_events = codec.decode_several(parcel.body)
    except _DECODING_ERRORS:
        return _read_one_by_one(parcel, codec)
    _check_count(cloud_events)
    try:
        return Contents(arrived=[_arrived(each, parcel, codec) for each in cloud_events])
    except WireError:
        return _read_one_by_one(parcel, codec)


def in_text(arrived: Arrived) -> Arrived:
    """Return an event as one gets it who hasn't asked for JSON, though somebody else has."""
    if arrived.payload != "json":
        return arrived
    event = arrived.event
    changes: dict[str, Any] = {}
    if event.args is not None:
        changes["args"] = tuple(map(text_of, event.args))
    if event.kwargs is not None:
        changes["kwargs"] = {name: text_of(value) for name, value in event.kwargs.items()}
    if getattr(event, "result", None) is not None:
        changes["result"] = text_of(event.result)  # type: ignore[attr-defined]  # as just seen
    as_text = msgspec.structs.replace(event, **changes)
    return msgspec.structs.replace(arrived, event=as_text, payload="text")


def split(parcel: Parcel, limits: Limits) -> list[Parcel]:
    """Return a parcel for each event in it, unsigned, with whatever they are, byte for byte.

    Raises:
        WireError: they can't be told apart.
    """
    _check_size(parcel, limits)
    return [_alone(parcel, raw) for raw in _raws_of(parcel)]


def failed_again(parcel: Parcel, arrived: Arrived, error: str) -> Parcel:
    """Return an event in a parcel of its own, unsigned, that says it has failed once more.

    All else in it stays as it came, also what this version doesn't know.

    Args:
        parcel: the one that was read, with this event in it.
        arrived: the event.
        error: what the consumer raised, as text.

    Raises:
        WireError: there is no such event in it.
    """
    codec = _codec_of(parcel)
    for raw in _raws_of(parcel):
        try:
            cloud_event: CloudEvent = codec.decode_one(raw)
        except _DECODING_ERRORS:
            continue  # one of those that were refused
        if cloud_event.id == arrived.event_id:
            attributes = _attributes_of(raw, cloud_event)
            attributes["failures"] = msgspec.Raw(_encode(arrived.failures + 1))
            attributes["error"] = msgspec.Raw(_encode(cut(encodable(error))))
            return _alone(parcel, _encode(attributes))
    msg = f"There is no event {arrived.event_id!r} in this parcel."
    raise WireError(msg)


def _attributes_of(raw: bytes, cloud_event: CloudEvent) -> dict[str, msgspec.Raw]:
    try:
        return _decode_attributes(raw)
    except _DECODING_ERRORS:  # one that this version doesn't know has no name: it was not looked at
        return _decode_attributes(_encode(cloud_event))


def _codec_of(parcel: Parcel) -> _Codec:
    codec = _CODECS.get(parcel.event_type)
    if codec is None:
        msg = (
            f"{_quoted(parcel.event_type)} is no event type that this version knows. It knows "
            f"{', '.join(_CODECS)}; a later version of celery-broadcast may know more."
        )
        raise WireError(msg)
    return codec


def _check_size(parcel: Parcel, limits: Limits) -> None:
    if len(parcel.body) > limits.max_parcel_bytes:
        msg = (
            f"The parcel has {len(parcel.body)} bytes, and at most {limits.max_parcel_bytes} "
            "are read."
        )
        raise WireError(msg)


def _check_count(events: Sequence[object]) -> None:
    if not events:
        msg = "The parcel is empty."
        raise WireError(msg)
    if len(events) > MOST_EVENTS_READ:
        msg = f"The parcel has more than {MOST_EVENTS_READ} events, and no more are read."
        raise WireError(msg)


def _raws_of(parcel: Parcel) -> list[bytes]:
    try:
        decoded = msgspec.structs.astuple(_decode_raws(parcel.body))
    except _DECODING_ERRORS as error:
        msg = f"The parcel is no JSON array of CloudEvents: {_quoted(error)}"
        raise WireError(msg) from None
    raws = [bytes(raw) for raw in decoded if raw is not None]
    _check_count(raws)
    return raws


def _alone(parcel: Parcel, raw: bytes) -> Parcel:
    return msgspec.structs.replace(parcel, body=_array_of([raw]), signature="")


def _read_one_by_one(parcel: Parcel, codec: _Codec) -> Contents:
    arrived, refused = [], []
    for raw in _raws_of(parcel):
        try:
            arrived.append(_read_one(raw, parcel, codec))
        except WireError as error:
            refused.append(Refused(parcel=_alone(parcel, raw), error=str(error)))
    return Contents(arrived=arrived, refused=refused)


def _read_one(raw: bytes, parcel: Parcel, codec: _Codec) -> Arrived:
    """Read one event.

    Raises:
        WireError: it can't be read.
    """
    try:
        version = _decode_version(raw).schemaversion
    except _DECODING_ERRORS as error:
        msg = f"The event is no JSON object: {_quoted(error)}"
        raise WireError(msg) from None
    _check_version(version)  # first: of another one, nothing else need be as it is in ours
    try:
        return _arrived(codec.decode_one(raw), parcel, codec)
    except _DECODING_ERRORS as error:
        msg = f"The event is no {codec.cloud_type}: {_quoted(error)}"
        raise WireError(msg) from None


def _check_version(version: Any) -> None:
    if version == SCHEMA_VERSION:
        return
    major, dot, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    if not (dot and _is_number(major) and _is_number(minor)):
        msg = (
            f"schemaversion is {_quoted(version)}, and should be a version such as "
            f"{SCHEMA_VERSION!r}."
        )
        raise WireError(msg)
    ours = SCHEMA_VERSION.partition(".")[0]
    if int(major) != int(ours):
        msg = (
            f"The event has schema version {version}, and {ours}.x is read here. If it is a later "
            "one, update celery-broadcast here, and replay the event."
        )
        raise WireError(msg)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def _number(attribute: str, text: str) -> int:
    if text.isdigit() and text.isascii():  # its length was seen to as it was decoded
        return int(text)
    msg = f"{attribute} is {_quoted(text)}, and should be a whole number as text."
    raise WireError(msg)


def _arrived(cloud_event: CloudEvent, parcel: Parcel, codec: _Codec) -> Arrived:
    _check_version(cloud_event.schemaversion)
    if cloud_event.subject != parcel.task_name:
        msg = (
            f"The event is of the task {_quoted(cloud_event.subject)}, but came as one of "
            f"{_quoted(parcel.task_name)}."
        )
        raise WireError(msg)
    fields = msgspec.structs.asdict(cloud_event.data)
    if codec.has_exception:
        names = (fields["exception_type"], *fields["exception_bases"])
        fields["exception_class"] = _nearest_class(names)
    parent, state = cloud_event.traceparent, cloud_event.tracestate
    fields["headers"] = with_context(fields["headers"], parent, state)
    event = codec.event_type(
        task_id=cloud_event.taskid,
        task_name=cloud_event.subject,
        root_id=cloud_event.rootid,
        event_id=cloud_event.id,
        **fields,
    )
    task_sequence = cloud_event.tasksequence
    return Arrived(
        event=event,
        event_id=cloud_event.id,
        producer=cloud_event.producer,
        sequence=_number("sequence", cloud_event.sequence),
        task_sequence=_number("tasksequence", task_sequence) if task_sequence is not None else 0,
        payload=cloud_event.payload,
        failures=cloud_event.failures,
        error=cloud_event.error,
    )


#: What the name of an exception on the wire can stand for: nothing is looked up elsewhere.
_EXCEPTIONS: Mapping[str, type[BaseException]] = {
    qualified_name(kind): kind
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}


def _nearest_class(names: Iterable[str]) -> type[BaseException]:
    return next((_EXCEPTIONS[name] for name in names if name in _EXCEPTIONS), Exception)


def _quoted(value: object) -> str:
    """Return what a stranger wrote, or what is wrong with it, as a part of a message."""
    is_error = isinstance(value, BaseException)
    text = str(value) or type(value).__name__ if is_error else text_of(value)
    return encodable(cut(text, _MOST_OF_ERROR))
