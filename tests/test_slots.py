from __future__ import annotations

import copy
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_fork import in_child

from celery_broadcast import fork
from celery_broadcast import slots as slots_module
from celery_broadcast.slots import (
    ABANDONED,
    CLOSED,
    NOTES,
    NUMBERS,
    ROWS,
    RUNNING,
    Running,
    Slot,
    Slots,
    row_key,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

on_linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memfd")

# More than any system gives.
FIRST_ACTED_PID = 100_000_000


def facts(task_id: str, **others: Any) -> dict[str, Any]:
    """Return what the bridge knows of an attempt that starts."""
    none = dict.fromkeys(("queue", "exchange", "routing_key", "root_id", "parent_id", "group_id"))
    known = {"task_id": task_id, "task_name": "shop.charge", "retries": 0, "worker": "celery@web-1"}
    return {**none, **known, "pid": os.getpid(), "started_at": 100.0, **others}


def running(task_id: str = "id-1", started_monotonic: float = 5.0, **others: Any) -> Running:
    return Running(facts=facts(task_id, **others), started_monotonic=started_monotonic)


def killed_child(act: Callable[[], object], *, is_reaped: bool = True) -> int:
    """Return the pid of a forked child that was killed after it had acted."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            act()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    has_acted = os.read(reader, 1)
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    if is_reaped:
        os.waitpid(pid, 0)
    else:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert has_acted, "the child raised"
    return pid


def as_in_a_child(slots: Slots, pid: int = FIRST_ACTED_PID) -> Slots:
    """Return the slots as a child forked now has them; a fork for each example takes long."""
    slots.before_fork()
    child = copy.copy(slots)
    child.forget()
    child._owner = 0  # not this process any more
    if child.mine is not None:
        mine = Slot(child.mine._memory, 0)  # what the parent has of it stays as it was
        mine.index = child.mine.index
        mine._set_pid(pid)
        child.mine = mine
    return child


def slot_of_a_child(slots: Slots, pid: int = FIRST_ACTED_PID) -> Slot:
    mine = as_in_a_child(slots, pid).mine
    assert mine is not None
    return mine


def own_slot(slots: Slots) -> Slot:
    """Return the slot of this process; called in a child."""
    assert slots.mine is not None
    return slots.mine


def note_down(slot: Slot, running: Running) -> int:
    """Note an attempt that starts; return the number of the note."""
    note = slot.take_note()
    assert note is not None
    slot.write(note, running)
    return note


def note_in(slots: Slots, task_id: str) -> int:
    return note_down(own_slot(slots), running(task_id))


def open_task_ids(slots: Slots) -> list[str]:
    return sorted(
        noted.facts["task_id"]
        for slot in slots.living()
        for _, noted in slot.open_notes()
        if noted is not None
    )


def let_pass(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock() + int(seconds * 1e9))


@pytest.fixture(autouse=True)
def no_slots_left() -> Iterator[None]:
    """Let no later fork reserve slots of a test that is over: a failed one keeps what it had."""
    before = fork._forgetful.copy()
    yield
    fork._forgetful.intersection_update(before)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the pids of processes that are gone; all others live."""
    pids: set[int] = set()
    monkeypatch.setattr(slots_module, "_is_gone", lambda pid, reaped: pid in pids)
    return pids


# What a child notes, its parent reads.


def test_the_parent_reads_what_a_killed_child_was_running() -> None:
    slots = Slots(count=4)

    pid = killed_child(lambda: note_in(slots, "id-1"))

    (slot,) = slots.gone()
    assert slot.pid == pid
    assert slot.open_notes() == [
        (
            0,
            Running(
                facts={
                    "task_id": "id-1",
                    "task_name": "shop.charge",
                    "retries": 0,
                    "worker": "celery@web-1",
                    "pid": pid,
                    "started_at": 100.0,
                },
                started_monotonic=5.0,
            ),
        )
    ]


def test_all_that_is_noted_of_an_attempt_is_read_again() -> None:
    slot = slot_of_a_child(Slots(count=1))
    noted = Running(
        facts={name: f"some {name}" for name in slots_module._NOTED},
        started_monotonic=5.0,
        eager=True,
        acks_late=True,
    )

    note = note_down(slot, noted)

    assert slot.read(note) == noted


def test_an_attempt_that_has_ended_in_its_process_is_not_open() -> None:
    slots = Slots(count=4)

    def start_and_end() -> None:
        note = note_in(slots, "id-1")
        own_slot(slots).close(note)

    killed_child(start_and_end)

    (slot,) = slots.gone()
    assert slot.open_notes() == []


def test_a_child_that_lives_is_not_gone() -> None:
    slots = Slots(count=4)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)

    try:
        assert in_child(lambda: True)  # which the parent has waited for
        assert pid not in {slot.pid for slot in slots.gone()}
        assert pid not in {slot.pid for slot in slots.gone(reaped=False)}
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
    assert pid in {slot.pid for slot in slots.gone()}


