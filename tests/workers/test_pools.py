"""Every pool, on every broker: the start and the one end of a job reach the consumers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import celery
import pytest
from reports import EventReport
from running_worker import RunningWorker, running_worker

pytestmark = pytest.mark.worker

POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")


def case(pool: str, broker: str, **config: str) -> Any:
    name = "-".join((pool, broker, *config.values()))
    return pytest.param((pool, broker, config), id=name, marks=pytest.mark.xdist_group(broker))


CASES = [
    *(case(pool, broker) for pool in POOLS for broker in ("redis", "rabbitmq")),
    case("prefork", "filesystem"),
]
if celery.VERSION >= (5, 7):  # older ones know no other way than fork
    CASES.append(case("prefork", "redis", worker_pool_start_method="spawn"))


@dataclass(frozen=True)
class Outcome:
    """What a worker reported about one success, one failure and one retry, from start to stop."""

    worker: RunningWorker
    job_ids: dict[str, str]  # by the name of the task

    def events(self, **fields: object) -> list[EventReport]:
        return self.worker.listener.reports(EventReport, **fields)

    def story(self, task: str, **fields: object) -> list[str]:
        """Name the events of a job, in the order in which "trail" got them."""
        events = self.events(consumer="trail", task_id=self.job_ids[task], **fields)
        return [report.event for report in events]


@pytest.fixture(scope="module", params=CASES)
def outcome(
    request: pytest.FixtureRequest,
    broker_config: Callable[[str], dict[str, Any]],
) -> Iterator[Outcome]:
    pool, broker, config = request.param
    with running_worker({**broker_config(broker), **config}, pool=pool) as worker:
        jobs = {
            "ok": worker.send("ok", 1),
            "fails": worker.send("fails", "no"),
            "retries_once": worker.send("retries_once"),
        }
        worker.listener.wait_for(8, EventReport, consumer="trail")
        # Once it has ended nothing more can come, neither late nor twice.
        worker.stop()
        yield Outcome(worker, {task: job.id for task, job in jobs.items()})


def test_a_success_is_started_and_finished_once(outcome: Outcome) -> None:
    assert outcome.story("ok") == ["JobStarted", "JobFinished"]


def test_a_failure_is_started_and_failed_once(outcome: Outcome) -> None:
    assert outcome.story("fails") == ["JobStarted", "JobFailed"]

    (failed,) = outcome.events(consumer="trail", event="JobFailed")
    assert failed.exception_type == "ValueError"
    assert failed.exception_message == "no"


def test_a_retry_ends_its_attempt_once_and_the_next_attempt_has_its_own_end(
    outcome: Outcome,
) -> None:
    assert outcome.story("retries_once", retries=0) == ["JobStarted", "JobRetried"]
    assert outcome.story("retries_once", retries=1) == ["JobStarted", "JobFinished"]


def test_each_consumer_runs_on_a_thread_named_after_it(outcome: Outcome) -> None:
    threads = {(report.consumer, report.thread) for report in outcome.events()}

    assert threads == {("trail", "broadcast:trail"), ("Ends", "broadcast:Ends")}


def test_a_consumer_gets_what_it_subscribed_to_and_nothing_else(outcome: Outcome) -> None:
    events = sorted(report.event for report in outcome.events(consumer="Ends"))

    assert events == ["JobFailed", "JobFinished", "JobFinished", "JobRetried"]


def test_every_event_tells_the_queue_and_the_worker(outcome: Outcome) -> None:
    told = {(report.queue, report.worker) for report in outcome.events()}

    assert told == {(outcome.worker.queue, outcome.worker.process.node_name)}
