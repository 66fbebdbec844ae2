"""What consumers did between two answers of their workers, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import add
from typing import TypeAlias

import msgspec

from celery_broadcast.counts import ConsumerStats

#: The numbers of each consumer, by its name; of each worker, by that of its node.
Answers: TypeAlias = Mapping[str, Mapping[str, ConsumerStats]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer, over all workers.

    Attributes:
        name: its name.
        handled_a_second: events that it handled in a second, between the two answers.
        failed_a_second: events that it raised on.
        dropped_a_second: events that were dropped.
        dropped: all that were ever dropped.
        pending: events that wait.
        lag: seconds that the oldest of them has waited.
        states: in how many processes it is in which state, but for "running".
    """

    name: str
    handled_a_second: float
    failed_a_second: float
    dropped_a_second: float
    dropped: int
    pending: int
    lag: float
    states: Mapping[str, int]


#: By what rows can be sorted, each with the worst first; the first is where one begins.
ORDERS: Mapping[str, Callable[[Row], tuple[float, ...]]] = {
    "lag": lambda row: (row.lag, row.pending),
    "dropped": lambda row: (row.dropped_a_second, row.dropped),
    "failed": lambda row: (row.failed_a_second,),
    "handled": lambda row: (row.handled_a_second,),
    "name": lambda _: (),
}


def rows_of(before: Answers, now: Answers, seconds: float) -> list[Row]:
    """Return a row for each consumer that is there now.

    Args:
        before: the earlier answers. What a worker has done that isn't among them
            counts for no rate.
        now: the later ones. Where a number is below the earlier one, the worker has
            started anew, and counts from zero.
        seconds: that lie between the two.
    """
    names = dict.fromkeys(name for consumers in now.values() for name in consumers)
    return [_row(name, before, now, seconds) for name in names]


def sorted_rows(rows: Iterable[Row], order: str) -> list[Row]:
    """Return the rows in one of `ORDERS`; those that are even, by their names."""
    key = ORDERS[order]
    return sorted(rows, key=lambda row: (*(-number for number in key(row)), row.name))


def _row(name: str, before: Answers, now: Answers, seconds: float) -> Row:
    def a_second(number: Callable[[ConsumerStats], int]) -> float:
        more = 0
        for node, consumers in now.items():
            if node in before and name in consumers:
                earlier = before[node].get(name)
                then, later = number(earlier) if earlier else 0, number(consumers[name])
                more += later - then if later >= then else later
        return more / seconds if seconds > 0 else 0.0

    total = reduce(add, (each[name] for each in now.values() if name in each))
    return Row(
        name=name,
        handled_a_second=a_second(lambda stats: stats.handled),
        failed_a_second=a_second(lambda stats: stats.failed),
        dropped_a_second=a_second(lambda stats: stats.dropped_total),
        dropped=total.dropped_total,
        pending=total.pending,
        lag=total.lag,
        states={state: count for state, count in total.processes.items() if state != "running"},
    )
