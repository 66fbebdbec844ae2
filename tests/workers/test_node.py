"""What the main process of a worker knows of its pool processes, living and dead."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from nodes.deadline import wait_until
from reports import EventReport
from running_worker import RunningWorker, running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

IMPORTS = ["celery_broadcast.plugin", "job_app_consumers", "job_app_numbers"]
START_METHODS = ["fork", "spawn"]


class StartWorker(Protocol):
    def __call__(self, *, concurrency: int = 2, **config: Any) -> RunningWorker: ...


@pytest.fixture
def start_worker(broker_config: Callable[[str], dict[str, Any]]) -> Iterator[StartWorker]:
    """Start prefork workers on Redis, which end with the test."""
    with ExitStack() as workers:

        def start(*, concurrency: int = 2, **config: Any) -> RunningWorker:
            config = {**broker_config("redis"), "imports": IMPORTS, **config}
            worker = running_worker(config, concurrency=concurrency)
            return workers.enter_context(worker)

        yield start


def numbers(worker: RunningWorker, consumer: str) -> dict[str, Any]:
    """Return the numbers of a consumer, of the whole node."""
    replies = worker.app.control.broadcast(
        "broadcast_numbers", destination=[worker.process.node_name], reply=True, timeout=10, limit=1
    )
    assert replies is not None
    (reply,) = replies
    found: dict[str, Any] = reply[worker.process.node_name][consumer]
    return found


def accounted(found: dict[str, Any]) -> int:
    dropped: int = sum(found["dropped"].values())
    return int(found["handled"]) + int(found["failed"]) + dropped + int(found["pending"])


@pytest.mark.parametrize("start_method", START_METHODS)
def test_the_numbers_of_all_pool_processes_add_up_in_the_main_process(
    start_worker: StartWorker, start_method: str
) -> None:
    worker = start_worker(worker_pool_start_method=start_method, worker_max_tasks_per_child=3)
    wait_until(worker.is_listening, 30)
    for number in range(10):
        worker.send("ok", number)
    worker.listener.wait_for(20, EventReport, consumer="trail")

    wait_until(lambda: numbers(worker, "trail")["handled"] == 20, 30)

    found = numbers(worker, "trail")
    assert found["offered"] == accounted(found) == 20
    assert numbers(worker, "Ends")["offered"] == 10


@pytest.mark.parametrize("start_method", START_METHODS)
def test_what_a_killed_process_had_waiting_is_counted_said_and_noticed_by_the_main_process(
    start_worker: StartWorker, start_method: str
) -> None:
    worker = start_worker(
        concurrency=1,
        imports=[*IMPORTS, "job_app_stuck", "job_app_notices"],
        worker_pool_start_method=start_method,
    )
    wait_until(worker.is_listening, 30)
    for number in range(3):
        worker.send("ok", number)
    worker.send("sleeps", 60)
    *_, running = worker.listener.wait_for(7, EventReport, consumer="trail")
    wait_until(lambda: numbers(worker, "stuck")["pending"] == 7, 30)

    os.kill(running.pid, signal.SIGKILL)
    worker.listener.wait_for(1, EventReport, consumer="trail", event="JobFailed")

    wait_until(lambda: numbers(worker, "stuck")["dropped"] == {"process-died": 7}, 30)
    found = numbers(worker, "stuck")
    assert found["offered"] == accounted(found) == 8  # its end, in the main process
    pattern = r"pool process \d+ died with 7 events unhandled \(stuck: 7\)"
    wait_until(lambda: re.search(pattern, worker.process.logs()), 30)
    wait_until(lambda: "noticed stuck 7 process-died" in worker.process.logs(), 30)
    wait_until(lambda: "noticed the loss of JobFailed job_app.sleeps" in worker.process.logs(), 30)


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize(
    ("task", "story"),
    [
        ("sleeps", ["JobStarted", "JobFailed"]),
        ("is_sent_back", ["JobStarted", "JobLost", "JobStarted", "JobFinished"]),
    ],
)
def test_the_end_of_an_attempt_whose_process_was_killed_tells_of_its_start(
    start_worker: StartWorker, start_method: str, task: str, story: list[str]
) -> None:
    worker = start_worker(worker_pool_start_method=start_method)
    job = worker.send(task, 60)
    (started,) = worker.listener.wait_for(1, EventReport, consumer="trail")

    os.kill(started.pid, signal.SIGKILL)

    events = worker.listener.wait_for(len(story), EventReport, consumer="trail", task_id=job.id)
    events.sort(key=lambda event: event.ended_at or event.started_at or 0)
    assert [event.event for event in events] == story
    end = events[1]
    assert (end.started_at, end.worker) == (started.started_at, started.worker)
    assert end.runtime is not None
    assert end.runtime > 0
