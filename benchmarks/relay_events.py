"""Events per second of one core, through Redis to a remote consumer and acknowledged.

Published: from `Producer.notify` in the process that runs the jobs, through the
mailbox and the batches of the relay, to the answer of Redis. Consumed: from the
reading by `celery broadcast consume`, through the decoding and the consumer's
thread, to the answer of Redis that it has the acknowledgement. Both run in this
process, one after the other, and what counts is the processor time that it takes,
of all its threads; Redis, a process of its own, is not in it.

The peer is a topic exchange of kombu on the same Redis, which is what one has
without another package: a durable queue that takes every key, JSON, and an
acknowledgement of each message. Its publisher gets
dictionaries that are made already, of the same events, and its consumer gets
dictionaries. It has one event in a message, as an event is published when it
happens; beside it stands the same with a hundred in a message, as the relay's
batches have them, which one would have to collect oneself.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import msgspec
from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue
from kombu import Producer as Sender
from nodes.redis_process import RedisProcess
from redis import Redis

from benchmarks.measure import Comparison, measure_all_in_turn
from benchmarks.memory import new_event
from celery_broadcast.consumer import FunctionConsumer
from celery_broadcast.events import JobEvent, JobStarted
from celery_broadcast.producer import Producer
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.consuming import Consuming, group_of
from celery_broadcast.relay.outgoing import BATCH, subscription_of
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry, Subscription

TURNS = 2
EVENTS = 10_000
EVENTS_ALONE = 400  # each in a message, which takes kombu the better part of a millisecond
DEADLINE_SECONDS = 30.0

OURS = "the relay"
ALONE = "kombu, 1 event a message"
PACKED = f"kombu, {BATCH.max_events} events a message"
BOTH, PUBLISHED, CONSUMED = PARTS = ("published and consumed", "published", "consumed")

#: Carries events; returns the processor's seconds of the publishing, and of the rest.
Carry: TypeAlias = Callable[[Sequence[JobEvent]], tuple[float, float]]


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisProcess())
        ways = ways_through(server.url)
        gc.collect()
        gc.freeze()  # else whoever makes more objects pays for a look at all these events
        stack.callback(gc.unfreeze)
        measured = measure_all_in_turn(
            [partial(thousands_per_second, *way) for way in ways],
            unit="1,000/s of a core",
            rounds=rounds,
            turns=TURNS,
        )
    return [
        measured.compare(
            f"{OURS}, {part}",
            f"{peer}, {part}",
            at_least=5.0 if (peer, part) == (ALONE, BOTH) else None,
        )
        for part in PARTS
        for peer in (ALONE, PACKED)
    ]


def ways_through(url: str) -> list[tuple[str, Carry, Sequence[JobEvent]]]:
    """Return each way through this Redis by its name, with events to carry; all is imported."""
    events = events_of_jobs(EVENTS)
    ways: list[tuple[str, Carry, Sequence[JobEvent]]] = [
        (OURS, partial(through_relay, url), events),
        (ALONE, partial(through_kombu, url, 1), events[:EVENTS_ALONE]),
        (PACKED, partial(through_kombu, url, BATCH.max_events), events),
    ]
    for _, carry, some in ways:
        carry(some[:EVENTS_ALONE])
    return ways


def events_of_jobs(count: int) -> list[JobEvent]:
    """Make the starts and ends of jobs in turn, as a worker does."""
    events: list[JobEvent] = []
    for _ in range(count // 2):
        end = new_event()
        known = msgspec.structs.asdict(end)
        start = JobStarted(
            **{field.name: known[field.name] for field in msgspec.structs.fields(JobStarted)}
        )
        events += [start, end]
    return events


def thousands_per_second(name: str, carry: Carry, events: Sequence[JobEvent]) -> dict[str, float]:
    """Return thousands of events per second of a core, by the names of the measurements."""
    publishing, consuming = carry(events)
    seconds = {PUBLISHED: publishing, CONSUMED: consuming, BOTH: publishing + consuming}
    return {f"{name}, {part}": len(events) / seconds[part] / 1000 for part in PARTS}


class Counter:
    """A handler that does nothing else.

    Attributes:
        has_all: set when it has had the expected number.
        count: how many it has had.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.has_all = threading.Event()
        self.count = 0

    def handle(self, _: object) -> None:
        """Count."""
        self.count += 1
        if self.count == self._expected:
            self.has_all.set()


