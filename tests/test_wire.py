from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parcels import (
    LIMITS,
    as_json,
    changed,
    events,
    json_values,
    make_writer,
    odd_values,
    only,
    sent,
    texts,
    with_body,
)
from parcels import any_texts as whatever_texts
from recorder import make_event, numbered

from celery_broadcast.errors import BroadcastError, ConfigurationError, WireError
from celery_broadcast.events import (
    EVENT_TYPES,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobRetried,
    JobStarted,
)
from celery_broadcast.relay import wire
from celery_broadcast.relay.payload import text_of
from celery_broadcast.relay.transport import Limits, Parcel
from celery_broadcast.relay.wire import (
    MOST_BYTES,
    Arrived,
    CloudEvent,
    Writer,
    failed_again,
    in_text,
    names_on_the_wire,
    read,
    split,
)

CONCRETE = pytest.mark.parametrize("event_type", EVENT_TYPES.values())


class CardDeclined(LookupError):  # noqa: N818  # as the README's
    """The user's own."""


class Incident(Event, frozen=True, kw_only=True):
    """The user's own."""


class ChargeFailed(JobFailed, frozen=True, kw_only=True):
    """The user's own kind of failure."""


def a_parcel(*given: JobEvent) -> Parcel:
    return only(make_writer().parcels(given or [make_event(JobStarted)]))


def refusals(parcel: Parcel) -> list[str]:
    return [refused.error for refused in read(parcel, LIMITS).refused]


def refusal(parcel: Parcel) -> str:
    contents = read(parcel, LIMITS)
    assert contents.arrived == []
    (refused,) = contents.refused
    return refused.error


# The form.


def test_an_event_travels_as_a_cloud_event_in_the_batch_form() -> None:
    event = make_event(
        JobFailed,
        task_id="5f3c",
        root_id="5f00",
        args=(42, "four"),
        kwargs={"card": 4},
        exception_class=CardDeclined,
        exception_type="shop.errors.CardDeclined",
        exception_message="declined",
        queue="eu",
        started_at=100.0,
        ended_at=100.25,
        runtime=0.25,
    )

    parcel = a_parcel(event)

    assert (parcel.event_type, parcel.task_name, parcel.signature) == (
        *("JobFailed", "shop.charge", ""),
    )
    assert as_json(parcel) == [
        {
            "specversion": "1.0",
            "id": "producer-1:1",
            "source": "/celery/shop/web-1",
            "type": "io.celery.task.failed",
            "subject": "shop.charge",
            "time": "1970-01-01T00:01:40.250000Z",
            "datacontenttype": "application/json",
            "schemaversion": "1.0",
            "producer": "producer-1",
            "sequence": "0000000000000001",
            "tasksequence": "0000000000000001",
            "taskid": "5f3c",
            "rootid": "5f00",
            "data": {
                "args": ["42", "'four'"],
                "kwargs": {"card": "4"},
                "queue": "eu",
                "started_at": 100.0,
                "ended_at": 100.25,
                "runtime": 0.25,
                "exception_type": "shop.errors.CardDeclined",
                "exception_message": "declined",
                "exception_bases": ["LookupError", "Exception", "BaseException"],
            },
        }
    ]


@CONCRETE
def test_each_event_type_has_a_type_of_its_own_on_the_wire(event_type: type[JobEvent]) -> None:
    (event,) = as_json(a_parcel(make_event(event_type)))

    assert event["type"] == f"io.celery.task.{event_type.__name__[3:].lower()}"


@CONCRETE
def test_an_attribute_has_a_name_that_cloud_events_allow(event_type: type[JobEvent]) -> None:
    (event,) = as_json(a_parcel(make_event(event_type, task_id="1", root_id="2")))

    assert all(name.isascii() and name.isalnum() and name.islower() for name in event)


def test_a_source_is_a_reference_whatever_the_name_of_the_app() -> None:
    writer = Writer("producer-1", "/celery/my shop/celery@wéb-1")

    (event,) = as_json(only(writer.parcels([make_event(JobStarted)])))

    assert event["source"] == "/celery/my%20shop/celery@w%C3%A9b-1"


