"""Where the worker's processes are watched: the only place that looks inside of the package.

Two methods are wrapped: those by which events reach their consumers, on the
broadcast's own threads. They go into the journal before, so no consumer can have
got one that isn't there, and the end of an attempt once more after: from then
on the process may die, and no other one has an end to tell.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from celery_broadcast.dispatcher import Item, Route, delivery_of
from celery_broadcast.events import Event, JobEnded, JobEvent
from celery_broadcast.producer import Producer
from chaos.journal import Closed, Pen, Published


def observe(pen: Pen) -> None:
    """Write down what this process publishes, and what each that is forked from it does."""
    deliver, move_event = Producer._deliver, Producer._move_event

    @contextlib.contextmanager
    def written_down(events: Sequence[Event]) -> Iterator[None]:
        for event in events:
            assert isinstance(event, JobEvent)  # its app has no others
            pen.write(
                Published(
                    event=type(event).__name__,
                    task_name=event.task_name,
                    task_id=event.task_id,
                    pid=event.pid,
                    started_at=event.started_at,
                )
            )
        yield
        for event in events:
            if isinstance(event, JobEnded):
                pen.write(
                    Closed(
                        event=type(event).__name__,
                        task_id=event.task_id,
                        pid=event.pid,
                        started_at=event.started_at,
                    )
                )

    @functools.wraps(deliver)
    def deliver_and_say_so(
        self: Producer, items: list[Item], failed: Callable[[Item, Exception], None]
    ) -> AbstractSet[str]:
        with written_down([delivery_of(item).event for item in items]):
            return deliver(self, items, failed)

    @functools.wraps(move_event)
    def move_event_and_say_so(self: Producer, event: Event, route: Route) -> None:
        with written_down([event]):
            move_event(self, event, route)

    Producer._deliver = deliver_and_say_so  # type: ignore[method-assign]
    Producer._move_event = move_event_and_say_so  # type: ignore[method-assign]