def test_a_child_that_nobody_has_waited_for_is_gone_only_if_that_does_not_matter() -> None:
    slots = Slots(count=4)

    pid = killed_child(lambda: note_in(slots, "id-1"), is_reaped=False)

    assert slots.gone(reaped=True) == []
    assert [slot.pid for slot in slots.gone(reaped=False)] == [pid]
    assert os.waitpid(pid, 0)[0] == pid  # its status was left to whom it is for
    assert [slot.pid for slot in slots.gone(reaped=True)] == [pid]


def test_where_the_system_cannot_look_without_taking_the_status_a_zombie_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots(count=4)
    pid = killed_child(lambda: note_in(slots, "id-1"), is_reaped=False)
    monkeypatch.delattr(os, "waitid")

    assert slots.gone() == []
    os.waitpid(pid, 0)
    assert [slot.pid for slot in slots.gone()] == [pid]


def test_a_process_that_is_not_ours_to_signal_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.delattr(os, "waitid")
    monkeypatch.setattr(os, "kill", refuse)
    slots = Slots(count=1)
    slot_of_a_child(slots)

    assert slots.gone() == []


def test_a_grandchild_has_no_slot() -> None:
    slots = Slots(count=4)

    def child() -> Any:
        note_in(slots, "child")
        return [in_child(lambda: slots.mine is None), slots.mine is not None]

    assert in_child(child) == [True, True]
    assert open_task_ids(slots) == ["child"]


def test_the_process_that_made_the_slots_has_none_itself() -> None:
    slots = Slots(count=4)

    assert slots.mine is None
    assert slots.are_below()
    assert not slots.are_used()
    assert slots.living() == []


def test_a_child_knows_that_the_slots_are_not_below_it() -> None:
    slots = Slots(count=4)

    assert not in_child(slots.are_below)
    assert slots.are_used()


def test_children_forked_by_several_threads_have_a_slot_each() -> None:
    slots = Slots(count=16)
    pids: list[int] = []

    def fork_some(name: str) -> None:
        for number in range(4):
            pids.append(killed_child(partial(note_in, slots, f"{name}-{number}")))  # noqa: PERF401

    threads = [threading.Thread(target=fork_some, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(slot.pid for slot in slots.gone()) == sorted(pids)
    assert open_task_ids(slots) == [f"{name}-{number}" for name in "ab" for number in range(4)]


def test_a_child_takes_the_slot_that_its_own_thread_has_reserved() -> None:
    slots = Slots(count=2)
    slots.before_fork()
    other = threading.Thread(target=slots.before_fork)
    other.start()
    other.join()

    slots.forget()

    assert own_slot(slots).index == 1


# Which slot a process gets.


def test_the_slot_of_a_dead_child_serves_the_next_one() -> None:
    slots = Slots(count=1)

    for number in range(5):
        killed_child(partial(note_in, slots, f"id-{number}"))
        (slot,) = slots.gone()
        assert [noted.facts["task_id"] for _, noted in slot.open_notes() if noted] == [
            f"id-{number}"
        ]
        slot.free()
    assert slot.generation == 5
    assert slots.refused == 0


def test_a_slot_whose_process_nobody_has_buried_is_kept() -> None:
    slots = Slots(count=2)

    for number in range(3):
        killed_child(partial(as_nobody_or_noting, slots, f"id-{number}"))

    assert open_task_ids(slots) == ["id-0", "id-1"]


def as_nobody_or_noting(slots: Slots, task_id: str) -> None:
    if slots.mine is not None:
        note_in(slots, task_id)


def test_a_child_too_many_goes_on_without_a_slot_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slots = Slots(count=1)
    slot_of_a_child(slots)  # which lives

    assert in_child(lambda: slots.mine is None)
    assert slots.refused == 1
    assert in_child(lambda: slots.mine is None)
    assert slots.refused == 2
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "has memory for 1 pool processes" in text]) == 1


