"""Consumers of `job_app` that give each panel of the dashboard something to show."""

from __future__ import annotations

import threading
import time

from celery_broadcast import JobEvent, JobFinished, Restart, on_job_event


@on_job_event
def audit(event: JobEvent) -> None:
    """Take a moment."""
    time.sleep(0.002)


@on_job_event
def slow(event: JobEvent) -> None:
    """Take so long that ten jobs a second are too many."""
    time.sleep(0.08)


@on_job_event(JobFinished)
def raises(event: JobFinished) -> None:
    """Fail."""
    raise ValueError(event.task_id)


@on_job_event(JobFinished, mailbox_size=1, stuck_after=0.1)
def stuck(event: JobFinished) -> None:
    """Wait for ever, and lose what comes then."""
    threading.Event().wait()


@on_job_event(JobFinished, restart=Restart("permanent", max_restarts=1000))
def crashes(event: JobFinished) -> None:
    """End itself."""
    raise SystemExit(1)
