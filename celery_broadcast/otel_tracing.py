"""The trace context of a job, current while a consumer handles its event."""

from __future__ import annotations

import inspect
from typing import Any

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from celery_broadcast.consumer import Consumer
from celery_broadcast.events import JobEvent

_w3c = TraceContextTextMapPropagator()


def context_of(event: Any) -> Context:
    """Return the present context, with that of an event's job in it, as its headers say it.

    The headers are read by OpenTelemetry's global propagators, by default those
    of W3C's trace context and baggage; of an event that came from a broker, W3C's
    trace context alone, since nothing else comes as it was. Without any that fit,
    and for an event that isn't a job's, it is the present context.

    ```python
    links = [trace.Link(trace.get_current_span(context_of(event)).get_span_context())]
    ```
    """
    present = context.get_current()
    headers = event.headers if isinstance(event, JobEvent) else None
    if not headers:
        return present
    propagator = _w3c if event.event_id else propagate.get_global_textmap()
    # A client that is not Celery may have sent anything in them.
    carrier = {
        field: headers[field] for field in propagator.fields if isinstance(headers.get(field), str)
    }
    return propagator.extract(carrier, context=present) if carrier else present


def _context_for(argument: Any) -> Context | None:
    """Return the context to handle this in; None is the present one.

    A batch has as many parents as jobs, and a span can't: only one of a single
    event has that event's.
    """
    if isinstance(argument, list):
        if len(argument) != 1:
            return None
        argument = argument[0]
    return context_of(argument)


class TracedConsumer(Consumer):
    """A consumer of plain functions, each call of which is in the context of its event's job.

    Args:
        consumer: the consumer; it is set up already.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def handle(self, argument: Any, /) -> Any:
        """Call it; on the consumer's own thread."""
        its = _context_for(argument)
        if its is None:
            return self._consumer.handle(argument)
        token = context.attach(its)
        try:
            return self._consumer.handle(argument)
        finally:
            context.detach(token)

    def teardown(self) -> Any:
        """Tear it down."""
        return self._consumer.teardown()


class TracedCoroutineConsumer(TracedConsumer):
    """The same of coroutines; each call is a task of asyncio, with a context of its own."""

    async def handle(self, argument: Any, /) -> Any:
        """Call it and wait for its end; in the task that handles the event."""
        its = _context_for(argument)
        token = None if its is None else context.attach(its)
        try:
            result = self._consumer.handle(argument)
            return await result if inspect.isawaitable(result) else result
        finally:
            if token is not None:
                context.detach(token)
