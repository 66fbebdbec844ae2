"""However a process with events ends: what waits is handled, within the deadline, then counted.

Each worker has a consumer that is slow, one that never returns, and one, "trail",
that tells what the process has published.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import celery
import pytest
from nodes.deadline import wait_until
from reports import EventReport
from running_worker import RunningWorker, running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

# The jobs of one process keep the slow consumer busy for more than a second, which is
# what Celery leaves a pool process that doesn't drain, and for less than the deadline.
DRAIN_SECONDS = 4.0
CONSUMERS = ["celery_broadcast.plugin", "job_app_consumers", "job_app_slow", "job_app_stuck"]

Act = Callable[[RunningWorker], object]


@dataclass(frozen=True)
class Way:
    """A way for processes to end.

    Attributes:
        act: what is done to a worker that is idle.
        config: Celery's settings for it.
        pool: such as "prefork".
        arguments: further arguments of its command line.
        environment: further environment variables.
        processes: how many pool processes end at least, where the worker goes
            on; None where it ends with all of them.
        jobs: how many it runs before.
    """

    act: Act
    config: Mapping[str, Any] = field(default_factory=dict)
    pool: str = "prefork"
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: int | None = None
    jobs: int = 48


def nothing(worker: RunningWorker) -> None:
    """Leave it to Celery."""


def send_signal(name: str) -> Act:
    return lambda worker: worker.process.kill(name)


def interrupt_twice(worker: RunningWorker) -> None:
    worker.process.kill("SIGINT")
    wait_until(lambda: "Hitting Ctrl+C again" in worker.process.logs())
    worker.process.kill("SIGINT")


def quit_softly(worker: RunningWorker) -> None:
    """Stop it while a job runs that ends before the soft shutdown does."""
    job = worker.send("sleeps", 0.5)
    worker.listener.wait_for(1, EventReport, event="JobStarted", task_id=job.id)
    worker.process.kill("SIGQUIT")


def shrink_pool(worker: RunningWorker) -> None:
    worker.app.control.pool_shrink(1, destination=[worker.process.node_name])


def restart_pool(worker: RunningWorker) -> None:
    worker.app.control.pool_restart(destination=[worker.process.node_name])


POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")

WAYS = {
    **{f"warm stop, {pool}": Way(send_signal("SIGTERM"), pool=pool) for pool in POOLS},
    **{f"cold stop, {pool}": Way(send_signal("SIGQUIT"), pool=pool) for pool in POOLS},
    **{f"Ctrl-C, {pool}": Way(send_signal("SIGINT"), pool=pool) for pool in POOLS[:3]},
    **{f"Ctrl-C twice, {pool}": Way(interrupt_twice, pool=pool) for pool in POOLS[:3]},
    "pool shrunk": Way(shrink_pool, processes=1),
    # Each process goes after its next job, and Celery gives such a job to one of them.
    "pool restarted": Way(restart_pool, {"worker_pool_restarts": True}, processes=1),
    "scaled down": Way(
        nothing,
        arguments=("--autoscale", "2,1"),
        environment={"AUTOSCALE_KEEPALIVE": "1"},
        processes=1,
    ),
    "enough jobs": Way(nothing, {"worker_max_tasks_per_child": 24}, processes=1),
    "too much memory": Way(nothing, {"worker_max_memory_per_child": 1}, processes=2, jobs=2),
}
if celery.VERSION >= (5, 5):  # older ones don't know it
    WAYS["soft shutdown"] = Way(quit_softly, {"worker_soft_shutdown_timeout": 1})


@dataclass(frozen=True)
class Ended:
    """A worker of which processes have ended, and which."""

    worker: RunningWorker
    pids: set[int]

    def events(self, consumer: str, *names: str) -> Counter[int]:
        """Count what the consumer got in each process that has ended."""
        reports = self.worker.listener.reports(EventReport, consumer=consumer)
        wanted = [report for report in reports if not names or report.event in names]
        return Counter(report.pid for report in wanted if report.pid in self.pids)

    def lines(self) -> list[tuple[float, int]]:
        """Return after how many seconds each drain was over, and how many events it left."""
        line = r"stopped after (\d+\.\d) s with (\d+) events unhandled \(stuck: \2\)"
        found = re.findall(line, self.worker.process.logs())
        return [(float(seconds), int(events)) for seconds, events in found]


@pytest.fixture(scope="module")
def leaving(
    request: pytest.FixtureRequest,
    broker_config: Callable[[str], dict[str, Any]],
) -> Iterator[dict[str, RunningWorker]]:
    """Start the workers that the tests ask for; while one takes leave, the next one starts."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked_for = {call.params.get("ended") for call in calls if call}
    with ExitStack() as workers:
        yield {
            name: workers.enter_context(leaving_worker(broker_config("redis"), way))
            for name, way in WAYS.items()
            if name in asked_for
        }


