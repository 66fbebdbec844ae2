"""Consumers of `job_app` that are coroutines; they report as those of `job_app_options`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from job_app_options import (
    STUCK_AFTER_SECONDS,
    TRIES,
    first_argument,
    is_to_hang,
    key_of,
    reported,
    text_of,
)
from reports import CallReport, send

import celery_broadcast
from celery_broadcast import (
    Batch,
    Consumer,
    JobFailed,
    JobFinished,
    Retry,
    notices,
    on_job_event,
)

_MOST_SECONDS = 10.0


class Meeting:
    """Where the calls of a consumer wait until, for once, two of them are here together."""

    def __init__(self) -> None:
        self._here = 0
        self._have_met = asyncio.Event()

    async def attend(self) -> None:
        self._here += 1
        if self._here > 1:
            self._have_met.set()
        await asyncio.wait_for(self._have_met.wait(), _MOST_SECONDS)
        self._here -= 1


@on_job_event(JobFinished, task="job_app.ok", concurrency=3)
class AsyncSeveral(Consumer):
    """Have several in flight, between a setup and a teardown on the same event loop."""

    async def setup(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._meeting = Meeting()
        send(CallReport(consumer="AsyncSeveral", call="setup"))

    async def handle(self, event: JobFinished) -> None:
        with reported("AsyncSeveral", event):
            await self._meeting.attend()

    async def teardown(self) -> None:
        is_same = asyncio.get_running_loop() is self._loop
        call = "teardown" if is_same else "teardown elsewhere"
        send(CallReport(consumer="AsyncSeveral", call=call))


@on_job_event(JobFinished, task="job_app.ok", concurrency=3, partition_by=key_of)
async def async_keyed(event: JobFinished) -> None:
    with reported("async_keyed", event):
        if first_argument(event).endswith(("2", "4", "6")):  # the next one is faster
            await asyncio.sleep(0.02)


@on_job_event(JobFinished, batch=Batch(max_events=5, max_wait=3600))
async def async_batches(events: list[JobFinished]) -> None:
    with reported("async_batches", *events):
        await asyncio.sleep(0)


_tries: dict[str, int] = {}


@on_job_event(JobFailed, retry=Retry(attempts=TRIES, wait=0.01, on=ConnectionError))
async def async_retried(event: JobFailed) -> None:
    _tries[event.task_id] = _tries.get(event.task_id, 0) + 1
    send(CallReport(consumer="async_retried", call=text_of(event)))
    with reported("async_retried", event):
        await asyncio.sleep(0)
        if _tries[event.task_id] < TRIES:
            raise ConnectionError
        del _tries[event.task_id]


@on_job_event(JobFinished, selector=is_to_hang, stuck_after=STUCK_AFTER_SECONDS)
async def async_stuck(event: JobFinished) -> None:
    with reported("async_stuck", event):
        await wait_until_noticed()


async def wait_until_noticed() -> None:
    loop, is_noticed = asyncio.get_running_loop(), asyncio.Event()

    def say_so(_: str, **__: Any) -> None:
        loop.call_soon_threadsafe(is_noticed.set)

    with notices.consumer_stuck.connected_to(say_so, sender="async_stuck"):
        await asyncio.wait_for(is_noticed.wait(), _MOST_SECONDS)


async def read(is_open: threading.Event) -> None:
    """Report what can be read, from now on to the drain."""
    async with celery_broadcast.stream(JobFinished, name="async_read") as events:
        is_open.set()
        async for event in events:
            with reported("async_read", event):
                await asyncio.sleep(0)


@on_job_event(JobFinished)
class AsyncReads(Consumer):
    """Read in each process that has an event, from then on, on a loop of the reader's own."""

    def setup(self) -> None:
        is_open = threading.Event()
        threading.Thread(target=lambda: asyncio.run(read(is_open)), daemon=True).start()
        is_open.wait(_MOST_SECONDS)

    def handle(self, event: JobFinished) -> None:
        pass
