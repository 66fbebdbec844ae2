"""What one would take instead, and the broadcast itself, each behind the same few functions.

Each is used through its public API, as its documentation says, and made so that
it loses nothing: its queues hold all that is published. Each handler has a
thread of its own, or a pool has as many as there are handlers.

pyee's plain `EventEmitter` and blinker's plain `send` are no peers: they call
the handlers one after the other on the thread that publishes, which here is the
one that runs the job. So pyee runs with its `ExecutorEventEmitter`, and
blinker's receivers put the event into a queue.
"""

from __future__ import annotations

import logging.handlers
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import blinker
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from pyee.executor import ExecutorEventEmitter
from reactivex import operators
from reactivex.scheduler import ThreadPoolScheduler
from reactivex.subject import Subject

import celery_broadcast
from celery_broadcast.events import JobEvent
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import registry

#: The most events in a burst: they fit into the default mailbox.
MOST_EVENTS = 8192

Handler: TypeAlias = Callable[[Any], None]


def _do_nothing() -> None:
    """Have nothing to flush."""


def _call_each(functions: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Return what calls one after the other."""

    def call_each() -> None:
        for function in functions:
            function()

    return call_each


def _as_it_is(event: JobEvent) -> object:
    return event


@dataclass(frozen=True)
class Outlet:
    """Where events go in, on their way to each of some handlers.

    Attributes:
        publish: publishes an event; all calls come from one thread.
        stop: lets go of its threads, once all is handled.
        flush: hands over at once what else waits for a timer.
        wrap: makes of an event what `publish` takes, before any time is taken.
    """

    publish: Callable[[Any], object]
    stop: Callable[[], object]
    flush: Callable[[], object] = _do_nothing
    wrap: Callable[[JobEvent], object] = _as_it_is


def broadcast(handlers: Sequence[Handler]) -> Outlet:
    """Have a consumer of the broadcast for each, with the default settings."""

    def declare() -> None:
        for number, handler in enumerate(handlers):
            celery_broadcast.on_job_event(name=f"consumer-{number}")(handler)

    return started_broadcast(declare)


def started_broadcast(declare: Callable[[], None]) -> Outlet:
    """Have a broadcast of its own for the consumers that this declares."""
    registry.clear()
    declare()
    producer = Producer(Settings(), registry)

    def stop() -> None:
        producer.drain()
        registry.clear()

    return Outlet(producer.notify, stop)


def blinker_and_queues(handlers: Sequence[Handler]) -> Outlet:
    """Have a receiver of a blinker signal for each, with a queue and a thread behind it."""
    signal = blinker.Signal()
    stops: list[Callable[[], object]] = []
    for handler in handlers:
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def serve(waiting: queue.SimpleQueue[Any] = waiting, handler: Handler = handler) -> None:
            while (event := waiting.get()) is not None:
                handler(event)

        signal.connect(waiting.put, weak=False)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        stops += [partial(waiting.put, None), thread.join]

    return Outlet(signal.send, _call_each(stops))


class _HandlerOfRecords(logging.Handler):
    """A handler of logging that only handles."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handle = handler  # type: ignore[assignment]  # leaner than to override it


def queue_listeners(handlers: Sequence[Handler]) -> Outlet:
    """Have a `QueueListener` for each, with a queue of its own."""
    # As in the documentation of logging: no limit on size.
    queues: list[queue.Queue[Any]] = [queue.Queue(-1) for _ in handlers]
    listeners = [
        logging.handlers.QueueListener(waiting, _HandlerOfRecords(handler))
        for waiting, handler in zip(queues, handlers, strict=True)
    ]
    for listener in listeners:
        listener.start()

    def publish(event: Any) -> None:
        for waiting in queues:
            waiting.put_nowait(event)

    return Outlet(publish, _call_each([listener.stop for listener in listeners]))


def thread_pool(handlers: Sequence[Handler]) -> Outlet:
    """Submit a call of each to a `ThreadPoolExecutor`."""
    executor = ThreadPoolExecutor(len(handlers))

    def publish(event: Any) -> None:
        for handler in handlers:
            executor.submit(handler, event)

    return Outlet(publish, executor.shutdown)


def pyee_emitter(handlers: Sequence[Handler]) -> Outlet:
    """Have each listen to pyee's emitter with an executor."""
    emitter = ExecutorEventEmitter(ThreadPoolExecutor(len(handlers)))
    for handler in handlers:
        emitter.add_listener("job", handler)
    return Outlet(lambda event: emitter.emit("job", event), emitter.shutdown)


def reactivex_subject(handlers: Sequence[Handler]) -> Outlet:
    """Have each observe a subject of reactivex on a pool of threads."""
    scheduler = ThreadPoolScheduler(len(handlers))
    subject: Subject[Any] = Subject()
    for handler in handlers:
        subject.pipe(operators.observe_on(scheduler)).subscribe(handler)

    def stop() -> None:
        subject.on_completed()
        scheduler.executor.shutdown()

    return Outlet(subject.on_next, stop)


class _ExporterToHandler(SpanExporter):
    """Exports spans to a handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        handler = self._handler
        for span in spans:
            handler(span)
        return SpanExportResult.SUCCESS


# Of the two public processors of OpenTelemetry's SDK around its `BatchProcessor`
# this is the leaner one: the other copies every record.
def opentelemetry_processors(handlers: Sequence[Handler]) -> Outlet:
    """Have a processor of OpenTelemetry's SDK for each, that batches."""
    processors = [
        BatchSpanProcessor(_ExporterToHandler(handler), max_queue_size=2 * MOST_EVENTS)
        for handler in handlers
    ]

    def publish(span: ReadableSpan) -> None:
        for processor in processors:
            processor.on_end(span)

    return Outlet(
        publish,
        stop=_call_each([processor.shutdown for processor in processors]),
        flush=_call_each([processor.force_flush for processor in processors]),
        wrap=_as_span,
    )


_SAMPLED = SpanContext(
    trace_id=1, span_id=1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
)


_RESOURCE = Resource({})


def _as_span(event: JobEvent) -> ReadableSpan:
    told = {"task_id": event.task_id}
    return ReadableSpan(event.task_name, _SAMPLED, resource=_RESOURCE, attributes=told)


BROADCAST = "the broadcast"

#: What makes the outlet of each, by its name.
OUTLETS: Mapping[str, Callable[[Sequence[Handler]], Outlet]] = {
    BROADCAST: broadcast,
    "blinker, queues": blinker_and_queues,
    "QueueListener": queue_listeners,
    "ThreadPoolExecutor": thread_pool,
    "pyee": pyee_emitter,
    "reactivex": reactivex_subject,
    "OpenTelemetry": opentelemetry_processors,
}
