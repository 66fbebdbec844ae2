from __future__ import annotations

import math
import threading

import pytest

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.rate_limit import RateLimit, check_rate_limit

AN_HOUR = 3_600.0


def pass_time(limit: RateLimit, seconds: float) -> None:
    """Let time pass for a limit, and for nothing else."""
    assert limit._bucket.timestamp is not None
    limit._bucket.timestamp -= seconds


@pytest.mark.parametrize(
    ("value", "per_second"),
    [
        ("1/s", 1.0),
        ("100/m", 100 / 60),
        ("10/h", 10 / 3_600),
        ("0.5/s", 0.5),
        ("0.5", 0.5),
        (" 2/s ", 2.0),
        (5, 5.0),
        (0.25, 0.25),
    ],
)
def test_a_rate_limit_is_written_as_for_a_task(value: object, per_second: float) -> None:
    assert check_rate_limit("rate_limit", value) == pytest.approx(per_second)


@pytest.mark.parametrize("value", [None, 0, 0.0, "0", "0/s", "0/m"])
def test_none_and_nought_are_no_limit(value: object) -> None:
    assert check_rate_limit("rate_limit", value) is None


@pytest.mark.parametrize(
    "value",
    [
        *("fast", "1/x", "/s", "", " ", "1/s/m", "-1/s", "nan", "inf/s", "1e999/m"),
        *(True, False, -1, math.nan, math.inf, 10**400, [1], b"1/s", object),
    ],
)
def test_what_is_no_rate_limit_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_rate_limit("rate_limit", value)

    assert str(caught.value).startswith(f"rate_limit={value!r} is not a rate limit")
    assert "'10/s'" in str(caught.value)


def test_the_first_call_may_come_at_once_and_the_next_has_to_wait() -> None:
    limit = RateLimit(1 / AN_HOUR)

    assert limit.take() == 0.0
    assert limit.take() == pytest.approx(AN_HOUR, abs=60)


def test_after_the_wait_there_is_one_more_call() -> None:
    limit = RateLimit(1 / AN_HOUR)
    limit.take()

    pass_time(limit, AN_HOUR)

    assert limit.take() == 0.0
    assert limit.take() > 0.0


def test_a_question_takes_nothing() -> None:
    limit = RateLimit(1 / AN_HOUR)
    limit.take()

    pass_time(limit, AN_HOUR / 2)
    assert limit.take() == pytest.approx(AN_HOUR / 2, abs=60)
    pass_time(limit, AN_HOUR / 2)

    assert limit.take() == 0.0


@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_quiet_time_allows_for_no_burst(calls_before: int) -> None:
    limit = RateLimit(1 / AN_HOUR)
    for _ in range(calls_before):
        limit.take()

    pass_time(limit, 10 * AN_HOUR)

    assert limit.take() == 0.0
    assert limit.take() > 0.0


def test_the_slowest_limit_is_asked_again_within_a_day() -> None:
    limit = RateLimit(1e-300)
    limit.take()

    assert limit.take() == 24 * AN_HOUR


def test_a_token_that_comes_between_two_questions_is_taken() -> None:
    limit = RateLimit(1 / AN_HOUR)
    limit.take()
    ask = limit._bucket.expected_time

    def ask_late(tokens: int = 1) -> float:
        pass_time(limit, AN_HOUR)
        return ask(tokens)

    limit._bucket.expected_time = ask_late  # type: ignore[method-assign]

    assert limit.take() == 0.0


def test_of_many_threads_one_gets_the_token() -> None:
    limit = RateLimit(1 / AN_HOUR)
    answers: list[float] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait(10)
        answers.append(limit.take())

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(answers) == 8
    assert answers.count(0.0) == 1
