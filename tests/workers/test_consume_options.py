"""Whatever a consumer can be in a worker, it is in `broadcast consume`, on both brokers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes.consume_process import ConsumeProcess
from nodes.deadline import wait_until
from recorder import make_event
from remote_shop import Shop, clean

from celery_broadcast import JobFinished
from celery_broadcast.relay.wire import Writer

pytestmark = pytest.mark.worker

BROKERS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker)) for broker in ("redis", "rabbitmq")
]
IDS = ["ok-1", "ok-2", "ok-3", "ok-4"]
EACH = ("coroutine", "concurrency", "retry", "rate", "restart")
NAMES = ("class", "batch", "selector", "json", "text", *EACH)


class OptionsProcess(ConsumeProcess):
    """All remote consumers of an app that has one of every kind."""

    app = "job_app_consume_options"


@pytest.fixture(params=BROKERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    server = request.getfixturevalue(f"{request.param}_server")
    url = f"{server.url.rpartition('/')[0]}/10" if request.param == "redis" else server.url
    clean(url, *NAMES)
    shop = Shop(url, tmp_path)
    yield shop
    shop.transport.close()
    clean(url, *NAMES)


def test_a_consumer_of_every_kind_is_served_and_ends_as_in_a_worker(shop: Shop) -> None:
    def written() -> dict[str, list[str]]:
        lines: dict[str, list[str]] = defaultdict(list)
        for line in shop.handled_file.read_text().splitlines():
            name, _, what = line.partition(" ")
            lines[name].append(what)
        return lines

    def is_all_done() -> bool:
        found = written()
        each = all(sorted(found[name]) == IDS for name in EACH)
        return each and {name: len(found[name]) for name in ("class", "text", "json")} == {
            "class": 5,
            "text": 4,
            "json": 4,
        }

    events = [make_event(JobFinished, task_id=task_id, result={"n": 1}) for task_id in IDS]
    with OptionsProcess(shop.config, shop.handled_file, names=()) as consumer:
        parcels = Writer("producer", "/celery/tests").parcels(events, "json")
        shop.transport.publish(parcels)
        wait_until(is_all_done, 60.0, lambda: f"{dict(written())} {consumer.logs()}")
        wait_until(lambda: written()["batch"] and written()["selector"])
        consumer.kill("SIGTERM")
        assert consumer.wait() == 0

    found = written()
    assert found["class"] == ["setup", *IDS, "teardown"]
    assert found["batch"] == ["+".join(IDS)]
    assert found["selector"] == ["ok-3"]
    assert set(found["json"]) == {'{"n": 1}'}
    assert set(found["text"]) == {"\"{'n': 1}\""}
    assert found["restarted"] == ["restart"]
    numbers = dict.fromkeys(NAMES, "4 0 0 0")
    numbers["restart"] = "4 1 0 1"  # what it crashed on came again
    numbers["relay"] = "0 0 0 0"  # it would send what jobs of this process publish
    assert sorted(found["stats"]) == sorted(f"{name} {of}" for name, of in numbers.items())
