from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_slots import as_in_a_child, facts, killed_child

from celery_broadcast import events
from celery_broadcast.attempts import Attempt, Attempts, ending_of
from celery_broadcast.events import JobEnded, JobFailed, JobFinished, JobRetried
from celery_broadcast.slots import ABANDONED, CLOSED, NOTES, RUNNING, Running, Slot, Slots

task_ids = st.sampled_from(["id-1", "id-2"])
which_request = st.integers(min_value=0, max_value=20)

ENDS = sorted(
    (kind for kind in events.EVENT_TYPES.values() if issubclass(kind, JobEnded)),
    key=lambda kind: kind.__name__,
)


class Request:
    """Stands for Celery's request: only which one it is counts."""


def attempt_of(task_id: str = "id-1", **others: Any) -> Attempt:
    return Attempt(facts=facts(task_id), **{"started_monotonic": 5.0, **others})


def in_pool_process() -> tuple[Attempts, Slot]:
    """Return attempts as a pool process has them, and the slot in which it notes them."""
    slots = as_in_a_child(Slots(count=2))
    attempts = Attempts()
    attempts.share(slots)
    assert slots.mine is not None
    return attempts, slots.mine


def started(attempts: Attempts, task_id: str = "id-1", **others: Any) -> tuple[Request, Attempt]:
    request, attempt = Request(), attempt_of(task_id, **others)
    attempts.start(request, attempt)
    return request, attempt


# In a process that nobody has to read.


def test_a_started_attempt_is_found_by_its_request() -> None:
    attempts = Attempts()

    request, attempt = started(attempts)

    assert attempts.find(request) is attempt
    assert attempts.find(Request()) is None


def test_an_attempt_that_has_ended_is_not_found() -> None:
    attempts = Attempts()
    request, attempt = started(attempts)
    assert attempts.can_end(attempt)

    attempts.end(request)

    assert attempts.find(request) is None
    attempts.end(request)


def test_an_attempt_that_never_started_has_no_end_here() -> None:
    attempts = Attempts()

    attempts.end(Request())
    attempts.leave_to_parent(Request())
    assert attempts.leave_to_news(Request()) is None
    assert attempts.end_by_news("id-1") is None


def test_an_attempt_that_is_started_twice_is_one_attempt() -> None:
    attempts = Attempts()
    request, attempt = started(attempts)

    attempts.start(request, attempt)

    assert attempts.find(request) is attempt
    attempts.end(request)
    assert attempts.find(request) is None


def test_two_attempts_of_one_job_are_not_mixed_up() -> None:
    attempts = Attempts()
    first, _ = started(attempts)
    second, of_second = started(attempts)

    attempts.end(first)

    assert attempts.find(first) is None
    assert attempts.find(second) is of_second


def test_a_process_without_a_slot_notes_nothing_and_tells_its_ends_all_the_same() -> None:
    slots, attempts = Slots(count=1), Attempts()
    attempts.share(slots)
    _, attempt = started(attempts)

    assert attempt.note is None
    assert not attempts.are_told_to_parent()
    assert attempts.can_end(attempt)
    assert attempts.tell(attempt, JobFinished) is None
    attempts.close(attempt)


def test_an_attempt_that_is_left_to_the_news_is_ended_by_its_task_id() -> None:
    attempts = Attempts()
    request, attempt = started(attempts, "id-1")

    attempts.leave_to_news(request)

    assert attempts.find(request) is None
    assert attempts.end_by_news("id-2") is None
    assert attempts.end_by_news("id-1") is attempt
    assert attempts.end_by_news("id-1") is None


def test_attempts_of_one_job_that_are_left_to_the_news_end_in_their_order() -> None:
    attempts = Attempts()
    several = [started(attempts, "id-1") for _ in range(3)]

    for request, _ in several:
        attempts.leave_to_news(request)

    for _, attempt in several:
        assert attempts.end_by_news("id-1") is attempt


