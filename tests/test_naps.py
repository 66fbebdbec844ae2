from __future__ import annotations

import pytest

from celery_broadcast import naps
from celery_broadcast.naps import Naps


class Clock:
    """Stands still, but for naps."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.naps = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.naps += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(naps, "time", clock)
    return clock


def test_who_comes_once_in_a_while_never_naps(clock: Clock) -> None:
    its_naps = Naps()

    for _ in range(100):
        clock.now += 0.001
        assert not its_naps.nap(lambda: True)

    assert clock.naps == 0


def test_who_comes_for_a_pair_of_events_never_naps(clock: Clock) -> None:
    its_naps = Naps()

    for _ in range(100):
        clock.now += 0.001
        for _ in range(2):
            clock.now += 0.000_01
            assert not its_naps.nap(lambda: True)

    assert clock.naps == 0


def test_who_comes_again_and_again_naps_as_long_as_something_comes(clock: Clock) -> None:
    its_naps = Naps()

    answers = [its_naps.nap(lambda: True) for _ in range(100)]

    assert answers == [False] * 3 + [True] * 97
    assert clock.naps == 97


def test_after_a_nap_in_vain_there_is_none_for_a_while(clock: Clock) -> None:
    its_naps = Naps()
    for _ in range(3):
        its_naps.nap(lambda: False)

    assert [its_naps.nap(lambda: False) for _ in range(20)] == [False] * 20

    assert clock.naps == 1
