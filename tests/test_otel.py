"""The numbers of consumers as OpenTelemetry's SDK reads them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum
from test_fork import in_child

import celery_broadcast
from celery_broadcast import installation, otel
from celery_broadcast.counts import DROP_REASONS, MAILBOX_FULL, STOPPED, ConsumerStats
from celery_broadcast.durations import BUCKETS, Durations
from celery_broadcast.jobs import BOUNDS, JobNumbers
from celery_broadcast.otel_switch import observe_if_set
from celery_broadcast.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

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

JOBS = JobNumbers(
    started=7,
    running=2,
    ended={"JobFinished": 4, "JobFailed": 1},
    buckets=(3, *(0,) * (len(BOUNDS) - 1), 2),
    seconds=8.5,
    waits=(1, *(0,) * len(BOUNDS)),
    waited_seconds=0.25,
)

Read = Callable[[], dict[str, Any]]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    otel._observed.pop(provider, None)
    provider.shutdown()


@pytest.fixture
def read(reader: InMemoryMetricReader) -> Read:
    """Collect, and return the metrics by name."""

    def read() -> dict[str, Any]:
        data = reader.get_metrics_data()
        return {
            metric.name.removeprefix("celery_broadcast."): metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "celery_broadcast"
            for metric in scope.metrics
        }

    return read


@pytest.fixture
def of_audit(
    provider: MeterProvider, read: Read, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The metrics of a consumer with `STATS`."""
    monkeypatch.setattr(installation, "stats", lambda: {"audit": STATS})
    monkeypatch.setattr(installation, "job_numbers", lambda: {("shop.charge", "mail"): JOBS})
    otel.observe(provider)
    return read()


def points(metric: Any) -> dict[str, float]:
    """Return the values by what they are of besides the consumer or the task."""
    found = {}
    for point in metric.data.data_points:
        attributes = dict(point.attributes)
        if metric.name.startswith("celery_broadcast.job."):
            assert attributes.pop("celery.task_name") == "shop.charge"
            assert attributes.pop("messaging.destination.name") == "mail"
        else:
            assert attributes.pop("celery_broadcast.consumer.name") == "audit"
        found[" ".join(attributes.values())] = point.value
    return found


@pytest.mark.parametrize(
    ("name", "number", "unit"),
    [
        ("events.offered", 10, "{event}"),
        ("events.handled", 6, "{event}"),
        ("events.declined", 2, "{event}"),
        ("events.failed", 1, "{event}"),
        ("events.pending", 1, "{event}"),
        ("restarts", 3, "{restart}"),
        ("lag", 2.5, "s"),
        ("call.time", 130.5, "s"),
    ],
)
def test_a_number_of_a_consumer_has_its_instrument(
    of_audit: Mapping[str, Any], name: str, number: float, unit: str
) -> None:
    assert points(of_audit[f"consumer.{name}"]) == {"": number}
    assert of_audit[f"consumer.{name}"].unit == unit


def test_every_reason_to_drop_is_there_before_the_first_drop(of_audit: Mapping[str, Any]) -> None:
    dropped = points(of_audit["consumer.events.dropped"])

    assert set(dropped) == set(DROP_REASONS)
    assert (dropped[MAILBOX_FULL], dropped[STOPPED]) == (2, 0)


def test_every_state_is_there(of_audit: Mapping[str, Any]) -> None:
    assert points(of_audit["consumer.process.count"]) == {
        "running": 3,
        "paused": 0,
        "stuck": 1,
        "gave-up": 0,
    }


def test_the_calls_of_all_bounds_are_all_calls(of_audit: Mapping[str, Any]) -> None:
    calls = points(of_audit["consumer.calls"])

    assert (calls["0.001"], calls["0.005"], calls["+Inf"]) == (4, 1, 2)
    assert sum(calls.values()) == STATS.durations.count


