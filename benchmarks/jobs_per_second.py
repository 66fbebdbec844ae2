"""Jobs that do nothing, per second, of real workers: prefork, two processes, Redis.

All workers are there at once, others in each round, but one at a time runs; the
others are stopped in the middle of what they do. In its turn, a worker finds all its jobs
in the queue, as copies of one message: to publish each would take as long as to
run it. Two of them tell the time: one in the first few, and the last.

The sleeping handlers can't keep up with the jobs. As consumers they get so far
behind that their mailboxes overflow; as receivers they hold up the jobs. What
Celery takes to call a receiver at all, as any plugin has one, is shown beside them.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from celery import Task
from nodes.local_process import LocalProcess
from nodes.redis_process import RedisProcess
from redis import Redis

from benchmarks.measure import Comparison, Measurement, as_measurements, measure_anew
from benchmarks.worker.app import MARKS, Mark, app, mark, noop

if TYPE_CHECKING:
    from typing_extensions import Self

TURNS = 4
JOBS = 500
DEADLINE_SECONDS = 60
PROJECT = Path(__file__).parents[1]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of worker.

    Attributes:
        imports: the modules that make it what it is.
        arguments: what else its command line has.
        environment: what else its environment has.
        jobs: how many it is timed with, after some more.
        consumers: how many consumers its processes must be seen to have.
        receivers: how many receivers of `task_prerun` they must be seen to have.
    """

    imports: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    jobs: int = JOBS
    consumers: int = 0
    receivers: int = 0


WITHOUT = "no plugin"
SLEEPING_CONSUMERS = "4 consumers that sleep 10 ms"
TRIVIAL_CONSUMERS = "4 consumers that do nothing"
SLEEPING_RECEIVERS = "4 receivers that sleep 10 ms"
EMPTY_RECEIVERS = "an empty receiver of each signal"

KINDS: Mapping[str, Kind] = {
    WITHOUT: Kind(),
    SLEEPING_CONSUMERS: Kind(
        imports=("celery_broadcast.plugin", "benchmarks.worker.sleeping_consumers"),
        consumers=4,
        receivers=1,
    ),
    TRIVIAL_CONSUMERS: Kind(
        imports=("celery_broadcast.plugin", "benchmarks.worker.trivial_consumers"),
        consumers=4,
        receivers=1,
    ),
    SLEEPING_RECEIVERS: Kind(
        imports=("benchmarks.worker.sleeping_receivers",),
        jobs=4,  # each takes 80 ms
        receivers=4,
    ),
    EMPTY_RECEIVERS: Kind(imports=("benchmarks.worker.empty_receivers",), receivers=1),
}


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with RedisProcess() as redis:
        app.conf.update(broker_url=redis.url)
        measured = measure_anew(
            partial(started, KINDS, redis.url), unit="jobs/s", rounds=rounds, turns=TURNS
        )
    return [
        measured.compare(SLEEPING_CONSUMERS, WITHOUT, at_least=0.97),
        measured.compare(SLEEPING_RECEIVERS, WITHOUT),
        measured.compare(TRIVIAL_CONSUMERS, WITHOUT, at_least=0.95),
        measured.compare(EMPTY_RECEIVERS, WITHOUT),
    ]


@contextmanager
def started(kinds: Mapping[str, Kind], broker_url: str) -> Iterator[list[Measurement]]:
    """Start a worker of each kind, and give what measures it."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(f"worker-{number}", broker_url, kind))
            for number, (name, kind) in enumerate(kinds.items())
        }
        yield as_measurements({name: each.jobs_per_second for name, each in workers.items()})


def copy_of(message: bytes) -> bytes:
    """Return the message of another job that is the same."""
    known = msgspec.json.decode(message)
    for identity in (known["headers"]["id"], known["properties"]["delivery_tag"]):
        message = message.replace(identity.encode(), str(uuid.uuid4()).encode())
    return message


class Worker(LocalProcess):
    """A worker with a queue of its own, which only runs while it is timed."""

    ready_line = ""  # that it did a job tells that it is ready

    def __init__(self, name: str, broker_url: str, kind: Kind) -> None:
        super().__init__(name)
        self._broker_url = broker_url
        self._kind = kind
        self._redis = Redis.from_url(broker_url)

    def __enter__(self) -> Self:
        self._noop, self._mark = self._message_of(noop), self._message_of(mark)
        super().__enter__()
        self.jobs_per_second()  # to warm it up
        return self

    @property
    def command(self) -> list[str]:
        """A worker as most people start theirs, without the talk to the others."""
        return [
            *(sys.executable, "-m", "celery", "--app", "benchmarks.worker.app", "worker"),
            *("--hostname", f"{self.name}@localhost", "--queues", self.name),
            *("--pool", "prefork", "--concurrency", "2"),
            *("--without-mingle", "--without-gossip"),
            *self._kind.arguments,
        ]

    @property
    def environment(self) -> Mapping[str, str]:
        """What `benchmarks.worker.app` reads."""
        return {
            **super().environment,
            "PYTHONPATH": str(PROJECT),
            "BENCHMARK_BROKER": self._broker_url,
            "BENCHMARK_IMPORTS": " ".join(self._kind.imports),
            **self._kind.environment,
        }

    def jobs_per_second(self) -> float:
        """Let it do some jobs, and stop it again."""
        jobs = self._kind.jobs
        messages = (
            *itertools.repeat(self._noop, jobs // 5),
            self._mark,
            *itertools.repeat(self._noop, jobs),
            self._mark,
        )
        self._redis.lpush(self.name, *map(copy_of, messages))
        os.killpg(self.pid, signal.SIGCONT)
        first, last = self._next_mark(), self._next_mark()
        os.killpg(self.pid, signal.SIGSTOP)
        return jobs / (last.time - first.time)

    def _message_of(self, task: Task[..., None]) -> bytes:
        """Publish a job, and take its message out of the queue again.

        Raises:
            RuntimeError: it isn't there.
        """
        # A connection of its own: those of the app's pool may be to the Redis of another figure.
        with app.connection_for_write(self._broker_url) as connection:
            options: Any = {"queue": self.name, "connection": connection}
            task.apply_async(**options)
        message = self._redis.rpop(self.name)
        if not isinstance(message, bytes):
            complaint = f"{task.name} should be in the queue {self.name}, but {message!r} is."
            raise RuntimeError(complaint)  # noqa: TRY004  # nobody passed it in
        return message

    def _next_mark(self) -> Mark:
        """Wait for a marking job, and return what it saw.

        Raises:
            RuntimeError: it doesn't come, or saw what should not be.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := self._redis.blpop([MARKS], timeout=1)) is None:
            if self.status == "exited" or time.monotonic() > deadline:
                raise RuntimeError(self._complaint("does not do its jobs"))
        seen = msgspec.json.decode(found[1], type=Mark)
        if (seen.consumers, seen.receivers) != (self._kind.consumers, self._kind.receivers):
            message = f"This worker should be {self._kind}, but a job in it saw {seen}."
            raise RuntimeError(message)
        return seen
