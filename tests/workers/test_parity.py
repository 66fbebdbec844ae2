"""Celery's own signals: a user's receiver hears the same with the broadcast on and off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from reports import SignalReport
from running_worker import running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

JOBS: tuple[tuple[str, tuple[object, ...], dict[str, Any]], ...] = (
    ("ok", (1,), {}),
    ("fails", ("no",), {}),
    ("retries_once", (), {}),
    ("ignored", (), {}),
    ("rejected", (), {}),
    ("exits", (3,), {}),
    ("ok", (1,), {"expires": -1}),
    ("sleeps", (60,), {"soft_time_limit": 1, "time_limit": 30}),
    ("ok", (2,), {}),
)

#: How many attempts have ended with a job, where that isn't one: it is tried again, or expires.
ENDS = {2: 2, 6: 0}

Heard: TypeAlias = "list[tuple[str, str, dict[str, str]]]"


def signals_heard(config: dict[str, Any], *, enabled: bool) -> Heard:
    """Run every job, one after another on one process, and return what the receivers heard."""
    imports = ["celery_broadcast.plugin", "job_app_consumers", "job_app_signals"]
    config = {
        **config,
        "broadcast_enabled": enabled,
        "imports": imports,
        "task_default_queue": "parity",
        "worker_prefetch_multiplier": 1,
    }
    with running_worker(config, concurrency=1) as worker:
        main = worker.process.pid
        ends = 0
        for number, (task, arguments, options) in enumerate(JOBS):
            worker.send(task, *arguments, task_id=f"{number}-{task}", **options)
            ends += ENDS.get(number, 1)
            # Or the retry and a later job would meet in the queue, in whichever order.
            worker.listener.wait_for(ends, SignalReport, signal="task_postrun", timeout_seconds=60)
        worker.stop()
        return [
            (report.signal, "main" if report.pid == main else "pool", report.arguments)
            for report in worker.listener.reports(SignalReport)
        ]


def of_process(heard: Heard, process: str) -> list[tuple[str, dict[str, str]]]:
    """Return what one kind of process heard, in order."""
    return [(signal, arguments) for signal, where, arguments in heard if where == process]


def test_a_receiver_hears_the_same_signals_in_the_same_order_on_and_off(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    on = signals_heard(broker_config("redis"), enabled=True)
    off = signals_heard(broker_config("redis"), enabled=False)

    assert len(off) > 3 * len(JOBS)
    assert of_process(on, "pool") == of_process(off, "pool")
    # There the news of one job and the arrival of the next have no order of their own.
    assert sorted(of_process(on, "main"), key=repr) == sorted(of_process(off, "main"), key=repr)
