"""`celery broadcast tail` on real brokers: it sees all, and takes nothing from anybody."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from nodes.deadline import wait_until
from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess
from nodes.tail_process import TailProcess
from nodes.terminal import Terminal
from nodes.worker_process import APPS_FOLDER
from remote_shop import PAGER, Shop, clean, ids_in

pytestmark = pytest.mark.worker

TAIL = [sys.executable, "-m", "celery", "-A", "job_app_consume", "broadcast", "tail"]


class OnRedis:
    """What of a Redis the tests ask that isn't the relay's to ask."""

    def __init__(self, server: RedisProcess) -> None:
        self.url = f"{server.url.rpartition('/')[0]}/11"

    def groups(self) -> object:
        """Return who gets anything there."""
        with redis.Redis.from_url(self.url) as client:
            return {
                key: [group["name"] for group in client.xinfo_groups(key)]
                for key in sorted(client.keys())
            }

    def cut_connection(self) -> None:
        """Cut the connection of a tail, and no other test's."""
        with redis.Redis.from_url(self.url) as client:
            (address,) = [each["addr"] for each in client.client_list() if each["cmd"] == "xread"]
            client.client_kill(address)


class OnRabbitMQ:
    """The same of RabbitMQ."""

    def __init__(self, server: RabbitProcess) -> None:
        self.url = server.url
        self._control = server.control

    def groups(self) -> object:
        bindings = self._control("list_bindings", "destination_name", "routing_key")
        return sorted(line for line in bindings.splitlines() if "celery-broadcast" in line)

    def cut_connection(self) -> None:
        connections = self._control("list_connections", "pid", "client_properties")
        (pid,) = [
            line.split()[0]
            for line in connections.splitlines()
            if "celery-broadcast job_app_consume " in line
        ]
        self._control("close_connection", pid, "a test")


@pytest.fixture(
    name="broker",
    params=[
        pytest.param((OnRedis, "redis_server"), marks=pytest.mark.xdist_group("redis")),
        pytest.param((OnRabbitMQ, "rabbitmq_server"), marks=pytest.mark.xdist_group("rabbitmq")),
    ],
    ids=["redis", "rabbitmq"],
)
def running_broker(request: pytest.FixtureRequest) -> Iterator[OnRedis | OnRabbitMQ]:
    on_broker: Callable[[object], OnRedis | OnRabbitMQ]
    on_broker, server = request.param
    broker = on_broker(request.getfixturevalue(server))
    clean(broker.url)
    yield broker
    clean(broker.url)


@pytest.fixture
def shop(broker: OnRedis | OnRabbitMQ, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(broker.url, tmp_path)
    yield shop
    shop.transport.close()


def test_a_tail_shows_what_is_sent_and_leaves_all_as_it_was(
    broker: OnRedis | OnRabbitMQ, shop: Shop
) -> None:
    shop.publish("before")
    groups = broker.groups()

    with TailProcess(shop.config, "--task", "shop.*") as tail:
        shop.publish("one", "two")
        wait_until(lambda: len(tail.lines()) == 2, failure=tail.logs)
        assert [line.split()[3] for line in tail.lines()] == ["one", "two"]
        assert "\x1b" not in tail.logs()
        tail.kill("SIGINT")
        assert tail.wait() == 0
    assert broker.groups() == groups

    waiting = []
    for _ in range(2):
        received = shop.transport.receive(PAGER, 5.0)
        assert received is not None
        assert received.deliveries == 0
        shop.transport.acknowledge(PAGER, received)
        waiting += ids_in(received)
    assert waiting == ["before", "one", "two"]


def test_a_tail_goes_on_when_its_connection_was_cut(
    broker: OnRedis | OnRabbitMQ, shop: Shop
) -> None:
    with TailProcess(shop.config, "--json") as tail:
        broker.cut_connection()
        wait_until(lambda: "Reads from the broker again." in tail.logs())
        shop.publish("after")
        wait_until(lambda: '"taskid": "after"' in tail.logs())
        assert tail.logs().count("Can't read from the broker") == 1


def test_a_tail_of_a_worker_shows_its_jobs(shop: Shop) -> None:
    with shop.worker("seen") as worker, TailProcess(shop.config) as tail:
        shop.app.send_task("job_app_consume.ok", (1,), queue="seen")
        wait_until(tail.lines, failure=lambda: tail.logs() + worker.logs())
        (line,) = tail.lines()
        assert " job_app_consume.ok " in line
        assert line.endswith(" s")


def test_in_a_terminal_an_event_is_one_row_and_ctrl_c_ends_it(shop: Shop, tmp_path: Path) -> None:
    path = os.pathsep.join((str(APPS_FOLDER), os.environ.get("PYTHONPATH", "")))
    variables = {"JOB_APP_CONFIG": json.dumps(shop.config), "PYTHONPATH": path}
    words = [*(f"{name}={value}" for name, value in variables.items()), *TAIL]
    with Terminal(tmp_path, rows=24) as terminal:
        terminal.type(
            f"clear; env {shlex.join(words)}; echo $? > {shlex.quote(str(tmp_path))}/code"
        )
        wait_until(lambda: "Ctrl-C ends it." in " ".join(terminal.rows()))
        shop.publish("a-job-with-a-long-id")
        wait_until(lambda: " JobFinished shop.charge a-job-wi" in " ".join(terminal.rows()))
        terminal.press("C-c")
        wait_until(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text())
        shown = [row for row in terminal.rows() if " JobFinished shop.charge " in row]
        assert shown == ["00:01:41 JobFinished shop.charge a-job-wi 1 s"]
    assert (tmp_path / "code").read_text() == "0\n"
