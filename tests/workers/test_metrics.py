"""What a real worker, and a real `broadcast consume`, serve to Prometheus."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes.consume_process import ConsumeProcess
from nodes.deadline import wait_until
from nodes.local_process import LOCALHOST, free_port
from nodes.redis_process import RedisProcess
from remote_shop import Shop, clean
from running_worker import RunningWorker, running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

JOBS = 30


def scrape(port: int) -> dict[str, float]:
    """Return each sample by its name and labels."""
    with urllib.request.urlopen(f"http://{LOCALHOST}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value)
        for name, value in re.findall(r"^(celery\S+) (\S+)$", text, flags=re.MULTILINE)
    }


def run_jobs(worker: RunningWorker) -> None:
    """Run them; no result is left, which would tell of its end when the app is closed."""
    for result in [worker.send("ok", number) for number in range(JOBS)]:
        result.get(timeout=60)


def test_the_numbers_of_children_are_served_those_of_recycled_ones_too(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    port = free_port()
    config = {
        **broker_config("redis"),
        "imports": ["celery_broadcast.plugin", "job_app_shown"],
        "broadcast_metrics_port": port,
        "worker_max_tasks_per_child": 5,
    }

    def handled() -> float:
        return scrape(port).get('celery_broadcast_events_handled_total{consumer="watch"}', 0.0)

    with running_worker(config, concurrency=4) as worker:
        wait_until(worker.is_listening)
        run_jobs(worker)
        wait_until(lambda: handled() == 2 * JOBS, 30.0)  # its start and its end

        found = scrape(port)
        labels = 'consumer="watch"'
        assert found[f"celery_broadcast_consumer_handle_seconds_count{{{labels}}}"] == 2 * JOBS
        assert found[f"celery_broadcast_events_pending{{{labels}}}"] == 0
        assert worker.stop() == 0

    with socket.create_server((LOCALHOST, port)):  # nobody has kept it
        pass


def test_a_worker_whose_port_is_taken_works_without_metrics(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    with socket.create_server((LOCALHOST, 0)) as taken:
        port = taken.getsockname()[1]
        config = {**broker_config("redis"), "broadcast_metrics_port": port}
        with running_worker(config, concurrency=1) as worker:
            worker.send("ok", 1).get(timeout=60)

            assert f"can't serve metrics at {LOCALHOST}:{port}" in worker.process.logs()


class MeasuredProcess(ConsumeProcess):
    """One that serves metrics."""

    port: int

    @property
    def command(self) -> list[str]:
        return [*super().command, "--metrics-port", str(self.port)]


def test_consume_serves_those_of_remote_consumers(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    url = f"{redis_server.url.rpartition('/')[0]}/11"
    shop = Shop(url, tmp_path)
    try:
        shop.publish("ok-1", "ok-2")
        consumer = MeasuredProcess(shop.config, shop.handled_file)
        consumer.port = free_port()
        with consumer:
            name = 'celery_broadcast_events_handled_total{consumer="pager"}'
            wait_until(lambda: scrape(consumer.port).get(name) == 2, 30.0)
    finally:
        shop.transport.close()
        clean(url)
