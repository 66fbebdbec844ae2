"""Events that are made up, and events that are kept, as a user's tests have them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery, signals
from conftest import broadcast_threads
from recorder import Recorder
from test_fork import in_child
from test_installation import receivers, run_one_job, task
from test_slots import as_in_a_child

import celery_broadcast
from celery_broadcast import muted, testing
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    Event,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobRetried,
    JobRevoked,
    JobStarted,
)
from celery_broadcast.slots import Slots
from celery_broadcast.subscription import registry
from celery_broadcast.testing import JobEvents, make_event

ENDS = [kind for kind in EVENT_TYPES.values() if issubclass(kind, JobEnded)]


class CardDeclinedError(Exception):
    pass


class OrderPaid(Event, frozen=True, kw_only=True):
    """An event of a user's own."""

    order: str
    amount: int
    rate: float
    gift: bool
    body: bytes
    coupon: str | None = None


class OrderSent(Event, frozen=True, kw_only=True):
    parcel: OrderPaid


# Events that are made up.


@pytest.mark.parametrize("event_type", EVENT_TYPES.values())
def test_an_event_needs_nothing_but_its_type(event_type: type[JobEvent]) -> None:
    event = make_event(event_type)

    assert type(event) is event_type
    assert event == make_event(event_type)
    for field in msgspec.structs.fields(event_type):
        if field.required:
            assert getattr(event, field.name) is not None


def test_an_event_has_the_fields_that_are_given() -> None:
    event = make_event(JobFailed, task_name="shop.refund", queue="eu", exception_message="no")

    assert (event.task_name, event.queue, event.exception_message) == ("shop.refund", "eu", "no")


@pytest.mark.parametrize("event_type", ENDS)
def test_an_end_comes_its_runtime_after_its_start(event_type: type[JobEnded]) -> None:
    for given in (
        {"runtime": 3.0},
        {"started_at": 100.0},
        {"ended_at": 100.0, "runtime": 2.0},
        {"started_at": 100.0, "runtime": 2.0},
        {"started_at": 100.0, "ended_at": 105.0},
    ):
        event = make_event(event_type, **given)

        assert event.started_at is not None
        assert event.ended_at == event.started_at + event.runtime
        assert {name: getattr(event, name) for name in given} == given


def test_an_end_that_is_all_given_is_as_given() -> None:
    event = make_event(JobFinished, started_at=1.0, ended_at=5.0, runtime=3.5)

    assert (event.started_at, event.ended_at, event.runtime) == (1.0, 5.0, 3.5)


@pytest.mark.parametrize("event_type", ENDS)
def test_an_end_that_never_started_ran_for_no_time(event_type: type[JobEnded]) -> None:
    event = make_event(event_type, started_at=None)

    assert (event.started_at, event.runtime) == (None, 0.0)
    assert event.ended_at > 0


def test_what_is_revoked_had_started_only_if_it_was_terminated() -> None:
    assert make_event(JobRevoked).started_at is None
    assert make_event(JobRevoked, expired=True).started_at is None
    assert make_event(JobRevoked, terminated=True).started_at is not None


@pytest.mark.parametrize("event_type", [JobFailed, JobRetried])
def test_the_type_of_an_exception_follows_from_its_class(
    event_type: type[JobFailed | JobRetried],
) -> None:
    assert make_event(event_type).exception_type == "Exception"
    event = make_event(event_type, exception_class=CardDeclinedError)
    assert event.exception_type == f"{__name__}.CardDeclinedError"
    assert make_event(event_type, exception_class=OSError).exception_type == "OSError"
    assert make_event(event_type, exception_type="shop.Gone").exception_type == "shop.Gone"


def test_an_event_of_your_own_is_made_up_too() -> None:
    assert make_event(OrderPaid, amount=5) == OrderPaid(
        order="", amount=5, rate=0.0, gift=False, body=b""
    )


def test_a_field_that_can_not_be_made_up_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="can't make up the field 'parcel' of OrderSent"):
        make_event(OrderSent)

    assert make_event(OrderSent, parcel=make_event(OrderPaid)).parcel.order == ""


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"JobFailed has no field 'exception'\. It has: .*exception_class"
    ):
        make_event(JobFailed, exception=OSError())


