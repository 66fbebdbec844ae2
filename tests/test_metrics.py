"""The numbers of consumers as Prometheus reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from celery_broadcast.counts import MAILBOX_FULL, STOPPED, ConsumerStats
from celery_broadcast.durations import BUCKETS, Durations
from celery_broadcast.events import JobFailed
from celery_broadcast.jobs import MOST_NAMED, JobNumbers, Jobs
from celery_broadcast.metrics import ConsumersCollector, JobsCollector

ROOT = Path(__file__).parent.parent

STATS = ConsumerStats(
    offered=10,
    handled=6,
    declined=2,
    failed=1,
    dropped={MAILBOX_FULL: 2},
    pending=1,
    restarts=3,
    durations=Durations(buckets=(4, 1, *(0,) * (BUCKETS - 3), 2), seconds=130.5),
    processes={"running": 3, "stuck": 1},
    lag=2.5,
)


def value(sample: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(ConsumersCollector(lambda: {"audit": STATS}))
    return registry.get_sample_value(f"celery_broadcast_{sample}", {"consumer": "audit", **labels})


@pytest.mark.parametrize(
    ("sample", "number"),
    [
        ("events_offered_total", 10),
        ("events_handled_total", 6),
        ("events_declined_total", 2),
        ("events_failed_total", 1),
        ("consumer_restarts_total", 3),
        ("events_pending", 1),
        ("consumer_lag_seconds", 2.5),
        ("consumer_handle_seconds_count", 7),
        ("consumer_handle_seconds_sum", 130.5),
    ],
)
def test_a_number_of_a_consumer_has_its_metric(sample: str, number: float) -> None:
    assert value(sample) == number


def test_every_reason_to_drop_is_there_before_the_first_drop() -> None:
    assert value("events_dropped_total", reason=MAILBOX_FULL) == 2
    assert value("events_dropped_total", reason=STOPPED) == 0


def test_every_state_is_there() -> None:
    assert value("consumer_processes", state="stuck") == 1
    assert value("consumer_processes", state="gave-up") == 0


def test_buckets_add_up() -> None:
    assert value("consumer_handle_seconds_bucket", le="0.001") == 4
    assert value("consumer_handle_seconds_bucket", le="60.0") == 5
    assert value("consumer_handle_seconds_bucket", le="+Inf") == 7


def test_registering_reads_no_numbers() -> None:
    def unread() -> dict[str, ConsumerStats]:
        raise AssertionError

    def uncounted() -> dict[tuple[str, str], JobNumbers]:
        raise AssertionError

    CollectorRegistry(auto_describe=True).register(ConsumersCollector(unread))
    CollectorRegistry(auto_describe=True).register(JobsCollector(uncounted))


def job_numbers() -> Jobs:
    jobs = Jobs()
    facts = {"task_name": "shop.charge", "queue": "mail"}
    for wait in (None, 0.5, 2.0):
        jobs.start(facts, 5.0, None, wait)
    jobs.end(facts, 5.0, JobFailed, 0.2)
    jobs.end(facts, 5.0, JobFailed, 7200.0)
    return jobs


@pytest.mark.parametrize(
    ("sample", "labels", "number"),
    [
        ("jobs_started_total", {}, 3),
        ("jobs_running", {}, 1),
        ("jobs_ended_total", {"type": "JobFailed"}, 2),
        ("jobs_ended_total", {"type": "JobLost"}, 0),
        ("job_runtime_seconds_count", {}, 2),
        ("job_runtime_seconds_sum", {}, 7200.2),
        ("job_runtime_seconds_bucket", {"le": "0.1"}, 0),
        ("job_runtime_seconds_bucket", {"le": "3600.0"}, 1),
        ("job_runtime_seconds_bucket", {"le": "+Inf"}, 2),
        ("job_wait_seconds_count", {}, 2),
        ("job_wait_seconds_sum", {}, 2.5),
        ("job_wait_seconds_bucket", {"le": "0.5"}, 1),
    ],
)
def test_a_number_of_the_jobs_has_its_metric(
    sample: str, labels: dict[str, str], number: float
) -> None:
    registry = CollectorRegistry()
    registry.register(JobsCollector(lambda: job_numbers().numbers([])))

    found = {"task": "shop.charge", "queue": "mail", **labels}
    assert registry.get_sample_value(f"celery_{sample}", found) == number


def scraped() -> str:
    registry = CollectorRegistry()
    registry.register(ConsumersCollector(lambda: {"audit": STATS}))
    registry.register(JobsCollector(lambda: job_numbers().numbers([])))
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    "file",
    ["docs/metrics.md", "contrib/prometheus-alerts.yml", "contrib/grafana-dashboard.json"],
)
def test_every_metric_that_is_named_is_there(file: str) -> None:
    named = set(re.findall(r"\bcelery_(?:broadcast|jobs?)_[a-z_]+\b", (ROOT / file).read_text()))

    assert named
    assert named <= set(re.findall(r"^celery_[a-z_]+", scraped(), flags=re.MULTILINE))


def test_the_metrics_page_has_every_metric_in_its_table() -> None:
    families = re.findall(r"^# TYPE (\S+) (\S+)$", scraped(), flags=re.MULTILINE)
    page = (ROOT / "docs" / "metrics.md").read_text()

    table = re.findall(r"^\| `(celery_\w+)` \| (\w+) \|", page, flags=re.MULTILINE)
    assert sorted(table) == sorted(
        (f"{name}_count" if kind == "histogram" else name, kind) for name, kind in families
    )


def test_the_metrics_page_says_how_many_rows_there_are() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()

    assert f"The first {MOST_NAMED}\npairs" in page
