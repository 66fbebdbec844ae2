from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.restarts import MAX_RESTARTS, WITHIN_SECONDS, Restarts


def test_the_pause_doubles_with_every_crash() -> None:
    restarts = Restarts(max_restarts=3, within_seconds=60.0)

    assert [restarts.pause_after_crash(now) for now in (0.0, 1.0, 2.0)] == [0.5, 1.0, 2.0]


def test_one_crash_too_many_in_a_short_time_gives_up() -> None:
    restarts = Restarts(max_restarts=3, within_seconds=60.0)
    for now in (0.0, 1.0, 2.0):
        restarts.pause_after_crash(now)

    assert restarts.pause_after_crash(60.0) is None


def test_a_crash_long_ago_is_forgotten() -> None:
    restarts = Restarts(max_restarts=1, within_seconds=5.0)
    assert restarts.pause_after_crash(100.0) == 0.5

    assert restarts.pause_after_crash(105.1) == 0.5
    assert restarts.pause_after_crash(106.0) is None


def test_a_consumer_without_restarts_is_given_up_at_its_first_crash() -> None:
    assert Restarts(max_restarts=0).pause_after_crash(0.0) is None


def test_a_consumer_that_crashes_in_every_start_is_given_up_after_the_usual_number() -> None:
    restarts = Restarts()
    now, starts = 0.0, 0

    while (pause := restarts.pause_after_crash(now)) is not None:
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
    restarts = Restarts(max_restarts, within_seconds)
    crashes: list[float] = []

    for pause in pauses:
        now = (crashes[-1] if crashes else 0.0) + pause
        crashes.append(now)
        recent = sum(now - crash <= within_seconds for crash in crashes)

        answer = restarts.pause_after_crash(now)

        assert (answer is None) == (recent > max_restarts)
        assert answer is None or answer == 0.5 * 2 ** (recent - 1)


def test_the_usual_pauses_fit_into_the_usual_time() -> None:
    pauses = [0.5 * 2**number for number in range(MAX_RESTARTS)]

    assert sum(pauses) < WITHIN_SECONDS
