"""One run: a worker, its jobs and its killer, from the first job to the last number."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from signal import SIGUSR2
from typing import Any

import msgspec
import redis
from celery import Celery
from nodes.deadline import wait_until
from nodes.worker_process import WorkerProcess

from celery_broadcast.counts import ConsumerStats
from chaos import killer, load
from chaos.journal import DECODER, JOURNAL, AnyLine, Journal, Published
from chaos.killer import Killer
from chaos.load import AWAITS_REVOKE, SEED, Job
from chaos.main_process import Holdings, MainProcess

CONCURRENCY = 4

# So many jobs are sent at once whenever fewer wait.
JOBS_AHEAD = 100

# Between two looks at what the worker is doing.
PACE_SECONDS = 0.005

# Celery takes up to five seconds to replace a process or to tell that it died.
IDLE_WITHIN_SECONDS = 30.0

# Celery closes the pipes of a process some seconds after its end.
LETS_GO_WITHIN_SECONDS = 20.0


@dataclass(frozen=True)
class Order:
    """What a run is to be like.

    Attributes:
        seed: of everything that is drawn at random.
        jobs: how many are sent.
        kills: how many processes are killed, or jobs revoked, by the killer.
        without: kinds of jobs to leave out.
    """

    seed: int
    jobs: int = 10_000
    kills: int = 200
    without: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What repeats it, in the folder of the repository."""
        without = f" --without {' '.join(self.without)}" if self.without else ""
        return (
            f'make chaos OPTIONS="--seed {self.seed} --jobs {self.jobs} --kills {self.kills}'
            f'{without}"'
        )


@dataclass
class Result:
    """What came out of a run.

    Attributes:
        main_pid: the main process of the worker.
        lines: what its processes wrote down.
        done: what the killer did, and how often.
        numbers: of each consumer, over all processes.
        before: what the main process held after one job of each kind.
        after: the same, after all jobs.
        log: what the worker wrote.
        exit_code: of its main process.
        seconds: how long the jobs took.
        troubles: what didn't come about in time.
    """

    order: Order
    main_pid: int
    lines: list[AnyLine] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    numbers: Mapping[str, ConsumerStats] = field(default_factory=dict)
    before: Holdings | None = None
    after: Holdings | None = None
    log: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    troubles: list[str] = field(default_factory=list)


def run(order: Order, broker_url: str, folder: Path) -> Result:
    """Let a worker of its own go through it.

    Args:
        order: what it is to be like.
        broker_url: of a Redis server.
        folder: where the journal and the worker's log are left; an empty one.
    """
    journal = Journal(folder / "journal", DECODER)
    queue = f"chaos-{order.seed}-{time.monotonic_ns()}"
    config = {
        "broker_url": broker_url,
        "broadcast_enabled": True,
        "broadcast_drain_timeout": 1.0,
        "task_default_queue": queue,
        "task_store_errors_even_if_ignored": False,
        "worker_pool_restarts": True,
        "worker_max_tasks_per_child": 50,
    }
    worker = _Worker(
        queue,
        {**config, "result_backend": broker_url},
        concurrency=CONCURRENCY,
        environment={JOURNAL: str(journal.path), SEED: str(order.seed)},
    )
    with worker, Celery(set_as_current=False) as app, redis.Redis.from_url(broker_url) as server:
        app.conf.update(config)
        chaos = _Chaos(order, worker, app, server, journal)
        try:
            return chaos.unfold()
        finally:
            (folder / "log").write_text(worker.logs())


class _Worker(WorkerProcess):
    app = "chaos.app"


