"""Consumers of `job_app` for the command line to show: one is well, one gives up."""

from __future__ import annotations

from celery_broadcast import JobEvent, JobFailed, Restart, on_job_event


@on_job_event
def watch(event: JobEvent) -> None:
    """Do nothing."""


@on_job_event(JobFailed, restart=Restart("temporary"))
def quits(event: JobFailed) -> None:
    """Give up."""
    raise SystemExit(1)
