"""How an attempt can end in a worker, and what is told of each way: the rows of `outcomes`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
from outcome_runs import Observed, Run, all_runs
from outcomes import OUTCOMES, POOLS, Told, told_here

pytestmark = pytest.mark.worker

RunsOf: TypeAlias = Callable[[str], "list[Run]"]

# The workers of a pool are started for all its rows together.
ROWS = [
    pytest.param(
        (pool, outcome),
        id=f"{pool}-{outcome.name}",
        marks=pytest.mark.xdist_group(f"outcomes-{pool}"),
    )
    for pool in POOLS
    for outcome in OUTCOMES
    if pool in outcome.pools
]


@dataclass(frozen=True)
class Row:
    """One outcome in one pool: what is to be told of each of its jobs, and what was."""

    expected: dict[str, Told]
    on: dict[str, Observed]
    off: dict[str, Observed]
    queue: str
    worker: str


@pytest.fixture(scope="module")
def runs_of(broker_config: Callable[[str], dict[str, Any]]) -> Iterator[RunsOf]:
    """Gives the runs of a pool. Their workers have ended: nothing can come late."""
    with ExitStack() as stack:
        yield functools.cache(
            lambda pool: stack.enter_context(all_runs(pool, broker_config("redis")))
        )


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest, runs_of: RunsOf) -> Row:
    pool, outcome = request.param
    on, off = (run for run in runs_of(pool) if outcome in run.outcomes)
    for run in (on, off):
        if run.failure is not None:
            raise run.failure
    expected = {member: told_here(telling) for member, telling in outcome.tellings_in(pool).items()}
    return Row(
        expected,
        on.observed(outcome),
        off.observed(outcome),
        on.worker.queue,
        on.worker.process.node_name,
    )


def test_each_attempt_gives_its_start_and_its_one_end(row: Row) -> None:
    stories = {member: observed.story() for member, observed in row.on.items()}

    assert stories == {member: told.events for member, told in row.expected.items()}


def test_an_end_tells_when_and_where_its_attempt_started(row: Row) -> None:
    for observed in row.on.values():
        for start, *ends in observed.attempts():
            if start.event == "JobStarted":
                assert all(end.runtime and end.runtime > 0 for end in ends)
                assert all(end.ended_at and end.ended_at <= time.time() for end in ends)
            else:  # it never started
                assert (start.started_at, start.runtime, ends) == (None, 0.0, [])


def test_every_event_of_an_attempt_tells_of_the_same_attempt(row: Row) -> None:
    for observed in row.on.values():
        for attempt in observed.attempts():
            assert len({(event.task_name, event.retries) for event in attempt}) == 1

    told = {(event.queue, event.worker) for event in row.on[""].events}
    assert told <= {(row.queue, row.worker)}


def test_receivers_hear_the_same_with_the_broadcast_on_and_off(row: Row) -> None:
    expected = {
        member: replace(told, events="", perhaps="", received=told.messages)
        for member, told in row.expected.items()
    }

    for observed in (row.on, row.off):
        assert {
            member: observed[member].heard(told) for member, told in row.expected.items()
        } == expected


@pytest.mark.parametrize(
    "pool",
    [pytest.param(pool, marks=pytest.mark.xdist_group(f"outcomes-{pool}")) for pool in POOLS],
)
def test_the_bridge_had_no_error_of_its_own(pool: str, runs_of: RunsOf) -> None:
    for run in runs_of(pool):
        log = run.worker.process.logs()

        assert "broadcast failed" not in log
        assert "Signal handler" not in log
