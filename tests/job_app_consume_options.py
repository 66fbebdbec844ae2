"""An app whose remote consumers are of every kind; each writes to a file what it is called with."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery

import celery_broadcast
from celery_broadcast import Batch, Consumer, JobEvent, JobFinished, Retry, notices, on_job_event

app = Celery("job_app_consume_options")
app.conf.imports = ("celery_broadcast.plugin",)
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))

two_at_once = threading.Barrier(2)
tries: list[str] = []


def write(word: str, what: str) -> None:
    with Path(os.environ["JOB_APP_HANDLED"]).open("a") as file:
        file.write(f"{word} {what}\n")


@on_job_event(JobFinished, remote=True, name="class")
class Plain(Consumer):
    def setup(self) -> None:
        write("class", "setup")

    def handle(self, event: JobEvent) -> None:
        write("class", event.task_id)

    def teardown(self) -> None:
        write("class", "teardown")


@on_job_event(JobFinished, remote=True, name="batch", batch=Batch(max_events=4, max_wait=60.0))
def in_batches(events: Sequence[JobFinished]) -> None:
    write("batch", "+".join(event.task_id for event in events))


@on_job_event(JobFinished, remote=True, name="coroutine")
async def as_coroutine(event: JobFinished) -> None:
    write("coroutine", event.task_id)


@on_job_event(JobFinished, remote=True, name="concurrency", concurrency=2)
def two_by_two(event: JobFinished) -> None:
    two_at_once.wait(30.0)
    write("concurrency", event.task_id)


@on_job_event(JobFinished, remote=True, name="retry", retry=Retry(attempts=3, wait=0.0))
def at_the_third_try(event: JobFinished) -> None:
    tries.append(event.task_id)
    if tries.count(event.task_id) < 3:
        raise ValueError(event.task_id)
    write("retry", event.task_id)


@on_job_event(JobFinished, remote=True, name="rate", rate_limit="1200/m")
def now_and_then(event: JobFinished) -> None:
    write("rate", event.task_id)


@on_job_event(
    JobFinished, remote=True, name="selector", selector=lambda event: event.task_id == "ok-3"
)
def the_third(event: JobFinished) -> None:
    write("selector", event.task_id)


@on_job_event(JobFinished, remote=True, name="restart")
def crash_at_the_second(event: JobFinished) -> None:
    if event.task_id == "ok-2" and tries.count("crash") < 1:
        tries.append("crash")
        raise SystemExit(1)
    write("restart", event.task_id)


@on_job_event(JobFinished, remote=True, name="json", payload="json")
def as_json(event: JobFinished) -> None:
    write("json", json.dumps(event.result))


@on_job_event(JobFinished, remote=True, name="text")
def as_text(event: JobFinished) -> None:
    write("text", json.dumps(event.result))


@notices.consumer_restarted.connect
def say_restart(name: str, **_: Any) -> None:
    write("restarted", name)


@notices.broadcast_drained.connect
def say_numbers(_: Any, **__: Any) -> None:
    for name, stats in celery_broadcast.stats().items():
        write("stats", f"{name} {stats.handled} {stats.failed} {stats.pending} {stats.restarts}")
