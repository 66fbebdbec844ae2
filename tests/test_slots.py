from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fork import in_child

from celery_broadcast.slots import Slots


def facts(task_id: str, **others: Any) -> dict[str, Any]:
    """Return what the bridge knows of an attempt that starts."""
    none = dict.fromkeys(("queue", "exchange", "routing_key", "root_id", "parent_id", "group_id"))
    known = {"task_id": task_id, "task_name": "shop.charge", "retries": 0, "worker": "celery@web-1"}
    return {**none, **known, "pid": os.getpid(), "started_at": 100.0, **others}


def child_that_dies(start: Callable[[], object]) -> int:
    """Return the pid of a forked child that was killed after it had started something."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        start()
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def dies_running(slots: Slots, task_id: str) -> int:
    return child_that_dies(lambda: slots.start(facts(task_id), started_monotonic=5.0))


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_the_parent_learns_what_a_killed_child_was_running() -> None:
    slots = Slots(count=4)

    pid = dies_running(slots, "id-1")

    running = slots.take("id-1")
    assert running is not None
    assert running.started_monotonic == 5.0
    assert running.facts == {
        "task_id": "id-1",
        "task_name": "shop.charge",
        "retries": 0,
        "worker": "celery@web-1",
        "pid": pid,
        "started_at": 100.0,
    }


def test_the_parent_learns_it_once() -> None:
    slots = Slots(count=4)
    dies_running(slots, "id-1")
    slots.take("id-1")

    assert slots.take("id-1") is None


def test_an_attempt_that_has_ended_is_not_running() -> None:
    slots = Slots(count=4)

    def child() -> Any:
        slots.start(facts("id-1"), 5.0)
        slots.end()
        return True

    in_child(child)

    assert slots.take("id-1") is None


def test_the_slot_of_a_dead_child_serves_the_next_one() -> None:
    slots = Slots(count=1)

    for number in range(5):
        dies_running(slots, f"id-{number}")
        assert slots.take(f"id-{number}") is not None


def test_of_two_attempts_of_a_job_the_last_is_told_of_and_the_other_forgotten() -> None:
    slots = Slots(count=4)
    child_that_dies(lambda: slots.start(facts("id-1"), started_monotonic=5.0))
    second = child_that_dies(lambda: slots.start(facts("id-1"), started_monotonic=6.0))

    running = slots.take("id-1")

    assert running is not None
    assert running.facts["pid"] == second
    assert slots.take("id-1") is None


def test_news_of_one_attempt_leave_that_of_a_living_process_alone() -> None:
    slots = Slots(count=4)
    slots.before_fork()
    slots.forget()  # as in a child that lives, with an older attempt of the same job
    slots._reserved.slot = None
    assert slots.start(facts("id-1"), started_monotonic=5.0)
    dead = child_that_dies(lambda: slots.start(facts("id-1"), started_monotonic=6.0))

    running = slots.take("id-1")

    assert running is not None
    assert running.facts["pid"] == dead
    assert slots.end()


def test_where_all_slots_hold_attempts_that_died_the_oldest_gives_way() -> None:
    slots = Slots(count=2)
    for number in range(3):
        child_that_dies(partial(slots.start, facts(f"id-{number}"), 5.0 + number))

    assert slots.take("id-0") is None
    assert slots.take("id-1") is not None
    assert slots.take("id-2") is not None


def test_a_process_whose_attempt_the_parent_has_told_of_does_not_end_it_again() -> None:
    slots = as_in_a_child()
    assert slots.start(facts("id-1"), 5.0)
    assert slots.end()

    assert slots.start(facts("id-2"), 6.0)
    assert slots.take("id-2") is not None
    assert not slots.end()


def test_only_a_living_process_is_running_something() -> None:
    slots = Slots(count=2)

    dies_running(slots, "id-1")

    assert not slots.is_running("id-1")


def test_a_slot_whose_attempt_nobody_has_asked_for_is_kept() -> None:
    slots = Slots(count=2)

    dies_running(slots, "id-1")
    dies_running(slots, "id-2")

    assert slots.take("id-1") is not None
    assert slots.take("id-2") is not None


def test_a_child_too_many_has_no_slot_and_goes_on() -> None:
    slots = Slots(count=1)
    slots.before_fork()  # for a child that lives

    pid = dies_running(slots, "id-2")

    assert pid > 0
    assert slots.take("id-2") is None


def test_a_grandchild_has_no_slot() -> None:
    slots = Slots(count=4)

    def child() -> Any:
        slots.start(facts("child"), 5.0)

        def grandchild() -> Any:
            slots.start(facts("grandchild"), 1.0)
            return True

        return in_child(grandchild)

    in_child(child)

    assert slots.take("grandchild") is None
    assert slots.take("child") is not None


def test_the_process_that_made_the_slots_has_none_itself() -> None:
    slots = Slots(count=4)

    slots.start(facts("id-1"), 5.0)
    slots.end()

    assert slots.take("id-1") is None


def test_children_forked_by_several_threads_have_a_slot_each() -> None:
    slots = Slots(count=16)
    pids: list[int] = []

    def fork_some(name: str) -> None:
        pids.extend(dies_running(slots, f"{name}-{number}") for number in range(4))

    threads = [threading.Thread(target=fork_some, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [slots.take(f"{name}-{number}") for name in "ab" for number in range(4)]
    assert sorted(running.facts["pid"] for running in found if running) == sorted(pids)


def as_in_a_child() -> Slots:
    """Return slots of which this process has one; a fork for each example would take long."""
    slots = Slots(count=2)
    slots._mine, slots._used = 1, 2
    return slots


@given(st.text(max_size=200))
def test_any_task_id_is_found_again(task_id: str) -> None:
    slots = as_in_a_child()

    slots.start(facts(task_id), 5.0)

    assert slots.take(task_id) is not None


@pytest.mark.parametrize("root_id", ["x" * 2_000, object(), 1 << 100, {"a": 1}, b"bytes"])
def test_a_fact_that_does_not_fit_costs_at_most_the_other_facts(root_id: object) -> None:
    slots = as_in_a_child()

    slots.start(facts("id-1", root_id=root_id), 5.0)

    running = slots.take("id-1")
    assert running is not None
    assert running.facts["started_at"] == 100.0


@pytest.mark.parametrize("task_id", ["x" * 2_000, "\ud800"])
def test_a_task_id_that_cannot_be_noted_hurts_nothing(task_id: str) -> None:
    slots = as_in_a_child()

    slots.start(facts(task_id), 5.0)

    assert slots.take(task_id) is None


@given(st.binary(min_size=2_048, max_size=2_048))
def test_a_slot_that_holds_rubbish_is_not_believed_and_hurts_nothing(rubbish: bytes) -> None:
    slots = Slots(count=2)
    slots._memory[:] = rubbish
    slots._used = 2

    assert slots.take("id-1") is None
    slots.before_fork()


@given(st.binary(min_size=1, max_size=64))
def test_a_note_that_is_rubbish_is_not_believed(rubbish: bytes) -> None:
    slots = as_in_a_child()
    slots._memory[1_032 : 1_032 + len(rubbish)] = rubbish
    slots._set_length(1, len(rubbish))

    assert slots.take("id-1") is None