def test_the_numbers_of_jobs_have_their_instruments(of_audit: Mapping[str, Any]) -> None:
    assert points(of_audit["job.started"]) == {"": 7}
    assert points(of_audit["job.running"]) == {"": 2}
    assert points(of_audit["job.ended"]) == {"JobFinished": 4, "JobFailed": 1}
    assert points(of_audit["job.runtime"]) == {"": 8.5}
    assert points(of_audit["job.waiting.time"]) == {"": 0.25}
    assert points(of_audit["job.waits"])["0.01"] == 1
    runs = points(of_audit["job.runs"])
    assert (runs["0.01"], runs["+Inf"], sum(runs.values())) == (3, 2, 5)


def do_nothing() -> None:
    """Be a job."""


def test_jobs_are_counted_where_the_setting_is_on() -> None:
    found = []
    for is_on in (False, True):
        with Celery("shop", broker="memory://", set_as_current=False) as app:
            app.conf.update(broadcast_enabled=True, broadcast_opentelemetry=is_on)
            app.conf.task_always_eager = True
            charge = app.task(name="shop.charge", shared=False)(do_nothing)
            celery_broadcast.install(app)
            try:
                charge.delay()
                found.append(sum(each.started for each in installation.job_numbers().values()))
            finally:
                celery_broadcast.uninstall(app)

    assert found == [0, 1]


def test_what_only_grows_is_a_counter_and_what_also_falls_is_none(
    of_audit: Mapping[str, Any],
) -> None:
    growing = {
        name: metric.data.is_monotonic
        for name, metric in of_audit.items()
        if isinstance(metric.data, Sum)
    }

    assert {name for name, grows in growing.items() if not grows} == {
        *("consumer.events.pending", "consumer.process.count", "job.running")
    }
    assert set(of_audit) - set(growing) == {"consumer.lag"}


def test_the_numbers_are_read_anew_each_time(
    provider: MeterProvider, read: Read, broadcasting_app: Celery
) -> None:
    handled: list[object] = []
    subscription = celery_broadcast.subscribe(handled.append, name="audit")

    @broadcasting_app.task
    def charge() -> None:
        """Take no money."""

    try:
        otel.observe(provider)
        found = []
        for _ in range(2):
            charge.apply()
            celery_broadcast.drain()
            found.append(points(read()["consumer.events.handled"])[""])
    finally:
        subscription.cancel()

    assert found == [2, 4]  # its start and its end


def test_twice_is_harmless(
    provider: MeterProvider,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(installation, "stats", lambda: {"audit": STATS})

    otel.observe(provider)
    otel.observe(provider)

    assert points(read()["consumer.events.offered"]) == {"": 10}
    assert not caplog.records


@pytest.mark.usefixtures("of_audit")
def test_a_forked_child_leaves_its_numbers_to_the_parent(read: Read) -> None:
    # Older releases of the SDK give a metric all the same, with nothing in it.
    assert in_child(lambda: [points(metric) for metric in read().values() if points(metric)]) == []


@pytest.mark.usefixtures("of_audit")
def test_a_forked_child_tells_its_own_where_it_is_asked_to(
    provider: MeterProvider, read: Read
) -> None:
    def child() -> dict[str, float]:
        otel.observe(provider)
        return points(read()["consumer.events.offered"])

    assert in_child(child) == {"": 10}


def test_it_is_switched_on_by_the_setting_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[None] = []
    monkeypatch.setattr(otel, "observe", lambda: called.append(None))

    observe_if_set(Settings())
    assert called == []

    observe_if_set(Settings(opentelemetry=True))
    assert called == [None]


def test_what_is_not_installed_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "celery_broadcast.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    observe_if_set(Settings(opentelemetry=True))

    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "celery-broadcast[otel]" in record.getMessage()


def test_the_page_has_every_instrument_and_no_other(of_audit: Mapping[str, Any]) -> None:
    page = (ROOT / "docs" / "opentelemetry.md").read_text()

    row = re.compile(r"^\| `celery_broadcast\.(\S+)` \| .*? \| `(\S+)` \|", re.MULTILINE)

    assert dict(row.findall(page)) == {name: metric.unit for name, metric in of_audit.items()}
