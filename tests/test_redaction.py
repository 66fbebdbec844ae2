from __future__ import annotations

from typing import Any

import msgspec
import pytest
from recorder import make_event

from celery_broadcast.events import EVENT_TYPES, JobEvent, JobFailed, JobFinished, JobStarted
from celery_broadcast.relay.redaction import Redaction, without_data

SECRET = "4111-1111"  # noqa: S105  # what must not leave

PRIVATE: dict[str, Any] = {
    "args": (SECRET,),
    "kwargs": {"card": SECRET},
    "headers": {"card": SECRET},
    "result": SECRET,
    "exception_message": SECRET,
    "traceback": SECRET,
}


def private(event_type: type[JobEvent]) -> JobEvent:
    fields = {name: PRIVATE[name] for name in event_type.__struct_fields__ if name in PRIVATE}
    return make_event(event_type, **fields)


def all_of(event: JobEvent) -> str:
    return str(msgspec.structs.asdict(event))


def broken(event: JobEvent) -> JobEvent:
    raise LookupError(event.task_id)


def test_without_a_function_every_event_leaves_as_it_is() -> None:
    event = private(JobStarted)

    assert Redaction(None).apply(event) is event


def test_what_the_function_returns_is_what_leaves() -> None:
    redaction = Redaction(lambda event: msgspec.structs.replace(event, args=("...",)))

    assert redaction.apply(private(JobStarted)) == msgspec.structs.replace(
        private(JobStarted), args=("...",)
    )
    assert (redaction.kept_back, redaction.failures) == (0, 0)


def test_an_event_that_the_function_keeps_back_is_counted() -> None:
    redaction = Redaction(lambda event: None)

    assert redaction.apply(private(JobStarted)) is None
    assert (redaction.kept_back, redaction.failures) == (1, 0)


@pytest.mark.parametrize("event_type", EVENT_TYPES.values())
def test_where_the_function_raises_nothing_of_the_job_leaves(event_type: type[JobEvent]) -> None:
    redaction = Redaction(broken)

    redacted = redaction.apply(private(event_type))

    assert redacted == make_event(
        event_type, **({"exception_message": ""} if event_type in _WITH_MESSAGE else {})
    )
    assert SECRET in all_of(private(event_type))
    assert SECRET not in all_of(redacted)
    assert redaction.failures == 1


_WITH_MESSAGE = [
    event_type
    for event_type in EVENT_TYPES.values()
    if "exception_message" in event_type.__struct_fields__
]


@pytest.mark.parametrize("answer", [7, "event", {}, make_event(JobFinished)], ids=type)
def test_where_the_function_returns_no_such_event_nothing_of_the_job_leaves(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    redaction = Redaction(lambda event: answer)

    assert redaction.apply(private(JobStarted)) == without_data(private(JobStarted))
    assert redaction.failures == 1
    assert f"returned a {type(answer).__name__}, not a JobStarted or None" in caplog.text


def test_a_function_that_fails_on_many_events_is_said_once_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redaction = Redaction(broken)

    for _ in range(1000):
        redaction.apply(private(JobFailed))

    assert redaction.failures == 1000
    (record,) = caplog.records
    assert record.getMessage() == (
        "broadcast_redact raised LookupError on JobFailed shop.charge[id-1]; the event is sent "
        "without its args, kwargs, headers, result, message and traceback"
    )
    assert record.exc_info is not None