def through_relay(url: str, events: Sequence[JobEvent]) -> tuple[float, float]:
    """Carry events through the relay.

    Raises:
        RuntimeError: they did not all arrive, each once.
    """
    empty(url)
    app = Celery(broker=url, set_as_current=False)
    settings = Settings(mailbox_size=None)  # so that the whole burst has room
    choice = Choice(lambda: app, settings)
    counter = Counter(len(events))
    consumer = Subscription(
        name="benchmark", make_consumer=lambda: FunctionConsumer(counter.handle), remote=True
    )
    _declare(choice, consumer)
    gc.collect()
    publishing = _seconds_of(partial(_publish, choice, settings, consumer, events))
    consuming = Consuming([consumer], settings, choice.new_transport, choice.limits())

    def consume() -> None:
        consuming.start()
        counter.has_all.wait(DEADLINE_SECONDS)
        consuming.stop()  # acknowledges

    seconds = _seconds_of(consume)
    counts = consuming.incoming[0].counts
    if (counter.count, counts["events"]) != (len(events), len(events)):
        message = f"Of {len(events)} events the relay handled {counter.count}: {counts}."
        raise RuntimeError(message)
    return publishing, seconds


def _declare(choice: Choice, consumer: Subscription) -> None:
    transport = choice.new_transport()
    transport.declare(group_of(consumer))
    transport.close()


def _publish(
    choice: Choice, settings: Settings, consumer: Subscription, events: Sequence[JobEvent]
) -> None:
    """Publish events as the process does that runs the jobs.

    Raises:
        RuntimeError: they aren't all sent.
    """
    registry = Registry()
    registry.subscriptions = (consumer,)
    here = Producer(settings, registry, relay=partial(subscription_of, choice))
    for event in events:
        here.notify(event)
    here.drain(DEADLINE_SECONDS)
    stats = here.stats()["relay"]
    if stats.handled != len(events):
        message = f"The relay should have sent {len(events)} events, but: {stats}."
        raise RuntimeError(message)


def through_kombu(url: str, size: int, events: Sequence[JobEvent]) -> tuple[float, float]:
    """Carry events through a topic exchange, so many in a message.

    Raises:
        TimeoutError: they did not all arrive.
    """
    empty(url)
    bodies: list[Any] = [_as_dictionary(event) for event in events]
    if size > 1:
        bodies = [bodies[start : start + size] for start in range(0, len(bodies), size)]
    gc.collect()
    exchange = Exchange("benchmark", type="topic", durable=True)
    queue = Queue("benchmark", exchange, routing_key="#", durable=True)
    counter = Counter(len(events))

    def handle(body: Any, message: Any) -> None:
        for each in body if size > 1 else (body,):
            counter.handle(each)
        message.ack()

    with Connection(url) as connection, connection.channel() as channel:
        queue(channel).declare()
        sender = Sender(channel, exchange, serializer="json")

        def publish() -> None:
            for body in bodies:
                sender.publish(body, routing_key="job.event")

        def consume() -> None:
            with Consumer(channel, [queue], callbacks=[handle], accept=["json"]):
                while not counter.has_all.is_set():
                    connection.drain_events(timeout=DEADLINE_SECONDS)

        return _seconds_of(publish), _seconds_of(consume)


def _as_dictionary(event: JobEvent) -> Mapping[str, Any]:
    """Return an event as Celery's own events are: with what is known of it, and no more."""
    known: dict[str, Any] = msgspec.to_builtins(event)
    return {
        "type": type(event).__name__,
        **{name: value for name, value in known.items() if value is not None},
    }


def empty(url: str) -> None:
    """Have Redis forget all it has."""
    with Redis.from_url(url) as redis:
        redis.flushall()


def _seconds_of(function: Callable[[], None]) -> float:
    """Return the processor time of this process, of all its threads, while it is called."""
    start = time.process_time()
    function()
    return time.process_time() - start
