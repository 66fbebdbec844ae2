"""The Grafana dashboard, asked of a real Prometheus that scrapes a real worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from dashboard import VARIABLES, panels, queries
from nodes.deadline import wait_until
from nodes.local_process import free_port
from nodes.prometheus_process import PrometheusProcess
from running_worker import RunningWorker, running_worker

from celery_broadcast.facts import DUE_AT

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]


def test_each_panel_shows_something_of_a_worker_that_has_it(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    port = free_port()
    config = {
        **broker_config("redis"),
        "imports": ["celery_broadcast.plugin", "job_app_dashboard"],
        "broadcast_metrics_port": port,
        "broadcast_drain_timeout": 0,
        "task_ignore_result": True,
    }
    with running_worker(config) as worker, PrometheusProcess(port) as prometheus:
        wait_until(worker.is_listening)
        silent = {query for panel in panels() for query in queries(panel)}

        def all_show() -> bool:
            silent.difference_update([q for q in silent if shows(worker, prometheus, q)])
            return not silent

        wait_until(all_show, 60.0, lambda: f"nothing is shown by {silent}")


def shows(worker: RunningWorker, prometheus: PrometheusProcess, query: str) -> bool:
    """Tell whether a query gives series with numbers; have some more jobs meanwhile."""
    worker.send("noop", headers={DUE_AT: time.time()})
    found = prometheus.ask("query", query=query)
    return any(series["value"][1] != "NaN" for series in found)


def test_each_variable_is_known_to_the_tests() -> None:
    for panel in panels():
        for query in queries(panel):
            assert "$" not in query, f"{query}: add its variable to {VARIABLES}"
