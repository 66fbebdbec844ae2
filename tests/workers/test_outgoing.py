"""What real workers send to remote consumers through real brokers, and what happens without it."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
import redis
from celery import Celery
from nodes.deadline import wait_until
from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess
from reports import EventReport
from running_worker import RunningWorker, running_worker, started_worker

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.rabbitmq import RabbitMQ
from celery_broadcast.relay.redis_streams import RedisStreams
from celery_broadcast.relay.transport import Group, Limits

pytestmark = pytest.mark.worker
on_redis = pytest.mark.xdist_group("redis")

IMPORTS = ["celery_broadcast.plugin", "job_app_consumers", "job_app_remote"]
GROUPS = (
    Group(name="audit", event_types=("JobFinished",), tasks=("*.ok",)),
    Group(name="pager", event_types=("JobFinished", "JobFailed"), tasks=("*.fails",)),
)
POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")


class RelayRedis(RedisProcess):
    """A Redis for the relay, which remembers when it starts again."""

    #: What ends it with no time to say goodbye.
    sudden_death = "SIGKILL"

    def __init__(self) -> None:
        super().__init__("--appendonly", "yes", "--appendfsync", "always")

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        with redis.Redis.from_url(self.url) as client:
            client.config_set("maxmemory", 1)
            try:
                yield
            finally:
                client.config_set("maxmemory", 0)

    def declare(self) -> None:
        transport = RedisStreams.from_app_settings(self.url, {}, None, Limits())
        for group in GROUPS:
            transport.declare(group)
        transport.close()

    def sent(self) -> list[dict[str, Any]]:
        """Return the CloudEvents that were sent there, each once."""
        with redis.Redis.from_url(self.url) as client:
            events = [
                event
                for key in client.scan_iter("celery-broadcast:events:*")
                for _, fields in client.xrange(key)
                for event in json.loads(fields[b"body"])
            ]
        return list({event["id"]: event for event in events}.values())


class RelayRabbitMQ(RabbitProcess):
    """A RabbitMQ for the relay."""

    #: RabbitMQ 3.10 knows for a moment in memory only that there is a quorum queue.
    sudden_death = "SIGTERM"

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        self.control("set_vm_memory_high_watermark", "0.00001")
        try:
            yield
        finally:
            self.control("set_vm_memory_high_watermark", "0.4")

    def declare(self) -> None:
        with self._transport() as transport:
            for group in GROUPS:
                transport.declare(group)

    def sent(self) -> list[dict[str, Any]]:
        """Return the CloudEvents that were sent there, each once."""
        # It may not be there just now; what was read is kept.
        with contextlib.suppress(RelayError), self._transport() as transport:
            for group in GROUPS:
                while received := transport.receive(group, 0.2):
                    for event in json.loads(received.parcel.body):
                        self._events[event["id"]] = event
                    transport.acknowledge(group, received)
        return list(self._events.values())

    @contextlib.contextmanager
    def _transport(self) -> Iterator[RabbitMQ]:
        with Celery(broker=self.url, set_as_current=False) as app:
            transport = RabbitMQ(app)
            try:
                yield transport
            finally:
                transport.close()


RelayServer: TypeAlias = RelayRedis | RelayRabbitMQ
RELAY_SERVERS = [
    pytest.param(kind, marks=pytest.mark.xdist_group(name), id=name)
    for name, kind in (("redis", RelayRedis), ("rabbitmq", RelayRabbitMQ))
]


@pytest.fixture(params=RELAY_SERVERS)
def relay_server(request: pytest.FixtureRequest) -> Iterator[RelayServer]:
    """A broker of its own for the relay."""
    with request.param() as server:
        server.declare()
        yield server


def config_of(server: RelayServer, jobs: RedisProcess, **more: object) -> dict[str, Any]:
    return {
        "broker_url": jobs.url,
        "result_backend": jobs.url,
        "broadcast_relay_url": server.url,
        "imports": IMPORTS,
        **more,
    }


def kinds_of(events: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((event["type"].rpartition(".")[2], event["subject"]) for event in events)


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_sends_what_remote_consumers_want_and_nothing_else(
    pool: str, relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    with running_worker(config_of(relay_server, redis_server), pool=pool) as worker:
        for number in range(20):
            worker.send("ok", number)
            worker.send("noop")
        for _ in range(3):
            worker.send("fails", "on purpose")
        worker.listener.wait_for(43, EventReport, consumer="Ends")

        assert worker.stop() == 0

        wait_until(lambda: len(relay_server.sent()) >= 23)
        events = relay_server.sent()
        assert kinds_of(events) == {("finished", "job_app.ok"): 20, ("failed", "job_app.fails"): 3}
        assert len({event["id"] for event in events}) == 23
        assert not [line for line in worker.process.logs().splitlines() if "relay can't" in line]


def test_jobs_go_on_while_the_relays_broker_is_away_and_what_was_dropped_is_counted(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    config = config_of(relay_server, redis_server, broadcast_mailbox_size=30)
    with running_worker(config, pool="threads") as worker:
        run(worker, 10)
        wait_until(lambda: len(relay_server.sent()) == 10)

        relay_server.kill(relay_server.sudden_death)
        relay_server.wait()
        run(worker, 1)
        wait_until(lambda: "relay can't send" in worker.process.logs())
        run(worker, 300)
        relay_server.start()
        relay_server.ready()
        wait_until(lambda: "relay sends to remote consumers again" in worker.process.logs())
        run(worker, 1)

        assert worker.stop() == 0
        log = worker.process.logs()
        (dropped,) = map(int, re.findall(r"failed tries; (\d+) events were dropped", log))
        assert dropped > 0
        wait_until(lambda: len(relay_server.sent()) + dropped == 312)
        assert log.count("relay can't send") == 1
        # In one line, or in two if the jobs took longer than it waits with the first.
        assert sum(map(int, re.findall(r"'relay' lost (\d+) events", log))) == dropped


def test_a_worker_that_stops_while_the_relays_broker_is_away_ends_in_time_and_says_what_is_lost(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    config = config_of(relay_server, redis_server, broadcast_drain_timeout=1.0)
    with running_worker(config) as worker:
        relay_server.kill(relay_server.sudden_death)
        relay_server.wait()
        run(worker, 20)

        assert worker.stop(timeout_seconds=30) == 0

        lost = re.findall(r"events unhandled \(relay: (\d+)\)", worker.process.logs())
        assert sum(map(int, lost)) == 20


def test_a_worker_starts_while_the_relays_broker_is_away_and_sends_once_it_is_there(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    relay_server.kill("SIGTERM")
    relay_server.wait()
    with running_worker(config_of(relay_server, redis_server)) as worker:
        run(worker, 20)
        wait_until(lambda: "relay can't send" in worker.process.logs())

        relay_server.start()
        relay_server.ready()
        wait_until(lambda: len(relay_server.sent()) == 20)


def test_jobs_go_on_while_the_relays_broker_hangs_and_their_events_follow(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    with running_worker(config_of(relay_server, redis_server)) as worker:
        run(worker, 10)
        wait_until(lambda: len(relay_server.sent()) == 10)

        relay_server.kill("SIGSTOP")
        try:
            run(worker, 100)
            wait_until(lambda: "relay can't send" in worker.process.logs())
        finally:
            relay_server.kill("SIGCONT")

        wait_until(lambda: len({event["id"] for event in relay_server.sent()}) == 110)
        assert worker.stop() == 0


def test_jobs_go_on_while_the_relays_broker_is_full_and_their_events_follow(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    with running_worker(config_of(relay_server, redis_server)) as worker:
        run(worker, 10)
        wait_until(lambda: len(relay_server.sent()) == 10)

        with relay_server.full():
            run(worker, 100)
            wait_until(lambda: "relay can't send" in worker.process.logs())

        wait_until(lambda: len(relay_server.sent()) == 110, 60.0)
        assert worker.stop() == 0


def test_what_leaves_a_worker_is_text_that_was_redacted(
    relay_server: RelayServer, redis_server: RedisProcess
) -> None:
    config = config_of(relay_server, redis_server, broadcast_redact="job_app_remote.redact")
    with running_worker(config) as worker:
        for x in ("open", "secret", "kept back"):
            worker.send("ok", x).get(timeout=60.0)
        assert worker.stop() == 0

    wait_until(lambda: len(relay_server.sent()) == 2)
    arguments = sorted(event["data"]["args"] for event in relay_server.sent())
    assert arguments == [["'***'"], ["'open'"]]


@on_redis
def test_a_worker_doesnt_start_with_a_broker_that_the_relay_cant_go_through(
    redis_server: RedisProcess,
) -> None:
    config = {
        "broker_url": redis_server.url,
        "broadcast_relay_url": "sqs://key:hush-hush@somewhere",
        "imports": IMPORTS,
    }
    with started_worker(config) as worker:
        assert worker.wait() != 0

        log = worker.process.logs()
        assert "The relay can't go through sqs:// (broadcast_relay_url)" in log
        assert "hush-hush" not in log


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_sends_through_the_rabbitmq_that_is_its_own_broker(
    pool: str, rabbitmq_server: RabbitProcess
) -> None:
    app = Celery("tests", broker=rabbitmq_server.url, set_as_current=False)
    transport = RabbitMQ(app)
    audit = Group(name=f"audit-{pool}", event_types=("JobFinished",), tasks=("*.ok",))
    transport.declare(audit)
    config = {"broker_url": rabbitmq_server.url, "imports": IMPORTS}
    with running_worker(config, pool=pool) as worker:
        for number in range(20):
            worker.send("ok", number)
            worker.send("noop")
        worker.listener.wait_for(40, EventReport, consumer="Ends")

        assert worker.stop() == 0

    events: list[dict[str, Any]] = []
    while received := transport.receive(audit, 30.0 if len(events) < 20 else 1.0):
        events += json.loads(received.parcel.body)
        transport.acknowledge(audit, received)
    transport.close()
    app.close()
    assert kinds_of(events) == {("finished", "job_app.ok"): 20}


def run(worker: RunningWorker, jobs: int) -> None:
    """Run jobs that a remote consumer wants to hear of; return when all have ended."""
    for result in [worker.send("ok", number) for number in range(jobs)]:
        result.get(timeout=60.0)
