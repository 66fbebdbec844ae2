from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_fork import in_child
from test_slots import child_that_dies, facts

from celery_broadcast.attempts import Attempt, Attempts

task_ids = st.sampled_from(["id-1", "id-2"])
which_request = st.integers(min_value=0, max_value=20)


class Request:
    """Stands for Celery's request: only which one it is counts."""


def attempt_of(task_id: str = "id-1") -> Attempt:
    return Attempt(facts={"task_id": task_id}, started_monotonic=0.0)


def end_by_news(attempts: Attempts, task_id: str) -> Attempt | None:
    return attempts.end_by_news({"task_id": task_id}, had_started=True)


def test_a_started_attempt_is_found_by_its_request() -> None:
    attempts, request, attempt = Attempts(), Request(), attempt_of()

    attempts.start(request, attempt)

    assert attempts.find(request) is attempt
    assert attempts.find(Request()) is None


def test_an_attempt_ends_once() -> None:
    attempts, request, attempt = Attempts(), Request(), attempt_of()
    attempts.start(request, attempt)

    assert attempts.end(request) is attempt

    assert attempts.end(request) is None
    assert attempts.find(request) is None


def test_an_attempt_that_never_started_has_no_end_here() -> None:
    assert Attempts().end(Request()) is None


def test_news_of_an_attempt_that_never_started_are_all_there_is_to_know() -> None:
    attempt = end_by_news(Attempts(), "id-1")

    assert attempt == Attempt(facts={"task_id": "id-1"}, started_monotonic=None)


def test_two_attempts_of_one_job_are_not_mixed_up() -> None:
    attempts, first, second = Attempts(), Request(), Request()
    attempts.start(first, attempt_of("id-1"))
    of_second = attempt_of("id-1")
    attempts.start(second, of_second)

    attempts.end(first)

    assert attempts.end(second) is of_second


def test_an_attempt_that_is_left_to_the_news_is_ended_by_its_task_id() -> None:
    attempts, request, attempt = Attempts(), Request(), attempt_of("id-1")
    attempts.start(request, attempt)

    attempts.leave_to_news(request)

    assert attempts.end(request) is None
    assert end_by_news(attempts, "id-2") is not attempt
    assert end_by_news(attempts, "id-1") is attempt
    assert end_by_news(attempts, "id-1") is not attempt


def test_attempts_of_one_job_that_are_left_to_the_news_end_in_their_order() -> None:
    attempts = Attempts()
    started = [(Request(), attempt_of("id-1")) for _ in range(3)]
    for request, attempt in started:
        attempts.start(request, attempt)

    for request, _ in started:
        attempts.leave_to_news(request)

    for _, attempt in started:
        assert end_by_news(attempts, "id-1") is attempt


def test_an_attempt_that_has_ended_cannot_be_left_to_the_news() -> None:
    attempts, request, attempt = Attempts(), Request(), attempt_of("id-1")
    attempts.start(request, attempt)
    attempts.end(request)

    attempts.leave_to_news(request)

    assert end_by_news(attempts, "id-1") is not attempt


def test_an_attempt_that_is_left_to_the_parent_has_no_end_here() -> None:
    attempts, request = Attempts(), Request()
    attempts.start(request, attempt_of("id-1"))

    attempts.leave_to_parent(request)

    assert attempts.find(request) is None
    assert attempts.end(request) is None


def test_news_that_come_twice_end_an_attempt_once() -> None:
    attempts = Attempts()

    assert end_by_news(attempts, "id-1") is not None
    assert end_by_news(attempts, "id-2") is not None

    assert end_by_news(attempts, "id-1") is None
    assert end_by_news(attempts, "id-2") is None


