"""The app of the workers that tests start; its settings come as JSON from the environment."""

from __future__ import annotations

import json
import os
import sys
import time

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

app = Celery("job_app")
app.conf.imports = ("celery_broadcast.plugin", "job_app_consumers")
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))


@app.task
def noop() -> None:
    pass


@app.task
def ok(x: object) -> object:
    return x


@app.task
def pid() -> int:
    return os.getpid()


@app.task
def sleeps(seconds: float) -> None:
    time.sleep(seconds)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def is_sent_back(self: Task[..., None], seconds: float) -> None:
    """Sleep the first time; when it comes back, it has done enough."""
    if not (self.request.delivery_info or {}).get("redelivered"):
        time.sleep(seconds)


@app.task
def dies() -> None:
    os._exit(9)


@app.task
def fails(message: str) -> None:
    raise ValueError(message)


@app.task(bind=True)
def retries_once(self: Task[..., str]) -> str:
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("try again"), countdown=0)
    return "done"


@app.task
def ignored() -> None:
    raise Ignore


@app.task(bind=True, acks_late=True)
def rejected(self: Task[..., None], *, requeue: bool = False) -> None:
    """Reject the message; one that comes back is not sent round again."""
    comes_back = (self.request.delivery_info or {}).get("redelivered")
    raise Reject("unwanted", requeue=requeue and not comes_back)


@app.task
def exits(code: int) -> None:
    sys.exit(code)