def test_an_attempt_that_has_ended_cannot_be_left_to_the_news() -> None:
    attempts = Attempts()
    request, _ = started(attempts)
    attempts.end(request)

    attempts.leave_to_news(request)

    assert attempts.end_by_news("id-1") is None


def test_an_attempt_that_is_left_to_the_parent_has_no_end_here() -> None:
    attempts = Attempts()
    request, _ = started(attempts)

    attempts.leave_to_parent(request)

    assert attempts.find(request) is None


def test_attempts_for_which_no_news_come_do_not_pile_up() -> None:
    attempts, forgotten = Attempts(), []
    for number in range(1_010):
        request, _ = started(attempts, f"id-{number}")
        if (attempt := attempts.leave_to_news(request)) is not None:
            forgotten.append(attempt.facts["task_id"])

    assert forgotten == [f"id-{number}" for number in range(10)]
    assert len(attempts.give_up_waiting()) == 1_000
    assert attempts.give_up_waiting() == []
    assert attempts.end_by_news("id-500") is None


def test_whoever_forgets_has_no_attempt_left() -> None:
    attempts = Attempts()
    running, _ = started(attempts, "id-1")
    left, _ = started(attempts, "id-2")
    attempts.leave_to_news(left)

    attempts.forget()

    assert attempts.find(running) is None
    assert attempts.end_by_news("id-2") is None
    assert attempts.give_up_waiting() == []


# In a pool process, whose parent reads.


def test_a_pool_process_notes_each_attempt_that_starts() -> None:
    attempts, slot = in_pool_process()

    _, attempt = started(attempts, "id-1", eager=True, acks_late=True)

    assert attempts.are_told_to_parent()
    ((note, noted),) = slot.notes_of("id-1")
    assert note == attempt.note
    assert slot.state(note) == RUNNING
    known = {name: fact for name, fact in attempt.facts.items() if fact is not None}
    assert noted == Running(facts=known, started_monotonic=5.0, eager=True, acks_late=True)


def test_an_attempt_that_never_ran_is_not_noted() -> None:
    attempts, slot = in_pool_process()

    started(attempts, started_monotonic=None)

    assert slot.open_notes() == []


def test_an_attempt_that_is_started_twice_is_noted_once() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)

    attempts.start(request, attempt)

    assert [note for note, _ in slot.open_notes()] == [attempt.note]


def test_an_attempt_is_noted_until_its_end_is_published() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)
    note = attempt.note
    assert note is not None

    assert attempts.can_end(attempt)
    assert slot.state(note) == RUNNING
    assert attempts.tell(attempt, JobRetried) == note
    assert ending_of(slot.state(note)) is JobRetried
    attempts.end(request)
    assert ending_of(slot.state(note)) is JobRetried
    slot.close(note)
    assert slot.open_notes() == []


def test_an_attempt_of_whose_end_nobody_wants_to_know_is_not_noted_any_longer() -> None:
    attempts, slot = in_pool_process()
    _, attempt = started(attempts)

    attempts.close(attempt)
    attempts.close(attempt)

    assert slot.open_notes() == []
    taken = [slot.take_note() for _ in range(NOTES + 1)]
    assert sorted(note for note in taken if note is not None) == [*range(NOTES)]


def test_where_ends_wait_to_be_published_some_notes_are_kept_for_attempts_that_start() -> None:
    attempts, slot = in_pool_process()

    waiting = []
    for number in range(3 * NOTES):  # and nobody closes a note
        request, attempt = started(attempts, f"id-{number}")
        assert attempt.note is not None
        waiting.append(attempts.tell(attempt, JobFinished))
        if waiting[-1] is None:
            attempts.close(attempt)  # as soon as its end is published
        attempts.end(request)

    assert len(waiting) - waiting.count(None) == NOTES // 2
    assert len(slot.open_notes()) == NOTES // 2