class _Chaos:
    """A run while it lasts."""

    def __init__(
        self,
        order: Order,
        worker: WorkerProcess,
        app: Celery,
        server: redis.Redis,
        journal: Journal[AnyLine],
    ) -> None:
        self._worker = worker
        self._app = app
        self._server = server
        self._queue = app.conf.task_default_queue
        self._journal = journal
        self._main_process = MainProcess(worker.pid)
        self._order = order
        self._killer = Killer(
            Random(f"{order.seed} strikes"), self._main_process, app.control, worker.node_name
        )
        self._revokes = Random(f"{order.seed} revokes")
        self._running: dict[tuple[str, int, float | None], Published] = {}
        self._result = Result(order, worker.pid)

    def unfold(self) -> Result:
        """Go through the run; return what came out."""
        order, result = self._order, self._result
        wait_until(self._is_listening)
        self._go_through(load.one_of_each(Random(f"{order.seed} warm-up"), order.without), [])
        self._wait(self._is_idle, "is not idle after the warm-up", self._what_is_left)
        # Celery keeps the pipes of processes that it had, for those to come.
        self._killer.resize()
        self._killer.shrink_back()
        self._wait(self._is_complete, "has not all its processes", self._pool)
        result.before = self._main_process.holdings()

        started = time.monotonic()
        self._go_through(
            load.mixed(Random(f"{order.seed} jobs"), order.jobs, order.without),
            killer.plan(Random(f"{order.seed} plan"), order.jobs, order.kills),
        )
        self._wait(self._is_idle, "is not idle", self._what_is_left)
        result.seconds = time.monotonic() - started
        self._killer.shrink_back()
        self._wait(self._is_settled, "has events that nobody handles", self._pending)
        self._wait(self._is_complete, "has not the processes it should have", self._pool)
        self._look_for_leftovers()

        self._worker.kill("SIGTERM")
        self._wait(lambda: self._worker.status == "exited", "does not stop", self._stacks)
        if self._worker.status == "exited":
            result.exit_code = self._worker.wait()
        self._journal.read_on()
        result.lines = self._journal.lines
        result.done = self._killer.done
        result.log = self._worker.logs()
        return result

    def _go_through(self, jobs: Iterator[Job], plan: list[tuple[int, str]]) -> None:
        """Send the jobs, always some ahead of the worker, and strike when it is time."""
        pace = threading.Event()
        sent = 0
        waiting = 0
        due = list(reversed(plan))
        while True:
            if waiting < JOBS_AHEAD:
                batch = list(islice(jobs, JOBS_AHEAD))
                for job in batch:
                    self._send(job)
                sent += len(batch)
            waiting = int(self._server.llen(self._queue))
            self._read_on()
            while due and due[-1][0] <= sent - waiting:
                if not self._killer.strike(due[-1][1], list(self._running.values())):
                    break
                due.pop()
            # What is left of the plan may need a job that runs, and there may be none any more.
            if not waiting and (not due or self._is_idle()):
                return
            pace.wait(PACE_SECONDS)

    def _send(self, job: Job) -> None:
        self._app.send_task(
            f"chaos.app.{job.task}", kwargs=dict(job.arguments), task_id=job.task_id, **job.options
        )

    def _read_on(self) -> None:
        """Follow what is running; revoke what waits for that."""
        for line in self._journal.read_on():
            if not isinstance(line, Published):
                continue
            key = (line.task_id, line.pid, line.started_at)
            if line.event != "JobStarted":
                self._running.pop(key, None)
                continue
            self._running[key] = line
            if line.task_name.endswith(AWAITS_REVOKE):
                self._killer.revoke(line.task_id, self._revokes.choice(("SIGTERM", "SIGKILL")))

    def _look_for_leftovers(self) -> None:
        """Note what the main process holds as soon as it is no more than before, or at last."""

        def has_let_go() -> bool:
            assert self._result.before is not None
            self._result.after = self._main_process.holdings()
            return not self._result.after.more_than(self._result.before)

        with suppress(TimeoutError):  # the verdict is another's
            wait_until(has_let_go, LETS_GO_WITHIN_SECONDS)

    def _wait(self, fact: Callable[[], object], trouble: str, more: Callable[[], object]) -> None:
        """Wait for the fact; note a trouble if it doesn't come true in time."""
        try:
            wait_until(fact, IDLE_WITHIN_SECONDS)
        except TimeoutError:
            self._result.troubles.append(
                f"After {IDLE_WITHIN_SECONDS:.0f} s the worker {trouble}: {more()}"
            )

    def _is_listening(self) -> bool:
        return bool(
            self._app.control.ping(destination=[self._worker.node_name], limit=1, timeout=1.0)
        )

    def _is_idle(self) -> bool:
        self._read_on()
        return not self._server.llen(self._queue) and not any(self._what_is_left().values())

    def _what_is_left(self) -> dict[str, list[Any]]:
        """Return the jobs that the main process takes for running, or has yet to start."""
        inspect = self._app.control.inspect(destination=[self._worker.node_name], limit=1)
        left: dict[str, list[Any]] = {}
        for what, answers in (("running", inspect.active()), ("waiting", inspect.reserved())):
            if answers is None:
                left[what] = ["the worker doesn't answer"]
                continue
            left[what] = [
                f"{job['name']}[{job['id']}] in pid {job['worker_pid']}"
                for jobs in answers.values()
                for job in jobs
            ]
        return left

    def _is_settled(self) -> bool:
        self._result.numbers = self._ask_for_numbers()
        return bool(self._result.numbers) and not any(self._pending().values())

    def _pending(self) -> dict[str, int]:
        return {name: stats.pending for name, stats in self._result.numbers.items()}

    def _ask_for_numbers(self) -> dict[str, ConsumerStats]:
        answers = self._app.control.broadcast(
            "broadcast_numbers",
            reply=True,
            limit=1,
            timeout=5.0,
            destination=[self._worker.node_name],
        )
        return {
            name: msgspec.convert(numbers, ConsumerStats)
            for answer in answers or ()
            for consumers in answer.values()
            for name, numbers in consumers.items()
        }

    def _is_complete(self) -> bool:
        return len(self._main_process.children()) == CONCURRENCY

    def _stacks(self) -> str:
        """Return where each thread of each process is."""
        before = len(self._worker.logs())
        for pid in (*self._main_process.children(), self._worker.pid):
            os.kill(pid, SIGUSR2)
            with suppress(TimeoutError):
                wait_until(lambda: self._worker.logs()[before:].count("most recent call first"), 1)
        return self._worker.logs()[before:]

    def _pool(self) -> list[int]:
        return self._main_process.children()
