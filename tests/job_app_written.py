"""A consumer that writes each event it gets to a file, one line in one write."""

from __future__ import annotations

import os

from celery_broadcast import JobEvent, on_job_event

_file = os.open(os.environ["WRITTEN_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@on_job_event
def written(event: JobEvent) -> None:
    """Write the event, so that it outlives a process that is killed."""
    os.write(_file, f"{os.getpid()} {type(event).__name__} {event.task_id}\n".encode())
    if type(event).__name__ == "JobFailed" and event.pid == os.getpid():
        raise ValueError(event.task_id)
