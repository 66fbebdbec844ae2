"""What an event costs the thread that runs the job, through Celery's own signals.

In a row: one job after the other, as in a worker that is busy. Paused: each job
finds all consumers asleep and the processor's caches cold, as other processes
ran meanwhile. The events then cost several times as much, like all else.
"""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from celery import Celery, signals

import celery_broadcast
from benchmarks.measure import Comparison, measure_in_turn
from celery_broadcast.subscription import registry

TURNS = 50
PACES = {"in a row": 50, "paused": 1}  # jobs from one pause to the next
ASLEEP_AFTER_SECONDS = 0.001
DEADLINE_SECONDS = 10.0

app = Celery("benchmark", set_as_current=False)
app.config_from_object({"broadcast_enabled": True}, force=True)


@app.task(name="benchmark.noop", shared=False, lazy=False)  # not a proxy of the task
def noop() -> None:
    """Do nothing."""


def ignore(*_: object, **__: object) -> None:
    """Take an event, or what a signal's receiver gets."""


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with ExitStack() as stack:
        with receiver_connected():
            receiver = stack.enter_context(pool_process(consumers=0))
        with broadcast_installed(consumers=1):
            one = stack.enter_context(pool_process(consumers=1))
        with broadcast_installed(consumers=64):
            many = stack.enter_context(pool_process(consumers=64))
        measured = measure_in_turn(
            {
                f"{name}, {pace}": partial(microseconds_per_event, jobs)
                for pace, jobs in PACES.items()
                for name, microseconds_per_event in (
                    ("an empty receiver", receiver),
                    ("1 idle consumer", one),
                    ("64 idle consumers", many),
                )
            },
            unit="µs",
            rounds=rounds,
            turns=TURNS,
        )
    return [
        measured.compare("1 idle consumer, in a row", "an empty receiver, in a row", at_most=4.0),
        measured.compare("64 idle consumers, in a row", "1 idle consumer, in a row", at_most=1.3),
        measured.compare("1 idle consumer, paused", "an empty receiver, paused"),
        measured.compare("64 idle consumers, paused", "1 idle consumer, paused", at_most=1.3),
    ]


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
def broadcast_installed(consumers: int) -> Iterator[None]:
    """Have the broadcast on, as in the main process of a worker."""
    for number in range(consumers):
        celery_broadcast.on_job_event(name=f"idle-{number}")(ignore)
    celery_broadcast.install(app)
    signals.worker_init.send(sender=None)
    yield
    celery_broadcast.uninstall(app)
    registry.clear()


@contextmanager
def pool_process(consumers: int) -> Iterator[Callable[[int], float]]:
    """Fork a process as those of a pool are, and give what measures a number of jobs there."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def serve() -> None:
        here.close()
        events = 0
        while True:
            jobs = there.recv()
            wait_until_asleep(consumers, events)
            there.send(microseconds_per_event(jobs))
            events += 2 * jobs

    process = context.Process(target=serve)
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


def wait_until_asleep(consumers: int, events: int) -> None:
    """Wait until the consumers have handled all events, and then until they have fallen asleep.

    Raises:
        TimeoutError: they haven't handled them in time.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    handled: list[int] = []
    while handled != [events] * consumers:
        if time.monotonic() > deadline:
            message = f"{consumers} consumers should have handled {events} events each: {handled}"
            raise TimeoutError(message)
        time.sleep(ASLEEP_AFTER_SECONDS)
        handled = [stats.handled for stats in celery_broadcast.stats().values()]
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
