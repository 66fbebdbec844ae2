"""The table of `docs/scaling.md`: what was measured of one event, times how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks import page
from benchmarks.charts import values_of
from benchmarks.report import Result
from celery_broadcast.relay.transport import Limits

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
PLACE = "scaling"

JOBS = 100_000  # a second

#: The events a second that are sent, by what the remote consumers want.
WANTED: Mapping[str, int] = {
    "Every event": 2 * JOBS,
    "Every end": JOBS,
    "Failures, 1 job in 100": JOBS // 100,
}


class Source(msgspec.Struct, frozen=True):
    """What a line of the table is made of.

    Attributes:
        figure: the figure of the benchmark.
        name: the thing measured in it.
    """

    figure: str
    name: str


JOBS_THREAD = Source("job_thread_cost", "1 idle consumer, in a row")
PUBLISHED = Source("relay_events", "the relay, published")
CONSUMED = Source("relay_events", "the relay, consumed")
REDIS = Source("relay_redis", "the relay")
TO_REDIS = Source("relay_bytes", "the relay, to Redis")
FROM_REDIS = Source("relay_bytes", "the relay, from Redis")
THE_JOBS = Source("relay_jobs", "the flag off")
CORES_OF_JOBS = 2

SOURCES = (JOBS_THREAD, PUBLISHED, CONSUMED, REDIS, TO_REDIS, FROM_REDIS, THE_JOBS)


def write(results: Mapping[str, Result], path: Path = PAGE) -> None:
    """Write the table into its place, if all that it is made of was measured.

    Raises:
        RuntimeError: the page has no place for it.
    """
    if all(source.figure in results for source in SOURCES):
        page.put(block_of(results), PLACE, path)


def block_of(results: Mapping[str, Result]) -> str:
    """Return the table."""

    def measured(source: Source) -> float:
        return values_of(results[source.figure])[source.name].median

    events = list(WANTED.values())
    job_us = measured(JOBS_THREAD)
    published_us, consumed_us = (1e3 / measured(source) for source in (PUBLISHED, CONSUMED))
    redis_us = measured(REDIS)
    sent, read = measured(TO_REDIS), measured(FROM_REDIS)
    job_ms = CORES_OF_JOBS / measured(THE_JOBS) * 1e3
    room = Limits().max_bytes
    lines = [
        f"| | One costs | {' | '.join(WANTED)} | Measured by |",
        f"|{'---|' * (len(WANTED) + 3)}",
        _row("Events sent, a second", "", [f"{rate:,}" for rate in events]),
        _row(
            "The job's thread, whatever is sent",
            f"{_digits(job_us)} µs",
            [_cores(2 * JOBS, job_us)] * len(events),
            JOBS_THREAD,
        ),
        _row(
            "The worker's relay",
            f"{_digits(published_us)} µs",
            [_cores(rate, published_us) for rate in events],
            PUBLISHED,
        ),
        _row(
            "The consumers of a group",
            f"{_digits(consumed_us)} µs",
            [_cores(rate, consumed_us) for rate in events],
            CONSUMED,
        ),
        _row(
            "Redis, with one group",
            f"{_digits(redis_us)} µs",
            [_cores(rate, redis_us) for rate in events],
            REDIS,
        ),
        _row(
            "To Redis",
            f"{sent:.0f} bytes",
            [f"{_digits(rate * sent / 1e6)} MB/s" for rate in events],
            TO_REDIS,
        ),
        _row(
            "From Redis, to each group",
            f"{read:.0f} bytes",
            [f"{_digits(rate * read / 1e6)} MB/s" for rate in events],
            FROM_REDIS,
        ),
        _row(
            f"A stream of {room // 2**20} MiB is full after",
            f"{sent:.0f} bytes",
            # Starts and ends have a stream each.
            [_time(room / (min(rate, JOBS) * sent)) for rate in events],
            TO_REDIS,
        ),
        _row(
            "*The jobs themselves*, doing nothing",
            f"{_digits(job_ms)} ms",
            [f"{_digits(JOBS * job_ms / 1e3)} cores"] * len(events),
            THE_JOBS,
        ),
    ]
    return "\n{}\n\n".format("\n".join(lines))


def _row(what: str, one: str, times: Sequence[str], source: Source | None = None) -> str:
    measured_by = f"`{source.figure}`, {source.name}" if source else ""
    return f"| {what} | {one} | {' | '.join(times)} | {measured_by} |".replace("|  |", "| |")


def _cores(rate: int, microseconds: float) -> str:
    return f"{_digits(rate * microseconds / 1e6)} cores"


def _time(seconds: float) -> str:
    return f"{_digits(seconds)} s" if seconds < 100 else f"{_digits(seconds / 60)} min"  # noqa: PLR2004  # digits


def _digits(value: float) -> str:
    """Return a number to two digits: the machine is good for no more."""
    return f"{float(f'{value:.1e}'):,.10g}"
