"""Consumers of `job_app`, one for each option, which report to the test.

An event is named by its type and the first argument of its job: "JobFinished a:1".
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from celery.signals import worker_ready
from job_app import app
from nodes.deadline import wait_until
from reports import CallReport, HandledReport, NoticeReport, send

import celery_broadcast
from celery_broadcast import (
    Batch,
    Consumer,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobRetried,
    Restart,
    Retry,
    notices,
    on_job_event,
    subscribe,
)

CALLS_PER_SECOND = 40
FAILURES_OF_INCIDENT = 10
STUCK_AFTER_SECONDS = 0.1
TRIES = 3

_MOST_SECONDS = 10.0  # that anything here waits for another


def first_argument(event: JobEvent) -> str:
    return str(event.args[0]) if event.args else ""


def text_of(event: Event) -> str:
    """Return what names an event in a report."""
    name = type(event).__name__
    return f"{name} {first_argument(event)}" if isinstance(event, JobEvent) else name


@contextlib.contextmanager
def reported(consumer: str, *events: Event) -> Iterator[None]:
    """Report a call once it is over, unless it raises."""
    began_at = time.monotonic()
    yield
    send(
        HandledReport(
            consumer=consumer,
            events=[text_of(event) for event in events],
            began_at=began_at,
            ended_at=time.monotonic(),
        )
    )


class Meeting:
    """Where the calls of a consumer wait until, for once, two of them are here together."""

    def __init__(self) -> None:
        self._here = 0
        self._changing = threading.Lock()
        self._have_met = threading.Event()

    def attend(self) -> None:
        with self._changing:
            self._here += 1
            if self._here > 1:
                self._have_met.set()
        self._have_met.wait(_MOST_SECONDS)
        with self._changing:
            self._here -= 1


@on_job_event
def everything(event: JobEvent) -> None:
    """Report what this process has published, in its order."""
    with reported("everything", event):
        pass


# Which events.


@on_job_event(JobEnded, exception=OSError)
def by_exception_class(event: JobEnded) -> None:
    with reported("by_exception_class", event):
        pass


@on_job_event(JobEnded, exception="ValueError")
def by_exception_name(event: JobEnded) -> None:
    with reported("by_exception_name", event):
        pass


@on_job_event(JobEnded, state=("FAILURE", "RETRY"))
def by_state(event: JobEnded) -> None:
    with reported("by_state", event):
        pass


# How they come.


@on_job_event(JobFinished, batch=Batch(max_events=5, max_wait=3600))
def full_batches(events: list[JobFinished]) -> None:
    with reported("full_batches", *events):
        pass


@on_job_event(JobFinished, batch=Batch(max_events=1000, max_wait=0.1))
def prompt_batches(events: list[JobFinished]) -> None:
    with reported("prompt_batches", *events):
        pass


_several_meet, _keyed_meet = Meeting(), Meeting()


@on_job_event(JobFinished, task="job_app.ok", concurrency=3)
def several(event: JobFinished) -> None:
    with reported("several", event):
        _several_meet.attend()


def key_of(event: JobFinished) -> str:
    """Return "a" for "a:1"."""
    return first_argument(event).partition(":")[0]


@on_job_event(JobFinished, task="job_app.ok", concurrency=3, partition_by=key_of)
def keyed(event: JobFinished) -> None:
    with reported("keyed", event):
        _keyed_meet.attend()
        if first_argument(event).endswith(("2", "4", "6")):  # the next one is faster
            threading.Event().wait(0.02)


_tries: dict[str, int] = {}


@on_job_event(JobFailed, retry=Retry(attempts=TRIES, wait=0.01, on=ConnectionError))
def retried(event: JobFailed) -> None:
    _tries[event.task_id] = _tries.get(event.task_id, 0) + 1
    send(CallReport(consumer="retried", call=text_of(event)))
    with reported("retried", event):
        if _tries[event.task_id] < TRIES:
            raise ConnectionError
        del _tries[event.task_id]


@on_job_event(JobFailed, rate_limit=f"{CALLS_PER_SECOND}/s")
def limited(event: JobFailed) -> None:
    with reported("limited", event):
        pass


# When it hangs or crashes.


def is_to_hang(event: JobFinished) -> bool:
    return first_argument(event) == "hang"


@on_job_event(JobFinished, selector=is_to_hang, stuck_after=STUCK_AFTER_SECONDS)
def stuck(event: JobFinished) -> None:
    with reported("stuck", event):
        wait_until_noticed()


_is_noticed = threading.Event()


def wait_until_noticed() -> None:
    _is_noticed.wait(_MOST_SECONDS)


_left: list[str] = []


@on_job_event(JobFailed, restart=Restart("transient"))
def leaves(event: JobFailed) -> None:
    """Leave for good with the second event."""
    with reported("leaves", event):
        _left.append(event.task_id)
        if len(_left) > 1:
            sys.exit()


_crashed: list[str] = []


@on_job_event(JobRetried, restart=Restart("permanent"))
def crashes(event: JobRetried) -> None:
    """Crash with the first event."""
    with reported("crashes", event):
        if not _crashed:
            _crashed.append(event.task_id)
            sys.exit()


# At run time.


class Ping(Event, frozen=True, kw_only=True):
    """What is published to see who gets it."""

    number: int


class PingOfJob(Ping, frozen=True, kw_only=True):
    """What a job publishes."""


class PingOfConsumer(Ping, frozen=True, kw_only=True):
    """What a consumer publishes."""


def manage(name: str, kind: type[Ping]) -> None:
    """Subscribe, pause, resume and cancel, and report what the consumer has got each time."""
    got: list[int] = []

    def managed(event: Ping) -> None:
        got.append(event.number)

    def say(call: str) -> None:
        send(CallReport(consumer=name, call=f"{call}: {got}"))

    subscription = subscribe(managed, kind, name=name)
    celery_broadcast.notify(kind(number=1))
    wait_until(lambda: got == [1], _MOST_SECONDS)
    say("subscribed")

    subscription.pause()
    celery_broadcast.notify(kind(number=2))
    celery_broadcast.notify(kind(number=3))
    # The numbers of a pool process are its own.
    wait_until(lambda: celery_broadcast.stats()[name].pending == 2, _MOST_SECONDS)
    say("paused")

    subscription.resume()
    wait_until(lambda: got == [1, 2, 3], _MOST_SECONDS)
    say("resumed")

    is_done = subscription.cancel(timeout=_MOST_SECONDS)
    celery_broadcast.notify(kind(number=4))
    say("cancelled" if is_done else "cancelling")


@app.task(name="job_app.manages")
def manages() -> None:
    manage("managed_by_job", PingOfJob)


def manager(event: JobFinished) -> None:
    """Manage another, and leave."""
    with reported("manager", event):
        manage("managed_by_consumer", PingOfConsumer)
        _own.cancel()


_own = subscribe(
    manager, JobFinished, selector=lambda event: first_argument(event).startswith("manage")
)


def read(name: str, is_open: threading.Event) -> None:
    """Report what can be read, from now on to the drain."""
    with celery_broadcast.stream(JobFinished, name=name) as events:
        is_open.set()
        for event in events:
            with reported(name, event):
                pass


def start_reader(name: str) -> None:
    is_open = threading.Event()
    threading.Thread(target=read, args=(name, is_open), name=name, daemon=True).start()
    is_open.wait(_MOST_SECONDS)


@worker_ready.connect(weak=False)
def read_from_ready(**_: Any) -> None:
    """Read in the worker's main process."""
    start_reader("read_from_ready")