@contextmanager
def leaving_worker(broker: Mapping[str, Any], way: Way) -> Iterator[RunningWorker]:
    """Start a worker, and have processes of it leave once it has run its jobs."""
    config = {
        **broker,
        "imports": CONSUMERS,
        "broadcast_drain_timeout": DRAIN_SECONDS,
        **way.config,
    }
    with running_worker(
        config, pool=way.pool, arguments=way.arguments, environment=way.environment
    ) as worker:
        for _ in range(2):  # at once: one for each process
            worker.send("sleeps", 0.2)
        for number in range(way.jobs - 2):
            worker.send("ok", number)
        worker.listener.wait_for(way.jobs, EventReport, consumer="trail", event="JobFinished")
        # A SIGQUIT that interrupts the reading of a result can hang Celery for good: it stops
        # the pool inside of its signal handler (celery/apps/worker.py, on_cold_shutdown).
        wait_until(worker.is_idle)
        way.act(worker)
        yield worker


@pytest.fixture(scope="module", params=WAYS)
def ended(request: pytest.FixtureRequest, leaving: dict[str, RunningWorker]) -> Ended:
    worker, way = leaving[request.param], WAYS[request.param]
    if way.processes is None:
        worker.process.wait(20)
    else:
        at_least = way.processes
        wait_until(lambda: len(gone(worker)) >= at_least, 20, worker.process.logs)
    return Ended(worker, gone(worker))


def gone(worker: RunningWorker) -> set[int]:
    """Return which processes have published events and have ended since."""
    pids = {report.pid for report in worker.listener.reports(EventReport)}
    return {pid for pid in pids if not exists(pid)}


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_slow_consumer_gets_what_waits_before_its_process_ends(ended: Ended) -> None:
    finished = ended.events("trail", "JobFinished")

    assert finished
    assert ended.events("slow") == finished


def test_what_a_stuck_consumer_leaves_is_counted(ended: Ended) -> None:
    published = Counter(ended.events("trail").values())

    assert Counter(events for _, events in ended.lines()) >= published


def test_a_stuck_consumer_holds_its_process_up_no_longer_than_the_deadline(ended: Ended) -> None:
    assert all(DRAIN_SECONDS <= seconds < DRAIN_SECONDS + 0.5 for seconds, _ in ended.lines())


def test_processes_are_recycled_one_after_another_without_loss_or_complaint(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {
        **broker_config("redis"),
        "imports": ["celery_broadcast.plugin", "job_app_slow"],
        "worker_max_tasks_per_child": 5,
    }
    with running_worker(config) as worker:
        for number in range(20):
            worker.send("ok", number)
        ends = worker.listener.wait_for(20, EventReport, consumer="slow")
        worker.stop()

        assert len({report.pid for report in ends}) >= 4
        assert len(worker.listener.reports(EventReport, consumer="slow")) == 20
        assert "held back" not in worker.process.logs()


def test_a_drain_that_holds_back_the_next_process_for_long_is_complained_of(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {
        **broker_config("redis"),
        "imports": CONSUMERS,
        "broadcast_drain_timeout": 1.5,
        "worker_max_tasks_per_child": 1,
    }
    with running_worker(config, concurrency=1) as worker:
        worker.send("ok", 1)
        (end,) = worker.listener.wait_for(1, EventReport, consumer="slow")

        complaint = rf"WARNING.* held back the replacement of pool process {end.pid} for 1\.\d s"
        wait_until(lambda: re.search(complaint, worker.process.logs()), 5, worker.process.logs)