@pytest.mark.parametrize("value", [None, "", 7, "x" * 256], ids=repr)
@pytest.mark.parametrize("option", ["producer_id", "source"])
def test_a_writer_without_a_name_is_refused(option: str, value: Any) -> None:
    options: dict[str, Any] = {"producer_id": "p", "source": "/celery/shop", option: value}

    with pytest.raises(ConfigurationError, match=f"{option}=.* is no name"):
        Writer(**options)


# Parcels.


def test_events_of_one_type_and_task_go_together_in_their_order() -> None:
    given = [
        make_event(JobStarted, task_id="1"),
        make_event(JobFinished, task_id="1"),
        make_event(JobStarted, task_id="2", task_name="shop.refund"),
        make_event(JobStarted, task_id="3"),
    ]

    parcels = make_writer().parcels(given)

    assert [(parcel.event_type, parcel.task_name) for parcel in parcels] == [
        ("JobStarted", "shop.charge"),
        ("JobFinished", "shop.charge"),
        ("JobStarted", "shop.refund"),
    ]
    ids = [[event["taskid"] for event in as_json(parcel)] for parcel in parcels]
    assert ids == [["1", "3"], ["1"], ["2"]]


def test_no_event_makes_no_parcel() -> None:
    assert make_writer().parcels([]) == []


def test_a_parcel_has_at_most_a_hundred_events() -> None:
    parcels = make_writer().parcels(numbered(250))

    assert [len(as_json(parcel)) for parcel in parcels] == [100, 100, 50]


def test_a_parcel_is_not_too_big_to_be_read() -> None:
    writer = make_writer()
    given = [
        make_event(JobFinished, kwargs={"x": "\x00" * 60_000}, task_id=str(n)) for n in "12345"
    ]

    parcels = writer.parcels(given, "json")

    assert len(parcels) > 1
    assert all(len(parcel.body) <= MOST_BYTES for parcel in parcels)
    arrived = [each.event for parcel in parcels for each in read(parcel, LIMITS).arrived]
    assert [event.kwargs for event in arrived] == [event.kwargs for event in given]


def test_an_event_that_is_too_big_by_itself_goes_without_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 5_000)
    writer = make_writer()
    big = make_event(JobFinished, result="x" * 10_000, worker="w" * 10_000)

    parcel = only(writer.parcels([big], "json"))

    assert writer.shortened == 1
    event: Any = read(parcel, LIMITS).arrived[0].event
    assert (event.result, event.worker) == (None, f"{'w' * 1021}...")


def test_every_event_has_the_next_number_of_its_producer() -> None:
    writer = make_writer()
    given = [make_event(JobStarted), make_event(JobFinished), make_event(JobStarted)]

    parcels = [*writer.parcels(given), *writer.parcels(given)]

    arrived = [each for parcel in parcels for each in read(parcel, LIMITS).arrived]
    assert sorted(each.sequence for each in arrived) == [1, 2, 3, 4, 5, 6]
    assert all(each.event_id == f"producer-1:{each.sequence}" for each in arrived)
    assert all(each.event.event_id == each.event_id for each in arrived)


def test_events_that_go_the_same_way_have_numbers_without_a_gap() -> None:
    writer = make_writer()
    given = [make_event(JobStarted), make_event(JobFinished), make_event(JobStarted)]

    parcels = [*writer.parcels(given), *writer.parcels(given)]

    numbers = [
        (parcel.event_type, each.task_sequence)
        for parcel in parcels
        for each in read(parcel, LIMITS).arrived
    ]
    assert [number for name, number in numbers if name == "JobStarted"] == [1, 2, 3, 4]
    assert [number for name, number in numbers if name == "JobFinished"] == [1, 2]


def test_only_events_of_jobs_are_written_and_others_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = make_writer()
    own: list[Event] = [Incident(), make_event(ChargeFailed), Incident()]

    parcels = writer.parcels([*own, make_event(JobStarted)])

    assert [parcel.event_type for parcel in parcels] == ["JobStarted"]
    assert writer.foreign == 3
    assert [record.getMessage() for record in caplog.records] == [
        (
            "Incident is not sent to remote consumers: only the events of jobs travel, and none of "
            "your own. It is said once"
        )
    ]


