"""How the broadcast starts with a worker, or doesn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from reports import CallReport, EventReport
from running_worker import RunningWorker, running_worker

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]


class StartWorker(Protocol):
    def __call__(self, *, pool: str = "prefork", **config: Any) -> RunningWorker: ...


@pytest.fixture
def start_worker(broker_config: Callable[[str], dict[str, Any]]) -> Iterator[StartWorker]:
    """Start workers on Redis, which end with the test."""
    with ExitStack() as workers:

        def start(*, pool: str = "prefork", **config: Any) -> RunningWorker:
            worker = running_worker({**broker_config("redis"), **config}, pool=pool)
            return workers.enter_context(worker)

        yield start


def test_a_consumer_is_set_up_in_each_process_that_has_events_and_torn_down_there(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(worker_max_tasks_per_child=1)
    for number in range(3):
        worker.send("ok", number)
    worker.listener.wait_for(6, EventReport, consumer="trail")
    worker.stop()

    calls = worker.listener.reports(CallReport, consumer="Ends")
    pids = {report.pid for report in worker.listener.reports(EventReport, consumer="Ends")}
    assert len(pids) == 3
    for pid in pids:
        assert [report.call for report in calls if report.pid == pid] == ["setup", "teardown"]


def test_with_the_flag_off_jobs_run_and_no_consumer_hears_of_them(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(broadcast_enabled=False)

    assert worker.send("ok", 7).get(timeout=30) == 7
    worker.stop()

    assert worker.listener.received == []


def test_the_environment_turns_a_worker_on_that_its_configuration_leaves_off(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROADCAST_ENABLED", "1")
    worker = start_worker(broadcast_enabled=False)

    worker.send("ok", 7)

    worker.listener.wait_for(2, EventReport, consumer="trail")


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("broadcast_mailbox_sise", 5, "Did you mean broadcast_mailbox_size?"),
        ("broadcast_mailbox_size", 0, "must be a number of events of 1 or more"),
        ("broadcast_overflow", "block", "is not a policy"),
        ("broadcast_enabled", "maybe", "must be True or False"),
        ("broadcast_events", ["JobFialed"], "'JobFialed', which is no event"),
    ],
)
def test_a_worker_with_a_wrong_setting_does_not_start(
    broker_config: Callable[[str], dict[str, Any]], setting: str, value: object, complaint: str
) -> None:
    config = {**broker_config("filesystem"), setting: value}

    with pytest.raises(RuntimeError, match="ended instead of getting ready") as refusal:  # noqa: SIM117
        with running_worker(config):
            pass

    assert "ConfigurationError" in str(refusal.value)
    assert setting in str(refusal.value)
    assert complaint in str(refusal.value)


def test_jobs_run_in_children_that_were_forked_while_a_consumer_logged(
    start_worker: StartWorker,
) -> None:
    jobs = 20
    worker = start_worker(
        imports=("celery_broadcast.plugin", "job_app_consumers", "job_app_chatty"),
        worker_max_tasks_per_child=1,
    )

    for _ in range(jobs):
        worker.send("noop")
    ends = worker.listener.wait_for(jobs, EventReport, consumer="trail", event="JobFinished")

    assert worker.stop() == 0
    assert len({end.pid for end in ends}) == jobs
    assert "and more of it" in worker.process.logs()
