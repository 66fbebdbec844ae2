"""The same handlers the way it is done without the broadcast: as receivers of Celery's signals.

Only here for comparison: a worker with `--include example_project.receivers`
calls them one after another, on the very thread that runs the job.
"""

from __future__ import annotations

import time
from fnmatch import fnmatch
from typing import Any

from celery import Task
from celery.signals import (
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_process_shutdown,
)

from celery_broadcast import JobEnded, JobFailed, JobFinished, JobRetried, JobStarted
from example_project.consumers import SLOW_SECONDS, Ledger, note_slow_job, page_oncall, trail

ledger = Ledger()
started: dict[str, float] = {}


@worker_process_init.connect
def on_process_start(**_: Any) -> None:
    """Set up what has to be set up in every process."""
    ledger.setup()


@task_prerun.connect
def on_start(task: Task[Any, Any], task_id: str, **_: Any) -> None:
    """Call the one handler that wants to know of a start."""
    started[task_id] = time.monotonic()
    trail(JobStarted(task_id=task_id, task_name=task.name))


@task_postrun.connect
def on_end(task: Task[Any, Any], task_id: str, state: str, retval: Any, **_: Any) -> None:
    """Call every handler that wants to know of this end."""
    event = end_of_job(task, task_id, state, retval)
    trail(event)
    if isinstance(event, JobFailed) and fnmatch(event.task_name, "shop.payments.*"):
        page_oncall(event)
    if event.runtime > SLOW_SECONDS:
        note_slow_job(event)
    if isinstance(event, JobFinished | JobFailed):
        ledger.handle(event)


@worker_process_shutdown.connect
def on_process_end(**_: Any) -> None:
    """Tear down what was set up."""
    ledger.teardown()


def end_of_job(task: Task[Any, Any], task_id: str, state: str, retval: Any) -> JobEnded:
    """Make an event of what a receiver of `task_postrun` gets."""
    facts: dict[str, Any] = {
        "task_id": task_id,
        "task_name": task.name,
        "ended_at": time.time(),
        "runtime": time.monotonic() - started.pop(task_id),
    }
    if state == "SUCCESS":
        return JobFinished(**facts, result=retval)
    facts["exception_class"] = type(retval)
    facts["exception_type"] = type(retval).__name__
    facts["exception_message"] = str(retval)
    return JobRetried(**facts) if state == "RETRY" else JobFailed(**facts)