@pytest.mark.parametrize("event_type", ENDS)
def test_every_end_can_be_read_while_it_is_being_published(event_type: type[JobEnded]) -> None:
    attempts, slot = in_pool_process()
    _, attempt = started(attempts)
    assert attempt.note is not None

    attempts.tell(attempt, event_type)

    assert ending_of(slot.state(attempt.note)) is event_type


@pytest.mark.parametrize("state", [CLOSED, RUNNING, ABANDONED, -1, 3, 10_000])
def test_no_other_state_is_taken_for_an_end(state: int) -> None:
    assert ending_of(state) is None


def test_an_attempt_for_which_there_is_no_note_ends_all_the_same() -> None:
    attempts, slot = in_pool_process()
    for number in range(NOTES):
        started(attempts, f"id-{number}")

    _, attempt = started(attempts, "one too many")

    assert attempt.note is None
    assert attempts.can_end(attempt)
    assert attempts.tell(attempt, JobFinished) is None
    attempts.close(attempt)
    assert [slot.state(note) for note in range(NOTES)] == [RUNNING] * NOTES


@pytest.mark.parametrize("task_id", ["x" * 2_000, "\ud800"])
def test_an_attempt_whose_id_cannot_be_noted_is_known_here_alone(task_id: str) -> None:
    attempts, slot = in_pool_process()

    request, attempt = started(attempts, task_id)

    assert slot.open_notes() == []
    assert attempts.find(request) is attempt
    assert attempts.can_end(attempt)
    assert attempts.tell(attempt, JobFinished) is None


def test_an_attempt_that_the_parent_has_ended_cannot_be_ended_again() -> None:
    attempts, slot = in_pool_process()
    _, attempt = started(attempts, "id-1")
    _, other = started(attempts, "id-2")
    assert attempt.note is not None

    slot.set_state(attempt.note, CLOSED)

    assert not attempts.can_end(attempt)
    assert attempts.can_end(other)


def test_what_is_left_to_the_news_is_not_left_to_the_parent() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)

    attempts.leave_to_news(request)

    assert slot.open_notes() == []
    assert attempts.end_by_news("id-1") is attempt


def test_what_is_left_to_the_parent_is_noted_as_that() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)
    assert attempt.note is not None

    attempts.leave_to_parent(request)

    assert slot.state(attempt.note) == ABANDONED
    assert attempts.find(request) is None


def test_what_the_parent_has_ended_cannot_be_left_to_it() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)
    assert attempt.note is not None
    slot.set_state(attempt.note, CLOSED)

    attempts.leave_to_parent(request)

    assert slot.open_notes() == []


def test_what_the_parent_has_ended_cannot_be_left_to_the_news() -> None:
    attempts, slot = in_pool_process()
    request, attempt = started(attempts)
    assert attempt.note is not None
    slot.set_state(attempt.note, CLOSED)

    attempts.leave_to_news(request)

    assert attempts.end_by_news("id-1") is None


def test_what_was_never_noted_can_be_left_to_the_parent() -> None:
    attempts, slot = in_pool_process()
    request, _ = started(attempts, started_monotonic=None)

    attempts.leave_to_parent(request)

    assert attempts.find(request) is None
    assert slot.open_notes() == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_parent_reads_the_end_that_a_killed_child_was_telling() -> None:
    slots, attempts = Slots(count=2), Attempts()
    attempts.share(slots)

    def die_telling(event_type: type[JobEnded]) -> None:
        _, attempt = started(attempts)
        assert attempts.tell(attempt, event_type) is not None

    killed_child(partial(die_telling, JobFailed))

    (slot,) = slots.gone()
    ((note, noted),) = slot.open_notes()
    assert ending_of(slot.state(note)) is JobFailed
    assert noted is not None
    assert noted.facts["pid"] == slot.pid


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_eager_job_inside_a_job_leaves_no_trace_for_the_parent() -> None:
    slots, attempts = Slots(count=2), Attempts()
    attempts.share(slots)

    def run_one_in_another() -> None:
        started(attempts, "outer")
        inner, attempt = started(attempts, "inner", eager=True)
        attempts.close(attempt)
        attempts.end(inner)

    killed_child(run_one_in_another)

    (slot,) = slots.gone()
    assert [noted.facts["task_id"] for _, noted in slot.open_notes() if noted] == ["outer"]


