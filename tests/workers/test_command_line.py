"""What `celery broadcast` says of real workers, and does to them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from nodes.deadline import wait_until
from nodes.local_process import free_port
from nodes.redis_process import RedisProcess
from nodes.terminal import Terminal
from running_worker import RunningWorker, running_worker

from celery_broadcast.commands import broadcast

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]


def command(worker: RunningWorker, *arguments: str) -> Result:
    with Celery(broker=worker.process.config["broker_url"], set_as_current=False) as app:
        context = CLIContext(app, no_color=True, workdir=None)
        options = ("--timeout", "5", "--destination", worker.process.node_name)
        return CliRunner().invoke(broadcast, [*arguments, *options], obj=context)


def offered(worker: RunningWorker) -> dict[str, int]:
    answers = json.loads(command(worker, "stats", "--json").output)
    (answer,) = answers.values()
    return {name: each["offered"] for name, each in answer["consumers"].items()}


def run_jobs(worker: RunningWorker, count: int) -> None:
    results = [worker.send("ok", number) for number in range(count)]
    for result in results:
        result.get(timeout=60)


def test_a_worker_of_four_children_is_switched_off_and_on(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    with running_worker(broker_config("redis"), concurrency=4) as worker:
        wait_until(worker.is_listening)
        first = command(worker, "stats")
        assert first.exit_code == 0, first.output
        assert f"{worker.process.node_name} is on" in first.output

        switched = command(worker, "off")
        assert switched.exit_code == 0, switched.output
        assert "is switched off since" in switched.output
        assert "is switched off since" in command(worker, "stats").output
        before = offered(worker)
        inspected: Any = worker.app.control.inspect([worker.process.node_name], limit=1).stats()
        assert inspected[worker.process.node_name]["broadcast"]["state"] == "switched-off"
        run_jobs(worker, 20)
        assert offered(worker) == before

        assert command(worker, "on").exit_code == 0
        run_jobs(worker, 20)
        wait_until(lambda: sum(offered(worker).values()) > sum(before.values()))


def test_a_worker_that_is_off_by_its_configuration_says_so(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {**broker_config("redis"), "broadcast_enabled": False}
    with running_worker(config, concurrency=1) as worker:
        wait_until(worker.is_listening)
        for verb, code in (("stats", 0), ("on", 1), ("off", 0)):
            result = command(worker, verb)
            assert "is off by its configuration" in result.output
            assert result.exit_code == code, result.output


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_the_lag_of_a_stuck_consumer_grows(
    broker_config: Callable[[str], dict[str, Any]], pool: str
) -> None:
    imports = ["celery_broadcast.plugin", "job_app_stuck"]
    config = {**broker_config("redis"), "imports": imports, "broadcast_drain_timeout": 0}
    with running_worker(config, pool=pool, concurrency=1) as worker:
        wait_until(worker.is_listening)
        run_jobs(worker, 3)

        wait_until(lambda: lag(worker, "stuck") > 0)
        first = lag(worker, "stuck")
        wait_until(lambda: lag(worker, "stuck") > first + 1)


def test_the_lag_is_known_after_the_broker_was_away() -> None:
    with RedisProcess() as server:
        imports = ["celery_broadcast.plugin", "job_app_stuck"]
        config = {"broker_url": server.url, "imports": imports, "broadcast_drain_timeout": 0}
        with running_worker(config, concurrency=1) as worker:
            server.restart()
            wait_until(worker.is_listening, 60.0)
            worker.send("noop")
            wait_until(lambda: lag(worker, "stuck") > 0)


def lag(worker: RunningWorker, consumer: str) -> float:
    (answer,) = json.loads(command(worker, "stats", "--json").output).values()
    each = answer["consumers"].get(consumer)
    return float(each["lag"]) if each else 0.0


BROKERS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker)) for broker in ("redis", "rabbitmq")
]
SHOWN = ["celery_broadcast.plugin", "job_app_shown"]


@pytest.mark.parametrize("broker", BROKERS)
def test_four_children_are_switched_off_with_those_to_come_and_the_end_of_a_job_is_told(
    broker_config: Callable[[str], dict[str, Any]], broker: str
) -> None:
    config = {**broker_config(broker), "result_backend": None, "imports": SHOWN}
    with running_worker(config, concurrency=4) as worker:
        wait_until(worker.is_listening)
        worker.send("sleeps", 3)
        wait_until(lambda: offered(worker).get("watch") == 1)

        assert command(worker, "off").exit_code == 0
        wait_until(lambda: offered(worker)["watch"] == 2)  # the end of what had started
        worker.send("dies")
        wait_until(lambda: "exited prematurely" in worker.process.logs())
        for _ in range(20):
            worker.send("noop")
        wait_until(lambda: worker.process.logs().count("job_app.noop") >= 40)
        assert offered(worker)["watch"] == 2

        assert command(worker, "on").exit_code == 0
        worker.send("noop")
        wait_until(lambda: offered(worker)["watch"] == 4)


def test_stats_fails_when_a_consumer_gave_up_or_lost_events(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    with running_worker({**broker_config("redis"), "imports": SHOWN}, concurrency=1) as worker:
        wait_until(worker.is_listening)
        worker.send("fails", "now").get(timeout=30, propagate=False)
        wait_until(lambda: "gave-up in 1" in command(worker, "stats").output)

        assert command(worker, "stats").exit_code == 1
        run_jobs(worker, 1)
        worker.send("fails", "again").get(timeout=30, propagate=False)
        wait_until(lambda: "1 gave-up" in command(worker, "stats").output)
        assert command(worker, "stats").exit_code == 1


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_without_children_is_switched_off_and_on(
    broker_config: Callable[[str], dict[str, Any]], pool: str
) -> None:
    with running_worker(broker_config("redis"), pool=pool) as worker:
        wait_until(worker.is_listening)
        assert command(worker, "off").exit_code == 0
        run_jobs(worker, 3)
        assert not sum(offered(worker).values())
        assert command(worker, "on").exit_code == 0
        run_jobs(worker, 3)
        wait_until(lambda: sum(offered(worker).values()) > 0)


def test_a_node_that_does_not_answer_is_named(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    with Celery(broker=broker_config("redis")["broker_url"], set_as_current=False) as app:
        context = CLIContext(app, no_color=True, workdir=None)
        for verb in ("stats", "on", "off"):
            options = ("--timeout", "0.2", "--destination", "celery@gone")
            result = CliRunner().invoke(broadcast, [verb, *options], obj=context)
            assert result.exit_code == 1
            assert "celery@gone didn't answer." in result.output


@pytest.mark.parametrize("scheme", ["redis://", "amqp://:hunter2@"])
def test_a_broker_that_is_away_is_an_error_in_one_line(scheme: str) -> None:
    url = f"{scheme}127.0.0.1:{free_port()}//"
    with Celery(broker=url, set_as_current=False) as app:
        context = CLIContext(app, no_color=True, workdir=None)
        result = CliRunner().invoke(broadcast, ["stats"], obj=context)

    assert result.exit_code == 1
    assert result.output.startswith("Error: The workers can't be asked: the broker at ")
    assert len(result.output.splitlines()) == 1
    assert "hunter2" not in result.output


def arguments_of(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--broker", url, "broadcast", *arguments]


@pytest.mark.parametrize("broker", BROKERS)
def test_two_workers_are_shown_each_and_summed_and_no_line_wraps_in_a_terminal(
    broker_config: Callable[[str], dict[str, Any]], broker: str, tmp_path: Path
) -> None:
    config = {**broker_config(broker), "result_backend": None, "imports": SHOWN}
    with running_worker(config) as one, running_worker(config) as two:
        wait_until(one.is_listening)
        wait_until(two.is_listening)
        for worker, count in ((one, 2), (two, 3)):
            for _ in range(count):
                worker.send("noop")
        wait_until(lambda: offered(one).get("watch") == 4 and offered(two).get("watch") == 6)
        nodes = f"{one.process.node_name},{two.process.node_name}"
        line = arguments_of(config["broker_url"], "stats", "--destination", nodes, "-t", "5")

        piped = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        assert piped.returncode == 0, piped.stdout + piped.stderr
        assert "\x1b" not in piped.stdout
        last = piped.stdout.rpartition("all workers")[2]
        assert "10" in last.split()

        shown = in_a_terminal(line, tmp_path)
        assert [row.rstrip() for row in shown if row.strip()] == [
            row.rstrip() for row in piped.stdout.splitlines() if row.strip()
        ]


@pytest.mark.parametrize("broker", BROKERS)
def test_what_a_command_shows_of_four_children_is_the_same_in_a_terminal_and_in_a_pipe(
    broker_config: Callable[[str], dict[str, Any]], broker: str, tmp_path: Path
) -> None:
    config = {**broker_config(broker), "result_backend": None, "imports": SHOWN}
    with running_worker(config, concurrency=4) as worker:
        wait_until(worker.is_listening)
        asked = ("--timeout", "5", "--destination", worker.process.node_name)
        environment = {**os.environ, **worker.process.environment}
        celery = [sys.executable, "-m", "celery", "-A", "job_app", "broadcast"]
        for command in (
            ("check",),
            ("consumers",),
            ("off", *asked),
            ("stats", *asked),
            ("on", *asked),
        ):
            line = [*celery, *command]
            piped = subprocess.run(
                line, env=environment, capture_output=True, text=True, check=False, timeout=60
            )
            assert piped.returncode == 0, piped.stdout + piped.stderr
            assert "\x1b" not in piped.stdout + piped.stderr

            variables = ("PYTHONPATH", "JOB_APP_CONFIG")
            given = [f"{name}={environment[name]}" for name in variables]
            folder = tmp_path / command[0]
            folder.mkdir()
            shown = in_a_terminal(["env", *given, *line], folder)
            assert without_times(shown) == without_times((piped.stdout + piped.stderr).splitlines())


def without_times(rows: list[str]) -> list[str]:
    """Return the rows with something in them, whenever that was."""
    return [re.sub(r"\d\d:\d\d:\d\d", "", row.rstrip()) for row in rows if row.strip()]


def in_a_terminal(line: list[str], folder: Path) -> list[str]:
    """Return the rows that a terminal of 80 columns shows once the command has ended."""
    ended = folder / "ended"
    with Terminal(folder) as terminal:
        terminal.type(f"clear; {shlex.join(line)}; touch {shlex.quote(str(ended))}; cat")
        wait_until(ended.exists, 60.0)
        return terminal.rows()


def test_a_watch_ends_without_an_error_at_ctrl_c(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    url = broker_config("redis")["broker_url"]
    line = arguments_of(url, "stats", "--watch", "--timeout", "0.2")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=environment) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0


def test_the_rates_of_a_worker_are_shown_as_json_in_a_pipe(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {**broker_config("redis"), "result_backend": None, "imports": SHOWN}
    with running_worker(config, concurrency=4) as worker:
        wait_until(worker.is_listening)
        name = worker.process.node_name
        asked = ("--interval", "0.2", "--timeout", "5", "--destination", name)
        line = arguments_of(config["broker_url"], "top", "--json", *asked)
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert json.loads(watching.stdout.readline())["workers"] == {name: "is on"}
            worker.send("noop")
            rows: list[dict[str, Any]] = []
            while not any(row["handled_a_second"] > 0 for row in rows if row["name"] == "watch"):
                rows = json.loads(watching.stdout.readline())["consumers"]
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=30) == 0
