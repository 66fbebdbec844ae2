from __future__ import annotations

from typing import Any

import pytest

from celery_broadcast.counts import ConsumerStats
from celery_broadcast.rates import ORDERS, Row, rows_of, sorted_rows


def stats(**numbers: Any) -> ConsumerStats:
    nothing = {"offered": 0, "handled": 0, "declined": 0, "failed": 0, "dropped": {}, "pending": 0}
    return ConsumerStats(**{**nothing, **numbers})


def row(name: str, **numbers: Any) -> Row:
    nothing = dict.fromkeys(("handled_a_second", "failed_a_second", "dropped_a_second", "lag"), 0.0)
    return Row(name=name, **{**nothing, "dropped": 0, "pending": 0, "states": {}, **numbers})


def test_a_rate_is_what_was_done_between_two_answers() -> None:
    before = {"a": {"pager": stats(handled=10, failed=1, dropped={"mailbox-full": 2})}}
    now = {"a": {"pager": stats(handled=30, failed=2, dropped={"mailbox-full": 2, "cancelled": 4})}}

    (pager,) = rows_of(before, now, 2.0)

    rates = pager.handled_a_second, pager.failed_a_second, pager.dropped_a_second
    assert rates == (10.0, 0.5, 2.0)
    assert pager.dropped == 6


def test_workers_are_summed() -> None:
    before = {"a": {"pager": stats()}, "b": {"pager": stats(handled=100)}}
    now = {
        "a": {"pager": stats(handled=1, pending=2, lag=1.0, processes={"running": 1, "stuck": 1})},
        "b": {"pager": stats(handled=103, pending=3, lag=4.0, processes={"stuck": 2})},
    }

    (pager,) = rows_of(before, now, 1.0)

    assert (pager.handled_a_second, pager.pending, pager.lag) == (4.0, 5, 4.0)
    assert pager.states == {"stuck": 3}


def test_what_a_worker_did_before_its_first_answer_is_no_rate() -> None:
    (pager,) = rows_of({}, {"a": {"pager": stats(handled=1000)}}, 1.0)

    assert pager.handled_a_second == 0.0


def test_a_consumer_that_begins_counts_from_zero() -> None:
    (pager,) = rows_of({"a": {}}, {"a": {"pager": stats(handled=5)}}, 1.0)

    assert pager.handled_a_second == 5.0


def test_a_worker_that_has_started_anew_counts_from_zero() -> None:
    before = {"a": {"pager": stats(handled=1000)}}

    (pager,) = rows_of(before, {"a": {"pager": stats(handled=7)}}, 1.0)

    assert pager.handled_a_second == 7.0


def test_a_worker_that_is_gone_has_no_row() -> None:
    assert rows_of({"a": {"pager": stats(handled=1)}}, {}, 1.0) == []


def test_no_time_is_no_rate() -> None:
    before = {"a": {"pager": stats()}}

    (pager,) = rows_of(before, {"a": {"pager": stats(handled=7)}}, 0.0)

    assert pager.handled_a_second == 0.0


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("lag", ["c", "a", "b"]),
        ("dropped", ["b", "a", "c"]),
        ("failed", ["a", "b", "c"]),
        ("handled", ["b", "c", "a"]),
        ("name", ["a", "b", "c"]),
    ],
)
def test_the_worst_comes_first_and_those_that_are_even_by_name(
    order: str, names: list[str]
) -> None:
    rows = [
        row("c", lag=3.0, handled_a_second=1.0),
        row("b", dropped=5, handled_a_second=2.0),
        row("a", lag=0.0, pending=1, dropped=1),
    ]

    assert [each.name for each in sorted_rows(rows, order)] == names


def test_one_begins_with_who_is_behind() -> None:
    assert next(iter(ORDERS)) == "lag"
