"""Jobs per second with a remote consumer of everything, beside Celery's own events.

As in `jobs_per_second`. The worker sends both events of each job through its own
Redis, the start and the end; beside it, the same worker with the flag off, and one
that sends Celery's own events (`-E`), three a job. Nobody reads either: who would
is on another machine, and here it would take the processors from the worker. For
the remote consumer the broker keeps what it hasn't read; of Celery's own events it
keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from celery import Celery
from nodes.redis_process import RedisProcess
from redis import Redis

from benchmarks.jobs_per_second import JOBS, Kind, Worker
from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.worker.app import app
from celery_broadcast.events import EVENT_TYPES
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.transport import Group
from celery_broadcast.settings import Settings

TURNS = 3

RELAY = "1 remote consumer of everything"
OFF = "the flag off"
CELERY = "Celery's own events (-E)"

_IMPORTS = ("celery_broadcast.plugin", "benchmarks.worker.remote_consumer")

KINDS: Mapping[str, Kind] = {
    OFF: Kind(imports=_IMPORTS, environment={"CELERY_BROADCAST_ENABLED": "0"}),
    RELAY: Kind(imports=_IMPORTS, consumers=1, receivers=1),
    CELERY: Kind(arguments=("--task-events",)),
}

EVENTS_A_JOB = 2
#: Of all events: what a worker has in its hands when it is stopped for good isn't sent.
_LEAST_SENT = 0.9


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisProcess())
        app.conf.update(broker_url=redis.url)
        declare(app)
        workers = {
            name: stack.enter_context(Worker(f"worker-{number}", redis.url, kind))
            for number, (name, kind) in enumerate(KINDS.items())
        }
        measured = measure_in_turn(
            {name: worker.jobs_per_second for name, worker in workers.items()},
            unit="jobs/s",
            rounds=rounds,
            turns=TURNS,
        )
        check_sent(redis.url, jobs=rounds * TURNS * (JOBS + JOBS // 5))
    return [
        measured.compare(RELAY, OFF, at_least=0.9),
        measured.compare(CELERY, OFF),
    ]


def declare(app: Celery) -> None:
    """Have Redis keep what the remote consumer wants."""
    transport = Choice(lambda: app, Settings()).new_transport()
    transport.declare(Group(name="everything", event_types=tuple(EVENT_TYPES)))
    transport.close()


def check_sent(url: str, jobs: int) -> None:
    """Check that the events of the jobs were sent.

    Raises:
        RuntimeError: too few of them.
    """
    sent = 0
    with Redis.from_url(url) as redis:
        for stream in redis.scan_iter("celery-broadcast:events:*"):
            start = "-"
            while entries := redis.xrange(stream, start, count=500):
                sent += sum(fields[b"body"].count(b'"specversion"') for _, fields in entries)
                start = f"({entries[-1][0].decode()}"
    if sent < _LEAST_SENT * EVENTS_A_JOB * jobs:
        message = f"The worker sent {sent} events of {jobs} jobs."
        raise RuntimeError(message)
