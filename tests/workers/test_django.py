"""Real workers of a Django project, whose PostgreSQL server is restarted under them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from celery import Celery
from nodes.deadline import wait_until
from nodes.local_process import LOCALHOST
from nodes.postgres_process import PostgresProcess
from nodes.worker_process import APPS_FOLDER, WorkerProcess

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("django")]

PROCESSES = 2
CONSUMERS = ("store", "store_async")

_numbers = itertools.count(1)


class ShopProcess(WorkerProcess):
    app = "django_shop"


@dataclass(frozen=True)
class Shop:
    """A worker of the shop, and what it left in the database."""

    app: Celery
    process: ShopProcess
    database: PostgresProcess

    def send(self, task: str, times: int = 1) -> None:
        for _ in range(times):
            self.app.send_task(f"django_shop.tasks.{task}")

    def rows(self, consumer: str) -> list[tuple[str, int]]:
        """Return the state, and the process that wrote it, of each job's end."""
        query = "SELECT state, pid FROM django_shop_ended WHERE consumer = %s ORDER BY id"
        return self._ask(query, consumer)

    def wait_for_rows(self, number: int) -> None:
        """Wait until each consumer has written this number of rows."""

        def are_written() -> bool:
            return all(len(self.rows(consumer)) >= number for consumer in CONSUMERS)

        wait_until(are_written, failure=self.process.logs)

    def connections(self, query: str = "%") -> int:
        """Count the worker's connections whose last query was such a one."""
        activity = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
        return len(self._ask(activity, "django_shop", query))

    def numbers(self, consumer: str) -> dict[str, Any]:
        """Return the numbers of a consumer, of all processes."""
        replies = self.app.control.broadcast(
            "broadcast_numbers",
            destination=[self.process.node_name],
            reply=True,
            timeout=10,
            limit=1,
        )
        assert replies
        found: dict[str, Any] = replies[0][self.process.node_name][consumer]
        return found

    def settled(self, consumer: str, number: int) -> dict[str, Any]:
        """Return the numbers as soon as a consumer is done with this number of events."""
        last: dict[str, Any] = {}

        def is_done() -> bool:
            last.update(self.numbers(consumer))
            return bool(last["handled"] + last["failed"] >= number)

        wait_until(is_done, failure=lambda: f"{last}\n{self.process.logs()}")
        return last

    def stop(self) -> None:
        self.process.kill("SIGTERM")
        self.process.wait()

    def _ask(self, query: str, *arguments: object) -> list[Any]:
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(query, arguments).fetchall()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresProcess) -> PostgresProcess:
    """The server, with the shop's table, which is empty."""
    with psycopg.connect(postgres.url) as connection:
        connection.execute("DROP TABLE IF EXISTS django_shop_ended")
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"],
        env={
            **os.environ,
            **django_environment(postgres),
            "DJANGO_SETTINGS_MODULE": "django_shop.settings",
            "PYTHONPATH": str(APPS_FOLDER),
        },
        check=True,
    )
    return postgres


def django_environment(database: PostgresProcess, **options: object) -> dict[str, str]:
    server = {"HOST": LOCALHOST, "PORT": database.port, "USER": "postgres", "NAME": "postgres"}
    return {"DJANGO_SHOP_DATABASE": json.dumps({**server, **options})}


OpenShop = Callable[..., Any]


@pytest.fixture
def open_shop(
    database: PostgresProcess, broker_config: Callable[[str], dict[str, Any]]
) -> OpenShop:
    """Start a worker of the shop, which runs for as long as the `with` lasts."""

    @contextmanager
    def shop(
        pool: str = "prefork",
        connections: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        **config: object,
    ) -> Iterator[Shop]:
        name = f"shop-{os.getpid()}-{next(_numbers)}"
        broker_url = broker_config("redis")["broker_url"]
        config = {"broker_url": broker_url, "task_default_queue": name, **config}
        variables = {**django_environment(database, **(connections or {})), **(environment or {})}
        process = ShopProcess(name, config, pool=pool, concurrency=PROCESSES, environment=variables)
        with process, Celery(set_as_current=False) as app:
            app.conf.update(config)
            yield Shop(app, process, database)

    return shop


