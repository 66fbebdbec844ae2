"""Real consumers with known manners, and events to feed them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from celery_broadcast import testing
from celery_broadcast.consumer import Consumer, FunctionConsumer
from celery_broadcast.events import Event, JobEvent, JobFinished
from celery_broadcast.options import is_coroutine_function
from celery_broadcast.selection import Selection
from celery_broadcast.subscription import Subscription

E = TypeVar("E", bound=JobEvent)


def make_event(event_type: type[E], task_name: str = "shop.charge", **fields: Any) -> E:
    """Make an event out of as little as the test cares about; it started long ago."""
    return testing.make_event(event_type, **{"task_name": task_name, "started_at": 100.0, **fields})


def numbered(count: int) -> list[JobFinished]:
    """Make events whose `task_id` is "0", "1" and so on."""
    return [make_event(JobFinished, task_id=str(number)) for number in range(count)]


def subscribe(
    consumer: Callable[[Any], object] | Consumer,
    name: str,
    events: tuple[type[Event], ...] = (JobEvent,),
    tasks: tuple[str, ...] = (),
    queues: tuple[str, ...] = (),
    **options: Any,
) -> Subscription:
    """Subscribe an instance or a function, without the registry of the process."""
    instance = consumer if isinstance(consumer, Consumer) else FunctionConsumer(consumer)
    called = consumer.handle if isinstance(consumer, Consumer) else consumer
    return Subscription(
        name=name,
        make_consumer=lambda: instance,
        selection=Selection(events=events, tasks=tasks, queues=queues),
        is_async=is_coroutine_function(called),
        **options,
    )


class Recorder(Consumer):
    """Keeps what it gets, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.threads: set[str] = set()
        self.lives: list[str] = []
        self._changed = threading.Condition()

    def setup(self) -> None:
        self.lives.append("setup")

    def teardown(self) -> None:
        self.lives.append("teardown")

    def handle(self, event: JobEvent) -> None:
        with self._changed:
            self.events.append(event)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait_for(self, count: int, timeout_seconds: float = 60.0) -> list[JobEvent]:
        """Return the events as soon as there are `count` of them."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.events) >= count, timeout_seconds)
        assert arrived, f"{len(self.events)} of {count} events after {timeout_seconds} s"
        return self.events

    @property
    def task_ids(self) -> list[str]:
        return [event.task_id for event in self.events]


class HeldRecorder(Recorder):
    """Is held by its first event, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.freed = threading.Event()

    def handle(self, event: JobEvent) -> None:
        self.held.set()
        assert self.freed.wait(60.0)
        super().handle(event)


class BrokenConsumer(Consumer):
    """Raises on every event."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def handle(self, event: JobEvent) -> None:
        raise self._error


class StuckConsumer(Consumer):
    """Never returns from its first event, until the test is over and frees it."""

    def __init__(self) -> None:
        self.stuck = threading.Event()
        self.freed = threading.Event()

    def handle(self, event: JobEvent) -> None:
        self.stuck.set()
        self.freed.wait(60.0)
