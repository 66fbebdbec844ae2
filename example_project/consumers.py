"""What else is to happen when something happened to a job: four consumers.

Each runs on a thread of its own, in every process that runs jobs, and does
what takes real consumers long: it calls a service.
"""

from __future__ import annotations

import threading
import time

from celery_broadcast import (
    Consumer,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    on_job_event,
)
from example_project.celeryconfig import folder

SLOW_SECONDS = 0.4


@on_job_event
def trail(event: JobEvent) -> None:
    """Keep track of every job, for the support team."""
    call_service(milliseconds=20)
    report("trail", event)


@on_job_event(JobFailed, task="shop.payments.*")
def page_oncall(event: JobFailed) -> None:
    """Wake somebody up when there is trouble with money."""
    call_service(milliseconds=50)
    report("page_oncall", event)


@on_job_event(JobEnded, selector=lambda event: event.runtime > SLOW_SECONDS, name="slow-jobs")
def note_slow_job(event: JobEnded) -> None:
    """Tell the developers which jobs are slow."""
    call_service(milliseconds=30)
    report("slow-jobs", event, f"{event.runtime:.1f} s")


@on_job_event(JobFinished, JobFailed)
class Ledger(Consumer):
    """Write every job that is over into a file, which stays open between the events."""

    def setup(self) -> None:
        """Open the file; on the consumer's own thread, before its first event."""
        self.file = (folder / "ledger.csv").open("a", buffering=1)

    def handle(self, event: JobFinished | JobFailed) -> None:
        """Write a line."""
        call_service(milliseconds=30)
        self.file.write(f"{event.task_id},{event.task_name},{event.state}\n")
        report("Ledger", event)

    def teardown(self) -> None:
        """Close the file; when the worker stops, or the consumer is restarted."""
        self.file.close()


def call_service(milliseconds: int) -> None:
    """Take as long as an HTTP request would."""
    time.sleep(milliseconds / 1000)


def report(consumer: str, event: JobEvent, detail: str = "") -> None:
    """Print a line for whoever watches: consumer, thread, event type, task."""
    thread = threading.current_thread().name
    line = f"{consumer:11} {thread:21} {type(event).__name__:11} {event.task_name:20} {detail}"
    # In one piece, line end included: other threads and processes print as well.
    print(f"{line.rstrip()}\n", end="", flush=True)
