"""What a real worker, and a real `broadcast consume`, serve to Prometheus."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from nodes.consume_process import ConsumeProcess
from nodes.deadline import wait_until
from nodes.local_process import LOCALHOST, find_program, free_port
from nodes.redis_process import RedisProcess
from remote_shop import Shop, clean
from running_worker import RunningWorker, running_worker

from celery_broadcast.facts import DUE_AT

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

JOBS = 30


def text_of(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOCALHOST}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def scrape(port: int) -> dict[str, float]:
    """Return each sample by its name and labels."""
    return {
        name: float(value)
        for name, value in re.findall(r"^(celery\S+) (\S+)$", text_of(port), flags=re.MULTILINE)
    }


def jobs_in(scraped: Mapping[str, float]) -> Counter[str]:
    """Return what jobs did, as `job_app_counted` writes it."""
    found: Counter[str] = Counter()
    for name, value in scraped.items():
        task = re.search(r'task="([^"]*)"', name)
        kind = re.search(r'type="([^"]*)"', name)
        if task and name.startswith("celery_jobs_started_total"):
            found[f"{task[1]} started"] += int(value)
        elif task and kind:
            found[f"{task[1]} {kind[1]}"] += int(value)
    return +found


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
        wait_until(lambda: handled() == 2 * JOBS)  # its start and its end

        found = scrape(port)
        labels = 'consumer="watch"'
        assert found[f"celery_broadcast_consumer_handle_seconds_count{{{labels}}}"] == 2 * JOBS
        assert found[f"celery_broadcast_events_pending{{{labels}}}"] == 0
        assert worker.stop() == 0

    with socket.create_server((LOCALHOST, port)):  # nobody has kept it
        pass


def test_jobs_are_counted_exactly_though_their_processes_are_killed_and_recycled(
    broker_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    port = free_port()
    config = {
        **broker_config("redis"),
        "imports": ["celery_broadcast.plugin", "job_app_counted"],
        "broadcast_metrics_port": port,
        "worker_max_tasks_per_child": 7,
        "task_ignore_result": True,
    }
    file = tmp_path / "jobs"
    file.touch()
    last: dict[str, float] = {}

    def written() -> Counter[str]:
        lines = Counter(file.read_text().splitlines())
        # Celery gives a job to another process when the first was killed before it could
        # say that it had taken it. It tells nobody, only the last one's death.
        put_back = lines["job_app.counted_kill started"] - 5
        if put_back > 0:
            lines["job_app.counted_kill JobLost"] = put_back
            lines["job_app.counted_kill JobFailed"] -= put_back
        return lines

    def ended_as_written() -> bool:
        nonlocal last
        before, last = last, scrape(port)
        back = [
            name
            for name, value in before.items()
            if "_total{" in name or "_bucket{" in name
            if last.get(name, 0.0) < value
        ]
        assert not back, f"{back} went backwards"
        last_ends = sum(
            number
            for line, number in written().items()
            if line.endswith(("JobFinished", "JobFailed", "JobRevoked"))
        )
        return jobs_in(last) == written() and last_ends == sent

    with running_worker(config, concurrency=4) as worker:

        def send(task: str, *args: object, **options: Any) -> None:
            # As a sender does that has the plugin.
            worker.send(task, *args, headers={DUE_AT: time.time()}, **options)

        for number in range(60):
            send("counted_ok", str(file), 0.02 * (number % 3))
            if number % 3 == 0:
                send("counted_error", str(file))
            if number % 4 == 0:
                send("counted_retry", str(file))
            if number % 12 == 0:
                send("counted_kill", str(file))
                send("counted_comeback", str(file))
        send("counted_ok", str(file), 0.0, expires=-1.0)
        with file.open("a") as lines:
            lines.write("job_app.counted_ok JobRevoked\n")
        sent = 60 + 20 + 15 + 5 + 5 + 1
        wait_until(
            ended_as_written,
            60.0,
            lambda: f"Counted: {jobs_in(last)}; written: {written()}; jobs: {sent}",
        )

        assert not [name for name, value in last.items() if "_running{" in name and value]
        runtimes = sum(value for name, value in last.items() if "runtime_seconds_count" in name)
        started = sum(n for line, n in written().items() if line.endswith("started"))
        assert runtimes == started
        assert sum(n for name, n in last.items() if "_wait_seconds_count" in name) == started
        queues = {re.findall(r'queue="([^"]*)"', name)[0] for name in last if "_jobs_" in name}
        assert queues == {worker.queue, "other"}
        check = [find_program("promtool"), "check", "metrics"]
        checked = subprocess.run(
            check, input=text_of(port), capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_jobs_of_a_pool_without_processes_are_counted(
    pool: str, broker_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    port = free_port()
    config = {
        **broker_config("redis"),
        "imports": ["celery_broadcast.plugin", "job_app_counted"],
        "broadcast_metrics_port": port,
        "task_ignore_result": True,
    }
    file = tmp_path / "jobs"
    file.touch()

    with running_worker(config, pool=pool, concurrency=4) as worker:
        for _ in range(5):
            worker.send("counted_ok", str(file), 0.01)
            worker.send("counted_error", str(file))
            worker.send("counted_retry", str(file))
        ok, error, retry = (f"job_app.counted_{task}" for task in ("ok", "error", "retry"))
        expected = {
            f"{ok} started": 5,
            f"{ok} JobFinished": 5,
            f"{error} started": 5,
            f"{error} JobFailed": 5,
            f"{retry} started": 10,
            f"{retry} JobRetried": 5,
            f"{retry} JobFinished": 5,
        }
        wait_until(lambda: jobs_in(scrape(port)) == expected)

        assert Counter(file.read_text().splitlines()) == expected


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
            wait_until(lambda: scrape(consumer.port).get(name) == 2)
    finally:
        shop.transport.close()
        clean(url)
