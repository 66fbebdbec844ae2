"""A real worker that takes jobs, with the client to send them and the listener it reports to."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import reports
from celery import Celery
from celery.result import AsyncResult
from listener import Listener
from nodes.worker_process import WorkerProcess

_numbers = itertools.count(1)


@dataclass(frozen=True)
class RunningWorker:
    """A worker of `job_app`.

    Attributes:
        app: the client's app.
        queue: the queue of this worker alone.
        results: of the jobs that it was sent. A result that is collected unsubscribes; if
            that happens while the same thread subscribes to another, redis-py before 6 waits
            for itself.
    """

    app: Celery
    queue: str
    process: WorkerProcess
    listener: Listener
    results: list[AsyncResult[Any]] = field(default_factory=list)

    def send(self, task: str, *args: object, **options: Any) -> AsyncResult[Any]:
        """Send a job; the task is named as in `job_app`."""
        result = self.app.send_task(f"job_app.{task}", args, **options)
        self.results.append(result)
        return result

    def is_listening(self) -> bool:
        """Tell whether it hears remote control; what comes before is lost."""
        return bool(self.app.control.ping(destination=[self.process.node_name], limit=1))

    def is_idle(self) -> bool:
        """Tell whether its main process has heard of the end of every job."""
        return self.active_jobs() == []

    def active_jobs(self) -> list[str] | None:
        """Return the ids of the jobs that its main process knows to run; None if it is deaf."""
        inspect = self.app.control.inspect(destination=[self.process.node_name], limit=1)
        replies = inspect.active()
        return [job["id"] for job in replies[self.process.node_name]] if replies else None

    def stop(self, timeout_seconds: float = 60) -> int:
        """Stop it warmly, wait until it has ended, and return its exit code."""
        self.process.kill("SIGTERM")
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = 60) -> int:
        """Wait until it has ended and all is received that it reported; return its exit code."""
        exit_code = self.process.wait(timeout_seconds)
        self.listener.catch_up()
        return exit_code


@contextmanager
def running_worker(
    config: Mapping[str, Any],
    *,
    pool: str = "prefork",
    concurrency: int = 2,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningWorker]:
    """Run a worker as `started_worker` does; it is ready when the `with` begins."""
    with started_worker(
        config,
        pool=pool,
        concurrency=concurrency,
        arguments=arguments,
        environment=environment,
    ) as worker:
        worker.process.ready()
        yield worker


@contextmanager
def started_worker(
    config: Mapping[str, Any],
    *,
    pool: str = "prefork",
    concurrency: int = 2,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningWorker]:
    """Start a worker with a queue of its own, which runs for as long as the `with` lasts.

    It may not be ready when the `with` begins: of several, all can be started at once.

    Args:
        config: Celery's settings, at least the broker's URL. The broadcast is
            on if they don't say otherwise.
        pool: such as "prefork".
        concurrency: how many processes, threads or greenlets.
        arguments: further arguments of the command line.
        environment: further environment variables.
    """
    name = f"worker-{os.getpid()}-{next(_numbers)}"
    config = {"broadcast_enabled": True, "task_default_queue": name, **config}
    with Listener() as listener, Celery(set_as_current=False) as app, ExitStack() as stack:
        process = WorkerProcess(
            name,
            config,
            pool=pool,
            concurrency=concurrency,
            arguments=arguments,
            environment={**(environment or {}), reports.LISTENER: listener.path},
        )
        stack.callback(process.teardown)
        process.start()
        listener.worker_log = process.logs
        app.conf.update(config)
        worker = RunningWorker(app, config["task_default_queue"], process, listener)
        yield worker
        worker.results.clear()
        gc.collect()  # a result that is collected tells the backend, while there is one