def test_a_child_too_many_does_not_take_the_slot_that_another_got_before() -> None:
    slots = Slots(count=1)
    first = slot_of_a_child(slots, FIRST_ACTED_PID)

    assert as_in_a_child(slots, FIRST_ACTED_PID + 1).mine is None
    assert first.pid == FIRST_ACTED_PID


def test_a_new_slot_is_taken_before_one_that_was_just_freed() -> None:
    slots = Slots(count=3)

    taken = []
    for _ in range(4):
        slot = slot_of_a_child(slots)
        taken.append(slot.index)
        slot.free()

    assert taken == [1, 2, 3, 1]


def test_a_slot_that_is_long_free_is_taken_before_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots(count=3)
    slot = slot_of_a_child(slots)
    slot.free()

    let_pass(monkeypatch, slots_module._SECONDS_KEPT + 1.0)

    assert slot_of_a_child(slots).index == slot.index
    assert slot.generation == 2


def test_a_slot_that_serves_another_process_says_nothing_of_the_one_before() -> None:
    slots = Slots(count=1)
    before = slot_of_a_child(slots)
    note_down(before, running("id-1"))
    before.new_row("store")
    before.count_published()
    before.free()

    slot = slot_of_a_child(slots, FIRST_ACTED_PID + 1)

    assert slot.pid == FIRST_ACTED_PID + 1
    assert slot.open_notes() == []
    assert list(slot.rows()) == []
    assert slot.not_dispatched() == 0


def test_a_slot_that_was_reserved_for_a_child_that_never_came_serves_another_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots(count=1)
    slots.before_fork()

    slots.before_fork()
    assert slots.refused == 1
    let_pass(monkeypatch, slots_module._SECONDS_TO_BE_BORN + 1.0)

    assert slot_of_a_child(slots).generation == 2
    assert slots.refused == 1


def test_a_slot_that_is_reserved_is_of_no_process_yet(dead: set[int]) -> None:
    slots = Slots(count=1)

    slots.before_fork()

    assert slots.living() == []
    assert slots.gone() == []


def test_a_child_born_too_late_does_not_take_a_slot_that_was_given_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots(count=1)
    slots.before_fork()
    late = slots._reserved.slot
    let_pass(monkeypatch, slots_module._SECONDS_TO_BE_BORN + 1.0)
    slots.before_fork()

    slots._reserved.slot = late
    slots.forget()

    assert slots.mine is None


def test_of_two_processes_with_the_same_pid_the_older_one_is_gone(dead: set[int]) -> None:
    slots = Slots(count=4)
    first, second, third = (slot_of_a_child(slots) for _ in range(3))
    second._set_pid(second.pid)  # whichever stands where: this one came last

    assert [slot.index for slot in slots.gone()] == [first.index, third.index]
    dead.add(FIRST_ACTED_PID)
    assert len(slots.gone()) == 3


# The notes of a slot.


def test_a_slot_holds_sixteen_attempts_at_once_and_refuses_one_more() -> None:
    slot = slot_of_a_child(Slots(count=1))

    for number in range(NOTES):
        assert note_down(slot, running(f"id-{number}")) == number

    assert NOTES == 16
    assert slot.take_note() is None
    assert [noted.facts["task_id"] for _, noted in slot.open_notes() if noted] == [
        f"id-{number}" for number in range(NOTES)
    ]


def test_the_note_that_was_closed_first_serves_the_next_attempt() -> None:
    slot = slot_of_a_child(Slots(count=1))
    for number in range(NOTES):
        note_down(slot, running(f"id-{number}"))
    for note in (7, 3, 11):
        slot.close(note)

    assert [slot.take_note() for _ in range(4)] == [7, 3, 11, None]