def test_news_are_not_remembered_for_ever() -> None:
    attempts = Attempts()
    end_by_news(attempts, "id-1")

    for number in range(1_000):
        end_by_news(attempts, f"other-{number}")

    assert end_by_news(attempts, "id-1") is not None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_job_that_dies_twice_in_two_processes_has_two_ends() -> None:
    attempts = Attempts()
    attempts.expect_children()
    news = {**facts("id-1"), "args": (1,)}

    def start() -> None:
        attempts.start(Request(), Attempt(facts=facts("id-1"), started_monotonic=5.0))

    for _ in range(2):
        child_that_dies(start)
        attempt = attempts.end_by_news(news, had_started=True)
        assert attempt is not None
        assert attempt.started_monotonic == 5.0
        assert attempt.facts["args"] == (1,)
        assert attempts.end_by_news(news, had_started=True) is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_eager_job_inside_a_job_leaves_no_trace_for_the_parent() -> None:
    attempts = Attempts()
    attempts.expect_children()

    def child() -> Any:
        outer, inner = Request(), Request()
        attempts.start(outer, Attempt(facts=facts("outer"), started_monotonic=5.0))
        attempts.start(inner, Attempt(facts=facts("inner"), started_monotonic=6.0, eager=True))
        attempts.end(inner)
        return True

    in_child(child)

    attempt = attempts.end_by_news(facts("outer"), had_started=True)
    assert attempt is not None
    assert attempt.started_monotonic == 5.0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_news_of_a_job_that_its_own_process_has_ended_end_nothing() -> None:
    attempts = Attempts()
    attempts.expect_children()

    def child() -> Any:
        request = Request()
        attempts.start(request, Attempt(facts=facts("id-1"), started_monotonic=5.0))
        return attempts.end(request) is not None

    in_child(child)

    assert attempts.end_by_news(facts("id-1"), had_started=True) is None
    assert attempts.end_by_news(facts("expired"), had_started=False) is not None


def test_attempts_for_which_no_news_come_do_not_pile_up() -> None:
    attempts, forgotten = Attempts(), []
    for number in range(1_010):
        request = Request()
        attempts.start(request, attempt_of(f"id-{number}"))
        if (attempt := attempts.leave_to_news(request)) is not None:
            forgotten.append(attempt.facts["task_id"])

    assert forgotten == [f"id-{number}" for number in range(10)]
    assert len(attempts.give_up_waiting()) == 1_000
    assert attempts.give_up_waiting() == []


def test_whoever_forgets_has_no_attempt_left() -> None:
    attempts, running, left = Attempts(), Request(), Request()
    attempts.start(running, attempt_of("id-1"))
    attempt = attempt_of("id-2")
    attempts.start(left, attempt)
    attempts.leave_to_news(left)
    end_by_news(attempts, "id-3")

    attempts.forget()

    assert attempts.find(running) is None
    assert end_by_news(attempts, "id-2") is not attempt
    assert end_by_news(attempts, "id-3") is not None


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
        request, attempt = Request(), attempt_of(task_id)
        self.attempts.start(request, attempt)
        self.requests.append(request)
        self.started.append(attempt)

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def end(self, which: int) -> None:
        self.note(self.attempts.end(self.requests[which % len(self.requests)]))

    @precondition(lambda self: self.requests)
    @rule(which=which_request)
    def leave_to_news(self, which: int) -> None:
        self.attempts.leave_to_news(self.requests[which % len(self.requests)])

    @rule(task_id=task_ids)
    def end_by_news(self, task_id: str) -> None:
        attempt = end_by_news(self.attempts, task_id)
        assert attempt is None or attempt.facts["task_id"] == task_id
        self.note(attempt)

    @invariant()
    def no_attempt_ends_twice(self) -> None:
        assert len({id(attempt) for attempt in self.ended}) == len(self.ended)

    def teardown(self) -> None:
        for request in self.requests:
            self.attempts.leave_to_news(request)
        for attempt in self.started:
            self.note(end_by_news(self.attempts, attempt.facts["task_id"]))
        assert sorted(map(id, self.ended)) == sorted(map(id, self.started))

    def note(self, attempt: Attempt | None) -> None:
        if attempt is not None and attempt.started_monotonic is not None:
            self.ended.append(attempt)


test_an_attempt_ends_once_whoever_brings_the_news = Ends.TestCase
