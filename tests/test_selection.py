from __future__ import annotations

from typing import Any

import pytest
from celery.utils.serialization import UnpickleableExceptionWrapper
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_event

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobRetried,
    JobStarted,
    qualified_name,
)
from celery_broadcast.selection import Selection, any_of, check_selection, kind_of


def wants(selection: Selection, event_type: type[JobEvent], task: str, queue: str | None) -> bool:
    return selection.wants((event_type, task, queue, None, None, None, ()))


@pytest.mark.parametrize("event_type", EVENT_TYPES.values())
def test_a_base_stands_for_every_event_below_it(event_type: type[JobEvent]) -> None:
    everything = Selection()
    ends = Selection(events=(JobEnded,))

    assert wants(everything, event_type, "shop.charge", "eu")
    assert wants(ends, event_type, "shop.charge", "eu") is (event_type is not JobStarted)


def test_an_event_type_stands_for_nothing_beside_it() -> None:
    failures = Selection(events=(JobFailed,))

    assert wants(failures, JobFailed, "shop.charge", None)
    assert not wants(failures, JobFinished, "shop.charge", None)


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("shop.charge", "shop.charge", True),
        ("shop.*", "shop.payments.charge", True),
        ("shop.*", "shop", False),
        ("*.charge", "shop.charge", True),
        ("shop.charge?", "shop.charge2", True),
        ("shop.charge[12]", "shop.charge2", True),
        ("shop.charge[12]", "shop.charge3", False),
        ("shop.*", "Shop.charge", False),
        ("shop", "shop.charge", False),
        ("*", "", True),
    ],
)
def test_a_glob_matches_the_whole_name_of_a_task_or_a_queue(
    glob: str, name: str, *, matches: bool
) -> None:
    by_task = Selection(tasks=(glob,))
    by_queue = Selection(queues=(glob,))

    assert wants(by_task, JobStarted, name, "elsewhere") is matches
    assert wants(by_queue, JobStarted, "other.task", name) is matches


def test_one_of_several_globs_is_enough() -> None:
    subscription = Selection(tasks=("shop.*", "bakery.*"), queues=("eu", "us"))

    assert wants(subscription, JobStarted, "bakery.bake", "us")
    assert not wants(subscription, JobStarted, "garage.repair", "us")
    assert not wants(subscription, JobStarted, "bakery.bake", "asia")


def test_an_unknown_queue_matches_no_glob_and_every_subscription_without_one() -> None:
    assert not wants(Selection(queues=("*",)), JobStarted, "shop.charge", None)
    assert wants(Selection(), JobStarted, "shop.charge", None)


names = st.text(alphabet="ab.*?[]", max_size=6)
globs = st.lists(names, max_size=3).map(tuple)
some_events = st.lists(st.sampled_from([JobEvent, JobEnded, JobFailed, JobStarted]), min_size=1)


@given(
    events=some_events.map(tuple),
    tasks=globs,
    queues=globs,
    kind=st.tuples(st.sampled_from(list(EVENT_TYPES.values())), names, st.none() | names),
)
def test_a_selection_wants_what_each_of_its_parts_wants(
    events: tuple[type[JobEvent], ...],
    tasks: tuple[str, ...],
    queues: tuple[str, ...],
    kind: tuple[type[JobEvent], str, str | None],
) -> None:
    wanted = wants(Selection(events=events, tasks=tasks, queues=queues), *kind)

    by_event = any(wants(Selection(events=(event,)), *kind) for event in events)
    by_task = not tasks or any(wants(Selection(tasks=(t,)), *kind) for t in tasks)
    by_queue = not queues or any(wants(Selection(queues=(q,)), *kind) for q in queues)
    assert wanted is (by_event and by_task and by_queue)


# By exception.


class ShopError(Exception):
    """The user's own, and the base of others."""


class CardDeclined(ShopError): ...  # noqa: N818  # as the README's


def failed(error: type[BaseException], name: str | None = None) -> JobFailed:
    """Make a failure; `name` is what is known of a class that can't be imported here."""
    return make_event(
        JobFailed, exception_class=error, exception_type=name or qualified_name(error)
    )


