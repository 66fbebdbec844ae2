"""The benchmarks of the relay carry what they say that they carry; how fast, no test asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nodes.redis_process import RedisProcess
from redis import Redis

from benchmarks.relay_bytes import bytes_of_event
from benchmarks.relay_events import events_of_jobs, through_kombu, through_relay
from benchmarks.relay_jobs import check_sent, declare
from benchmarks.worker.app import app
from celery_broadcast.relay.choice import Choice
from celery_broadcast.settings import Settings

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

EVENTS = events_of_jobs(200)


@pytest.fixture
def url() -> Iterator[str]:
    with RedisProcess() as server:
        yield server.url


def test_the_relay_carries_all_events_and_leaves_none_pending(url: str) -> None:
    published, consumed = through_relay(url, EVENTS)

    assert published > 0 < consumed
    with Redis.from_url(url) as redis:
        for event_type in ("JobStarted", "JobFinished"):
            (group,) = redis.xinfo_groups(f"celery-broadcast:events:{event_type}")
            assert group["pending"] == group.get("lag", 0) == 0  # Redis 6.2 has no lag


@pytest.mark.parametrize("size", [1, 100])
def test_kombu_carries_all_events_and_leaves_none_unacknowledged(url: str, size: int) -> None:
    published, consumed = through_kombu(url, size, EVENTS)

    assert published > 0 < consumed
    with Redis.from_url(url) as redis:
        assert redis.llen("benchmark") == redis.hlen("unacked") == 0


def test_an_event_has_as_many_bytes_as_redis_counts(url: str) -> None:
    def carry(_: object) -> tuple[float, float]:
        with Redis.from_url(url) as redis:
            redis.set("event", 10_000 * "x")
        return 0.0, 0.0

    measured = bytes_of_event(url, "ours", carry, EVENTS[:1])

    assert 10_000 < measured["ours, to Redis"] < 12_000


def test_a_worker_that_sends_too_little_is_no_measurement(url: str) -> None:
    app.conf.update(broker_url=url)
    declare(app)
    choice = Choice(lambda: app, Settings())
    transport = choice.new_transport()
    transport.publish(choice.new_writer().parcels(EVENTS, "text"))
    transport.close()

    check_sent(url, jobs=100)
    with pytest.raises(RuntimeError, match="The worker sent 200 events of 200 jobs"):
        check_sent(url, jobs=200)
