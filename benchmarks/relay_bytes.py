"""How many bytes an event has on its way to Redis, and from there, with all that goes with it.

As in `relay_events`, with one group; Redis itself counts them. The jobs have an
argument of some characters, and names as short as the benchmark's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nodes.redis_process import RedisProcess

from benchmarks.measure import Comparison, measure_all_in_turn
from benchmarks.relay_events import ALONE, OURS, PACKED, Carry, empty, ways_through
from benchmarks.relay_redis import told
from celery_broadcast.events import JobEvent

TURNS = 1
MOST_ROUNDS = 2  # they are the same each time, nearly

WAYS = {"to Redis": "total_net_input_bytes", "from Redis": "total_net_output_bytes"}


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with RedisProcess() as server:
        measured = measure_all_in_turn(
            [partial(bytes_of_event, server.url, *way) for way in ways_through(server.url)],
            unit="bytes",
            rounds=min(rounds, MOST_ROUNDS),
            turns=TURNS,
        )
    return [
        measured.compare(f"{OURS}, {way}", f"{peer}, {way}")
        for way in WAYS
        for peer in (ALONE, PACKED)
    ]


def bytes_of_event(
    url: str, name: str, carry: Carry, events: Sequence[JobEvent]
) -> dict[str, float]:
    """Return the bytes of each of the events, by the names of the measurements."""
    empty(url)
    before = told(url, "stats", *WAYS.values())
    carry(events)
    after = told(url, "stats", *WAYS.values())
    return {
        f"{name}, {way}": (end - start) / len(events)
        for way, start, end in zip(WAYS, before, after, strict=True)
    }
