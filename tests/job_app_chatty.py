"""A consumer of `job_app` that logs without end in the worker's main process."""

from __future__ import annotations

import logging
import threading

from celery.signals import worker_ready, worker_shutting_down

from celery_broadcast import Event, notify, on_job_event

logger = logging.getLogger(__name__)

over = threading.Event()


class WorkerReady(Event, frozen=True):
    """The main process of the worker is ready, and forks no child before."""


@on_job_event(WorkerReady)
def chatty(event: WorkerReady) -> None:
    """Write one line after the other, until the worker stops."""
    while not over.wait(0.0001):
        logger.info("%s, and more of it %s", event, "." * 200)


@worker_ready.connect
def start_chatting(**_: object) -> None:
    notify(WorkerReady())


@worker_shutting_down.connect
def stop_chatting(**_: object) -> None:
    over.set()
