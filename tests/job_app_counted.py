"""Jobs of `job_app` that write into a file what is to be counted of them, before it happens.

A line is the name of the task and what happens: "started", or the name of the event
that its end is to be.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery import Task
from job_app import app


def write(file: str, task: str, what: str) -> None:
    """Write a line, whole, whoever else is writing."""
    with Path(file).open("a") as lines:
        lines.write(f"{task} {what}\n")


@app.task(name="job_app.counted_ok")
def counted_ok(file: str, seconds: float) -> None:
    """Take some time."""
    write(file, "job_app.counted_ok", "started")
    time.sleep(seconds)
    write(file, "job_app.counted_ok", "JobFinished")


@app.task(name="job_app.counted_error")
def counted_error(file: str) -> None:
    """Raise."""
    write(file, "job_app.counted_error", "started")
    write(file, "job_app.counted_error", "JobFailed")
    raise ValueError


@app.task(name="job_app.counted_retry", bind=True)
def counted_retry(self: Task[..., None], file: str) -> None:
    """Ask for another attempt, once."""
    write(file, "job_app.counted_retry", "started")
    if self.request.retries:
        write(file, "job_app.counted_retry", "JobFinished")
        return
    write(file, "job_app.counted_retry", "JobRetried")
    raise self.retry(countdown=0)


@app.task(name="job_app.counted_kill")
def counted_kill(file: str) -> None:
    """Kill the process."""
    write(file, "job_app.counted_kill", "started")
    write(file, "job_app.counted_kill", "JobFailed")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="job_app.counted_comeback", bind=True, acks_late=True, reject_on_worker_lost=True)
def counted_comeback(self: Task[..., None], file: str) -> None:
    """Kill the process; the broker sends the job again, and then it lives."""
    write(file, "job_app.counted_comeback", "started")
    if (self.request.delivery_info or {}).get("redelivered"):
        write(file, "job_app.counted_comeback", "JobFinished")
        return
    write(file, "job_app.counted_comeback", "JobLost")
    os.kill(os.getpid(), signal.SIGKILL)
