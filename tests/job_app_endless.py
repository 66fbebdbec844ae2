"""A consumer of `job_app` whose coroutines never end."""

from __future__ import annotations

import asyncio

from reports import CallReport, send

from celery_broadcast import JobFinished, on_job_event


@on_job_event(JobFinished, concurrency=4)
async def endless(event: JobFinished) -> None:
    """Report the beginning, and the end if there is one after all."""
    send(CallReport(consumer="endless", call="begun"))
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        send(CallReport(consumer="endless", call="cancelled"))
        raise