FOR_EVER = {"CONN_MAX_AGE": None}


@pytest.mark.parametrize(
    ("pool", "connections", "lost"),
    [
        pytest.param("prefork", {}, 1, id="prefork"),
        pytest.param("threads", {}, 1, id="threads"),
        pytest.param("prefork", {**FOR_EVER, "CONN_HEALTH_CHECKS": True}, 1, id="kept and checked"),
        # Django finds out that one is dead when it is used: once in each process.
        pytest.param("prefork", FOR_EVER, PROCESSES, id="kept"),
    ],
)
def test_a_consumer_loses_no_more_than_the_events_that_meet_a_server_going_down(
    open_shop: OpenShop, pool: str, connections: Mapping[str, object], lost: int
) -> None:
    with open_shop(pool, connections) as shop:
        shop.send("sell", 10)
        shop.wait_for_rows(10)
        shop.send("sell_slowly")
        wait_until(lambda: shop.connections("%pg_sleep%"), failure=shop.process.logs)

        shop.database.restart()
        shop.send("sell", 20)

        for consumer in CONSUMERS:
            numbers = shop.settled(consumer, 31)
            assert numbers["offered"] == numbers["handled"] + numbers["failed"] == 31
            assert numbers["failed"] <= lost
            assert len(shop.rows(consumer)) == numbers["handled"]
        assert shop.numbers("store")["failed"] >= 1  # or the server was restarted too late


def test_a_consumer_that_may_keep_its_connection_has_one_in_each_process_and_leaves_none(
    open_shop: OpenShop,
) -> None:
    """That of coroutines keeps none: Django's asynchronous requests don't either."""
    with open_shop(connections=FOR_EVER) as shop:
        shop.send("sell", 20)
        shop.wait_for_rows(20)
        processes = {pid for _, pid in shop.rows("store")}
        assert len(processes) <= PROCESSES
        wait_until(lambda: shop.connections() == len(processes))

        shop.stop()

        wait_until(lambda: shop.connections() == 0, 10)


def test_consumers_are_found_in_the_pools_processes_and_in_the_main_process(
    open_shop: OpenShop,
) -> None:
    with open_shop() as shop:
        shop.send("sell")
        shop.wait_for_rows(1)
        shop.send("die")
        shop.wait_for_rows(2)

        (finished, pool_process), (failed, main_process) = shop.rows("store")
        assert (finished, failed) == ("SUCCESS", "FAILURE")
        assert pool_process != shop.process.pid
        assert main_process == shop.process.pid


def test_the_flag_in_djangos_settings_turns_it_off(open_shop: OpenShop) -> None:
    with open_shop(broadcast_enabled=False) as shop:
        shop.send("sell")
        wait_until(lambda: "succeeded in" in shop.process.logs(), failure=shop.process.logs)
        shop.stop()

        assert "broadcast" not in shop.process.logs()
        assert [shop.rows(consumer) for consumer in CONSUMERS] == [[], []]


def test_the_environment_beats_djangos_settings(open_shop: OpenShop) -> None:
    with open_shop(broadcast_enabled=False, environment={"CELERY_BROADCAST_ENABLED": "1"}) as shop:
        shop.send("sell")
        shop.wait_for_rows(1)


def test_a_misspelt_flag_in_djangos_settings_keeps_the_worker_from_starting(
    open_shop: OpenShop,
) -> None:
    with pytest.raises(RuntimeError, match="ended instead of getting ready") as refusal:  # noqa: SIM117
        with open_shop(broadcast_enable=True):
            pass

    assert "CELERY_BROADCAST_ENABLE is not a setting of celery-broadcast" in str(refusal.value)
    assert "Did you mean CELERY_BROADCAST_ENABLED?" in str(refusal.value)
