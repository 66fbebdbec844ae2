from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_event

from celery_broadcast import events
from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobIgnored,
    JobLost,
    JobRejected,
    JobRetried,
    JobRevoked,
    JobStarted,
)

CONCRETE = pytest.mark.parametrize("event_type", EVENT_TYPES.values())

SECRET = "4111-1111"  # noqa: S105  # what must not be shown


class Unshowable:
    """An argument that can't be shown, and must not be asked to."""

    def __repr__(self) -> str:
        msg = "an event showed its job's data"
        raise AssertionError(msg)


def below(event_type: type[JobEvent]) -> Iterator[type[JobEvent]]:
    for subclass in event_type.__subclasses__():
        yield subclass
        yield from below(subclass)


def test_every_event_type_is_known_by_its_name() -> None:
    ours = {known for known in below(JobEvent) if known.__module__ == events.__name__}

    assert set(EVENT_TYPES.values()) == ours - {JobEnded}
    assert all(name == event_type.__name__ for name, event_type in EVENT_TYPES.items())


def test_every_event_but_a_start_is_an_end() -> None:
    ends = {event_type for event_type in EVENT_TYPES.values() if issubclass(event_type, JobEnded)}

    assert ends == set(EVENT_TYPES.values()) - {JobStarted}


def test_no_event_is_another_one() -> None:
    for event_type in EVENT_TYPES.values():
        below = {kind.__name__ for kind in event_type.__subclasses__()}
        assert not below & set(EVENT_TYPES)


@pytest.mark.parametrize(
    ("event_type", "state"),
    [
        (JobFinished, "SUCCESS"),
        (JobFailed, "FAILURE"),
        (JobRetried, "RETRY"),
        (JobRejected, "REJECTED"),
        (JobIgnored, "IGNORED"),
        (JobRevoked, "REVOKED"),
        (JobLost, "PENDING"),
    ],
)
def test_an_end_knows_celerys_word_for_it(event_type: type[JobEnded], state: str) -> None:
    assert make_event(event_type).state == state


@CONCRETE
def test_an_event_can_be_made_of_what_there_is(event_type: type[JobEvent]) -> None:
    event = make_event(event_type, task_id="", started_at=None)

    assert (event.args, event.kwargs, event.headers, event.queue) == (None, None, None, None)
    assert (event.exchange, event.routing_key, event.group_id) == (None, None, None)
    assert (event.root_id, event.parent_id, event.started_at) == (None, None, None)
    assert (event.retries, event.worker, event.pid, event.event_id) == (0, "", 0, "")


def test_an_end_defaults_to_the_plain_one_of_its_kind() -> None:
    assert make_event(JobFinished).result is None
    assert make_event(JobFailed).traceback == ""
    assert make_event(JobRetried).eta is None
    assert make_event(JobRejected).requeue is False
    assert (make_event(JobRevoked).terminated, make_event(JobRevoked).expired) == (False, False)


@CONCRETE
def test_an_event_is_frozen_in_each_of_its_fields(event_type: type[JobEvent]) -> None:
    event = make_event(event_type)

    for field in event.__struct_fields__:
        with pytest.raises(AttributeError, match="immutable"):
            setattr(event, field, "other")


@CONCRETE
def test_an_event_takes_no_field_by_its_place(event_type: type[JobEvent]) -> None:
    with pytest.raises(TypeError, match="positional"):
        event_type("id-1", "shop.charge")  # type: ignore[call-arg]


@CONCRETE
def test_an_event_documents_each_of_its_own_fields(event_type: type[JobEvent]) -> None:
    told = "".join(inspect.getdoc(base) or "" for base in event_type.__mro__[:-2])

    for field in event_type.__struct_fields__:
        assert field in told


@CONCRETE
def test_an_event_names_itself_in_a_log_line(event_type: type[JobEvent]) -> None:
    event = make_event(event_type, task_name="shop.charge", task_id="5f3c")

    assert str(event) == f"{event_type.__name__} shop.charge[5f3c]"


def test_two_events_of_the_same_facts_are_equal_and_of_other_types_are_not() -> None:
    assert make_event(JobFinished) == make_event(JobFinished)
    assert make_event(JobFinished) != make_event(JobFinished, task_id="other")
    ignored: JobEvent = make_event(JobIgnored, state="")
    assert ignored != make_event(JobLost, state="")


def test_a_representation_shows_what_happened_to_whom() -> None:
    assert repr(make_event(JobStarted, queue="eu", pid=7)) == (
        "JobStarted(task_id='id-1', task_name='shop.charge', queue='eu', exchange=None, "
        "routing_key=None, retries=0, root_id=None, parent_id=None, group_id=None, worker='', "
        "pid=7, started_at=100.0, event_id='')"
    )


@CONCRETE
def test_no_representation_shows_the_jobs_own_data(event_type: type[JobEvent]) -> None:
    private: dict[str, Any] = {
        "args": (Unshowable(),),
        "kwargs": {"card": Unshowable()},
        "headers": {"": SECRET},
    }
    if "result" in event_type.__struct_fields__:
        private["result"] = Unshowable()
    if "traceback" in event_type.__struct_fields__:
        private["traceback"] = SECRET

    event = make_event(event_type, **private)

    shown = f"{event} {event!r} {dict(event.__rich_repr__())}"
    assert SECRET not in shown
    for field in private:
        assert f"{field}=" not in shown
        assert f"'{field}'" not in shown


@CONCRETE
def test_an_event_can_go_to_another_process(event_type: type[JobEvent]) -> None:
    event = make_event(event_type, args=(1, "two"), kwargs={"three": 4})

    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301  # our own bytes


@given(
    event_type=st.sampled_from(list(EVENT_TYPES.values())),
    task_name=st.text(),
    task_id=st.text(),
    args=st.none() | st.lists(st.integers()),
)
def test_any_event_can_be_shown(
    event_type: type[JobEvent], task_name: str, task_id: str, args: list[int] | None
) -> None:
    event = make_event(event_type, task_name=task_name, task_id=task_id, args=args)

    assert str(event) == f"{event_type.__name__} {task_name}[{task_id}]"
    assert repr(event).startswith(f"{event_type.__name__}(task_id={task_id!r}, ")


def test_an_event_says_its_type_wherever_it_is_encoded() -> None:
    encoded = msgspec.json.decode(msgspec.json.encode(make_event(JobFinished)))

    assert encoded["type"] == "JobFinished"