def test_what_a_remote_consumer_gets_is_known_by_the_types_it_asks_for() -> None:
    assert names_on_the_wire([JobFailed, JobStarted]) == ("JobStarted", "JobFailed")
    assert names_on_the_wire([JobEvent]) == tuple(EVENT_TYPES)
    assert names_on_the_wire([JobEnded]) == tuple(EVENT_TYPES)[1:]
    assert names_on_the_wire([Event]) == tuple(EVENT_TYPES)


def test_one_who_has_not_asked_for_json_gets_text_where_another_has() -> None:
    event = make_event(JobFinished, args=("42", 7, [1]), kwargs={"to": None}, result={"ok": True})

    (as_json,) = sent(event, payload="json")
    (as_text,) = sent(event, payload="text")

    assert as_json.event.args == ("42", 7, [1])
    assert in_text(as_json) == as_text
    assert in_text(as_text) is as_text
    assert as_text.event.args == ("'42'", "7", "[1]")


def test_what_has_nothing_of_the_job_has_nothing_as_text() -> None:
    (bare,) = sent(make_event(JobFailed, args=None, kwargs=None), payload="json")

    assert in_text(bare).event == bare.event


# There and back.


def as_it_arrives(event: JobEvent, convert: Any = text_of) -> JobEvent:
    """Return what becomes of an event's fields."""
    fields: dict[str, Any] = {"event_id": "producer-1:1"}
    if event.args is not None:
        fields["args"] = tuple(map(convert, event.args))
    if event.kwargs is not None:
        fields["kwargs"] = {key: convert(value) for key, value in event.kwargs.items()}
    if event.headers is not None:
        fields["headers"] = {key: text_of(value) for key, value in event.headers.items()}
    if isinstance(event, JobFinished) and event.result is not None:
        fields["result"] = convert(event.result)
    if isinstance(event, JobFailed | JobRetried):
        names = [f"{base.__module__}.{base.__qualname__}" for base in event.exception_class.__mro__]
        above = [name.removeprefix("builtins.") for name in names[1:-1]]
        fields["exception_bases"] = tuple(above)
        if event.exception_class is json.JSONDecodeError:
            fields["exception_class"] = ValueError
    return msgspec.structs.replace(event, **fields)


@given(events(json_values))
def test_an_event_arrives_as_it_was_with_text_for_the_jobs_own_values(event: JobEvent) -> None:
    (arrived,) = sent(event)

    assert arrived.event == as_it_arrives(event)
    assert type(arrived.event) is type(event)
    assert (arrived.failures, arrived.error) == (0, "")


@given(events(json_values))
def test_an_event_arrives_as_it_was_where_json_was_asked_for(event: JobEvent) -> None:
    (arrived,) = sent(event, payload="json")

    assert arrived.event == as_it_arrives(event, convert=lambda value: value)


@given(st.lists(events(odd_values, whatever_texts), max_size=4), st.sampled_from(["text", "json"]))
def test_whatever_is_in_an_event_it_can_be_sent_and_read(
    given_events: list[JobEvent], payload: str
) -> None:
    parcels = make_writer().parcels(given_events, payload)

    contents = [read(parcel, LIMITS) for parcel in parcels]
    assert [each.refused for each in contents] == [[] for _ in parcels]
    arrived = [each for content in contents for each in content.arrived]
    assert [(type(each.event), each.sequence) for each in sorted(arrived, key=_sequence)] == [
        (type(event), number) for number, event in enumerate(given_events, start=1)
    ]


def _sequence(arrived: Arrived) -> int:
    return arrived.sequence


@pytest.mark.parametrize("value", [{"a": 1}, b"bytes", ["a"], 1.5, 7], ids=str)
def test_an_id_of_an_odd_kind_arrives_as_text(value: Any) -> None:
    event = make_event(
        JobStarted, task_id=value, root_id=value, parent_id=value, group_id=value, worker=value
    )

    (arrived,) = sent(event)

    ids = arrived.event.task_id, arrived.event.root_id, arrived.event.parent_id
    assert (*ids, arrived.event.group_id, arrived.event.worker) == (repr(value),) * 5


