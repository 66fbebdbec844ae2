"""An app that is traced: its consumers start spans, which are written to a file."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

import celery_broadcast
from celery_broadcast import JobFinished, on_job_event

app = Celery("job_app_traced")
app.conf.imports = ("celery_broadcast.plugin",)
app.conf.update(json.loads(os.environ["JOB_APP_CONFIG"]))


class FileExporter(SpanExporter):
    """Writes each span as a line, at once."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["JOB_APP_HANDLED"]).open("a") as file:
            for span in spans:
                context = span.context
                assert context is not None
                written = {
                    "name": span.name,
                    "trace": context.trace_id,
                    "span": context.span_id,
                    "parent": None if span.parent is None else span.parent.span_id,
                    "pid": os.getpid(),
                }
                file.write(json.dumps(written) + "\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
trace.set_tracer_provider(provider)
tracer = trace.get_tracer(__name__)
if not os.environ.get("JOB_APP_FLUSHES"):
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
else:  # as the page has it, and nothing is exported before

    @worker_process_init.connect(weak=False)
    def export_spans(**_: Any) -> None:
        provider.add_span_processor(
            BatchSpanProcessor(FileExporter(), schedule_delay_millis=3_600_000)
        )

    @worker_process_shutdown.connect(weak=False)
    def flush_spans(**_: Any) -> None:
        celery_broadcast.drain()
        provider.force_flush()


class FileMetricExporter(MetricExporter):
    """Writes each number of a consumer as a line, at once."""

    def export(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,  # as the SDK calls it
        **_: Any,
    ) -> MetricExportResult:
        lines = [
            json.dumps([os.getpid(), metric.name, *sorted(map(str, values(point)))]) + "\n"
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        ]
        with Path(f"{os.environ['JOB_APP_HANDLED']}.numbers").open("a") as file:
            file.write("".join(lines))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Have nothing to do."""


def values(point: NumberDataPoint) -> list[object]:
    return [point.value, *(point.attributes or {}).values()]


# Before the pool processes are forked: they inherit it, and go on exporting.
if os.environ.get("JOB_APP_EXPORTS"):
    reader = PeriodicExportingMetricReader(FileMetricExporter(), export_interval_millis=100)
    metrics.set_meter_provider(MeterProvider([reader]))
    own = metrics.get_meter(__name__).create_counter("shop.processes")
    own.add(1)


@worker_process_init.connect(weak=False)
def instrument(**_: Any) -> None:
    """Have OpenTelemetry's own instrumentation trace the jobs, if the test wants it."""
    if os.environ.get("JOB_APP_INSTRUMENTED"):
        instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.celery")
        instrumentation.CeleryInstrumentor().instrument()


@app.task
def charge() -> None:
    """Take no money."""


@on_job_event(JobFinished)
def store(event: JobFinished) -> None:
    if os.environ.get("JOB_APP_FLUSHES"):
        time.sleep(0.5)  # it is not done when the process is asked to end
    with tracer.start_as_current_span("store"):
        pass


@on_job_event(JobFinished, remote=True)
async def audit(event: JobFinished) -> None:
    with tracer.start_as_current_span("audit"):
        pass
