"""The app of the workers and the replicas: its jobs, and three remote consumers."""

from __future__ import annotations

import json
import os
from signal import SIGKILL
from typing import Any

from celery import Celery
from chaos.journal import JOURNAL, Pen

import celery_broadcast
from celery_broadcast import JobEnded, JobEvent, notices, on_job_event
from chaos_relay.journal import Drained, Handled, Published

app = Celery("chaos_relay")
app.conf.imports = ("celery_broadcast.plugin",)
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))

pen = Pen(os.environ[JOURNAL])

#: How the ids of jobs begin on whose end a consumer raises, and on whose end one dies.
POISON, MURDER = "poison-", "murder-"


@app.task
def noop() -> None:
    pass


@app.task
def fails(message: str) -> None:
    raise ValueError(message)


def facts_of(event: JobEvent) -> dict[str, Any]:
    return {
        "event": type(event).__name__,
        "task_id": event.task_id,
        "pid": event.pid,
        "started_at": event.started_at,
    }


def write_handled(group: str, event: JobEvent) -> None:
    pen.write(Handled(group=group, event_id=event.event_id, **facts_of(event)))


@on_job_event(JobEvent)
def witness(event: JobEvent) -> None:
    """Write down, in the worker, what the relay is given too."""
    pen.write(Published(**facts_of(event)))


@on_job_event(JobEnded, remote=True)
def pager(event: JobEnded) -> None:
    if event.task_id.startswith(POISON):
        raise ValueError(event.task_id)
    write_handled("pager", event)


@on_job_event(JobEnded, remote=True)
def audit(event: JobEnded) -> None:
    if event.task_id.startswith(MURDER):
        os.kill(os.getpid(), SIGKILL)
    write_handled("audit", event)


@on_job_event(JobEvent, remote=True)
def ledger(event: JobEvent) -> None:
    write_handled("ledger", event)


@notices.broadcast_drained.connect
def note_drain(_: Any, **__: Any) -> None:
    numbers = celery_broadcast.stats()
    if any(stats.offered for stats in numbers.values()):
        pen.write(Drained(numbers=numbers))