@pytest.mark.parametrize("value", ["three", None, 1.5, True], ids=repr)
def test_a_count_of_an_odd_kind_arrives_as_none_at_all(value: Any) -> None:
    (arrived,) = sent(make_event(JobStarted, retries=value))

    assert arrived.event.retries == 0


def test_a_field_that_is_no_such_thing_stops_neither_the_sender_nor_the_other_events() -> None:
    given = [
        msgspec.structs.replace(make_event(JobFinished, task_id="1"), runtime=object()),
        make_event(JobFinished, task_id="2"),
    ]

    contents = read(only(make_writer().parcels(given)), LIMITS)

    assert [each.event.task_id for each in contents.arrived] == ["2"]
    assert "runtime" in contents.refused[0].error


def within_itself(around: Callable[[Any], Any]) -> Any:
    value = around(None)
    value[next(iter(value)) if isinstance(value, dict) else 0] = value
    return value


@pytest.mark.parametrize(
    "value",
    [within_itself(lambda x: [x]), within_itself(lambda x: {"a": x}), {(1, 2): 3}, 2**70, {1}],
    ids=repr,
)
@pytest.mark.parametrize("field", ["queue", "exception_class", "exception_bases", "runtime"])
def test_whatever_a_redaction_puts_into_an_event_its_neighbours_are_sent(
    field: str, value: Any
) -> None:
    given = [
        msgspec.structs.replace(make_event(JobFailed, task_id="1"), **{field: value}),
        make_event(JobFailed, task_id="2"),
    ]

    contents = read(only(make_writer().parcels(given)), LIMITS)

    assert "2" in [each.event.task_id for each in contents.arrived]


def test_a_text_that_was_taken_out_is_shown_as_what_stands_in_its_place() -> None:
    event = make_event(JobFailed, exception_message=None, traceback=None, args="***", kwargs="***")

    arrived: Any = sent(event)[0].event

    assert (arrived.exception_message, arrived.traceback) == ("None", "None")
    assert (arrived.args, arrived.kwargs) == (("'***'",), {"...": "'***'"})


@pytest.mark.parametrize("seconds", [1e30, float("inf"), float("nan"), None], ids=repr)
def test_an_event_at_no_time_can_be_sent(seconds: float | None) -> None:
    (arrived,) = sent(make_event(JobStarted, started_at=seconds))

    assert arrived.event.task_id == "id-1"


def test_long_texts_are_cut() -> None:
    event = make_event(JobFailed, exception_message="m" * 20_000, traceback="t" * 99_999 + "end")

    arrived: Any = sent(event)[0].event

    assert len(arrived.exception_message) == 10_000
    assert arrived.exception_message.endswith("m...")
    assert len(arrived.traceback) == 65_536
    assert arrived.traceback.endswith("tend")


# Exceptions.


def arrived_failure(kind: type[BaseException], name: str) -> Any:
    return sent(make_event(JobFailed, exception_class=kind, exception_type=name))[0].event


def test_an_exception_of_pythons_own_arrives_as_its_class() -> None:
    assert arrived_failure(KeyError, "KeyError").exception_class is KeyError
    assert arrived_failure(SystemExit, "SystemExit").exception_class is SystemExit


def test_another_exception_arrives_as_the_nearest_class_above_it_that_python_has() -> None:
    failure = arrived_failure(CardDeclined, "shop.errors.CardDeclined")

    assert failure.exception_class is LookupError
    assert failure.exception_type == "shop.errors.CardDeclined"
    assert failure.exception_bases == ("LookupError", "Exception", "BaseException")


def test_an_exception_is_known_by_the_same_names_when_its_event_is_sent_on() -> None:
    failure = arrived_failure(CardDeclined, "shop.errors.CardDeclined")

    (arrived,) = sent(failure)

    assert arrived.event == failure


@pytest.mark.parametrize("name", ["print", "object", "int", "os.system", "__import__", ""])
def test_a_name_of_anything_else_is_not_looked_up(name: str) -> None:
    parcel = a_parcel(make_event(JobFailed))
    (event,) = as_json(parcel)
    event["data"] |= {"exception_type": name, "exception_bases": [name]}

    arrived: Any = read(with_body(parcel, [event]), LIMITS).arrived[0].event

    assert arrived.exception_class is Exception


