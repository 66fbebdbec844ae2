"""The app of the worker that is put to the test: its jobs, and what it tells when it is asked."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import sys
import time
from signal import SIGKILL, SIGSEGV, SIGUSR2
from typing import Any

import msgspec
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker.control import inspect_command

import celery_broadcast
from chaos.journal import JOURNAL, Pen
from chaos.observation import observe

app = Celery("chaos")
app.conf.imports = ("celery_broadcast.plugin", "chaos.consumers")
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))

# Tells the run where each thread is when the worker doesn't stop.
faulthandler.register(SIGUSR2)

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # hundreds of segfaults would fill the disk
observe(Pen(os.environ[JOURNAL]))


@inspect_command()
def broadcast_numbers(state: object) -> dict[str, Any]:
    """Return the numbers of every consumer of this worker."""
    return {name: msgspec.to_builtins(of) for name, of in celery_broadcast.stats().items()}


@app.task
def noop() -> None:
    pass


@app.task
def sleeps(seconds: float) -> None:
    time.sleep(seconds)


@app.task
def fails(message: str) -> None:
    raise ValueError(message)


@app.task(bind=True)
def retries(self: Task[..., None], times: int) -> None:
    if self.request.retries < times:
        raise self.retry(countdown=0, max_retries=times)


@app.task
def ignored() -> None:
    raise Ignore


@app.task(bind=True, acks_late=True)
def rejected(self: Task[..., None], *, requeue: bool) -> None:
    raise Reject("unwanted", requeue=requeue and not is_redelivered(self))


@app.task
def exits(code: int) -> None:
    sys.exit(code)


@app.task(acks_late=True, reject_on_worker_lost=True)
def sleeps_late(seconds: float) -> None:
    """Be delivered again when the process dies meanwhile."""
    time.sleep(seconds)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def dies_late(self: Task[..., None]) -> None:
    """Be delivered again, since the process dies for sure; once."""
    if not is_redelivered(self):
        os.kill(os.getpid(), SIGKILL)


@app.task
def follows_null() -> None:
    ctypes.string_at(0)


@app.task
def segfaults() -> None:
    os.kill(os.getpid(), SIGSEGV)


@app.task
def passes_hard_limit(seconds: float) -> None:
    time.sleep(seconds)


@app.task
def passes_soft_limit(seconds: float) -> None:
    time.sleep(seconds)


@app.task
def catches_soft_limit(seconds: float) -> None:
    with contextlib.suppress(SoftTimeLimitExceeded):
        time.sleep(seconds)


@app.task
def expires() -> None:
    raise AssertionError("It has expired.")


@app.task
def nests(seconds: float) -> None:
    """Run other jobs inside of this one."""
    sleeps.apply((seconds,))
    fails.apply(("inside",))


@app.task
def awaits_revoke(seconds: float) -> None:
    """Run until it is revoked; not for ever, since the revoke may come to nothing."""
    time.sleep(seconds)


def is_redelivered(task: Task[..., None]) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))
