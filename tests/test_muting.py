"""Jobs that Celery really runs, in a block that mutes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import WorkerLostError
from recorder import Recorder
from test_slots import as_in_a_child, facts

import celery_broadcast
from celery_broadcast import installation, muted
from celery_broadcast.attempts import Attempt, Attempts
from celery_broadcast.muting import is_muted
from celery_broadcast.slots import Slots


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    return recorder


def told(recorder: Recorder) -> list[str]:
    celery_broadcast.drain()
    return [f"{type(event).__name__} {event.task_name}" for event in recorder.events]


def works() -> None: ...


def task(app: Celery, name: str, function: Callable[..., Any] = works, **options: Any) -> Any:
    declare: Any = app.task(name=name, **options)
    return declare(function)


def test_outside_of_a_block_nothing_is_muted() -> None:
    assert not is_muted()

    with muted():
        assert is_muted()

    assert not is_muted()


def test_a_job_that_starts_in_a_muted_block_is_not_broadcast(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    job = task(broadcasting_app, "job")

    with muted():
        assert job.delay().successful()
    assert told(recorder) == []

    job.delay()
    assert told(recorder) == ["JobStarted job", "JobFinished job"]


def test_a_muted_job_may_fail(broadcasting_app: Celery, recorder: Recorder) -> None:
    def divides() -> float:
        return 1 / 0

    with muted():
        assert task(broadcasting_app, "job", divides).delay().failed()

    assert told(recorder) == []


def test_every_attempt_of_a_muted_job_is_muted(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    def tries(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    with muted():
        assert task(broadcasting_app, "job", tries, bind=True).delay().get() == 2

    assert told(recorder) == []


def test_an_error_ends_the_block(broadcasting_app: Celery, recorder: Recorder) -> None:
    with pytest.raises(ZeroDivisionError), muted():
        raise ZeroDivisionError

    task(broadcasting_app, "job").delay()
    assert len(told(recorder)) == 2


def test_blocks_can_be_nested(broadcasting_app: Celery, recorder: Recorder) -> None:
    job = task(broadcasting_app, "job")

    with muted():
        with muted():
            job.delay()
        job.delay()

    assert told(recorder) == []


def test_a_job_that_started_before_the_block_is_told_to_its_end(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    inner = task(broadcasting_app, "inner")
    block = muted()

    def mutes() -> None:
        inner.delay()
        block.__enter__()
        inner.delay()

    task(broadcasting_app, "outer", mutes).delay()
    block.__exit__(None, None, None)

    assert told(recorder) == [
        "JobStarted outer",
        "JobStarted inner",
        "JobFinished inner",
        "JobFinished outer",
    ]


def test_a_job_that_started_in_the_block_is_muted_to_its_end(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    inner = task(broadcasting_app, "inner")
    block = muted()

    def unmutes() -> None:
        block.__exit__(None, None, None)
        inner.delay()

    block.__enter__()
    task(broadcasting_app, "outer", unmutes).delay()

    assert told(recorder) == ["JobStarted inner", "JobFinished inner"]


def test_another_thread_is_not_muted(broadcasting_app: Celery, recorder: Recorder) -> None:
    job = task(broadcasting_app, "job")

    with muted():
        thread = threading.Thread(target=job.delay)
        thread.start()
        thread.join()

    assert len(told(recorder)) == 2


def test_a_muted_attempt_is_not_noted_for_the_main_process() -> None:
    slots = as_in_a_child(Slots(count=1))
    attempts = Attempts()
    attempts.share(slots)
    request, attempt = object(), Attempt(facts=facts("1"), started_monotonic=5.0, muted=True)

    attempts.start(request, attempt)
    assert slots.mine is not None
    assert list(slots.mine.open_notes()) == []
    assert attempts.find(request) is attempt

    attempts.close(attempt)
    attempts.end(request)
    assert attempts.find(request) is None


def test_a_muted_job_of_a_pool_process_ends_without_a_word(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    slots = as_in_a_child(Slots(count=1))
    assert installation._bridge is not None
    installation._bridge._share(slots)
    job = task(broadcasting_app, "job")

    with muted():
        job.delay()
    assert told(recorder) == []
    assert slots.mine is not None
    assert list(slots.mine.open_notes()) == []

    job.delay()
    assert len(told(recorder)) == 2


def test_news_that_come_in_a_muted_block_are_not_told(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    """As of a process that dies, in a worker that was started in one."""
    job = task(broadcasting_app, "job")
    told_by_celery = {"sender": job, "task_id": "1", "args": (), "kwargs": {}}

    with muted():
        signals.task_failure.send(exception=WorkerLostError("gone"), **told_by_celery)
        signals.task_revoked.send(
            sender=job,
            request=SimpleNamespace(id="2", args=(), kwargs={}, retries=0),
            terminated=False,
        )

    assert told(recorder) == []
