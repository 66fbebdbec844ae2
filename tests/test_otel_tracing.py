"""In which trace context a consumer runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext
from parcels import sent
from recorder import make_event, subscribe

from celery_broadcast import Batch, Event, JobEvent, JobFinished
from celery_broadcast.consumer import Consumer
from celery_broadcast.otel_tracing import context_of
from celery_broadcast.producer import Producer
from celery_broadcast.retry import Retry
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry

TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"


class Incident(Event, frozen=True, kw_only=True):
    """The user's own."""


def traced_event(traceparent: Any = TRACEPARENT, **headers: Any) -> JobFinished:
    return make_event(JobFinished, headers={"traceparent": traceparent, **headers})


def span_context(found: context.Context | None = None) -> SpanContext:
    return trace.get_current_span(found).get_span_context()


Run = Callable[..., None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Have a consumer handle events, as a process with these settings does."""
    registry = Registry()
    producers: list[Producer] = []

    def run(
        consumer: Callable[[Any], object] | Consumer,
        *events: Event,
        opentelemetry: bool = True,
        **options: Any,
    ) -> None:
        registry.subscriptions = (subscribe(consumer, "store", (Event,), **options),)
        producer = Producer(Settings(opentelemetry=opentelemetry), registry)
        producers.append(producer)
        for event in events:
            producer.notify(event)
        producer.drain(10.0)

    yield run
    for producer in producers:
        producer.drain(0.0)


def test_a_consumer_runs_in_the_trace_context_of_the_job(run: Run) -> None:
    found: list[SpanContext] = []

    run(lambda _: found.append(span_context()), traced_event(tracestate="shop=1"))

    (its,) = found
    assert (its.trace_id, its.span_id, its.is_remote) == (TRACE_ID, SPAN_ID, True)
    assert its.trace_flags.sampled
    assert its.trace_state.get("shop") == "1"


def test_a_span_of_a_consumer_is_a_child_of_the_one_that_sent_the_job(run: Run) -> None:
    tracer = TracerProvider().get_tracer(__name__)
    spans: list[Any] = []

    def store(_: JobEvent) -> None:
        with tracer.start_as_current_span("store") as span:
            spans.append(span)

    run(store, traced_event())

    (span,) = spans
    assert span.context.trace_id == TRACE_ID
    assert span.parent.span_id == SPAN_ID


def test_each_event_has_its_own_and_nothing_is_left_for_the_next(run: Run) -> None:
    found: list[SpanContext] = []
    other = traced_event(f"00-{1:032x}-{2:016x}-00")

    run(
        lambda _: found.append(span_context()),
        *(traced_event(), make_event(JobFinished), other, Incident()),
    )

    assert [each.trace_id for each in found] == [TRACE_ID, 0, 1, 0]
    assert [each.is_valid for each in found] == [True, False, True, False]


def test_nothing_is_left_by_a_consumer_that_raises(run: Run) -> None:
    found: list[SpanContext] = []

    def store(event: JobEvent) -> None:
        found.append(span_context())
        raise LookupError(event.task_id)

    run(store, traced_event(), make_event(JobFinished))

    assert [each.trace_id for each in found] == [TRACE_ID, 0]


def test_baggage_comes_along_as_the_global_propagators_say(run: Run) -> None:
    found: list[object] = []

    run(lambda _: found.append(baggage.get_baggage("tenant")), traced_event(baggage="tenant=7"))

    assert found == ["7"]


def test_of_an_event_from_a_broker_only_the_trace_context_is_read(run: Run) -> None:
    """Its other headers are shown as text: their quotes would be in the baggage."""
    (arrived,) = sent(traced_event(baggage="tenant=7"))
    found: list[tuple[int, Mapping[str, object]]] = []

    run(lambda _: found.append((span_context().trace_id, baggage.get_all())), arrived.event)

    assert found == [(TRACE_ID, {})]


def test_without_the_setting_no_consumer_has_a_context(run: Run) -> None:
    found: list[SpanContext] = []

    run(lambda _: found.append(span_context()), traced_event(), opentelemetry=False)

    assert [each.is_valid for each in found] == [False]


def test_a_coroutine_has_its_own_context_beside_others_in_flight(run: Run) -> None:
    found: list[int] = []
    both = asyncio.Event()
    waiting: list[None] = []

    async def store(_: JobEvent) -> None:
        waiting.append(None)
        if len(waiting) == 2:  # both of them
            both.set()
        await both.wait()
        found.append(span_context().trace_id)

    run(store, traced_event(), traced_event(f"00-{1:032x}-{2:016x}-00"), concurrency=2)

    assert sorted(found) == [1, TRACE_ID]


def test_a_consumer_that_is_called_again_has_the_same_context(run: Run) -> None:
    found: list[int] = []

    def store(_: JobEvent) -> None:
        found.append(span_context().trace_id)
        if len(found) == 1:
            raise LookupError

    run(store, traced_event(), retry=Retry(attempts=2, wait=0.0))

    assert found == [TRACE_ID, TRACE_ID]


def test_a_batch_of_one_has_the_context_of_its_job_and_one_of_more_has_none(run: Run) -> None:
    found: list[tuple[int, int]] = []

    def store(events: list[JobEvent]) -> None:
        found.append((len(events), span_context().trace_id))

    run(store, traced_event(), batch=Batch(max_events=1))
    run(store, traced_event(), traced_event(), batch=Batch(max_events=2))

    assert found == [(1, TRACE_ID), (2, 0)]


def test_a_consumer_class_is_set_up_and_torn_down_as_ever(run: Run) -> None:
    lives: list[object] = []

    class Store(Consumer):
        def setup(self) -> None:
            lives.append("setup")

        def handle(self, _: Any, /) -> None:
            lives.append(span_context().trace_id)

        def teardown(self) -> None:
            lives.append("teardown")

    run(Store(), traced_event())

    assert lives == ["setup", TRACE_ID, "teardown"]


class AsyncStore(Consumer):
    """Writes its life down."""

    def __init__(self) -> None:
        self.lives: list[object] = []

    async def setup(self) -> None:
        self.lives.append("setup")

    async def handle(self, _: Any, /) -> None:
        self.lives.append(span_context().trace_id)

    async def teardown(self) -> None:
        self.lives.append("teardown")


def test_a_class_of_coroutines_is_set_up_and_torn_down_as_ever(run: Run) -> None:
    store = AsyncStore()

    run(store, traced_event())

    assert store.lives == ["setup", TRACE_ID, "teardown"]


def test_a_plain_function_that_gives_a_coroutine_is_refused_as_ever(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def later() -> None:
        """Never run."""

    run(lambda _: later(), traced_event())

    assert "returned a coroutine" in caplog.text


@pytest.mark.parametrize(
    "value",
    ["", "no", f"ff-{TRACE_ID:032x}-{SPAN_ID:016x}-01", f"00-{0:032x}-{1:016x}-01", 5, None, ["x"]],
)
def test_a_header_that_is_none_of_w3c_is_ignored(run: Run, value: Any) -> None:
    found: list[bool] = []

    run(lambda _: found.append(span_context().is_valid), traced_event(value))

    assert found == [False]


anything = st.none() | st.integers() | st.text() | st.lists(st.text())


@given(
    headers=st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage", "more"]), anything
    )
    | st.just({"traceparent": TRACEPARENT}),
    more=st.dictionaries(st.sampled_from(["tracestate", "baggage"]), st.text()),
)
def test_whatever_is_in_the_headers_a_context_can_be_made(
    headers: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    event = make_event(JobFinished, headers={**headers, **more})

    its = span_context(context_of(event))

    assert its.is_valid == (headers.get("traceparent") == TRACEPARENT)


def test_what_has_no_context_leaves_the_present_one_as_it_is() -> None:
    present = context.get_current()

    assert context_of(make_event(JobFinished)) is present
    assert context_of(Incident()) is present
    assert context_of(traced_event(5)) is present


PROGRAM = """
import json, sys
from celery import Celery
import celery_broadcast
from celery_broadcast import JobFinished, on_job_event

@on_job_event(JobFinished)
def store(event):
    pass

def charge():
    pass

app = Celery(broker="memory://", set_as_current=False)
app.conf.broadcast_enabled = True
app.conf.broadcast_opentelemetry = {on}
if {missing}:
    sys.modules["opentelemetry"] = None
celery_broadcast.install(app)
app.task(charge).apply()
celery_broadcast.drain()
loaded = [name for name in sys.modules if name.startswith("opentelemetry.")]
print(json.dumps([celery_broadcast.stats()["store"].handled, bool(loaded)]))
"""


def run_program(*, on: bool, missing: bool = False) -> tuple[list[Any], str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(on=on, missing=missing)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout), ran.stderr


def test_opentelemetry_is_loaded_only_where_it_is_switched_on() -> None:
    assert run_program(on=False)[0] == [1, False]
    assert run_program(on=True)[0] == [1, True]


def test_where_it_is_not_installed_consumers_run_and_it_is_said() -> None:
    (handled, _), log = run_program(on=True, missing=True)

    assert handled == 1
    assert "celery-broadcast[otel]" in log