# Old and new.


def test_unknown_attributes_and_fields_are_ignored() -> None:
    parcel = a_parcel(make_event(JobStarted, pid=7))
    (event,) = as_json(parcel)
    event |= {"traceparent": "00-1", "novelty": {"deep": [1]}, "data": {**event["data"], "new": 1}}

    (arrived,) = read(with_body(parcel, [event]), LIMITS).arrived

    assert arrived.event == make_event(JobStarted, pid=7, event_id="producer-1:1")


def test_what_may_be_left_out_has_its_default() -> None:
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/x",
        "type": "io.celery.task.started",
        "schemaversion": "1.0",
        "producer": "p",
        "sequence": "7",
        "data": {},
    }
    parcel = Parcel(event_type="JobStarted", task_name="", body=msgspec.json.encode([event]))

    (arrived,) = read(parcel, LIMITS).arrived

    assert arrived.event == JobStarted(task_id="", task_name="", event_id="1")
    assert (arrived.producer, arrived.sequence, arrived.task_sequence) == ("p", 7, 0)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.99"])
def test_a_later_version_that_fits_is_read(version: str) -> None:
    assert refusals(changed(a_parcel(), schemaversion=version)) == []


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "2.17"])
def test_a_version_that_does_not_fit_is_refused_whatever_else_is_in_it(version: str) -> None:
    assert f"schema version {version}, and 1.x is read here" in refusal(
        changed(a_parcel(), schemaversion=version, sequence=None, data={"args": 1})
    )


@pytest.mark.parametrize(
    "version", ["", "1", ".", "1.", "x.1", "²." + "0", 1.0, [], "9" * 99 + ".0"]
)
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    assert "schemaversion" in refusal(changed(a_parcel(), schemaversion=version))