def failed_elsewhere(error: type[BaseException]) -> JobFailed:
    """Make a failure as it arrives where the exception's module isn't there."""
    return make_event(
        JobFailed,
        exception_class=Exception,
        exception_type=qualified_name(error),
        exception_bases=tuple(qualified_name(base) for base in error.__mro__[1:-1]),
    )


def chosen(exception: object, *events: Event) -> list[bool]:
    """Tell which events are wanted with `exception=`."""
    selection = check_selection("on_job_event", (), {"exception": exception})
    return [selection.wants(kind_of(event)) for event in events]


def test_an_exception_stands_for_all_below_it() -> None:
    events = failed(CardDeclined), failed(ShopError), failed(OSError)

    assert chosen(CardDeclined, *events) == [True, False, False]
    assert chosen(ShopError, *events) == [True, True, False]
    assert chosen(Exception, *events) == [True, True, True]


def test_an_exception_may_be_named_as_the_event_has_it_and_stands_for_all_below_it() -> None:
    events = failed(CardDeclined), failed(ShopError), failed(OSError)

    assert chosen(f"{__name__}.CardDeclined", *events) == [True, False, False]
    assert chosen(f"{__name__}.ShopError", *events) == [True, True, False]
    assert chosen("OSError", *events) == [False, False, True]
    assert chosen("builtins.OSError", *events) == [False, False, True]
    assert chosen("CardDeclined", *events) == [False, False, False]


def test_an_exception_whose_class_is_not_there_is_known_by_its_name_alone() -> None:
    event = failed(UnpickleableExceptionWrapper, "bank.errors.Overdrawn")

    assert chosen("bank.errors.Overdrawn", event) == [True]
    assert chosen("bank.errors.BankError", event) == [False]


def test_a_class_of_the_same_name_is_the_same_exception() -> None:
    event = failed(UnpickleableExceptionWrapper, qualified_name(CardDeclined))

    assert chosen(CardDeclined, event) == [True]
    assert chosen(ShopError, event) == [False]


def test_an_exception_that_comes_from_elsewhere_is_known_by_the_names_above_it() -> None:
    events = failed_elsewhere(CardDeclined), failed_elsewhere(ShopError), failed_elsewhere(OSError)

    assert chosen(CardDeclined, *events) == [True, False, False]
    assert chosen(ShopError, *events) == [True, True, False]
    assert chosen(f"{__name__}.ShopError", *events) == [True, True, False]
    assert chosen(OSError, *events) == [False, False, True]
    assert chosen(Exception, *events) == [True, True, True]


def test_one_of_several_exceptions_is_enough() -> None:
    events = failed(CardDeclined), failed(TimeoutError), failed(ValueError)

    assert chosen([f"{__name__}.ShopError", OSError], *events) == [True, True, False]
    assert chosen({OSError, ValueError}, *events) == [False, True, True]


def test_only_what_has_an_exception_can_match_one() -> None:
    retried = make_event(JobRetried, exception_class=OSError, exception_type="OSError")

    assert chosen(OSError, retried, make_event(JobFinished), make_event(JobStarted)) == [
        True,
        False,
        False,
    ]


# By state, and events of one's own.


class Incident(Event, frozen=True, kw_only=True):
    """An event of the user's own."""

    task_name: str = "shop.charge"


class ChargeFailed(JobFailed, frozen=True, kw_only=True):
    """The user's own kind of failure."""


def test_a_state_is_that_of_the_end() -> None:
    selection = check_selection("on_job_event", (), {"state": ["SUCCESS", "RETRY"]})

    wanted = [
        event_type
        for event_type in EVENT_TYPES.values()
        if selection.wants(kind_of(make_event(event_type)))
    ]
    assert wanted == [JobFinished, JobRetried]


