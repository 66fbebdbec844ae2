"""An app with a remote consumer, which does what the id of a job says and writes it to a file."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from celery import Celery

from celery_broadcast import Batch, Consumer, JobFinished, Retry, on_job_event

app = Celery("job_app_consume")
app.conf.imports = ("celery_broadcast.plugin",)
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))


@app.task
def ok(x: object) -> object:
    return x


def write(word: str, event: JobFinished) -> None:
    with Path(os.environ["JOB_APP_HANDLED"]).open("a") as file:
        file.write(f"{word} {event.task_id} {os.getpid()} {event.event_id}\n")


@on_job_event(JobFinished, remote=True, name="pager")
def page(event: JobFinished) -> None:
    write("began", event)
    what = event.task_id.partition("-")[0]
    if what == "raise":
        raise ValueError(event.task_id)
    if what == "mend" and not Path(f"{os.environ['JOB_APP_HANDLED']}.mended").exists():
        raise ValueError(event.task_id)
    if what == "die":
        os._exit(9)
    if what == "print":
        print("printed", event.task_id)  # noqa: T201  # the test waits for it
    if what == "sleep":
        time.sleep(1.0)
    if what == "slow":
        time.sleep(4.0)
    if what == "hang":
        time.sleep(60.0)
    write("handled", event)


@on_job_event(JobFinished, name="local")
def ignore(event: JobFinished) -> None:
    pass


@on_job_event(JobFinished, remote=True, name="quitter")
def give_up(event: JobFinished) -> None:
    raise SystemExit(1)


@on_job_event(JobFinished, remote=True, name="batcher", batch=Batch(max_events=10, max_wait=1.0))
class Batcher(Consumer):
    def setup(self) -> None:
        self.is_set_up = True

    def handle(self, events: list[JobFinished]) -> None:
        for event in events if self.is_set_up else ():
            write(f"batched-{len(events)}", event)


_tries: list[str] = []
_are_four = asyncio.Event()


@on_job_event(
    JobFinished, remote=True, name="coroutine", concurrency=4, retry=Retry(attempts=2, wait=0.01)
)
async def wait_for_each_other(event: JobFinished) -> None:
    _tries.append(event.task_id)
    if _tries.count(event.task_id) == 1:
        raise OSError(event.task_id)
    if len(_tries) == 8:
        _are_four.set()
    await _are_four.wait()
    write("together", event)
