"""How an attempt can end in a worker, and the events that each way gives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import celery
import pytest
from nodes.deadline import wait_until
from reports import EventReport
from running_worker import RunningWorker, running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]


@dataclass(frozen=True)
class Outcome:
    """One way to end.

    Attributes:
        task: what is sent.
        story: the events for it, and nothing else.
        options: how it is sent.
        after_start: what is done to the job while it runs.
    """

    task: str
    story: list[str]
    arguments: tuple[object, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    after_start: Callable[[RunningWorker, EventReport], None] | None = None


def kill(worker: RunningWorker, started: EventReport) -> None:
    os.kill(started.pid, signal.SIGKILL)


def revoke(worker: RunningWorker, started: EventReport, *, signal_name: str = "SIGTERM") -> None:
    wait_until(worker.is_listening, 30)
    worker.app.control.revoke(started.task_id, terminate=True, signal=signal_name)


def revoke_by_kill(worker: RunningWorker, started: EventReport) -> None:
    revoke(worker, started, signal_name="SIGKILL")


def revoke_softly(worker: RunningWorker, started: EventReport) -> None:
    """What the soft time limit sends; the process lives on."""
    revoke(worker, started, signal_name="SIGUSR1")


def stop_cold(worker: RunningWorker, started: EventReport) -> None:
    worker.process.kill("SIGQUIT")


# Celery 5.4 doesn't send back what a cold shutdown cuts off: for it that has failed.
CUT_OFF = "JobRetried" if celery.VERSION >= (5, 5) else "JobFailed"

OUTCOMES = {
    "success": Outcome("ok", ["JobStarted", "JobFinished"], (1,)),
    "exception": Outcome("fails", ["JobStarted", "JobFailed"], ("no",)),
    "bad arguments": Outcome("ok", ["JobStarted", "JobFailed"]),
    "retry": Outcome("retries_once", ["JobStarted", "JobRetried", "JobStarted", "JobFinished"]),
    "ignore": Outcome("ignored", ["JobStarted", "JobIgnored"]),
    "reject": Outcome("rejected", ["JobStarted", "JobRejected"]),
    "reject and requeue": Outcome(
        "rejected",
        ["JobStarted", "JobRejected", "JobStarted", "JobRejected"],
        options={"kwargs": {"requeue": True}},
    ),
    "on_failure raises": Outcome("fails_badly", ["JobStarted", "JobFailed"]),
    "result not encodable": Outcome("gives_what_nobody_can_encode", ["JobStarted", "JobFailed"]),
    "soft time limit": Outcome(
        "sleeps", ["JobStarted", "JobFailed"], (60,), {"soft_time_limit": 1, "time_limit": 30}
    ),
    "hard time limit": Outcome("sleeps", ["JobStarted", "JobFailed"], (60,), {"time_limit": 1}),
    "exit": Outcome("exits", ["JobStarted", "JobFailed"], (3,)),
    "killed": Outcome("sleeps", ["JobStarted", "JobFailed"], (60,), after_start=kill),
    "revoked": Outcome("sleeps", ["JobStarted", "JobRevoked"], (60,), after_start=revoke),
    "revoked and survives": Outcome(
        "survives", ["JobStarted", "JobFinished"], (2,), after_start=revoke
    ),
    "revoked by a kill": Outcome(
        "sleeps", ["JobStarted", "JobRevoked"], (60,), after_start=revoke_by_kill
    ),
    "revoked by a soft signal": Outcome(
        "sleeps", ["JobStarted", "JobFailed"], (60,), after_start=revoke_softly
    ),
    "cold shutdown": Outcome("sleeps", ["JobStarted", CUT_OFF], (60,), after_start=stop_cold),
    "expired": Outcome("ok", ["JobRevoked"], (1,), {"expires": -1}),
}


# Prefork knows every way to end; in the other pools, these come about differently.
CASES = [
    *(("prefork", name) for name in OUTCOMES),
    *((pool, "exit") for pool in ("threads", "solo", "gevent", "eventlet")),
    *((pool, "on_failure raises") for pool in ("threads", "solo", "gevent", "eventlet")),
    *((pool, "reject") for pool in ("threads", "gevent")),
    ("gevent", "hard time limit"),
]
if celery.VERSION >= (5, 7):  # older ones can't stop a greenlet
    CASES += [(pool, "revoked") for pool in ("gevent", "eventlet")]


@dataclass(frozen=True)
class Ended:
    worker: RunningWorker
    outcome: Outcome
    events: list[EventReport]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def ended(
    request: pytest.FixtureRequest,
    broker_config: Callable[[str], dict[str, Any]],
) -> Iterator[Ended]:
    """Run one job to its end on a worker of its own, and stop that: nothing can come late."""
    pool, name = request.param
    outcome = OUTCOMES[name]
    concurrency = 1 if pool == "prefork" else 2  # eventlet hears a revoke in a greenlet of the pool
    with running_worker(broker_config("redis"), pool=pool, concurrency=concurrency) as worker:
        job = worker.send(outcome.task, *outcome.arguments, **outcome.options)
        if outcome.after_start:
            (started,) = worker.listener.wait_for(1, EventReport, consumer="trail")
            outcome.after_start(worker, started)
        worker.listener.wait_for(len(outcome.story), EventReport, consumer="trail", task_id=job.id)
        worker.stop()
        reports = worker.listener.reports(EventReport, consumer="trail", task_id=job.id)
        yield Ended(worker, outcome, reports)


def test_an_attempt_gives_its_start_and_its_one_end(ended: Ended) -> None:
    in_order = sorted(ended.events, key=lambda report: report.ended_at or report.started_at or 0)

    assert [report.event for report in in_order] == ended.outcome.story


def test_an_end_tells_when_its_attempt_started_and_how_long_it_ran(ended: Ended) -> None:
    for end in ended.events:
        if end.ended_at is None or end.runtime is None:
            continue  # a start
        assert end.ended_at <= time.time()
        if "JobStarted" in ended.outcome.story:
            starts = {report.started_at for report in ended.events if report.event == "JobStarted"}
            assert end.started_at in starts
            assert end.runtime > 0
        else:
            assert (end.started_at, end.runtime) == (None, 0.0)


def test_every_event_tells_the_queue_and_the_worker(ended: Ended) -> None:
    told = {(report.event, report.queue, report.worker) for report in ended.events}

    queue, worker = ended.worker.queue, ended.worker.process.node_name
    assert told == {(event, queue, worker) for event in ended.outcome.story}


def test_the_bridge_had_no_error_of_its_own(ended: Ended) -> None:
    log = ended.worker.process.logs()

    assert "broadcast failed" not in log
    assert "Signal handler" not in log
