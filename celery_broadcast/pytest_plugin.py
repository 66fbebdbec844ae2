"""Fixtures for pytest, which finds them by itself; nothing is loaded until a test uses one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from celery_broadcast.testing import Broadcast, JobEvents


@pytest.fixture
def job_events() -> Iterator[JobEvents]:
    """What the code under test published: `.of(JobFailed)`, `.only(...)`, `.wait_for(...)`.

    No consumer runs, and no thread.
    """
    from celery_broadcast import testing  # noqa: PLC0415  # absent until it is used

    with testing.job_events() as events:
        yield events


@pytest.fixture
def broadcast() -> Iterator[Broadcast]:
    """The real broadcast with its consumers, on for this test: `.drain()` and `.stats()`.

    Consumers that the test declares are gone after it.
    """
    from celery_broadcast import testing  # noqa: PLC0415  # absent until it is used

    with testing.broadcast() as whole:
        yield whole
