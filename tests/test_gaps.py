"""What is missing, by the numbers that came."""

from __future__ import annotations

from celery_broadcast.relay.gaps import Gaps

LANE = ("producer", "JobFailed", "shop.charge")


def test_numbers_without_holes_miss_nothing() -> None:
    gaps = Gaps(patience=60.0)

    assert gaps.note(LANE, [1, 2], 0.0) == 0
    assert gaps.note(LANE, [3], 0.0) == 0


def test_the_first_number_of_a_lane_tells_nothing() -> None:
    assert Gaps(patience=60.0).note(LANE, [17], 0.0) == 0


def test_holes_between_parcels_and_in_them_are_counted() -> None:
    gaps = Gaps(patience=60.0)

    assert gaps.note(LANE, [1], 0.0) == 0
    assert gaps.note(LANE, [4, 6], 0.0) == 3


def test_what_comes_again_is_neither_new_nor_missing() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1, 2, 3], 0.0)

    assert gaps.note(LANE, [2, 3], 0.0) == 0
    assert gaps.note(LANE, [4], 0.0) == 0


def test_each_lane_has_numbers_of_its_own() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1], 0.0)

    assert gaps.note(("producer", "JobFailed", "shop.refund"), [9], 0.0) == 0
    assert gaps.note(LANE, [2], 0.0) == 0


def test_what_is_forgotten_is_not_missed() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1], 0.0)

    gaps.forget()

    assert gaps.note(LANE, [9], 0.0) == 0


def test_of_ten_thousand_lanes_the_longest_silent_is_forgotten() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1], 0.0)
    for number in range(10_000):
        gaps.note((str(number), "", ""), [1], 0.0)

    assert gaps.note(LANE, [9], 0.0) == 0
    assert len(gaps._last) == 10_000


def test_what_is_missing_is_so_surely_after_a_while_and_told_once() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1, 3], 100.0)
    gaps.note(LANE, [6], 130.0)

    assert gaps.surely_missing(159.9) is None
    assert gaps.surely_missing(160.0) == (3, LANE)
    assert gaps.surely_missing(160.0) is None


def test_what_is_forgotten_in_that_while_is_never_missing() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1, 3], 100.0)

    gaps.forget()

    assert gaps.surely_missing(1_000.0) is None


def test_the_while_begins_anew_with_what_is_missing_next() -> None:
    gaps = Gaps(patience=60.0)
    gaps.note(LANE, [1, 3], 100.0)
    gaps.surely_missing(160.0)

    gaps.note(LANE, [5], 170.0)

    assert gaps.surely_missing(229.0) is None
    assert gaps.surely_missing(230.0) == (1, LANE)
