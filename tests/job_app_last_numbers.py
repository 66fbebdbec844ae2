"""The numbers of a whole worker node, reported when it stops: import it after the plugin."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_shutdown
from reports import NumbersReport, send

import celery_broadcast


@worker_shutdown.connect(weak=False)
def report_numbers(**_: Any) -> None:
    """Report them after the drain, whose receiver was connected before this one."""
    send(NumbersReport(numbers=celery_broadcast.stats()))
