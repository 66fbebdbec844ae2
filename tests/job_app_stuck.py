"""A consumer of `job_app` that never returns."""

from __future__ import annotations

import threading

from celery_broadcast import JobEvent, on_job_event


@on_job_event
def stuck(event: JobEvent) -> None:
    """Wait for ever."""
    threading.Event().wait()
