"""How the public API is typed: checked by mypy and pyright, never run.

What must be refused is marked with the error that mypy gives. Both warn of a
mark that isn't needed, so a wrong use that passes is an error too.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from typing_extensions import assert_type

import celery_broadcast
from celery_broadcast import (
    Batch,
    Consumer,
    ConsumerStats,
    Drained,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobIgnored,
    JobLost,
    JobRejected,
    JobRetried,
    JobRevoked,
    JobStarted,
    Restart,
    Retry,
    Stream,
    Subscription,
    on_job_event,
    testing,
)
from celery_broadcast.testing import Broadcast, JobEvents, make_event

# Functions.


@on_job_event
def trail(event: JobEvent) -> None: ...


@on_job_event()
def trail_too(event: JobEvent) -> None: ...


@on_job_event(JobFailed, task="shop.payments.*", queue=["eu-*", "us-*"])
def page_oncall(event: JobFailed) -> None: ...


@on_job_event(
    JobEnded,
    selector=lambda event: event.runtime > 30,
    name="slow-jobs",
    mailbox_size=50_000,
    overflow="drop_newest",
)
def slow(event: JobEnded) -> int:
    return round(event.runtime)


@on_job_event(JobFailed, mailbox_size=None)
def any_failure(event: JobEvent) -> None: ...


@on_job_event(JobFailed, JobFinished)
def failed_or_finished(event: JobFailed | JobFinished) -> None: ...


@on_job_event(
    JobFailed, JobFinished, JobRetried, selector=lambda event: event.ended_at > 0, name="three"
)
def one_of_three(event: JobFailed | JobFinished | JobRetried) -> None: ...


@on_job_event(JobFailed, JobFinished, JobRetried, JobRevoked)
def one_of_many(event: JobEnded) -> None: ...


on_job_event(JobStarted, name="print")(print)
on_job_event(name="lambda")(lambda event: event.task_id)

# What is decorated stays callable, and says what it said.
assert_type(slow(JobFinished(task_id="", task_name="", ended_at=0.0, runtime=1.0)), int)
slow(JobStarted(task_id="", task_name=""))  # type: ignore[arg-type]


# Everything that can be asked for.


@on_job_event(JobFailed, exception=OSError, state="FAILURE")
def by_exception(event: JobFailed) -> None: ...


@on_job_event(JobFailed, JobRetried, exception=["shop.errors.CardDeclined", OSError])
def by_exceptions(event: JobFailed | JobRetried) -> None: ...


@on_job_event(JobFailed, batch=Batch(max_events=500, max_wait=2.0))
def in_batches(events: list[JobFailed]) -> None: ...


@on_job_event(batch=Batch())
def all_in_batches(events: list[JobEvent]) -> None: ...


@on_job_event(JobFailed, JobFinished, batch=Batch(), selector=lambda event: event.runtime > 1)
async def two_in_batches(events: list[JobFailed | JobFinished]) -> None: ...


@on_job_event(JobFailed, JobFinished, JobRetried, batch=Batch())
def three_in_batches(events: list[JobFailed | JobFinished | JobRetried]) -> None: ...


@on_job_event(JobFailed, batch=Batch())
def any_sequence(events: Sequence[JobEvent]) -> None: ...


@on_job_event(
    JobEnded,
    concurrency=4,
    partition_by=lambda event: event.runtime,
    retry=Retry(attempts=5, wait=0.5, on=(OSError,)),
    rate_limit="1/s",
    stuck_after=60.0,
    restart=Restart("transient", max_restarts=3, within=5.0),
)
def all_at_once(event: JobEnded) -> None: ...


@on_job_event(JobFailed, concurrency=20)
async def coroutine(event: JobFailed) -> str:
    return event.exception_type


@on_job_event(JobFailed, remote=True, payload="json")
def elsewhere(event: JobFailed) -> None: ...


@on_job_event(JobFailed, JobFinished, remote=True, batch=Batch())
async def elsewhere_in_batches(events: list[JobFailed | JobFinished]) -> None: ...


# The argument is inferred from the event types, and from `batch`.
on_job_event(JobFailed, name="one")(lambda event: event.exception_type)
on_job_event(JobFailed, name="many", batch=Batch())(lambda events: events[0].exception_type)


@on_job_event(concurrency=5)
class Webhook(Consumer):
    async def setup(self) -> None: ...

    async def handle(self, event: JobEvent) -> None: ...

    async def teardown(self) -> None: ...


@on_job_event(JobFailed, batch=Batch())
class InBatches(Consumer):
    def handle(self, events: list[JobFailed]) -> None: ...


# At run time, and events of one's own.


class Incident(Event, frozen=True, kw_only=True):
    failures: int


@on_job_event(Incident)
def page_incident(event: Incident) -> None:
    assert_type(event.failures, int)


@on_job_event(Incident, JobFailed)
def either(event: Incident | JobFailed) -> None: ...


@on_job_event(Event)
def anything_at_all(event: Event) -> None: ...


def at_run_time(seen: list[JobFailed]) -> None:
    assert_type(celery_broadcast.subscribe(trail), Subscription)
    assert_type(celery_broadcast.subscribe(page_oncall, JobFailed, name="page"), Subscription)
    celery_broadcast.subscribe(in_batches, JobFailed, batch=Batch(), name="batch")
    celery_broadcast.subscribe(failed_or_finished, JobFailed, JobFinished)
    celery_broadcast.subscribe(one_of_many, JobFailed, JobFinished, JobRetried, JobRevoked)
    celery_broadcast.subscribe(coroutine, JobFailed, concurrency=5)
    celery_broadcast.subscribe(Webhook, JobFailed, task="shop.*")
    celery_broadcast.subscribe(Webhook)
    celery_broadcast.subscribe(
        Webhook,
        JobFailed,
        JobFinished,
        batch=Batch(),
        selector=lambda event: event.runtime > 30,
        overflow="drop_newest",
        name="webhook-2",
    )
    subscription = celery_broadcast.subscribe(seen.append, JobFailed, name="seen")
    subscription.pause()
    subscription.resume()
    assert_type(subscription.cancel(), bool)
    assert_type(subscription.cancel(timeout=5), bool)
    celery_broadcast.notify(Incident(failures=10))


def in_a_loop() -> None:
    with celery_broadcast.stream(JobFailed, task="shop.*", mailbox_size=10) as events:
        assert_type(events, Stream[JobFailed])
        for event in events:
            assert_type(event, JobFailed)
    with celery_broadcast.stream(JobFailed, JobFinished) as either:
        for one in either:
            assert_type(one, JobFailed | JobFinished)
    with celery_broadcast.stream(selector=lambda event: event.retries > 0) as all_of_them:
        for job_event in all_of_them:
            assert_type(job_event, JobEvent)


async def in_an_event_loop() -> None:
    async with celery_broadcast.stream(Incident) as events:
        async for event in events:
            assert_type(event, Incident)


# Classes.


@on_job_event
class Everything(Consumer):
    def handle(self, event: JobEvent) -> None: ...


@on_job_event(JobFinished, JobFailed, name="audit")
class Audit(Consumer):
    def __init__(self) -> None:
        self.path = "audit.log"

    def setup(self) -> None: ...

    def handle(self, event: JobFinished | JobFailed) -> None: ...

    def teardown(self) -> None: ...


assert_type(Audit().path, str)


# What an event tells.


def every_event(event: JobEvent) -> None:
    assert_type(event.task_id, str)
    assert_type(event.task_name, str)
    assert_type(event.args, Sequence[Any] | None)
    assert_type(event.kwargs, Mapping[str, Any] | None)
    assert_type(event.queue, str | None)
    assert_type(event.exchange, str | None)
    assert_type(event.routing_key, str | None)
    assert_type(event.retries, int)
    assert_type(event.root_id, str | None)
    assert_type(event.parent_id, str | None)
    assert_type(event.group_id, str | None)
    assert_type(event.worker, str)
    assert_type(event.pid, int)
    assert_type(event.headers, Mapping[str, Any] | None)
    assert_type(event.started_at, float | None)


def every_end(event: JobEnded) -> None:
    assert_type(event.state, str)
    assert_type(event.ended_at, float)
    assert_type(event.runtime, float)


def each_kind(event: JobEvent) -> None:
    if isinstance(event, JobFinished | JobIgnored | JobLost):
        every_end(event)
    elif isinstance(event, JobFailed):
        assert_type(event.exception_class, type[BaseException])
        assert_type(event.exception_type, str)
        assert_type(event.exception_message, str)
        assert_type(event.traceback, str)
    elif isinstance(event, JobRetried):
        assert_type(event.exception_class, type[BaseException])
        assert_type(event.eta, float | None)
    elif isinstance(event, JobRejected):
        assert_type(event.requeue, bool)
    elif isinstance(event, JobRevoked):
        assert_type(event.terminated, bool)
        assert_type(event.expired, bool)


def frozen(event: JobFinished) -> None:
    event.task_id = "other"  # type: ignore[misc]
    JobFinished("id-1", "shop.charge")  # type: ignore[call-arg]


# What the process tells.


def operate(app: Celery) -> None:
    celery_broadcast.install(app)
    assert_type(celery_broadcast.stats(), dict[str, ConsumerStats])
    store = celery_broadcast.stats()["store"]
    assert_type(store.offered + store.handled + store.failed + store.pending, int)
    assert_type(store.dropped, dict[str, int])
    assert_type(store.dropped_total, int)
    assert_type(celery_broadcast.drain(), Drained)
    assert_type(celery_broadcast.drain(5).handled, int)
    assert_type(celery_broadcast.drain(timeout=0.5).left, int)
    with celery_broadcast.muted() as nothing:
        assert_type(nothing, None)
    with celery_broadcast.broadcasting(), celery_broadcast.broadcasting(enabled=False) as nothing:
        assert_type(nothing, None)
    celery_broadcast.uninstall(app)


def tests(job_events: JobEvents, broadcast: Broadcast) -> None:
    assert_type(make_event(JobFailed, task_name="shop.refund"), JobFailed)
    assert_type(job_events.of(JobFailed), list[JobFailed])
    assert_type(job_events.only(JobFinished).result, Any)
    assert_type(job_events.wait_for(JobEnded, timeout=0.5).runtime, float)
    assert_type(job_events[0], Event)
    assert_type(broadcast.drain(timeout=5), Drained)
    assert_type(broadcast.stats(), dict[str, ConsumerStats])
    with testing.job_events() as events, testing.broadcast() as whole:
        assert_type(events, JobEvents)
        assert_type(whole, Broadcast)


# What is refused.


@on_job_event  # type: ignore[arg-type]
def takes_less_than_every_event(event: JobFailed) -> None: ...


@on_job_event(JobStarted)  # type: ignore[arg-type]
def takes_another_event(event: JobFailed) -> None: ...


@on_job_event(JobFailed, JobFinished)  # type: ignore[arg-type]
def takes_one_event_of_two(event: JobFailed) -> None: ...


@on_job_event(JobFailed)  # type: ignore[arg-type]
def takes_two_arguments(event: JobFailed, reason: str) -> None: ...


@on_job_event(JobFailed)  # type: ignore[arg-type]
def takes_none() -> None: ...


@on_job_event()  # type: ignore[arg-type]
def takes_less_too(event: JobFailed) -> None: ...


@on_job_event(JobFailed, batch=Batch())  # type: ignore[arg-type]
def takes_one_though_it_gets_many(event: JobFailed) -> None: ...


@on_job_event(JobFailed)  # type: ignore[arg-type]
def takes_many_though_it_gets_one(events: list[JobFailed]) -> None: ...


@on_job_event(JobFailed, batch=Batch())  # type: ignore[arg-type]
def takes_many_of_another(events: list[JobStarted]) -> None: ...


@on_job_event(JobStarted)  # type: ignore[arg-type]
async def coroutine_of_another(event: JobFailed) -> None: ...


class NotAConsumer:
    def handle(self, event: JobFailed) -> None: ...


on_job_event(NotAConsumer)  # type: ignore[type-var]
on_job_event(JobFailed)(NotAConsumer)  # type: ignore[type-var]

on_job_event("JobFailed")  # type: ignore[call-overload]
on_job_event(JobFailed, OSError)  # type: ignore[type-var]
on_job_event(JobFailed, taks="shop.*")  # type: ignore[call-overload]
on_job_event(JobFailed, task=5)  # type: ignore[call-overload]
on_job_event(JobFailed, mailbox_size="5")  # type: ignore[call-overload]
on_job_event(JobFailed, overflow="newest")  # type: ignore[call-overload]
on_job_event(JobFailed, selector="retries")  # type: ignore[call-overload]
on_job_event(JobStarted, selector=lambda event: event.runtime > 30)  # type: ignore[attr-defined]
on_job_event(JobFailed, batch=500)  # type: ignore[call-overload]
on_job_event(JobFailed, concurrency="4")  # type: ignore[call-overload]
on_job_event(JobFailed, retry=5)  # type: ignore[call-overload]
on_job_event(JobFailed, stuck_after="1m")  # type: ignore[call-overload]
on_job_event(JobFailed, restart="transient")  # type: ignore[call-overload]
on_job_event(JobFailed, exception=5)  # type: ignore[call-overload]
on_job_event(JobStarted, concurrency=2, partition_by=lambda e: e.runtime)  # type: ignore[attr-defined]
Batch(500)  # type: ignore[call-arg]
Restart("always")  # type: ignore[arg-type]
celery_broadcast.subscribe(page_oncall, JobStarted)  # type: ignore[arg-type]
celery_broadcast.subscribe(page_oncall)  # type: ignore[arg-type]
celery_broadcast.subscribe(Webhook, JobFailed, taks="shop.*")  # type: ignore[call-overload]
celery_broadcast.subscribe(Webhook, JobFailed, overflow="newest")  # type: ignore[call-overload]
celery_broadcast.subscribe(Webhook, JobFailed, batch=500)  # type: ignore[call-overload]
celery_broadcast.stream(JobFailed, batch=Batch())  # type: ignore[call-overload]
celery_broadcast.notify("incident")  # type: ignore[arg-type]
celery_broadcast.drain("5s")  # type: ignore[arg-type]
make_event("JobFailed")  # type: ignore[arg-type]
celery_broadcast.install("shop")  # type: ignore[arg-type]
