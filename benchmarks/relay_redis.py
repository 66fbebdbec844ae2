"""What an event costs Redis: its processor time, as Redis itself tells it.

As in `relay_events`: published, kept, read and acknowledged by one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nodes.redis_process import RedisProcess
from redis import Redis

from benchmarks.measure import Comparison, measure_all_in_turn
from benchmarks.relay_events import ALONE, OURS, PACKED, Carry, empty, ways_through
from celery_broadcast.events import JobEvent

TURNS = 1
MOST_ROUNDS = 4  # they differ by little


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with RedisProcess() as server:
        measured = measure_all_in_turn(
            [partial(microseconds, server.url, *way) for way in ways_through(server.url)],
            unit="µs",
            rounds=min(rounds, MOST_ROUNDS),
            turns=TURNS,
        )
    return [measured.compare(OURS, peer) for peer in (ALONE, PACKED)]


def microseconds(url: str, name: str, carry: Carry, events: Sequence[JobEvent]) -> dict[str, float]:
    """Return what each of the events cost Redis, by the name of the way."""
    empty(url)  # what was there isn't theirs
    before = told(url, "cpu", "used_cpu_user", "used_cpu_sys")
    carry(events)
    after = told(url, "cpu", "used_cpu_user", "used_cpu_sys")
    return {name: (sum(after) - sum(before)) / len(events) * 1e6}


def told(url: str, section: str, *names: str) -> list[float]:
    """Return what Redis tells of itself."""
    with Redis.from_url(url) as redis:
        info = redis.info(section)
    return [float(info[name]) for name in names]
