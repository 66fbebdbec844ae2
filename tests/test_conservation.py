"""offered == handled + failed + dropped + pending, at every moment, whatever is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from crews import conserved, declared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder import make_event

from celery_broadcast.batch import Batch
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, GAVE_UP, MAILBOX_FULL, STOPPED
from celery_broadcast.events import JobEvent, JobFinished
from celery_broadcast.producer import Producer
from celery_broadcast.restarts import Restart
from celery_broadcast.retry import Retry
from celery_broadcast.subscription import Subscription

MakeProducer = Callable[..., Producer]

#: Restarts that come at once, and hardly an end to them.
AGAIN_AND_AGAIN = Restart(max_restarts=1_000, within=1.0)


class Manners:
    """What a consumer does with an event, as its number says; and whom it was called with."""

    def __init__(self, errors: list[type[BaseException] | None]) -> None:
        self.errors = errors
        self.called_with: Counter[str] = Counter()

    def meet(self, what: Any) -> None:
        events = what if isinstance(what, list) else [what]
        assert events
        self.called_with.update(event.task_id for event in events)
        error = self.errors[int(events[0].task_id) % len(self.errors)]
        if error is not None:
            raise error

    def plain(self, what: Any) -> None:
        self.meet(what)

    async def coroutine(self, what: Any) -> None:
        await asyncio.sleep(0)
        self.meet(what)


def is_odd(event: JobEvent) -> bool:
    return bool(int(event.task_id) % 2)


def by_remainder(event: JobEvent) -> int:
    return int(event.task_id) % 3


option_sets = st.fixed_dictionaries(
    {
        "mailbox_size": st.sampled_from([1, 5, None]),
        "overflow": st.sampled_from(["drop_oldest", "drop_newest"]),
        "selector": st.sampled_from([None, is_odd, lambda event: 1 / (int(event.task_id) % 4)]),
        "concurrency": st.sampled_from([1, 2, 4]),
        "retry": st.sampled_from([None, Retry(attempts=2, wait=0.0)]),
        "rate_limit": st.sampled_from([None, "100000/s"]),
        "stuck_after": st.sampled_from([None, 0.001]),
        "restart": st.sampled_from([AGAIN_AND_AGAIN, Restart("temporary")]),
        "batch": st.sampled_from([None, Batch(max_events=3, max_wait=0.001)]),
        "partition_by": st.sampled_from([None, by_remainder]),
    }
)
errors = st.lists(
    st.sampled_from([None, None, None, OSError, SystemExit, asyncio.CancelledError]), min_size=1
)


def subscription_of(
    name: str, manners: Manners, options: dict[str, Any], *, is_async: bool
) -> Subscription:
    if options["concurrency"] == 1 or options["batch"] is not None:
        options = {**options, "partition_by": None}
    consumer = manners.coroutine if is_async else manners.plain
    return declared(consumer, **{**options, "name": name})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(option_sets, errors, st.booleans()), min_size=1, max_size=4),
    count=st.integers(1, 80),
    cancel_after=st.integers(0, 120),
    drain_seconds=st.sampled_from([0.0, 10.0]),
)
def test_every_event_is_accounted_for_at_every_moment(
    make_producer: MakeProducer,
    asked: list[tuple[dict[str, Any], list[type[BaseException] | None], bool]],
    count: int,
    cancel_after: int,
    drain_seconds: float,
) -> None:
    everybody = [Manners(errors) for _, errors, _ in asked]
    subscriptions = [
        subscription_of(f"consumer-{number}", manners, options, is_async=is_async)
        for number, (manners, (options, _, is_async)) in enumerate(
            zip(everybody, asked, strict=True)
        )
    ]
    producer = make_producer(*subscriptions)

    for number in range(count):
        producer.notify(make_event(JobFinished, task_id=str(number)))
        if number == cancel_after:
            subscriptions[0].switch.cancel()
        assert all(conserved(stats) for stats in producer.stats().values())
    drained = producer.drain(drain_seconds)

    for subscription, manners in zip(subscriptions, everybody, strict=True):
        stats = producer.stats()[subscription.name]
        assert conserved(stats)
        assert stats.pending == 0
        assert set(stats.dropped) <= {MAILBOX_FULL, GAVE_UP, CANCELLED, DRAIN_TIMEOUT, STOPPED}
        assert stats.offered == count or subscription is subscriptions[0]
        attempts = 1 if subscription.retry is None else 2
        assert all(times <= attempts for times in manners.called_with.values())
        if DRAIN_TIMEOUT not in stats.dropped and GAVE_UP not in stats.dropped:
            assert stats.handled - stats.declined <= len(manners.called_with)
    assert drained.left == 0 or drain_seconds == 0.0