@on_job_event(JobEvent)
class Reads(Consumer):
    """Read in each process that has an event, from then on."""

    def setup(self) -> None:
        start_reader("read_from_first")

    def handle(self, event: JobEvent) -> None:
        pass


# Events of one's own.


class Announcement(Event, frozen=True, kw_only=True):
    """A job has something to say."""


class Incident(Event, frozen=True, kw_only=True):
    """So many jobs of this process have failed."""


@app.task(name="job_app.announces")
def announces() -> None:
    celery_broadcast.notify(Announcement())


@on_job_event(JobFailed)
class Watches(Consumer):
    """Make one incident of every ten failures."""

    def setup(self) -> None:
        self._failures = 0

    def handle(self, event: JobFailed) -> None:
        self._failures += 1
        if self._failures % FAILURES_OF_INCIDENT == 0:
            celery_broadcast.notify(Incident())


@on_job_event(Announcement, Incident)
def own(event: Announcement | Incident) -> None:
    with reported("own", event):
        pass


# What is noticed.


@notices.consumer_stuck.connect
def report_stuck(consumer: str, *, event: Event, seconds: float, stack: str, **_: Any) -> None:
    facts = {"event": text_of(event), "seconds": str(seconds), "stack": stack}
    send(NoticeReport(notice="consumer_stuck", consumer=consumer, facts=facts))
    if consumer == "stuck":
        _is_noticed.set()


@notices.consumer_restarted.connect
def report_restarted(consumer: str, **_: Any) -> None:
    send(NoticeReport(notice="consumer_restarted", consumer=consumer, facts={}))


@notices.consumer_gave_up.connect
def report_gave_up(consumer: str, **_: Any) -> None:
    send(NoticeReport(notice="consumer_gave_up", consumer=consumer, facts={}))