def test_a_slot_has_few_notes_when_most_are_in_use() -> None:
    slot = slot_of_a_child(Slots(count=1))
    for number in range(NOTES // 2):
        note_down(slot, running(f"id-{number}"))

    assert not slot.has_few_notes()
    note = note_down(slot, running("one more"))
    assert slot.has_few_notes()
    slot.close(note)
    assert not slot.has_few_notes()


def test_a_note_can_be_written_again() -> None:
    slot = slot_of_a_child(Slots(count=1))
    note = note_down(slot, running("a long one" * 10))

    slot.write(note, running("id-1"))

    assert [noted.facts["task_id"] for _, noted in slot.open_notes() if noted] == ["id-1"]


def test_a_note_says_what_becomes_of_its_attempt() -> None:
    slot = slot_of_a_child(Slots(count=1))
    note_down(slot, running("id-0"))
    note = note_down(slot, running("id-1"))

    assert slot.state(note) == RUNNING
    for state in (ABANDONED, 99):
        slot.set_state(note, state)
        assert slot.state(note) == state
        assert note in dict(slot.open_notes())
    slot.close(note)
    assert slot.state(note) == CLOSED
    assert note not in dict(slot.open_notes())
    assert slot.state(0) == RUNNING


@given(st.text(max_size=150))
@example("")
@example("id-1")
@example("\0")
@example('"\\')
def test_any_task_id_is_found_again(task_id: str) -> None:
    slot = slot_of_a_child(Slots(count=1))
    other = "id-2" if task_id != "id-2" else "id-3"
    note_down(slot, running(other))
    note = note_down(slot, running(task_id))

    assert [(number, noted.facts["task_id"]) for number, noted in slot.notes_of(task_id)] == [
        (note, task_id)
    ]


def test_a_task_id_inside_of_another_fact_is_not_taken_for_the_job() -> None:
    slot = slot_of_a_child(Slots(count=1))
    note_down(slot, running("id-1", root_id="id-2"))

    assert slot.notes_of("id-2") == []
    assert slot.notes_of("id") == []


@pytest.mark.parametrize(
    "root_id",
    ["x" * 2_000, "\ud800", object(), 1 << 100, b"\0" * 2_000],
    ids=["long", "no text", "object", "big", "bytes"],
)
def test_a_fact_that_does_not_fit_costs_at_most_the_other_facts(root_id: object) -> None:
    slot = slot_of_a_child(Slots(count=1))

    note = note_down(slot, running("id-1", retries=3, root_id=root_id))

    noted = slot.read(note)
    assert noted is not None
    assert noted.started_monotonic == 5.0
    assert noted.facts == {
        "task_id": "id-1",
        "task_name": "shop.charge",
        "retries": 3,
        "pid": os.getpid(),
        "started_at": 100.0,
    }


@pytest.mark.parametrize("root_id", [{"a": 1}, b"bytes", ["a"], 1.5], ids=str)
def test_a_fact_of_an_odd_kind_does_not_cost_the_attempt(root_id: object) -> None:
    slot = slot_of_a_child(Slots(count=1))

    note_down(slot, running("id-1", root_id=root_id))

    ((_, noted),) = slot.notes_of("id-1")
    assert noted.facts["started_at"] == 100.0


@pytest.mark.parametrize("task_id", ["x" * 2_000, "\ud800"], ids=["long", "no text"])
def test_a_task_id_that_cannot_be_noted_hurts_nothing(task_id: str) -> None:
    slot = slot_of_a_child(Slots(count=1))
    slot.close(note_down(slot, running("id-1")))

    for number in range(NOTES):
        note_down(slot, running(task_id if number else "id-2"))

    assert slot.notes_of(task_id) == []
    assert [note.facts["task_id"] for _, note in slot.open_notes() if note] == ["id-2"]
    assert [note.facts["task_id"] for _, note in slot.notes_of("id-1")] == ["id-1"]  # and ended
    assert len(slot.notes_of("id-2")) == 1


def test_a_note_is_as_long_as_there_is_room_and_spoils_no_neighbour() -> None:
    slot = slot_of_a_child(Slots(count=1))
    for _ in range(NOTES):
        note_down(slot, running("x" * 800))
    slot.new_row("store")

    assert [noted is not None for _, noted in slot.open_notes()] == [True] * NOTES
    assert [name for name, _ in slot.rows()] == ["store"]
    assert slot.pid == FIRST_ACTED_PID


# What has ended.


@pytest.mark.parametrize("ended_by", ["its process", "its parent", "an end that was being told"])
def test_an_attempt_that_was_noted_and_ended_has_ended(ended_by: str) -> None:
    slots = Slots(count=2)
    slot = slot_of_a_child(slots)
    note = note_down(slot, running("id-1", retries=2))
    assert not slots.has_ended("id-1", 2)

    if ended_by == "its process":
        slot.close(note)
    elif ended_by == "its parent":
        slots.living()[0].set_state(note, CLOSED)
    else:
        slot.set_state(note, 20)

    assert slots.has_ended("id-1", 2)
    assert slots.has_ended("id-1", None)
    assert not slots.has_ended("id-1", 1)
    assert not slots.has_ended("id-2", 2)


def test_an_attempt_that_its_process_left_to_its_parent_has_not_ended() -> None:
    slots = Slots(count=2)
    slot = slot_of_a_child(slots)
    note_down(slot, running("id-1"))

    slot.set_state(0, ABANDONED)

    assert not slots.has_ended("id-1", None)


def test_it_is_known_for_a_while_what_has_ended_in_a_process_that_is_gone() -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)
    note_down(slot, running("id-1"))

    slot.free()
    assert slots.has_ended("id-1", 0) is False  # nobody has said so
    slot_of_a_child(slots)  # which has noted nothing yet

    assert slots.has_ended("id-1", 0)


