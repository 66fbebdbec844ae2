from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.restarts import (
    MAX_RESTARTS,
    Restart,
    Restarts,
    ended_on_purpose,
)

CRASH = SystemExit(3)


def test_the_pause_doubles_with_every_crash() -> None:
    restarts = Restarts(Restart(max_restarts=3, within=60.0))

    assert [restarts.pause_after_crash(CRASH, now) for now in (0.0, 1.0, 2.0)] == [0.5, 1.0, 2.0]


def test_one_crash_too_many_in_a_short_time_gives_up() -> None:
    restarts = Restarts(Restart(max_restarts=3, within=60.0))
    for now in (0.0, 1.0, 2.0):
        restarts.pause_after_crash(CRASH, now)

    assert restarts.pause_after_crash(CRASH, 60.0) is None


def test_a_crash_long_ago_is_forgotten() -> None:
    restarts = Restarts(Restart(max_restarts=1, within=5.0))
    assert restarts.pause_after_crash(CRASH, 100.0) == 0.5

    assert restarts.pause_after_crash(CRASH, 105.1) == 0.5
    assert restarts.pause_after_crash(CRASH, 106.0) is None


def test_a_consumer_without_restarts_is_given_up_at_its_first_crash() -> None:
    assert Restarts(Restart(max_restarts=0)).pause_after_crash(CRASH, 0.0) is None


def test_a_consumer_that_crashes_in_every_start_is_given_up_after_the_usual_number() -> None:
    restarts = Restarts()
    now, starts = 0.0, 0

    while (pause := restarts.pause_after_crash(CRASH, now)) is not None:
        now += pause
        starts += 1

    assert starts == MAX_RESTARTS


@given(
    pauses=st.lists(st.floats(0.0, 20.0)),
    max_restarts=st.integers(0, 5),
    within_seconds=st.floats(1.0, 10.0),
)
def test_it_gives_up_when_and_only_when_too_many_crashes_are_recent(
    pauses: list[float], max_restarts: int, within_seconds: float
) -> None:
    restarts = Restarts(Restart(max_restarts=max_restarts, within=within_seconds))
    crashes: list[float] = []

    for pause in pauses:
        now = (crashes[-1] if crashes else 0.0) + pause
        crashes.append(now)
        recent = sum(now - crash <= within_seconds for crash in crashes)

        answer = restarts.pause_after_crash(CRASH, now)

        assert (answer is None) == (recent > max_restarts)
        share = within_seconds / (max_restarts + 1)
        assert answer is None or answer == min(0.5 * 2 ** (recent - 1), share)


@given(max_restarts=st.integers(0, 5_000), within=st.floats(0.1, 86_400.0))
def test_a_consumer_that_never_starts_is_given_up_whatever_the_numbers(
    max_restarts: int, within: float
) -> None:
    restarts = Restarts(Restart(max_restarts=max_restarts, within=within))
    now, starts = 0.0, 0

    while (pause := restarts.pause_after_crash(CRASH, now)) is not None:
        now += pause
        starts += 1
        assert starts <= max_restarts

    assert starts == max_restarts
    assert now <= within


@pytest.mark.parametrize("crash", [SystemExit(), SystemExit(None), SystemExit(0)])
def test_an_exit_with_success_is_on_purpose(crash: BaseException) -> None:
    assert ended_on_purpose(crash)


@pytest.mark.parametrize(
    "crash",
    [SystemExit(1), SystemExit("0"), SystemExit(0.0), KeyboardInterrupt(), ConnectionError()],
)
def test_any_other_end_is_a_crash(crash: BaseException) -> None:
    assert not ended_on_purpose(crash)


@pytest.mark.parametrize(
    ("kind", "after_a_crash", "after_an_exit"),
    [("permanent", 0.5, 0.5), ("transient", 0.5, None), ("temporary", None, None)],
)
def test_the_kind_says_what_is_started_again(
    kind: Literal["permanent", "transient", "temporary"],
    after_a_crash: float | None,
    after_an_exit: float | None,
) -> None:
    assert Restarts(Restart(kind)).pause_after_crash(CRASH, 0.0) == after_a_crash
    assert Restarts(Restart(kind)).pause_after_crash(SystemExit(0), 0.0) == after_an_exit


def test_a_permanent_consumer_that_exits_on_purpose_too_often_is_given_up() -> None:
    restarts = Restarts(Restart("permanent", max_restarts=1))
    assert restarts.pause_after_crash(SystemExit(0), 0.0) == 0.5

    assert restarts.pause_after_crash(SystemExit(0), 1.0) is None


def test_a_restart_is_permanent_three_times_in_five_seconds_unless_told_otherwise() -> None:
    assert Restart() == Restart("permanent", max_restarts=3, within=5.0)


@pytest.mark.parametrize("kind", ["always", "", None, True, ["permanent"]])
def test_a_kind_that_does_not_exist_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Restart(kind)

    assert str(caught.value).startswith(f"Restart({kind!r}) is not a kind of restart")
    assert "'transient'" in str(caught.value)


@pytest.mark.parametrize("max_restarts", [-1, True, 1.0, "3", None])
def test_restarts_are_counted_in_whole_numbers(max_restarts: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Restart(max_restarts=max_restarts)

    assert str(caught.value).startswith(f"Restart(max_restarts={max_restarts!r}) can't be")


@pytest.mark.parametrize("within", [-1, math.nan, math.inf, 86_401, True, "5s", None])
def test_a_crash_counts_for_a_day_at_most(within: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Restart(within=within)

    assert str(caught.value).startswith("The within of a Restart must be a number of seconds")
    assert repr(within) in str(caught.value)


def test_a_crash_counts_for_some_time() -> None:
    with pytest.raises(ConfigurationError, match="would forget every crash at once"):
        Restart(within=0)
