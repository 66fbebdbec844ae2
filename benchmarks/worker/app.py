"""The app of the workers that are timed, and of the client that gives them jobs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import msgspec
from celery import Celery, signals
from nodes.leash import PR_SET_PDEATHSIG
from redis import Redis

#: The list in Redis that the marks are pushed to.
MARKS = "marks"


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a marking job saw.

    Attributes:
        time: in seconds of the monotonic clock, which all processes share.
        consumers: how many consumers the broadcast had in its process.
        receivers: how many receivers `task_prerun` had there.
    """

    time: float
    consumers: int
    receivers: int


app = Celery("benchmark")
app.conf.update(
    broker_url=os.environ.get("BENCHMARK_BROKER"),
    imports=os.environ.get("BENCHMARK_IMPORTS", "").split(),
    broadcast_enabled=True,  # for those who import it
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,  # with the default of 4, jobs that short wait for Redis
)


@app.task
def noop() -> None:
    """Do nothing."""


@app.task
def mark() -> None:
    """Tell the time, and what the process has."""
    seen = Mark(
        time=time.monotonic(),
        consumers=sum(thread.name.startswith("broadcast:") for thread in threading.enumerate()),
        receivers=len(signals.task_prerun.receivers),
    )
    with Redis.from_url(app.conf.broker_url) as redis:
        redis.rpush(MARKS, msgspec.json.encode(seen))


@signals.worker_process_init.connect
def die_with_the_worker(**_: object) -> None:
    """Don't stay behind, which a process that is stopped does otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