# What the consumers of a process count.


def test_events_that_were_published_and_not_dispatched_are_known() -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)
    (as_read,) = slots.living()

    for _ in range(5):
        slot.count_published()
    slot.count_dispatched()
    slot.count_dispatched()

    assert as_read.not_dispatched() == 3
    for _ in range(4):  # a dispatcher that was started again may count one twice
        slot.count_dispatched()
    assert as_read.not_dispatched() == 0


def test_no_event_that_several_threads_publish_is_missed() -> None:
    slot = slot_of_a_child(Slots(count=1))

    def publish() -> None:
        for _ in range(2_000):
            slot.count_published()

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slot.count_published()  # a store that came late is mended by the next

    assert slot.not_dispatched() == 8_001


def test_a_slot_has_a_row_for_each_of_128_consumers_and_refuses_one_more() -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)

    rows = [slot.new_row(f"consumer-{number}") for number in range(ROWS + 1)]

    assert ROWS == 128
    assert [row is not None for row in rows] == [True] * ROWS + [False]
    for number, row in enumerate(rows):
        if row is not None:
            row[0] = number
            row[NUMBERS - 1] = 1_000 + number
    (as_read,) = slots.living()
    assert [(name, row[0], row[NUMBERS - 1]) for name, row in as_read.rows()] == [
        (f"consumer-{number}", number, 1_000 + number) for number in range(ROWS)
    ]


def test_a_row_is_all_zero_at_first() -> None:
    slots = Slots(count=1)
    before = slot_of_a_child(slots)
    row = before.new_row("a name that is longer than the next")
    assert row is not None
    row[:] = memoryview(bytes([255]) * 8 * NUMBERS).cast("Q")
    before.free()

    slot = slot_of_a_child(slots)
    slot.new_row("store")

    assert [(name, row.tolist()) for name, row in slot.rows()] == [("store", [0] * NUMBERS)]


@given(st.text(alphabet=st.characters(exclude_characters="\0"), max_size=200))
@example("x" * 128)
@example("x" * 129)
@example("x" * 127 + "é")
@example("\ud800")
def test_a_row_has_as_much_of_any_name_as_fits(name: str) -> None:
    slot = slot_of_a_child(Slots(count=1))
    slot.new_row(name)
    slot.new_row("next")

    assert [found for found, _ in slot.rows()] == [row_key(name), "next"]


def test_a_name_that_fits_is_its_own_key_and_a_longer_one_is_cut_between_letters() -> None:
    assert row_key("payments-audit") == "payments-audit"
    assert row_key("x" * 128) == "x" * 128
    assert row_key("x" * 129) == "x" * 128
    assert row_key("x" + "é" * 100) == "x" + "é" * 63


# Memory that something has written over.

int32 = st.integers(-(2**31), 2**31 - 1)
scalars = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(-5, 5)
odd_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=2), scalars)
odd_texts = st.one_of(
    st.binary(max_size=100),
    st.lists(odd_values, max_size=16).map(msgspec.msgpack.encode),
    # All but right.
    st.tuples(odd_values, odd_values).map(
        lambda odd: msgspec.msgpack.encode(
            [1.0, *[odd[0]] * 2, "id-1", *[odd[0]] * 4, odd[1], *[odd[0]] * 6]
        )
    ),
)
odd_notes = st.tuples(st.sampled_from([RUNNING, ABANDONED, 20]) | int32, odd_texts)
odd_slots = st.fixed_dictionaries(
    {
        "pid": int32,
        "generation": int32,
        "longs": st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
        "notes": st.lists(odd_notes, max_size=3),
    }
)


