"""A pytest plugin: broadcasts the jobs of every app that the tests make.

To a consumer that wants every event. It writes what became of them, and what
our own log said, to the file that BROADCAST names.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from celery import _state

import celery_broadcast
from celery_broadcast import JobEvent, on_job_event

_events: Counter[str] = Counter()
_tests: set[str] = set()
_complaints: list[str] = []
_running = ""


@on_job_event
def count(event: JobEvent) -> None:
    _events[type(event).__name__] += 1
    _tests.add(_running)


class Complaints(logging.Handler):
    """Keeps what our own log says, and in which test."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        _complaints.append(f"{_running}: {self.format(record)}")


# An app is finalized before its first task can be had: this is how Celery's own tasks get there.
_state.connect_on_app_finalize(celery_broadcast.install)
logging.getLogger("celery_broadcast").addHandler(Complaints(logging.WARNING))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _running  # noqa: PLW0603  # pytest runs one test at a time
    _running = item.nodeid


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Drain after each test: Celery's own look whether a thread is left."""
    celery_broadcast.drain(10)
    for thread in threading.enumerate():
        if thread.name.startswith("broadcast"):
            thread.join(10)
    yield


def pytest_sessionfinish() -> None:
    result = {
        "events": _events,
        "tests": len(_tests),
        "stats": msgspec.to_builtins(celery_broadcast.stats()),
        "complaints": _complaints,
    }
    Path(os.environ["BROADCAST"]).write_text(json.dumps(result), encoding="utf-8")