# What is wrong.


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": None}, "specversion"),
        ({"type": "io.celery.task.failed"}, "type"),
        ({"type": None}, "type"),
        ({"datacontenttype": "text/xml"}, "datacontenttype"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": None}, "id"),
        ({"source": None}, "source"),
        ({"producer": []}, "producer"),
        ({"sequence": 7}, "sequence"),
        ({"sequence": "-7"}, "sequence is '-7'"),
        ({"sequence": "seven"}, "sequence is 'seven'"),
        ({"sequence": "²"}, "sequence is '²'"),
        ({"sequence": "7" * 21}, "sequence"),
        ({"tasksequence": "x"}, "tasksequence is 'x'"),
        ({"subject": "shop.refund"}, "'shop.refund', but came as one of 'shop.charge'"),
        ({"subject": None}, "but came as one of 'shop.charge'"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-01T00:00:00"}, "time"),
        ({"taskid": 7}, "taskid"),
        ({"rootid": 7}, "rootid"),
        ({"failures": -1}, "failures"),
        ({"failures": 2**31}, "failures"),
        ({"error": 1}, "error"),
        ({"data": None}, "data"),
        ({"data": "text"}, "data"),
        ({"data": {"args": "text"}}, "args"),
        ({"data": {"kwargs": [1]}}, "kwargs"),
        ({"data": {"pid": "7"}}, "pid"),
        ({"data": {"pid": 1.5}}, "pid"),
        ({"data": {"started_at": "now"}}, "started_at"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_event_is_named(attributes: dict[str, Any], word: str) -> None:
    assert word in refusal(changed(a_parcel(), **attributes))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"rubbish",
        b"\x80\x04K\x01.",
        b"{}",
        b"null",
        b"7",
        b"[",
        b"[NaN]",
        b"[{]",
        b"[\xff]",
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'[{"a":' * 200_000,
        b"[{}],",
        b"\xef\xbb\xbf[]",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_array_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="no JSON array of CloudEvents"):
        read(with_body(a_parcel(), body), LIMITS)


def test_a_parcel_that_is_cut_off_is_refused_wherever_it_is() -> None:
    parcel = a_parcel()

    for length in range(len(parcel.body)):
        with pytest.raises(WireError):
            read(with_body(parcel, parcel.body[:length]), LIMITS)


def test_an_empty_parcel_is_refused() -> None:
    with pytest.raises(WireError, match="The parcel is empty"):
        read(with_body(a_parcel(), b"[]"), LIMITS)


def test_too_many_events_are_refused() -> None:
    parcel = a_parcel()

    assert len(read(with_body(parcel, as_json(parcel) * 1000), LIMITS).arrived) == 1000
    with pytest.raises(WireError, match="has more than 1000 events, and no more are read"):
        read(with_body(parcel, as_json(parcel) * 1001), LIMITS)
    with pytest.raises(WireError, match="has more than 1000 events"):
        read(with_body(parcel, [0] * 1001), LIMITS)
    assert len(split(with_body(parcel, [0] * 1000), LIMITS)) == 1000


def test_the_size_of_a_parcel_is_looked_at_before_it_is_decoded() -> None:
    limits = Limits(max_parcel_bytes=100)

    for refuse in (read, split):
        with pytest.raises(WireError, match="has 101 bytes, and at most 100 are read"):
            refuse(with_body(a_parcel(), b"[" * 101), limits)


def test_a_parcel_of_an_event_type_that_is_not_known_is_refused() -> None:
    parcel = msgspec.structs.replace(a_parcel(), event_type="JobPaused")

    with pytest.raises(WireError, match="'JobPaused' is no event type that this version knows"):
        read(parcel, LIMITS)


def test_an_error_says_little_of_what_a_stranger_wrote() -> None:
    assert len(refusal(changed(a_parcel(), type="x" * 100_000))) < 500
    assert len(refusal(changed(a_parcel(), subject="x" * 100_000))) < 1000


def test_a_bad_event_does_not_take_the_others_with_it() -> None:
    parcel = a_parcel(*(make_event(JobStarted, task_id=str(number)) for number in range(4)))
    good = as_json(parcel)
    bad = [7, [], "text", {**good[1], "id": 7}, {**good[1], "schemaversion": "2.0"}]

    contents = read(with_body(parcel, [good[0], *bad, good[3]]), LIMITS)

    assert [each.event.task_id for each in contents.arrived] == ["0", "3"]
    assert [as_json(refused.parcel) for refused in contents.refused] == [[each] for each in bad]
    assert "no JSON object" in contents.refused[0].error
    assert {refused.parcel.event_type for refused in contents.refused} == {"JobStarted"}


def test_the_error_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(WireError, BroadcastError)
    assert issubclass(WireError, ValueError)


def opened(parcel: Parcel) -> None:
    """Read a parcel, and expect nothing of it but that it ends in one of the known ways."""
    try:
        contents = read(parcel, LIMITS)
        split(parcel, LIMITS)
    except WireError:
        return
    assert contents.arrived or contents.refused
    assert all(type(each.event) is EVENT_TYPES[parcel.event_type] for each in contents.arrived)
    assert all(refused.error for refused in contents.refused)
    for refused in contents.refused:
        again = read(refused.parcel, LIMITS)
        assert (again.arrived, [each.error for each in again.refused]) == ([], [refused.error])
    for each in contents.arrived:
        failed_again(parcel, each, "again")


@given(st.binary(), st.sampled_from(list(EVENT_TYPES)))
def test_any_bytes_end_in_an_error_of_ours(body: bytes, event_type: str) -> None:
    opened(Parcel(event_type=event_type, task_name="", body=body))


damages = st.tuples(
    st.integers(0, 100_000),
    st.integers(0, 8),
    st.binary(max_size=8) | st.sampled_from([b"null", b"{", b'"']),
)


@given(events(json_values), st.lists(damages, min_size=1, max_size=4))
def test_a_damaged_parcel_ends_in_an_error_of_ours_or_in_events(
    event: JobEvent, damaged: list[tuple[int, int, bytes]]
) -> None:
    parcel = a_parcel(event, event)
    body = bytearray(parcel.body)
    for place, length, instead in damaged:
        start = place % len(body)
        body[start : start + length] = instead

    opened(with_body(parcel, bytes(body)))


attributes = st.dictionaries(st.sampled_from(CloudEvent.__struct_fields__) | texts, json_values)
fields = st.dictionaries(st.sampled_from(JobRetried.__struct_fields__) | texts, json_values)


@given(events(json_values), attributes, fields)
def test_an_event_with_anything_in_it_ends_in_an_error_of_ours_or_in_events(
    event: JobEvent, instead: dict[str, Any], within: dict[str, Any]
) -> None:
    parcel = a_parcel(event)
    (written,) = as_json(parcel)

    for data in (written["data"], {**written["data"], **within}):
        opened(with_body(parcel, [{**written, "data": data, **instead}]))


# Once more.


def test_a_parcel_is_split_into_one_for_each_event_as_they_are() -> None:
    parcel = a_parcel(*(make_event(JobStarted, task_id=str(number)) for number in range(3)))
    written = [{**event, "novelty": 1} for event in as_json(parcel)]
    signed = msgspec.structs.replace(with_body(parcel, [*written, 7]), signature="v1;...")

    parts = split(signed, LIMITS)

    assert [as_json(part) for part in parts] == [*([each] for each in written), [7]]
    assert {(part.event_type, part.task_name, part.signature) for part in parts} == {
        ("JobStarted", "shop.charge", "")
    }


def test_an_event_that_failed_says_how_often_and_is_the_same_event() -> None:
    given = [make_event(JobStarted, task_id=str(number)) for number in range(3)]
    parcel = with_body(a_parcel(), [{**each, "novelty": 1} for each in as_json(a_parcel(*given))])
    first = read(parcel, LIMITS).arrived[1]

    once = failed_again(parcel, first, "OSError: no")
    (second,) = read(once, LIMITS).arrived
    twice = failed_again(once, second, "x" * 5000 + "\ud800")

    assert second == msgspec.structs.replace(first, failures=1, error="OSError: no")
    (third,) = read(twice, LIMITS).arrived
    assert (third.event, third.failures, len(third.error)) == (first.event, 2, 1024)
    assert as_json(twice)[0]["novelty"] == 1


def test_an_event_with_an_attribute_that_has_no_name_can_fail_too() -> None:
    parcel = a_parcel()
    odd = with_body(parcel, parcel.body.replace(b'"specversion"', b'"\x80": 1, "specversion"'))
    (arrived,) = read(odd, LIMITS).arrived

    (again,) = read(failed_again(odd, arrived, "no"), LIMITS).arrived

    assert (again.event, again.failures) == (arrived.event, 1)


def test_an_event_is_found_between_others_that_can_not_be_read() -> None:
    parcel = a_parcel()
    mixed = with_body(parcel, [7, {}, *as_json(parcel)])
    (arrived,) = read(mixed, LIMITS).arrived

    assert read(failed_again(mixed, arrived, "no"), LIMITS).arrived[0].failures == 1


def test_an_event_that_is_not_in_a_parcel_has_not_failed_in_it() -> None:
    (arrived,) = read(a_parcel(), LIMITS).arrived
    other = Arrived(event=arrived.event, event_id="x:1", producer="x", sequence=1)

    with pytest.raises(WireError, match="no event 'x:1'"):
        failed_again(a_parcel(), other, "no")


# The trace context.

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACED = {"traceparent": TRACEPARENT, "tracestate": "shop=1"}
NONE_OF_W3C: tuple[Any, ...] = (
    *("", "no", 5, ["x"], {"x": 1}, f"{TRACEPARENT}\n", f"ff{TRACEPARENT[2:]}"),
    *(f"00-{'0' * 32}-{'1' * 16}-00", f"00-{'1' * 32}-{'0' * 16}-00", TRACEPARENT.upper()),
    "x" * 100_000,
)


def context_of(event: JobEvent) -> dict[str, Any]:
    return {name: (event.headers or {}).get(name) for name in TRACED}


def test_the_trace_context_of_a_job_travels_in_attributes_of_cloud_events() -> None:
    (attributes,) = as_json(a_parcel(make_event(JobStarted, headers=TRACED)))

    assert {name: attributes[name] for name in TRACED} == TRACED


def test_a_job_without_a_trace_context_has_no_such_attributes() -> None:
    (attributes,) = as_json(a_parcel(make_event(JobStarted, headers={"tracestate": "shop=1"})))

    assert not attributes.keys() & TRACED.keys()


def test_a_trace_context_arrives_in_the_headers() -> None:
    parcel = changed(a_parcel(make_event(JobStarted, headers={"shop": "north"})), **TRACED)

    (arrived,) = read(parcel, LIMITS).arrived

    assert arrived.event.headers == {"shop": "'north'", **TRACED}


def test_a_redaction_of_the_headers_leaves_the_parent_but_not_what_others_have_added() -> None:
    (arrived,) = sent(
        make_event(JobStarted, headers=TRACED),
        redact=lambda event: msgspec.structs.replace(event, headers=None),
    )

    assert arrived.event.headers == {"traceparent": TRACEPARENT}


def test_a_redaction_that_fails_leaves_the_parent_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    def redact(event: JobEvent) -> JobEvent:
        raise LookupError

    (arrived,) = sent(make_event(JobStarted, headers={"card": "4111", **TRACED}), redact=redact)

    assert arrived.event.headers == {"traceparent": TRACEPARENT}


def test_a_parent_that_came_by_itself_does_not_get_the_state_of_another() -> None:
    event = make_event(JobStarted, headers=TRACED)
    other = f"{TRACEPARENT[:-2]}00"
    (attributes,) = as_json(a_parcel(event))
    del attributes["tracestate"]

    (arrived,) = read(
        with_body(a_parcel(event), [{**attributes, "traceparent": other}]), LIMITS
    ).arrived

    assert context_of(arrived.event) == {"traceparent": other, "tracestate": None}


@pytest.mark.parametrize("value", NONE_OF_W3C, ids=lambda value: repr(value)[:20])
def test_what_is_no_trace_context_is_ignored_and_the_event_is_read(value: Any) -> None:
    parcel = a_parcel(make_event(JobStarted))
    odd_state = changed(parcel, traceparent=TRACEPARENT, tracestate=["\n"])

    (arrived,) = read(changed(parcel, traceparent=value, tracestate="shop=1"), LIMITS).arrived
    (stateless,) = read(odd_state, LIMITS).arrived

    assert arrived.event.headers is None
    assert stateless.event.headers == {"traceparent": TRACEPARENT}


@pytest.mark.parametrize("value", NONE_OF_W3C, ids=lambda value: repr(value)[:20])
def test_what_is_no_trace_context_does_not_leave_as_one(value: Any) -> None:
    headers = {"traceparent": value, "tracestate": "shop=1"}

    (attributes,) = as_json(a_parcel(make_event(JobStarted, headers=headers)))

    assert not attributes.keys() & TRACED.keys()


@pytest.mark.parametrize("value", ["", "x" * 513, "caf\u00e9=1", "a=1\n", 5])
def test_a_state_that_is_none_stays_behind_and_the_parent_goes(value: Any) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": value}

    (attributes,) = as_json(a_parcel(make_event(JobStarted, headers=headers)))

    assert attributes["traceparent"] == TRACEPARENT
    assert "tracestate" not in attributes


# Redaction.


def test_every_event_is_redacted_before_it_is_written() -> None:
    def redact(event: JobEvent) -> JobEvent | None:
        if event.task_name == "shop.secret":
            return None
        return msgspec.structs.replace(event, kwargs={"card": "..."})

    writer = make_writer(redact=redact)

    parcels = writer.parcels(
        [make_event(JobStarted, "shop.secret"), make_event(JobStarted, kwargs={"card": "4111"})]
    )

    assert b"4111" not in only(parcels).body
    assert [each["sequence"] for each in as_json(only(parcels))] == ["0000000000000001"]
    assert writer.redaction.kept_back == 1


def test_an_event_whose_redaction_fails_leaves_without_its_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    fields = dict.fromkeys(("exception_message", "traceback"), "4111")

    def redact(event: JobEvent) -> JobEvent:
        raise LookupError

    (arrived,) = sent(
        make_event(JobFailed, args=("4111",), kwargs={"4111": 1}, headers={"4111": 1}, **fields),
        redact=redact,
    )

    assert b"4111" not in msgspec.json.encode(as_text(arrived))
    assert arrived.event.task_id == "id-1"


def as_text(arrived: Arrived) -> str:
    return repr(msgspec.structs.asdict(arrived.event))
