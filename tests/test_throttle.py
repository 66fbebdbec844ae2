from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.throttle import Throttle


def test_with_nothing_counted_there_is_nothing_to_say() -> None:
    assert Throttle(first_after=1.0, then_every=60.0).due_in(now=100.0) is None


def test_the_first_line_is_due_a_while_after_the_first_count() -> None:
    throttle = Throttle(first_after=1.0, then_every=60.0)

    throttle.add(1, now=100.0)
    throttle.add(1, now=100.75)

    assert throttle.due_in(now=100.75) == 0.25
    assert throttle.due_in(now=101.0) == 0.0
    assert throttle.due_in(now=200.0) == 0.0


def test_a_line_sums_up_what_was_counted_since_the_one_before() -> None:
    throttle = Throttle(first_after=1.0, then_every=60.0)
    throttle.add(2, now=100.0)
    throttle.add(3, now=101.0)
    assert throttle.say(now=104.0) == (5, 4.0)

    throttle.add(7, now=110.0)

    assert throttle.say(now=111.0) == (7, 1.0)


def test_the_next_line_is_due_much_later() -> None:
    throttle = Throttle(first_after=1.0, then_every=60.0)
    throttle.add(1, now=100.0)
    throttle.say(now=101.0)
    assert throttle.due_in(now=150.0) is None

    throttle.add(1, now=150.0)

    assert throttle.due_in(now=150.0) == 11.0
    assert throttle.due_in(now=161.0) == 0.0


def test_after_a_long_quiet_time_a_line_is_due_as_the_first_was() -> None:
    throttle = Throttle(first_after=1.0, then_every=60.0)
    throttle.add(1, now=100.0)
    throttle.say(now=101.0)

    throttle.add(1, now=1_000.0)

    assert throttle.due_in(now=1_000.0) == 1.0


def test_a_throttle_that_waits_for_nothing_is_due_at_once() -> None:
    throttle = Throttle(first_after=0.0, then_every=60.0)

    throttle.add(1, now=100.0)

    assert throttle.due_in(now=100.0) == 0.0


def test_saying_nothing_took_no_time() -> None:
    throttle = Throttle(first_after=1.0, then_every=60.0)
    assert throttle.say(now=100.0) == (0, 0.0)

    throttle.add(1, now=200.0)
    throttle.say(now=201.0)

    assert throttle.say(now=300.0) == (0, 0.0)


@given(
    steps=st.lists(st.tuples(st.integers(1, 5), st.floats(0.0, 100.0))),
    first_after=st.floats(0.0, 10.0),
    then_every=st.floats(0.0, 100.0),
)
def test_everything_is_said_once_and_never_too_often(
    steps: list[tuple[int, float]], first_after: float, then_every: float
) -> None:
    throttle = Throttle(first_after, then_every)
    now = 0.0
    said: list[int] = []
    said_at: list[float] = []

    for count, pause in steps:
        now += pause
        throttle.add(count, now)
        if throttle.due_in(now) == 0.0:
            said.append(throttle.say(now)[0])
            said_at.append(now)

    assert sum(said) + throttle.count == sum(count for count, _ in steps)
    for before, after in pairwise(said_at):
        assert after >= before + then_every
