"""The spans that consumers start in a real worker, and beyond it, and the trace they are in."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from nodes.consume_process import ConsumeProcess
from nodes.deadline import wait_until
from nodes.worker_process import WorkerProcess
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from remote_shop import clean

pytestmark = pytest.mark.worker

#: The span of a job, as opentelemetry-instrumentation-celery names it.
JOB = "run/job_app_traced.charge"

OFFERED = "celery_broadcast.consumer.events.offered"
HANDLED = "celery_broadcast.consumer.events.handled"
ENDED = "celery_broadcast.job.ended"

tracer = TracerProvider().get_tracer(__name__)


class TracedWorker(WorkerProcess):
    """A worker of the app whose consumers start spans."""

    app = "job_app_traced"


class TracedConsume(ConsumeProcess):
    """The remote consumer of the same app."""

    app = "job_app_traced"

    @property
    def environment(self) -> Mapping[str, str]:
        return {**super().environment, "JOB_APP_EXPORTS": "1"}


class Traced:
    """A worker and a remote consumer of one app, and the spans that they write."""

    def __init__(self, config: dict[str, Any], file: Path) -> None:
        self.config = {
            **config,
            "broadcast_enabled": True,
            "broadcast_opentelemetry": True,
            # Its own: a job that the last test's worker ran, and was killed before it could
            # acknowledge it, is still in the last one's.
            "task_default_queue": f"traced-{uuid.uuid4().hex}",
        }
        self.queue = str(self.config["task_default_queue"])
        self.file = file
        file.touch()

    def worker(self, pool: str = "prefork", **environment: str) -> TracedWorker:
        environment["JOB_APP_HANDLED"] = str(self.file)
        environment["JOB_APP_EXPORTS"] = "1"
        return TracedWorker("traced", self.config, pool=pool, environment=environment)

    def consume(self) -> TracedConsume:
        return TracedConsume(self.config, self.file, ("audit",))

    def numbers(self, instrument: str, *values: str) -> dict[int, int]:
        """Return how often each process has exported a number, and nothing else of it.

        Args:
            instrument: its name.
            values: the number and the values of its attributes, as text.
        """
        file = Path(f"{self.file}.numbers")
        lines = file.read_text().splitlines() if file.exists() else []
        wanted = [instrument, *sorted(values)]
        exported = [json.loads(line) for line in lines if line.endswith("]")]
        return Counter(pid for pid, *told in exported if told == wanted)

    def last_numbers(self) -> str:
        """Return the last lines with numbers, for the message of a test that fails."""
        file = Path(f"{self.file}.numbers")
        lines = file.read_text().splitlines() if file.exists() else []
        return "\n".join(lines[-40:])

    def send(self) -> tuple[int, int]:
        """Send a job in a span; return the ids of its trace and of the span itself."""
        with (
            Celery(set_as_current=False) as app,
            tracer.start_as_current_span("request") as span,
        ):
            app.conf.update(self.config)
            headers: dict[str, str] = {}
            propagate.inject(headers)
            app.send_task("job_app_traced.charge", headers=headers, ignore_result=True)
            its = span.get_span_context()
            return its.trace_id, its.span_id

    def spans(self, name: str) -> list[dict[str, Any]]:
        """Return those of that name, as far as they are written."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [span for span in lines if span["name"] == name]


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("redis", "rabbitmq")
    ]
)
def traced(
    request: pytest.FixtureRequest,
    broker_config: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> Iterator[Traced]:
    config = broker_config(request.param)
    config.pop("result_backend", None)
    clean(config["broker_url"], "audit")
    yield Traced(config, tmp_path / "spans")
    clean(config["broker_url"], "audit")


def test_spans_of_consumers_here_and_beyond_are_children_of_the_one_that_sent_the_job(
    traced: Traced,
) -> None:
    with traced.consume() as consume, traced.worker() as worker:
        consume.ready()
        worker.ready()
        sent = [traced.send() for _ in range(3)]

        wait_until(lambda: len(traced.spans("store")) == len(sent))
        wait_until(lambda: len(traced.spans("audit")) == len(sent))

    for name in ("store", "audit"):
        found = traced.spans(name)
        assert sorted((span["trace"], span["parent"]) for span in found) == sorted(sent)


@pytest.mark.parametrize("traced", ["redis"], indirect=True)
@pytest.mark.xdist_group("redis")
def test_they_are_in_one_trace_with_the_job_where_celery_is_instrumented(traced: Traced) -> None:
    with traced.worker(JOB_APP_INSTRUMENTED="1") as worker:
        worker.ready()
        trace_id, sender = traced.send()

        wait_until(lambda: traced.spans("store") and traced.spans("run/job_app_traced.charge"))

    (run,) = traced.spans("run/job_app_traced.charge")
    (store,) = traced.spans("store")
    assert (run["trace"], run["parent"]) == (trace_id, sender)
    assert (store["trace"], store["parent"]) == (trace_id, sender)
    assert store["pid"] == run["pid"]


@pytest.mark.parametrize("traced", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent", "eventlet"])
@pytest.mark.xdist_group("redis")
def test_it_is_so_in_every_pool(traced: Traced, pool: str) -> None:
    jobs = 3
    with traced.worker(pool) as worker:
        worker.ready()
        sent = [traced.send() for _ in range(jobs)]

        wait_until(lambda: len(traced.spans("store")) == jobs)
        wait_until(lambda: traced.numbers(HANDLED, str(jobs), "store"))

    assert sorted((span["trace"], span["parent"]) for span in traced.spans("store")) == sorted(sent)


@pytest.mark.parametrize("traced", ["redis"], indirect=True)
@pytest.mark.xdist_group("redis")
def test_a_pool_process_flushes_what_its_consumers_still_do_as_the_page_has_it(
    traced: Traced,
) -> None:
    with traced.worker(JOB_APP_FLUSHES="1") as worker:
        worker.ready()
        sent = [traced.send() for _ in range(2)]
        wait_until(lambda: worker.logs().count("succeeded in") == len(sent))
        assert traced.spans("store") == []

        worker.kill("SIGTERM")
        assert worker.wait() == 0

    assert sorted((span["trace"], span["parent"]) for span in traced.spans("store")) == sorted(sent)


def test_the_main_process_exports_the_numbers_of_all_children_and_no_child_does(
    traced: Traced,
) -> None:
    jobs = 12
    traced.config["worker_max_tasks_per_child"] = 3
    with traced.consume() as consume, traced.worker() as worker:
        consume.ready()
        worker.ready()
        for _ in range(jobs):
            traced.send()

        def told() -> str:
            return f"{traced.last_numbers()}\n{worker.logs()}\n{consume.logs()}"

        ends = (str(jobs), "JobFinished", JOB.removeprefix("run/"), traced.queue)
        wait_until(lambda: traced.numbers(HANDLED, str(jobs), "store"), failure=told)
        wait_until(lambda: traced.numbers(HANDLED, str(jobs), "audit"), failure=told)
        wait_until(lambda: traced.numbers(ENDED, *ends), failure=told)
        # The exporter itself goes on in children, which are there in place of recycled ones: in
        # two, and in these two. One that is recycled before its exporter's turn has told nothing.
        wait_until(lambda: len(traced.numbers("shop.processes", "1")) >= 4, failure=told)

        main, beyond = worker.pid, consume.pid

    assert set(traced.numbers(HANDLED, str(jobs), "store")) == {main}
    assert set(traced.numbers(HANDLED, str(jobs), "audit")) == {beyond}
    assert set(traced.numbers(ENDED, *ends)) == {main}
    numbers = map(str, range(jobs + 1))
    tellers = {pid for number in numbers for pid in traced.numbers(OFFERED, number, "store")}
    assert tellers <= {main, beyond}
