from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fork import in_child

from celery_broadcast.slots import Running, Slots


def child_that_dies(slots: Slots, task_id: str) -> int:
    """Return the pid of a forked child that was killed while it ran the task."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        slots.start(task_id, started_at=100.0, started_monotonic=5.0)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_the_parent_learns_what_a_killed_child_was_running() -> None:
    slots = Slots(count=4)

    pid = child_that_dies(slots, "id-1")

    assert slots.take("id-1") == Running(pid, started_at=100.0, started_monotonic=5.0)


def test_the_parent_learns_it_once() -> None:
    slots = Slots(count=4)
    child_that_dies(slots, "id-1")
    slots.take("id-1")

    assert slots.take("id-1") is None


def test_an_attempt_that_has_ended_is_not_running() -> None:
    slots = Slots(count=4)

    def child() -> Any:
        slots.start("id-1", 100.0, 5.0)
        slots.end()
        return True

    in_child(child)

    assert slots.take("id-1") is None


def test_the_slot_of_a_dead_child_serves_the_next_one() -> None:
    slots = Slots(count=1)

    for number in range(5):
        child_that_dies(slots, f"id-{number}")
        assert slots.take(f"id-{number}") is not None


def test_a_slot_whose_attempt_nobody_has_asked_for_is_kept() -> None:
    slots = Slots(count=2)

    child_that_dies(slots, "id-1")
    child_that_dies(slots, "id-2")

    assert slots.take("id-1") is not None
    assert slots.take("id-2") is not None


def test_a_child_too_many_has_no_slot_and_goes_on() -> None:
    slots = Slots(count=1)
    child_that_dies(slots, "id-1")

    child_that_dies(slots, "id-2")

    assert slots.take("id-2") is None
    assert slots.take("id-1") is not None


def test_a_grandchild_has_no_slot() -> None:
    slots = Slots(count=4)

    def child() -> Any:
        slots.start("child", 100.0, 5.0)

        def grandchild() -> Any:
            slots.start("grandchild", 1.0, 1.0)
            return True

        return in_child(grandchild)

    in_child(child)

    assert slots.take("grandchild") is None
    assert slots.take("child") is not None


def test_the_process_that_made_the_slots_has_none_itself() -> None:
    slots = Slots(count=4)

    slots.start("id-1", 100.0, 5.0)
    slots.end()

    assert slots.take("id-1") is None


def test_children_forked_by_several_threads_have_a_slot_each() -> None:
    slots = Slots(count=16)
    pids: list[int] = []

    def fork_some(name: str) -> None:
        pids.extend(child_that_dies(slots, f"{name}-{number}") for number in range(4))

    threads = [threading.Thread(target=fork_some, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [slots.take(f"{name}-{number}") for name in "ab" for number in range(4)]
    assert sorted(running.pid for running in found if running) == sorted(pids)


@given(st.text(min_size=1, max_size=400))
def test_any_task_id_is_found_again(task_id: str) -> None:
    slots = Slots(count=2)
    slots._mine = 1  # as in a child; a fork for each example would take long

    slots.start(task_id, 100.0, 5.0)

    assert slots.take(task_id) is not None


@given(st.binary(min_size=512, max_size=512))
def test_a_slot_that_holds_rubbish_is_not_believed_and_hurts_nothing(rubbish: bytes) -> None:
    slots = Slots(count=2)
    slots._memory[:] = rubbish

    slots.take("id-1")
    slots.before_fork()