def test_what_is_no_event_type_is_refused() -> None:
    wrong: Any
    for wrong in ("JobFailed", OSError, make_event(JobFailed)):
        with pytest.raises(ConfigurationError, match="Pass an event type, such as JobFailed"):
            make_event(wrong)
        with pytest.raises(ConfigurationError, match="Pass an event type, such as JobFailed"):
            JobEvents().only(wrong)


# Events that are kept.


@pytest.fixture
def kept() -> JobEvents:
    events = JobEvents()
    events.add(make_event(JobStarted, task_name="shop.charge"))
    events.add(
        make_event(
            JobFailed,
            task_name="shop.charge",
            exception_class=OSError,
            exception_message="no money",
        )
    )
    return events


def test_what_is_kept_is_a_sequence(kept: JobEvents) -> None:
    started, failed = kept

    assert len(kept) == 2
    assert kept[0] is started
    assert kept[-1:] == [failed]
    assert failed in kept
    assert repr(kept) == "<JobEvents: JobStarted shop.charge[id-1], JobFailed shop.charge[id-1]>"
    assert repr(JobEvents()) == "<JobEvents: none>"


def test_what_is_kept_can_be_had_by_type(kept: JobEvents) -> None:
    assert kept.of(JobFailed) == [kept[1]]
    assert kept.of(JobEnded) == [kept[1]]
    assert kept.of(JobFinished, JobStarted) == [kept[0]]
    assert kept.of(JobFinished) == []


def test_the_only_one_of_a_type_is_given(kept: JobEvents) -> None:
    assert kept.only(JobFailed) is kept[1]


def test_if_there_is_none_the_error_lists_what_there_was(kept: JobEvents) -> None:
    with pytest.raises(AssertionError) as raised:
        kept.only(JobFinished)

    assert str(raised.value).splitlines() == [
        "one JobFinished was expected, none was published. There was:",
        "  JobStarted shop.charge[id-1]",
        "  JobFailed shop.charge[id-1]: OSError: no money",
    ]


def test_if_there_are_two_the_error_says_so(kept: JobEvents) -> None:
    with pytest.raises(AssertionError, match="one JobEvent was expected, 2 were published"):
        kept.only(JobEvent)


def test_what_is_cleared_is_gone(kept: JobEvents) -> None:
    kept.clear()

    assert len(kept) == 0
    with pytest.raises(AssertionError, match="There was: nothing at all"):
        kept.only(JobFailed)


def test_what_was_published_is_not_waited_for(kept: JobEvents) -> None:
    assert kept.wait_for(JobFailed, timeout=0) is kept[1]


def test_what_another_thread_publishes_is_waited_for() -> None:
    events, event = JobEvents(), make_event(JobFinished)
    threads = [threading.Thread(target=events.add, args=(make_event(JobStarted),))]
    threads += [threading.Thread(target=events.add, args=(event,))]
    for thread in threads:
        thread.start()

    assert events.wait_for(JobFinished, timeout=10.0) is event
    for thread in threads:
        thread.join()


def test_what_does_not_come_in_time_is_an_error_that_lists_what_came(kept: JobEvents) -> None:
    with pytest.raises(AssertionError) as raised:
        kept.wait_for(JobFinished, timeout=0.01)

    assert str(raised.value).startswith("no JobFinished was published in 0.01 s. There was:\n  Job")


def test_a_wait_without_a_valid_timeout_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="timeout must be a number of seconds"):
        JobEvents().wait_for(JobFailed, timeout="5s")  # type: ignore[arg-type]


# A block in which they are kept.


@pytest.fixture
def events() -> Iterator[JobEvents]:
    with testing.job_events() as events:
        yield events


def test_what_is_published_in_the_block_is_kept_without_a_thread(
    app: Celery, events: JobEvents
) -> None:
    run_one_job(app)

    assert [type(event) for event in events] == [JobStarted, JobFinished]
    assert broadcast_threads() == []
    assert celery_broadcast.stats() == {}
    assert celery_broadcast.drain().left == 0