class Ends(RuleBasedStateMachine):
    """Whoever brings the news, in whatever order: an attempt has one end, and each has one."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = Attempts()
        self.requests: list[Request] = []
        self.started: list[Attempt] = []
        self.ended: list[Attempt] = []

    @rule(task_id=task_ids)
    def start(self, task_id: str) -> None:
        request, attempt = started(self.attempts, task_id)
        self.requests.append(request)
        self.started.append(attempt)

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def end(self, which: int) -> None:
        request = self.requests[which % len(self.requests)]
        attempt = self.attempts.find(request)
        if attempt is not None:
            self.publish(attempt)
            self.attempts.end(request)

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def leave_to_news(self, which: int) -> None:
        request = self.requests[which % len(self.requests)]
        attempt = self.attempts.find(request)
        if attempt is None or self.attempts.can_end(attempt):
            self.attempts.leave_to_news(request)

    @rule(task_id=task_ids)
    def end_by_news(self, task_id: str) -> None:
        attempt = self.attempts.end_by_news(task_id)
        assert attempt is None or attempt.facts["task_id"] == task_id
        if attempt is not None:
            self.publish(attempt)

    @invariant()
    def no_attempt_ends_twice(self) -> None:
        assert len({id(attempt) for attempt in self.ended}) == len(self.ended)

    def teardown(self) -> None:
        for which in range(len(self.requests)):
            self.end(which)
        for attempt in self.attempts.give_up_waiting():
            self.publish(attempt)
        assert sorted(map(id, self.ended)) == sorted(map(id, self.started))

    def publish(self, attempt: Attempt) -> None:
        if not self.attempts.can_end(attempt):
            return
        note = self.attempts.tell(attempt, JobFinished)
        self.ended.append(attempt)
        if note is not None:
            self.close(note)
        else:
            self.attempts.close(attempt)

    def close(self, note: int) -> None:
        """Close a note, as whoever publishes does; there is none here."""
        raise AssertionError(note)


class EndsInPoolProcess(Ends):
    """The same where the parent reads, and may end what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts, self.slot = in_pool_process()

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def leave_to_parent(self, which: int) -> None:
        which %= len(self.requests)
        request, attempt = self.requests[which], self.started[which]
        if self.attempts.find(request) is None or self.is_ended(attempt):
            return
        self.attempts.leave_to_parent(request)
        if attempt.note is None:
            self.ended.append(attempt)  # nobody can tell of it any more

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def end_by_parent(self, which: int) -> None:
        attempt = self.started[which % len(self.started)]
        if attempt.note is None or self.is_ended(attempt):
            return
        assert self.slot.state(attempt.note) in {RUNNING, ABANDONED}
        self.slot.set_state(attempt.note, CLOSED)
        self.ended.append(attempt)

    def is_ended(self, attempt: Attempt) -> bool:
        return any(ended is attempt for ended in self.ended)

    def close(self, note: int) -> None:
        self.slot.close(note)

    @invariant()
    def the_parent_sees_what_it_may_have_to_end(self) -> None:
        ended = {id(attempt) for attempt in self.ended}
        noted = {attempt.note for attempt in self.started if id(attempt) not in ended} - {None}
        assert {note for note, _ in self.slot.open_notes()} == noted

    def teardown(self) -> None:
        for which, attempt in enumerate(self.started):
            if self.attempts.find(self.requests[which]) is None:
                self.end_by_parent(which)
            assert attempt.note is None or 0 <= attempt.note < NOTES
        super().teardown()


Ends.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
EndsInPoolProcess.TestCase.settings = Ends.TestCase.settings

test_an_attempt_ends_once_whoever_brings_the_news = Ends.TestCase
test_an_attempt_ends_once_though_the_parent_may_end_it_too = EndsInPoolProcess.TestCase
