"""Celery's own embedded worker, in a thread of the test, on `memory://`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from recorder import Recorder

import celery_broadcast
from celery_broadcast import JobFinished, JobStarted, on_job_event

pytestmark = [
    pytest.mark.worker,
    # Celery's worker in a thread leaves its connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("embedded", broker="memory://", backend="cache+memory://")
    app.conf.update(broadcast_enabled=True, broadcast_drain_timeout=10.0)
    celery_broadcast.install(app)
    yield app
    celery_broadcast.uninstall(app)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_an_embedded_worker_broadcasts_however_often_it_is_started(app: Celery, pool: str) -> None:
    recorder = Recorder()
    on_job_event(name="recorder")(recorder.handle)

    @app.task(name="double", shared=False)  # else the next app has it too
    def double(number: int) -> int:
        return 2 * number

    for number in range(2):
        with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=30):
            assert double.delay(number).get(timeout=30) == 2 * number
            recorder.wait_for(2 * number + 2)

    celery_broadcast.drain()
    assert [type(event) for event in recorder.events] == [JobStarted, JobFinished] * 2
    assert [event.queue for event in recorder.events] == ["celery"] * 4