def test_a_block_takes_over_from_an_app_whose_broadcast_is_on(broadcasting_app: Celery) -> None:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    before = receivers()

    with testing.job_events() as events:
        run_one_job(broadcasting_app)
    assert receivers() == before
    assert len(events) == 2

    celery_broadcast.drain()
    assert recorder.events == []
    run_one_job(broadcasting_app)
    celery_broadcast.drain()
    assert len(recorder.events) == 2
    assert len(events) == 2


def test_what_is_muted_is_not_kept(app: Celery, events: JobEvents) -> None:
    with muted():
        run_one_job(app)

    assert len(events) == 0


def test_what_is_published_twice_is_kept_once(app: Celery, events: JobEvents) -> None:
    """As when a soft time limit strikes a receiver, which then starts again."""
    declared = task(app, "job")

    receiver = next(
        receiver
        for (uid, _), receiver in signals.task_prerun.receivers
        if str(uid).startswith("celery_broadcast.")
    )

    def again(task: Any, task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
        receiver.__self__._start(task, task_id, args, kwargs, again=True)

    signals.task_prerun.connect(again)
    try:
        declared.delay()
    finally:
        signals.task_prerun.disconnect(again)

    assert [type(event) for event in events] == [JobStarted, JobFinished]


def test_what_is_kept_in_a_pool_process_is_told_for_its_main_process(app: Celery) -> None:
    slots = as_in_a_child(Slots(count=1))
    assert slots.mine is not None

    with testing.job_events() as events:
        bridge = celery_broadcast.installation._in_force()
        assert bridge is not None
        bridge._share(slots)
        run_one_job(app)

    assert len(events) == 2
    assert list(slots.mine.open_notes()) == []


def test_what_a_forked_child_publishes_stays_there(app: Celery, events: JobEvents) -> None:
    run_one_job(app)

    def child() -> int:
        run_one_job(app)
        return len(events)

    assert in_child(child) == 2
    assert len(events) == 2


def test_a_notice_of_the_broadcast_starts_no_thread(events: JobEvents) -> None:
    bridge = celery_broadcast.installation._in_force()
    assert bridge is not None

    bridge.producer.announce("attempt_lost", event=make_event(JobFailed))
    bridge.producer.report_died(1, {}, 0)

    assert broadcast_threads() == []


# A block in which the whole broadcast is on.


def test_the_whole_broadcast_is_on_in_a_block(app: Celery) -> None:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)

    with testing.broadcast() as broadcast:
        run_one_job(app)
        assert broadcast.drain(timeout=10).left == 0
        assert broadcast.stats()["recorder"].handled == 2
        run_one_job(app)

    assert len(recorder.events) == 4
    assert celery_broadcast.stats() == {}


def test_consumers_that_are_declared_in_the_block_are_forgotten_after_it(app: Celery) -> None:
    declared_before, declared_within = Recorder(), Recorder()
    celery_broadcast.on_job_event(name="before")(declared_before.handle)

    with testing.broadcast():
        celery_broadcast.on_job_event(name="within")(declared_within.handle)
        run_one_job(app)
    with testing.broadcast() as broadcast:
        run_one_job(app)
        assert set(broadcast.stats()) == {"before"}

    assert len(declared_before.events) == 4
    assert len(declared_within.events) == 2


def test_a_consumer_that_is_cancelled_in_the_block_stays_so_after_it(app: Celery) -> None:
    cancelled, other = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(cancelled.handle, name="store")
    with testing.broadcast():
        run_one_job(app)
        subscription.cancel()

    celery_broadcast.subscribe(other.handle, name="store")  # the name is free
    with testing.broadcast():
        run_one_job(app)

    assert len(other.events) == 2
    assert len(cancelled.events) <= 2


def test_a_stream_that_a_block_has_ended_stays_over_after_it(broadcasting_app: Celery) -> None:
    with celery_broadcast.stream() as events:
        with testing.broadcast():
            pass

        assert registry.subscriptions == ()
        assert list(events) == []
