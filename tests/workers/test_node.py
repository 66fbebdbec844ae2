"""What the main process of a worker knows of its pool processes, living and dead."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
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
    wait_until(worker.is_listening)
    for number in range(10):
        worker.send("ok", number)
    worker.listener.wait_for(20, EventReport, consumer="trail")

    wait_until(lambda: numbers(worker, "trail")["handled"] == 20)

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
    wait_until(worker.is_listening)
    for number in range(3):
        worker.send("ok", number)
    worker.send("sleeps", 60)
    *_, running = worker.listener.wait_for(7, EventReport, consumer="trail")
    wait_until(lambda: numbers(worker, "stuck")["pending"] == 7)

    os.kill(running.pid, signal.SIGKILL)
    worker.listener.wait_for(1, EventReport, consumer="trail", event="JobFailed")

    wait_until(lambda: numbers(worker, "stuck")["dropped"] == {"process-died": 7})
    found = numbers(worker, "stuck")
    assert found["offered"] == accounted(found) == 8  # its end, in the main process
    pattern = r"pool process \d+ died with 7 events unhandled \(stuck: 7\)"
    wait_until(lambda: re.search(pattern, worker.process.logs()))
    wait_until(lambda: "noticed stuck 7 process-died" in worker.process.logs())
    wait_until(lambda: "noticed the loss of JobFailed job_app.sleeps" in worker.process.logs())


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


def test_the_numbers_are_those_that_consumers_wrote_while_children_were_killed_and_recycled(
    start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "written"
    monkeypatch.setenv("WRITTEN_FILE", str(file))
    worker = start_worker(
        concurrency=4, imports=[*IMPORTS, "job_app_written"], worker_max_tasks_per_child=10
    )
    wait_until(worker.is_listening)
    before = numbers(worker, "written")
    for told in (0, 112, 224):
        for number in range(50):
            worker.send("ok", number)
        for _ in range(5):
            worker.send("fails", "no money")
        job = worker.send("sleeps", 60)
        started = worker.listener.wait_for(1, EventReport, consumer="trail", task_id=job.id)
        # Killed while nothing is in a consumer's hands: what was written is counted then.
        wait_until(lambda told=told: is_settled(worker, told + 111), 60)  # type: ignore[misc]
        os.kill(started[0].pid, signal.SIGKILL)
        found = numbers(worker, "written")
        assert_not_gone_back(before, found)
        before = found

    wait_until(lambda: is_settled(worker, 336), 60)
    found = numbers(worker, "written")
    lines = file.read_text().splitlines()
    assert found["handled"] + found["failed"] == len(lines) == 336
    assert found["failed"] == 15
    assert found["dropped"] == {}
    assert sum(found["durations"]["buckets"]) == len(lines)
    assert found["last_error"].startswith("ValueError: ")
    assert set(found["processes"]) == {"running"}
    assert_not_gone_back(before, found)
    assert len({line.split()[0] for line in lines}) > 4 + 3


def is_settled(worker: RunningWorker, offered: int) -> bool:
    """Tell whether so many events were offered, and none is pending."""
    found = numbers(worker, "written")
    return (found["offered"], found["pending"]) == (offered, 0)


def assert_not_gone_back(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in ("offered", "handled", "failed", "restarts"):
        assert after[name] >= before[name]
    assert after["durations"]["seconds"] >= before["durations"]["seconds"]
