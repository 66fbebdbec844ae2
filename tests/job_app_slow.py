"""A consumer of `job_app` that takes its time."""

from __future__ import annotations

import time

from job_app_consumers import report_event

from celery_broadcast import JobEnded, on_job_event

SECONDS = 0.05


@on_job_event(JobEnded)
def slow(event: JobEnded) -> None:
    """Report every end, a while after it came."""
    time.sleep(SECONDS)
    report_event("slow", event)