def overwritten(fill: bytes) -> Slots:
    """Return slots all of whose memory was written over, but the number of slots is known."""
    slots = Slots(count=2)
    memory = slots._slot(0)._memory.obj
    assert isinstance(memory, mmap.mmap)
    memory[:] = (fill * (len(memory) // len(fill) + 1))[: len(memory)]
    return slots


def use_everything(slots: Slots) -> None:
    for slot in slots.living():
        slot.open_notes()
        slot.notes_of("id-1")
        slot.not_dispatched()
        for _, row in slot.rows():
            assert len(row) == NUMBERS
    slots.gone()
    slots.gone(reaped=False)
    slots.has_ended("id-1", 0)
    slots.has_ended("id-1", None)
    slots.before_fork()
    slots.forget()


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=64))
@example(b"\0")
@example(b"\xff")
@example(b"\x01")
def test_memory_that_holds_rubbish_is_not_believed_and_hurts_nothing(fill: bytes) -> None:
    slots = overwritten(fill)

    assert all(noted is None for slot in slots.living() for _, noted in slot.open_notes())
    use_everything(slots)


def write_over(slot: Slot, odd: dict[str, Any]) -> None:
    slot._ints[slots_module._PID] = odd["pid"]
    slot._ints[slots_module._GENERATION] = odd["generation"]
    for number, value in enumerate(odd["longs"], start=slots_module._CHANGED_AT):
        slot._longs[number] = value
    for note, (state, text) in enumerate(odd["notes"]):
        write_text(slot, note, text)
        slot.set_state(note, state)


def write_text(slot: Slot, note: int, text: bytes) -> None:
    start = slots_module._NOTES_FROM + note * slots_module._NOTE
    slot._memory[start : start + len(text)] = text
    slot._ints[slots_module._STATES // 4 + 2 * note + 1] = len(text)


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=8), odd_slots, odd_slots)
def test_slots_that_hold_rubbish_hurt_nothing(
    fill: bytes, first: dict[str, Any], second: dict[str, Any]
) -> None:
    slots = overwritten(fill)
    write_over(slots._slot(1), first)
    write_over(slots._slot(2), second)

    use_everything(slots)


@pytest.mark.parametrize("retries", [[1], {"a": 1}])
def test_a_number_of_retries_that_is_none_hurts_nothing(retries: object) -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)
    note = note_down(slot, running("id-1", retries=retries))
    slot.close(note)

    assert not slots.has_ended("id-1", 1)
    assert slots.has_ended("id-1", None)


def test_a_note_of_nothing_but_lists_in_lists_is_not_believed() -> None:
    slot = note_rubbish(Slots(count=1), b"\x91" * 1_008)

    assert slot.open_notes() == [(0, None)]


def test_after_the_last_generation_there_is_another() -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)
    slot._ints[slots_module._GENERATION] = 2**31 - 1
    slot.free()

    assert slot_of_a_child(slots).pid == FIRST_ACTED_PID


def note_rubbish(slots: Slots, text: bytes) -> Slot:
    """Write over the only note of a process, and return its slot."""
    slot = slot_of_a_child(slots)
    note = note_down(slot, running("id-1"))
    write_text(slot, note, text)
    return slot


@given(st.binary(min_size=1, max_size=64))
def test_a_note_that_is_rubbish_is_not_believed(rubbish: bytes) -> None:
    slots = Slots(count=1)

    slot = note_rubbish(slots, rubbish)

    assert slot.open_notes() == [(0, None)]
    assert slot.notes_of("id-1") == []
    assert not slots.has_ended("id-1", None)


@pytest.mark.parametrize(
    ("started_monotonic", "task_id"), [(5, "id-1"), ("5.0", "id-1"), (5.0, 1), (5.0, None)]
)
def test_a_note_that_lacks_what_every_attempt_has_is_not_believed(
    started_monotonic: object, task_id: object
) -> None:
    rest = [None] * (len(slots_module._NOTED) - 1)
    text = msgspec.msgpack.encode([started_monotonic, False, False, task_id, *rest])

    slot = note_rubbish(Slots(count=1), text)

    assert slot.open_notes() == [(0, None)]


