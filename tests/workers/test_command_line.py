"""What `celery broadcast` says of real workers, and does to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from nodes.deadline import wait_until
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
        assert sum(offered(worker).values()) > sum(before.values())


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
        wait_until(lambda: "exited prematurely" in worker.process.logs(), 30.0)
        for _ in range(20):
            worker.send("noop")
        wait_until(lambda: worker.process.logs().count("job_app.noop") >= 40, 30.0)
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
        assert sum(offered(worker).values())


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