def test_an_event_of_ones_own_goes_to_who_wants_every_event_or_that_one() -> None:
    kind = kind_of(Incident())

    assert Selection(events=(Event,)).wants(kind)
    assert Selection(events=(Incident, JobFailed)).wants(kind)
    assert not Selection().wants(kind)
    assert not Selection(events=(JobEnded,)).wants(kind)
    assert Selection(events=(Event,)).wants(kind_of(make_event(JobStarted)))


def test_an_event_of_ones_own_has_no_task_even_where_a_field_is_called_so() -> None:
    assert not Selection(events=(Event,), tasks=("*",)).wants(kind_of(Incident()))


def test_a_kind_of_failure_of_ones_own_is_chosen_as_the_failures_are() -> None:
    event = make_event(ChargeFailed, "shop.charge", queue="eu", exception_class=CardDeclined)
    wanted = check_selection(
        "on_job_event",
        (ChargeFailed,),
        {"task": "shop.*", "queue": "eu", "state": "FAILURE", "exception": ShopError},
    )

    assert wanted.wants(kind_of(event))
    assert not wanted.wants(kind_of(failed(CardDeclined)))
    assert Selection(events=(JobFailed,)).wants(kind_of(event))


@pytest.mark.parametrize(
    ("events", "options"),
    [
        ((JobFinished,), {"exception": OSError}),
        ((JobFinished, JobStarted), {"exception": OSError}),
        ((JobFailed,), {"state": "SUCCESS"}),
        ((JobStarted,), {"state": "SUCCESS"}),
        ((), {"state": "SUCCESS", "exception": OSError}),
        ((JobRetried, JobFinished), {"state": "SUCCESS", "exception": OSError}),
        ((Incident,), {"task": "shop.*"}),
        ((Incident,), {"queue": "eu"}),
        ((Incident,), {"state": "SUCCESS"}),
        ((Incident,), {"exception": OSError}),
    ],
)
def test_what_no_event_can_match_is_an_error(
    events: tuple[type[Event], ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"^No event is .* with .*"):
        check_selection("on_job_event", events, options)


@pytest.mark.parametrize(
    ("events", "options"),
    [
        ((), {"exception": OSError}),
        ((Event,), {"task": "shop.*", "exception": OSError, "state": "RETRY"}),
        ((JobEnded,), {"exception": OSError, "state": "FAILURE"}),
        ((JobStarted, JobFailed), {"exception": OSError}),
        ((Incident, JobFinished), {"state": "SUCCESS"}),
        ((ChargeFailed,), {"exception": OSError}),
        ((JobFinished, ChargeFailed), {"exception": OSError}),
        ((Incident, ChargeFailed), {"exception": OSError}),
    ],
)
def test_what_some_event_can_match_is_none(
    events: tuple[type[Event], ...], options: dict[str, Any]
) -> None:
    check_selection("on_job_event", events, options)


def test_any_of_several_selections_wants_what_one_of_them_does() -> None:
    either = any_of(
        [
            Selection(events=(JobFailed,), tasks=("shop.*",)),
            Selection(events=(JobStarted,), queues=("eu",)),
        ]
    )

    assert wants(either, JobFailed, "shop.charge", None)
    assert wants(either, JobStarted, "mail.send", "eu")
    assert not wants(either, JobFailed, "mail.send", "eu")
    assert not wants(either, JobStarted, "shop.charge", None)
    assert not wants(either, JobFinished, "shop.charge", "eu")


def test_any_of_several_selections_wants_no_type_of_the_users_own() -> None:
    class JobFailed(JobEvent, frozen=True): ...

    assert not wants(any_of([Selection()]), JobFailed, "shop.charge", None)


def test_any_of_no_selection_wants_nothing() -> None:
    assert not wants(any_of([]), JobFailed, "shop.charge", None)


@pytest.mark.parametrize("tasks", [(), ("shop.*",)])
def test_any_of_several_selections_looks_at_no_more_than_they_do(tasks: tuple[str, ...]) -> None:
    either = any_of([Selection(), Selection(events=(JobFailed,), tasks=tasks)])

    assert either.is_of_types is (not tasks)
    assert either.events == (JobEvent, JobFailed)
