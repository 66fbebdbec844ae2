"""Consumers that write rows by Django's ORM."""

from __future__ import annotations

import os
from typing import Any

from django.db import connection

from celery_broadcast import JobEnded, on_job_event
from django_shop.models import Ended


@on_job_event(JobEnded)
def store(event: JobEnded) -> None:
    """Write a row; for a job that sells slowly keep the database busy for a minute before.

    There is no transaction around it on purpose: that of `transaction.atomic`
    closes a broken connection itself when it fails.
    """
    if event.task_name.endswith("slowly"):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
    Ended.objects.create(**columns("store", event))


@on_job_event(JobEnded, concurrency=4)
async def store_async(event: JobEnded) -> None:
    """Write a row, while up to three others are written."""
    await Ended.objects.acreate(**columns("store_async", event))


def columns(consumer: str, event: JobEnded) -> dict[str, Any]:
    """Return what a row tells."""
    return {
        "consumer": consumer,
        "task_id": event.task_id,
        "state": event.state,
        "pid": os.getpid(),
    }
