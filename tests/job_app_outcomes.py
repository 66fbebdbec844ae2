"""Tasks of `job_app` that end in every way there is."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

import reports
from celery import Task, chord, signature
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from job_app import app
from nodes.deadline import wait_until


def wait_until_released(task: Task[..., Any]) -> None:
    """Tell the test that the job runs, and wait until it has done to it what it does."""
    task_id = str(task.request.id)
    reports.send(reports.CallReport(consumer=task_id, call="waits"))
    release = Path(os.environ[reports.LISTENER]).with_name(task_id)
    wait_until(release.exists, 60)


def is_redelivered(task: Task[..., Any]) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))


def die(how: str) -> None:
    """Leave without a word, in the middle of the job."""
    if how == "os._exit":
        os._exit(1)
    ctypes.string_at(0)  # a segmentation fault


# They return, or raise.


@app.task
def returns(number: int) -> int:
    return number


@app.task
def raises(number: int) -> None:
    raise ValueError(number)


class PreparesBadly(Task):  # type: ignore[type-arg]  # not generic at run time
    def before_start(self, *_: object) -> None:
        raise RuntimeError("not even started")


class SucceedsBadly(Task):  # type: ignore[type-arg]  # as above
    def on_success(self, *_: object) -> None:
        raise RuntimeError("after all")


class ReturnsBadly(Task):  # type: ignore[type-arg]  # as above
    def after_return(self, *_: object) -> None:
        raise RuntimeError("after all")


class FailsBadly(Task):  # type: ignore[type-arg]  # as above
    def on_failure(self, *_: object) -> None:
        raise RuntimeError("even this")


class RetriesBadly(Task):  # type: ignore[type-arg]  # as above
    def on_retry(self, *_: object) -> None:
        raise RuntimeError("even this")


@app.task(base=PreparesBadly)
def prepares_badly() -> None:
    pass


@app.task(base=SucceedsBadly)
def succeeds_badly() -> None:
    pass


@app.task(base=ReturnsBadly)
def returns_badly() -> None:
    pass


@app.task(base=FailsBadly)
def fails_badly() -> None:
    raise ValueError("no")


@app.task(base=RetriesBadly, bind=True)
def retries_badly(self: Task[..., None]) -> None:
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("try again"), countdown=0)


@app.task
def gives_what_nobody_can_encode() -> object:
    return object()


@app.task
def raises_what_nobody_can_pickle() -> None:
    error = ValueError("no")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


@app.task
def runs_out_of_memory() -> None:
    raise MemoryError


@app.task
def exits(code: int) -> None:
    sys.exit(code)


@app.task
def interrupts() -> None:
    raise KeyboardInterrupt


# They are tried again, or not wanted.


@app.task(bind=True, max_retries=1)
def retries(self: Task[..., None], times: int, *, with_reason: bool = True) -> None:
    if self.request.retries < times:
        raise self.retry(exc=ConnectionError("no") if with_reason else None, countdown=0)


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=1, default_retry_delay=0)
def is_retried(self: Task[..., None], times: int) -> None:
    if self.request.retries < times:
        raise ConnectionError("no")


@app.task(bind=True)
def replaces_itself(self: Task[..., None]) -> None:
    raise self.replace(returns.s(1))


@app.task
def ignored() -> None:
    raise Ignore


@app.task
def rejected(*, requeue: bool) -> None:
    raise Reject("unwanted", requeue=requeue)


@app.task(bind=True, acks_late=True)
def rejected_late(self: Task[..., None], *, requeue: bool) -> None:
    """Reject the message; what comes back is done."""
    if not is_redelivered(self):
        raise Reject("unwanted", requeue=requeue)


# They run until something is done to them.


@app.task(bind=True)
def waits(self: Task[..., None]) -> None:
    wait_until_released(self)


@app.task(bind=True)
def goes_on(self: Task[..., None]) -> None:
    """Survive a SIGTERM and a soft time limit."""
    _go_on(self)


def _go_on(task: Task[..., None]) -> None:
    try:
        wait_until_released(task)
    except (SystemExit, SoftTimeLimitExceeded):
        wait_until_released(task)


@app.task(bind=True)
def dies(self: Task[..., None], how: str) -> None:
    wait_until_released(self)
    die(how)


@app.task(bind=True)
def goes_on_and_dies(self: Task[..., None], how: str) -> None:
    _go_on(self)
    die(how)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def dies_at_first(self: Task[..., None], how: str) -> None:
    """Die; what comes back is done."""
    if not is_redelivered(self):
        wait_until_released(self)
        die(how)


@app.task(bind=True, retry_on_worker_lost=True, default_retry_delay=0)
def dies_and_is_retried(self: Task[..., None], how: str) -> None:
    """Die; the second attempt is done. Celery knows the option from 5.7 on."""
    if self.request.retries == 0:
        wait_until_released(self)
        die(how)


@app.task
def outlasts(seconds: float) -> None:
    """Take longer than the limit."""
    threading.Event().wait(seconds)


@app.task
def outlasts_softly(seconds: float) -> None:
    """Stop in order when the soft limit strikes."""
    with contextlib.suppress(SoftTimeLimitExceeded):
        threading.Event().wait(seconds)


@app.task(bind=True, acks_late=True, acks_on_failure_or_timeout=False)
def outlasts_at_first(self: Task[..., None], seconds: float) -> None:
    """Take longer than the limit; what comes back is done at once."""
    if not is_redelivered(self):
        threading.Event().wait(seconds)


# They have others inside, which are named after them.


@app.task(bind=True)
def applies(self: Task[..., None]) -> None:
    returns.apply((1,), task_id=f"{self.request.id}.inner")


@app.task
def calls() -> None:
    returns(1)


# They send others.


@app.task
def sends_chord(headers: list[dict[str, Any]], body: dict[str, Any]) -> None:
    # Celery subscribes to the results. Is one of an earlier chord collected just then, its
    # `__del__` unsubscribes, and waits for ever for the lock of redis-py that this thread has.
    gc.disable()
    try:
        chord([signature(header, app=app) for header in headers], signature(body, app=app)).delay()
    finally:
        gc.enable()
