from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_broadcast.attempts import Attempt, Attempts

task_ids = st.sampled_from(["id-1", "id-2"])
which_request = st.integers(min_value=0, max_value=20)


class Request:
    """Stands for Celery's request: only which one it is counts."""


def attempt_of(task_id: str = "id-1") -> Attempt:
    return Attempt(facts={"task_id": task_id}, started_monotonic=0.0)


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


def test_an_attempt_that_never_started_has_no_end() -> None:
    assert Attempts().end(Request()) is None
    assert Attempts().end_aborted("id-1") is None


def test_two_attempts_of_one_job_are_not_mixed_up() -> None:
    attempts, first, second = Attempts(), Request(), Request()
    attempts.start(first, attempt_of("id-1"))
    of_second = attempt_of("id-1")
    attempts.start(second, of_second)

    attempts.end(first)

    assert attempts.end(second) is of_second


def test_an_aborted_attempt_is_ended_by_its_task_id() -> None:
    attempts, request, attempt = Attempts(), Request(), attempt_of("id-1")
    attempts.start(request, attempt)

    attempts.abort(request)

    assert attempts.end(request) is None
    assert attempts.end_aborted("id-2") is None
    assert attempts.end_aborted("id-1") is attempt
    assert attempts.end_aborted("id-1") is None


def test_aborted_attempts_of_one_job_end_in_the_order_they_were_aborted() -> None:
    attempts = Attempts()
    started = [(Request(), attempt_of("id-1")) for _ in range(3)]
    for request, attempt in started:
        attempts.start(request, attempt)

    for request, _ in started:
        attempts.abort(request)

    assert [attempts.end_aborted("id-1") for _ in range(4)] == [
        *(attempt for _, attempt in started),
        None,
    ]


def test_an_attempt_that_has_ended_cannot_be_aborted() -> None:
    attempts, request = Attempts(), Request()
    attempts.start(request, attempt_of("id-1"))
    attempts.end(request)

    attempts.abort(request)

    assert attempts.end_aborted("id-1") is None


def test_the_end_of_an_attempt_elsewhere_is_told_once() -> None:
    attempts = Attempts()

    assert attempts.end_remote("id-1")
    assert attempts.end_remote("id-2")

    assert not attempts.end_remote("id-1")
    assert not attempts.end_remote("id-2")


def test_ends_elsewhere_are_not_remembered_for_ever() -> None:
    attempts = Attempts()
    attempts.end_remote("id-1")

    for number in range(1_000):
        attempts.end_remote(f"other-{number}")

    assert attempts.end_remote("id-1")


def test_whoever_forgets_has_no_attempt_left() -> None:
    attempts, running, aborted = Attempts(), Request(), Request()
    attempts.start(running, attempt_of("id-1"))
    attempts.start(aborted, attempt_of("id-2"))
    attempts.abort(aborted)
    attempts.end_remote("id-3")

    attempts.forget()

    assert attempts.find(running) is None
    assert attempts.end_aborted("id-2") is None
    assert attempts.end_remote("id-3")


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
    def abort(self, which: int) -> None:
        self.attempts.abort(self.requests[which % len(self.requests)])

    @rule(task_id=task_ids)
    def end_aborted(self, task_id: str) -> None:
        attempt = self.attempts.end_aborted(task_id)
        assert attempt is None or attempt.facts["task_id"] == task_id
        self.note(attempt)

    @invariant()
    def no_attempt_ends_twice(self) -> None:
        assert len({id(attempt) for attempt in self.ended}) == len(self.ended)

    def teardown(self) -> None:
        for request in self.requests:
            self.attempts.abort(request)
        for attempt in self.started:
            self.note(self.attempts.end_aborted(attempt.facts["task_id"]))
        assert sorted(map(id, self.ended)) == sorted(map(id, self.started))

    def note(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            self.ended.append(attempt)


test_an_attempt_ends_once_whoever_brings_the_news = Ends.TestCase