@pytest.mark.parametrize("length", [-1, 0, 1_009, 2**31 - 1])
def test_a_note_whose_length_is_rubbish_is_not_believed(length: int) -> None:
    slots = Slots(count=1)
    slot = slot_of_a_child(slots)
    note = note_down(slot, running("id-1"))

    slot._ints[slots_module._STATES // 4 + 2 * note + 1] = length

    assert slot.open_notes() == [(note, None)]


# Where the memory comes from.

# Says what a spawned process finds, and waits to be let go.
SPAWNED = """
import json, os, sys
from celery_broadcast.slots import Running, Slots
slots = Slots.of_parent()
found = None if slots is None else [slots.mine is not None, slots.are_below()]
if slots is not None and slots.mine is not None:
    facts = dict.fromkeys(("task_name queue exchange routing_key retries root_id parent_id "
                           "group_id worker pid started_at").split())
    running = Running(facts={**facts, "task_id": "spawned"}, started_monotonic=5.0)
    slots.mine.write(slots.mine.take_note(), running)
print(json.dumps(found), flush=True)
sys.stdin.read()
"""


def spawn() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SPAWNED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said_by(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@on_linux
def test_spawned_processes_find_the_memory_of_their_parent_and_take_a_slot_each() -> None:
    # In a child, since any other slots of this process would do as well.
    def parent() -> Any:
        slots = Slots(count=4)
        processes = [spawn(), spawn()]
        said = [said_by(process) for process in processes]
        living = {slot.pid for slot in slots.living()} == {process.pid for process in processes}
        alive = [slots.gone(), slots.gone(reaped=False)] == [[], []]
        noted = open_task_ids(slots)
        for process in processes:
            process.communicate()
        return [said, living, alive, noted, len(slots.gone())]

    assert in_child(parent) == [
        [[True, False], [True, False]],
        True,
        True,
        ["spawned", "spawned"],
        2,
    ]


@on_linux
def test_of_spawned_processes_one_too_many_has_no_slot() -> None:
    def parent() -> Any:
        slots = Slots(count=1)
        slot_of_a_child(slots)
        process = spawn()
        said = said_by(process)
        process.communicate()
        return said

    assert in_child(parent) == [False, False]


def found_in_a_child_after(change: Callable[[Slots], object]) -> Any:
    """Return whether a child finds the slots of its parent, which were changed before."""

    def parent() -> Any:
        slots = Slots(count=2)
        change(slots)
        return in_child(lambda: Slots.of_parent() is not None)

    return in_child(parent)


def write_layout(slots: Slots) -> None:
    slots._slot(0)._longs[slots_module._LAYOUT] += 1


def write_owner(slots: Slots) -> None:
    slots._slot(0)._ints[slots_module._PID] = os.getppid()


@on_linux
def test_a_child_finds_the_slots_of_its_parent_and_no_other_ones() -> None:
    slots = Slots(count=2)  # the grandparent's

    assert found_in_a_child_after(lambda slots: None)
    assert not found_in_a_child_after(write_layout)
    assert not found_in_a_child_after(write_owner)
    assert slots.are_below()


@on_linux
def test_memory_that_is_too_small_for_a_slot_is_not_taken() -> None:
    def parent() -> Any:
        descriptor = os.memfd_create("celery-broadcast")
        os.ftruncate(descriptor, 4_096)
        return in_child(lambda: Slots.of_parent() is None)

    assert in_child(parent)


def test_where_there_is_no_list_of_descriptors_a_spawned_process_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: FIRST_ACTED_PID)

    assert Slots.of_parent() is None


def refuse(*_: object) -> Any:
    raise OSError("not here")


@pytest.mark.parametrize("how", ["not there", "forbidden"])
def test_without_a_memfd_forked_processes_have_slots_all_the_same(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "not there":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    slots = Slots(count=2)

    killed_child(lambda: note_in(slots, "id-1"))

    assert open_task_ids(slots) == ["id-1"]


def test_where_no_memory_can_be_mapped_there_are_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", refuse)

    with pytest.raises(OSError, match="not here"):
        Slots(count=2)


@on_linux
def test_slots_that_are_forgotten_leave_no_descriptor_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # no path is wanted

    Slots(count=2)
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="not here"):
        Slots(count=2)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208  # as above


def test_a_note_that_is_taken_anew_says_nothing_of_a_start() -> None:
    slot = slot_of_a_child(Slots(count=1))
    note = note_down(slot, running("id-1"))
    slot.say_start_told(note)

    slot.write(note, running("id-1"))  # the same once more, after an interruption
    assert slot.is_start_told(note)
    slot.close(note)
    taken = [slot.take_note() for _ in range(NOTES)]

    assert note in taken
    assert not any(slot.is_start_told(each) for each in taken if each is not None)
