"""What is missing, by the numbers that came."""

from __future__ import annotations

from celery_broadcast.relay.gaps import Gaps

LANE = ("producer", "JobFailed", "shop.charge")


def test_numbers_without_holes_miss_nothing() -> None:
    gaps = Gaps()

    assert gaps.note(LANE, [1, 2]) == 0
    assert gaps.note(LANE, [3]) == 0


def test_the_first_number_of_a_lane_tells_nothing() -> None:
    assert Gaps().note(LANE, [17]) == 0


def test_holes_between_parcels_and_in_them_are_counted() -> None:
    gaps = Gaps()

    assert gaps.note(LANE, [1]) == 0
    assert gaps.note(LANE, [4, 6]) == 3


def test_what_comes_again_is_neither_new_nor_missing() -> None:
    gaps = Gaps()
    gaps.note(LANE, [1, 2, 3])

    assert gaps.note(LANE, [2, 3]) == 0
    assert gaps.note(LANE, [4]) == 0


def test_each_lane_has_numbers_of_its_own() -> None:
    gaps = Gaps()
    gaps.note(LANE, [1])

    assert gaps.note(("producer", "JobFailed", "shop.refund"), [9]) == 0
    assert gaps.note(LANE, [2]) == 0


def test_what_is_forgotten_is_not_missed() -> None:
    gaps = Gaps()
    gaps.note(LANE, [1])

    gaps.forget()

    assert gaps.note(LANE, [9]) == 0


def test_of_ten_thousand_lanes_the_longest_silent_is_forgotten() -> None:
    gaps = Gaps()
    gaps.note(LANE, [1])
    for number in range(10_000):
        gaps.note((str(number), "", ""), [1])

    assert gaps.note(LANE, [9]) == 0
    assert len(gaps._last) == 10_000
