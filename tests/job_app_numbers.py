"""The numbers of a whole worker node: on demand by remote control, and reported when it stops."""

from __future__ import annotations

from typing import Any

import msgspec
from celery.signals import worker_shutdown
from celery.worker.control import inspect_command
from reports import NumbersReport, send

import celery_broadcast


@inspect_command()
def broadcast_numbers(_: Any) -> dict[str, Any]:
    """Return the numbers of each consumer, by its name."""
    stats = celery_broadcast.stats()
    return {name: {**msgspec.to_builtins(numbers)} for name, numbers in stats.items()}


@worker_shutdown.connect(weak=False)
def report_numbers(**_: Any) -> None:
    """Report them after the drain, if this module is imported after the plugin."""
    send(NumbersReport(numbers=celery_broadcast.stats()))
