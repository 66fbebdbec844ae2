"""A process as those of a worker's pool are, in which events of jobs are timed."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery, signals

import celery_broadcast
from celery_broadcast import JobRevoked
from celery_broadcast.subscription import registry

STUCK_MAILBOX_SIZE = 10
WARM_UP_JOBS = 20  # more events than that
ASLEEP_AFTER_SECONDS = 0.001
DEADLINE_SECONDS = 10.0

# Not on the terminal: what stuck consumers lose, and have waiting when they are killed.
logging.getLogger("celery_broadcast").addHandler(logging.NullHandler())

app = Celery("benchmark", set_as_current=False)
app.config_from_object({"broadcast_enabled": True}, force=True)


@app.task(name="benchmark.noop", shared=False, lazy=False)  # not a proxy of the task
def noop() -> None:
    """Do nothing."""


def ignore(*_: object, **__: object) -> None:
    """Take an event, or what a signal's receiver gets."""


def be_stuck(_: object) -> None:
    """Never return from an event."""
    threading.Event().wait()


@dataclass(frozen=True)
class Crowd:
    """Some consumers.

    Attributes:
        idle: how many get every event, and are done with it at once.
        stuck: how many got stuck with an event, while their mailboxes are full.
        unwanting: how many want none: one half other types, one half other tasks.
        globs: how many globs each of the idle has; only the last one matches.
    """

    idle: int = 0
    stuck: int = 0
    unwanting: int = 0
    globs: int = 0

    def declare(self, handle: Callable[[Any], None] = ignore) -> None:
        """Declare them; the idle ones are called as told."""
        on_job_event = celery_broadcast.on_job_event
        task: dict[str, Any] = {}
        if self.globs:
            task["task"] = [*(f"other-{n}.*" for n in range(1, self.globs)), "benchmark.*"]
        for number in range(self.idle):
            on_job_event(name=f"idle-{number}", **task)(handle)
        for number in range(self.stuck):
            on_job_event(name=f"stuck-{number}", mailbox_size=STUCK_MAILBOX_SIZE)(be_stuck)
        for number in range(0, self.unwanting, 2):
            on_job_event(JobRevoked, name=f"unwanting-{number}")(ignore)
        for number in range(1, self.unwanting, 2):
            on_job_event(name=f"unwanting-{number}", task="other.*")(ignore)

    def is_done(self, events: int) -> bool:
        """Tell whether so many events are handled, or in the mailboxes of the stuck.

        Raises:
            RuntimeError: there are other consumers than these.
        """
        stats = celery_broadcast.stats()
        ours = {
            *(f"idle-{number}" for number in range(self.idle)),
            *(f"stuck-{number}" for number in range(self.stuck)),
            *(f"unwanting-{number}" for number in range(self.unwanting)),
        }
        if stats.keys() != ours:
            message = f"There should be {self}, but there are {sorted(stats)}."
            raise RuntimeError(message)
        return all(
            (of_one.offered if name.startswith("stuck") else of_one.handled)
            == (0 if name.startswith("unwanting") else events)
            for name, of_one in stats.items()
        )


@contextmanager
def receiver_connected() -> Iterator[None]:
    """Have an empty strong receiver of the signals around a job."""
    around_a_job = (signals.task_prerun, signals.task_postrun)
    for signal in around_a_job:
        signal.connect(ignore, weak=False)
    yield
    for signal in around_a_job:
        signal.disconnect(ignore)


@contextmanager
def broadcast_installed(crowd: Crowd) -> Iterator[None]:
    """Have the broadcast on, as in the main process of a worker."""
    crowd.declare()
    celery_broadcast.install(app)
    signals.worker_init.send(sender=None)
    yield
    celery_broadcast.uninstall(app)
    registry.clear()


@contextmanager
def pool_process(crowd: Crowd | None) -> Iterator[Callable[[int], float]]:
    """Fork a process as those of a pool are, and give what measures a number of jobs there.

    Args:
        crowd: the consumers; None is without the broadcast, and with a receiver.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def serve() -> None:
        here.close()
        microseconds_per_event(WARM_UP_JOBS)
        events = 2 * WARM_UP_JOBS
        while True:
            jobs = there.recv()
            wait_until_asleep(crowd or Crowd(), events)
            there.send(microseconds_per_event(jobs))
            events += 2 * jobs

    process = context.Process(target=serve)
    with receiver_connected() if crowd is None else broadcast_installed(crowd):
        process.start()
    there.close()

    def ask(jobs: int) -> float:
        here.send(jobs)
        return float(here.recv())

    try:
        yield ask
    finally:
        process.kill()
        process.join()


def wait_until_asleep(crowd: Crowd, events: int) -> None:
    """Wait until the consumers are done with all events, and then until they have fallen asleep.

    Raises:
        TimeoutError: they aren't in time.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    time.sleep(ASLEEP_AFTER_SECONDS)
    while not crowd.is_done(events):
        if time.monotonic() > deadline:
            stats = celery_broadcast.stats()
            message = f"{crowd} should be done with {events} events each: {stats}"
            raise TimeoutError(message)
        time.sleep(ASLEEP_AFTER_SECONDS)
    time.sleep(ASLEEP_AFTER_SECONDS)


def microseconds_per_event(jobs: int) -> float:
    """Send the two signals around each of some jobs."""
    seconds = 0.0
    for _ in range(jobs):
        task_id = str(uuid.uuid4())
        told = {"task_id": task_id, "task": noop, "args": [], "kwargs": {}}
        noop.push_request(
            id=task_id,
            root_id=task_id,
            retries=0,
            args=[],
            kwargs={},
            hostname="celery@localhost",
            delivery_info={"exchange": "", "routing_key": "celery", "redelivered": False},
            called_directly=False,
        )
        start = time.perf_counter()
        signals.task_prerun.send(sender=noop, **told)
        seconds += time.perf_counter() - start
        start = time.perf_counter()
        signals.task_postrun.send(sender=noop, **told, retval=None, state="SUCCESS")
        seconds += time.perf_counter() - start
        noop.pop_request()
    return seconds / jobs / 2 * 1e6
