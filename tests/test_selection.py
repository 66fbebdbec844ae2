from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
)
from celery_broadcast.selection import Selection


def wants(selection: Selection, event_type: type[JobEvent], task: str, queue: str | None) -> bool:
    return selection.wants((event_type, task, queue, None, None, None))


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
