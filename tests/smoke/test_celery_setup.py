"""Through `celery_setup`: jobs and events, before and after a worker or a broker died."""

from __future__ import annotations

import pytest
from listener import Listener
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup
from reports import EventReport

pytestmark = pytest.mark.worker


def round_trip(setup: CeleryTestSetup, listener: Listener) -> None:
    """Send a job and wait for its result, and for the events of it."""
    job = setup.app.send_task("job_app.ok", [1], queue=setup.worker.worker_queue)

    assert job.get(timeout=RESULT_TIMEOUT) == 1
    started, finished = listener.wait_for(2, EventReport, consumer="trail", task_id=job.id)
    assert (started.event, finished.event) == ("JobStarted", "JobFinished")
    assert finished.worker == setup.worker.hostname()


def test_a_job_gives_a_result_and_events(celery_setup: CeleryTestSetup, listener: Listener) -> None:
    round_trip(celery_setup, listener)


def test_a_killed_worker_has_its_consumers_again_when_it_is_started_again(
    celery_setup: CeleryTestSetup, listener: Listener
) -> None:
    round_trip(celery_setup, listener)

    celery_setup.worker.kill()
    celery_setup.worker.restart()

    round_trip(celery_setup, listener)


def test_a_worker_goes_on_with_its_consumers_when_the_broker_is_back(
    celery_setup: CeleryTestSetup, listener: Listener
) -> None:
    round_trip(celery_setup, listener)

    celery_setup.broker.kill()
    celery_setup.broker.restart()

    round_trip(celery_setup, listener)
