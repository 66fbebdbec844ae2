"""Remote consumers of `job_app`; what they want is sent by its workers."""

from __future__ import annotations

from job_app_consumers import report_event

from celery_broadcast import JobFailed, JobFinished, on_job_event


@on_job_event(JobFinished, task="*.ok", remote=True)
def audit(event: JobFinished) -> None:
    report_event("audit", event)


@on_job_event(JobFinished, JobFailed, task="*.fails", remote=True, payload="json")
def pager(event: JobFinished | JobFailed) -> None:
    report_event("pager", event)
