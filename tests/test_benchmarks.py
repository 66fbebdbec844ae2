"""What the benchmarks say of what they measured; how fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.__main__ import FIGURES, main
from benchmarks.jobs_per_second import copy_of
from benchmarks.latency import percentile
from benchmarks.measure import (
    Comparison,
    Measurement,
    Rounds,
    Spread,
    as_measurements,
    measure_anew,
    measure_in_turn,
)
from benchmarks.pool_process import Crowd
from celery_broadcast.events import JobStarted
from celery_broadcast.selection import kind_of
from celery_broadcast.subscription import registry

ROOT = Path(__file__).parent.parent

RATIO = Spread(1.0, 0.95, 1.05)


def comparison(ratio: Spread = RATIO, /, **bounds: float) -> Comparison:
    return Comparison(
        subject="ours",
        peer="theirs",
        unit="µs",
        value=Spread(2.0, 1.9, 2.1),
        peer_value=Spread(2.0, 2.0, 2.0),
        ratio=ratio,
        **bounds,
    )


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"at_least": 1.0},
        {"at_most": 1.0},
        {"value_at_most": 2.0},
        {"at_least": 0.9, "at_most": 1.1},
    ],
)
def test_a_ratio_at_its_bound_reaches_it(bounds: dict[str, float]) -> None:
    assert not comparison(**bounds).is_missed


@pytest.mark.parametrize(
    "bounds",
    [
        {"at_least": 1.01},
        {"at_most": 0.99},
        {"value_at_most": 1.99},
        {"at_least": 0.9, "at_most": 0.99},
    ],
)
def test_a_ratio_beyond_its_bound_misses_it(bounds: dict[str, float]) -> None:
    assert comparison(**bounds).is_missed


def test_a_ratio_is_noisy_when_the_rounds_differ_by_more_than_a_fifth_of_it() -> None:
    assert comparison(Spread(1.0, 0.89, 1.10)).is_noisy
    assert not comparison(Spread(1.0, 0.91, 1.10)).is_noisy


def test_a_ratio_is_that_of_the_two_values_of_one_turn() -> None:
    slower = {"ours": [[1.0, 10.0, 200.0]], "theirs": [[1.0, 5.0, 50.0]]}  # by the turn

    compared = Rounds("µs", slower).compare("ours", "theirs")

    assert compared.ratio.median == 2.0
    assert (compared.value.median, compared.peer_value.median) == (10.0, 5.0)


def test_the_rounds_show_how_much_a_ratio_differs() -> None:
    rounds = Rounds("µs", {"ours": [[1.0], [4.0], [9.0]], "theirs": [[1.0], [2.0], [3.0]]})

    compared = rounds.compare("ours", "theirs")

    assert compared.ratio == Spread(2.0, 1.0, 3.0)
    assert compared.value == Spread(4.0, 1.0, 9.0)


def test_what_is_compared_is_measured_in_turn() -> None:
    order = []

    def measuring(name: str, value: float) -> float:
        order.append(name)
        return value

    measured = measure_in_turn(
        {"ours": lambda: measuring("ours", 1.0), "theirs": lambda: measuring("theirs", 2.0)},
        unit="µs",
        rounds=2,
        turns=2,
    )

    assert order == ["ours", "theirs"] * 4
    assert measured.values == {"ours": [[1.0, 1.0]] * 2, "theirs": [[2.0, 2.0]] * 2}


def test_what_differs_from_process_to_process_is_started_anew_for_each_round() -> None:
    order = []

    @contextmanager
    def started() -> Iterator[list[Measurement]]:
        order.append("start")
        yield as_measurements({"ours": lambda: 1.0, "theirs": lambda: 2.0})
        order.append("end")

    measured = measure_anew(started, unit="µs", rounds=2, turns=3)

    assert order == ["start", "end"] * 2
    assert measured.values == {"ours": [[1.0] * 3] * 2, "theirs": [[2.0] * 3] * 2}


def test_a_percentile_is_a_value_that_so_many_percent_do_not_exceed() -> None:
    hundred = [float(number) for number in range(100, 0, -1)]

    assert percentile(hundred, 50) == 50.0
    assert percentile(hundred, 99) == 99.0
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_a_crowd_has_the_consumers_that_it_says() -> None:
    Crowd(idle=2, stuck=1, unwanting=3, globs=10).declare()

    globs = {each.name: each.selection.tasks for each in registry.subscriptions}
    assert list(globs) == [
        *("idle-0", "idle-1", "stuck-0"),
        *("unwanting-0", "unwanting-2", "unwanting-1"),
    ]
    assert len(globs["idle-0"]) == 10
    started = JobStarted(task_id="1", task_name="benchmark.noop")
    wanting = [
        each.name for each in registry.subscriptions if each.selection.wants(kind_of(started))
    ]
    assert wanting == ["idle-0", "idle-1", "stuck-0"]


TIME_JOBS = """
from benchmarks.pool_process import Crowd, pool_process
for crowd in (None, Crowd(idle=2, globs=3), Crowd(stuck=2), Crowd(unwanting=2)):
    with pool_process(crowd) as microseconds_per_event:
        assert microseconds_per_event(2) > 0
        assert microseconds_per_event(1) > 0  # those before were settled as they should be
"""


def test_jobs_are_timed_in_a_process_with_each_crowd() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TIME_JOBS], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_copy_of_a_message_differs_in_the_identities_alone() -> None:
    message = {
        "headers": {"id": "0123", "root_id": "0123", "task": "noop"},
        "properties": {"delivery_tag": "4567", "correlation_id": "0123"},
    }

    copy = json.loads(copy_of(json.dumps(message).encode()))

    task_id, tag = copy["headers"]["id"], copy["properties"]["delivery_tag"]
    assert len({task_id, tag, "0123", "4567"}) == 4
    assert copy == {
        "headers": {"id": task_id, "root_id": task_id, "task": "noop"},
        "properties": {"delivery_tag": tag, "correlation_id": task_id},
    }


# As if it weren't installed: what is None there can't be imported.
WITHOUT_PYEE = """
import sys
sys.modules["pyee"] = None
from benchmarks.__main__ import main
main(["bookkeeping", "burst"])
"""


def test_a_peer_that_is_not_installed_is_named_before_anything_is_measured() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYEE], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr == (
        "pyee is not installed, so nothing was measured. Everything that the broadcast is "
        "compared with has to be there: pip install 'celery-broadcast[bench]', or make bench, "
        "which does it.\n"
    )


def test_a_figure_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["speed"])

    assert f"There is no speed. There are: {', '.join(FIGURES)}" in capsys.readouterr().err


def test_less_than_one_round_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["burst", "--rounds", "0"])

    assert "--rounds must be 1 or more, got 0." in capsys.readouterr().err
