"""What the memory grows by while a million events pass a consumer that is stuck.

Each measurement has a process of its own, which tells the memory that it has in
use, of the whole process, as Linux counts it. What a full mailbox holds is
measured the same way: as many events, and nothing else. A live consumer gets
all events, and the publisher waits for it every now and then, so that they wait
nowhere else than at the stuck one.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import celery_broadcast
from benchmarks.measure import Comparison, measure_all_in_turn
from benchmarks.pool_process import be_stuck
from celery_broadcast.events import JobEvent, JobFinished
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import registry

EVENTS = 1_000_000
FIRST_EVENTS = 100_000
EVENTS_AT_ONCE = 500
MOST_ROUNDS = 2  # each takes a quarter of a minute, and they differ by little
DEADLINE_SECONDS = 10.0

FIRST = "one stuck, after 100,000 events"
LAST = "one stuck, after 1,000,000 events"
MAILBOX = "10,000 events alone"


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    measured = measure_all_in_turn(
        [partial(in_a_process, grow), partial(in_a_process, fill)],
        unit="MB",
        rounds=min(rounds, MOST_ROUNDS),
        turns=1,
    )
    return [
        measured.compare(LAST, FIRST, at_most=1.1),
        measured.compare(LAST, MAILBOX, at_least=0.9, at_most=1.1),
    ]


def in_a_process(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Call it in a new process, and return what it does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(there, measure))
    process.start()
    there.close()
    try:
        told: dict[str, float] = here.recv()
    finally:
        process.join()
    return told


def tell(there: Connection, measure: Callable[[], dict[str, float]]) -> None:
    """Call it, and send what it returns."""
    there.send(measure())
    there.close()
    os._exit(0)  # one consumer would never end


def grow() -> dict[str, float]:
    """Have a stuck consumer beside a live one, and return what the events add to the memory."""
    handled = threading.Semaphore(0)
    producer = Producer(Settings(), registry)

    def publish(count: int) -> None:
        for _ in range(count // EVENTS_AT_ONCE):
            for _ in range(EVENTS_AT_ONCE):
                producer.notify(new_event())
            for _ in range(EVENTS_AT_ONCE):
                if not handled.acquire(timeout=DEADLINE_SECONDS):
                    message = "The live consumer did not get an event in time."
                    raise RuntimeError(message)

    celery_broadcast.on_job_event(name="live")(lambda _: handled.release())
    publish(FIRST_EVENTS)  # what the broadcast takes, whatever the consumers do
    before = megabytes()
    celery_broadcast.subscribe(be_stuck, name="stuck")
    publish(FIRST_EVENTS)
    first = megabytes()
    publish(EVENTS - FIRST_EVENTS)
    last = megabytes()
    check_stuck(producer)
    return {FIRST: first - before, LAST: last - before}


def check_stuck(producer: Producer) -> None:
    """Check that all has gone as it should.

    Raises:
        RuntimeError: it hasn't.
    """
    stats = producer.stats()
    stuck, live = stats["stuck"], stats["live"]
    lost = {"mailbox-full": EVENTS - 1 - (Settings().mailbox_size or 0)}
    if (stuck.offered, stuck.handled, stuck.dropped) != (EVENTS, 0, lost):
        message = f"The stuck consumer should have lost {lost}, but: {stuck}."
        raise RuntimeError(message)
    if live.handled != live.offered:
        message = f"The live consumer should have handled all, but: {live}."
        raise RuntimeError(message)


def fill() -> dict[str, float]:
    """Return what as many events take as the default mailbox holds, in a queue like its own."""
    for _ in range(EVENTS_AT_ONCE):
        new_event()
    before = megabytes()
    events = deque(new_event() for _ in range(Settings().mailbox_size or 0))
    after = megabytes()
    del events
    return {MAILBOX: after - before}


def new_event() -> JobEvent:
    """Make an event as the bridge makes them, with strings and arguments of its own."""
    task_id = str(uuid.uuid4())
    now = time.time()
    return JobFinished(
        task_id=task_id,
        task_name="benchmark.noop",
        args=(),
        kwargs={"number": now},
        queue="celery",
        exchange="",
        routing_key="celery",
        root_id=task_id,
        worker="celery@localhost",
        pid=os.getpid(),
        started_at=now,
        ended_at=now + 1.0,
        runtime=1.0,
    )


def megabytes() -> float:
    """Return the memory of this process that is in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
