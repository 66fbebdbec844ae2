"""Subscribing at run time: from anywhere, at any moment, as wrongly as one can."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import broadcast_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered
from test_switch import conserved

import celery_broadcast
from celery_broadcast import Consumer, Subscription
from celery_broadcast.counts import CANCELLED
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import JobEvent, JobFailed, JobFinished
from celery_broadcast.subscription import registry


def page_oncall(event: JobFailed) -> None: ...


def test_whoever_subscribes_gets_the_subscription_that_is_in_force() -> None:
    subscription = celery_broadcast.subscribe(page_oncall, JobFailed, task="shop.*")

    assert isinstance(subscription, Subscription)
    assert registry.subscriptions == (subscription,)
    assert subscription.name == "page_oncall"
    assert subscription.selection.events == (JobFailed,)
    assert subscription.selection.tasks == ("shop.*",)


def test_a_subscription_knows_the_line_that_made_it() -> None:
    subscription = celery_broadcast.subscribe(page_oncall, JobFailed)

    file, _, line = subscription.declared_at.rpartition(":")
    assert file == __file__
    assert "subscribe(page_oncall, JobFailed)" in Path(file).read_text().splitlines()[int(line) - 1]


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_subscriber_gets_what_it_wants_from_then_on() -> None:
    early, late = Recorder(), Recorder()
    celery_broadcast.subscribe(early.handle, name="early")
    celery_broadcast.notify(make_event(JobFailed, task_id="1"))
    early.wait_for(1)

    celery_broadcast.subscribe(late.handle, JobFailed, name="late", task="shop.*")
    celery_broadcast.notify(make_event(JobFinished, task_id="2"))
    celery_broadcast.notify(make_event(JobFailed, task_name="mail.send", task_id="3"))
    celery_broadcast.notify(make_event(JobFailed, task_id="4"))
    celery_broadcast.drain()

    assert early.task_ids == ["1", "2", "3", "4"]
    assert late.task_ids == ["4"]


@pytest.mark.usefixtures("broadcast_is_on")
def test_what_was_subscribed_before_the_broadcast_was_on_is_called_as_it_is() -> None:
    recorder = Recorder()
    with celery_broadcast.broadcasting(enabled=False):
        celery_broadcast.subscribe(recorder.handle, name="store")
        celery_broadcast.notify(make_event(JobFinished, task_id="off"))
        assert broadcast_threads() == []

    celery_broadcast.notify(make_event(JobFinished, task_id="on"))
    celery_broadcast.drain()

    assert recorder.task_ids == ["on"]


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_class_is_made_and_set_up_on_a_thread_of_its_own() -> None:
    lives: list[str] = []

    class Store(Consumer):
        def __init__(self) -> None:
            lives.append(threading.current_thread().name)

        def handle(self, event: JobEvent) -> None:
            lives.append(event.task_id)

    celery_broadcast.subscribe(Store, JobFinished)
    assert lives == []
    celery_broadcast.notify(make_event(JobFinished, task_id="1"))
    celery_broadcast.drain()

    assert lives == ["broadcast:Store", "1"]


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_consumer_may_subscribe_another_one() -> None:
    recorder = Recorder()

    def subscribe_once(event: JobEvent) -> None:
        if event.task_id == "0":
            celery_broadcast.subscribe(recorder.handle, name="recorder")

    celery_broadcast.subscribe(subscribe_once, name="first")
    celery_broadcast.notify(make_event(JobFinished, task_id="0"))
    wait_until(lambda: len(registry.subscriptions) == 2)
    celery_broadcast.notify(make_event(JobFinished, task_id="1"))
    celery_broadcast.drain()

    assert recorder.task_ids == ["1"]


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_subscription_outlives_a_drain() -> None:
    recorder = Recorder()
    celery_broadcast.subscribe(recorder.handle, name="store")

    for event in numbered(2):
        celery_broadcast.notify(event)
        celery_broadcast.drain()

    assert recorder.task_ids == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("page_oncall",),
            {},
            (
                "subscribe got 'page_oncall'. Pass a function or a Consumer class, "
                "and the event types after it."
            ),
        ),
        (
            (JobFailed,),
            {},
            "JobFailed is an event type, not a consumer. Write: subscribe(function, JobFailed).",
        ),
        (
            (lambda _: None, JobFailed),
            {},
            'has no name of its own. Give it one: subscribe(..., name="...").',
        ),
        (
            (page_oncall, "JobFailed"),
            {},
            (
                "subscribe got 'JobFailed' (str). "
                "Pass the class: from celery_broadcast import JobFailed."
            ),
        ),
        (
            (page_oncall,),
            {"taks": "shop.*"},
            "subscribe has no option 'taks'. Did you mean 'task'?",
        ),
        (
            (page_oncall,),
            {"partition_by": lambda event: event.task_id},
            (
                "partition_by= changes nothing without concurrency=: one event after the other, "
                "all stay in order. Write how many run at once, such as concurrency=4."
            ),
        ),
    ],
    # Not as they are shown: an address is another one in each process.
    ids=[
        *("no consumer", "an event type", "no name", "the name of an event type"),
        *("an option that is none", "a key without concurrency"),
    ],
)
def test_a_wrong_subscription_is_an_error_that_tells_what_to_write(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    subscribe: Any = celery_broadcast.subscribe

    with pytest.raises(ConfigurationError) as caught:
        subscribe(*arguments, **options)

    assert str(caught.value).endswith(message)
    assert registry.subscriptions == ()


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_subscription_that_is_refused_leaves_the_first_one_as_it_was() -> None:
    recorder = Recorder()
    first = celery_broadcast.subscribe(recorder.handle, name="store")

    with pytest.raises(ConfigurationError) as caught:
        celery_broadcast.subscribe(print, name="store")
    celery_broadcast.notify(make_event(JobFinished))

    assert first.declared_at in str(caught.value)
    assert "Two consumers are named 'store'" in str(caught.value)
    recorder.wait_for(1)
    assert registry.subscriptions == (first,)


def test_subscribing_the_same_function_twice_needs_two_names() -> None:
    def subscribe_again(name: str | None = None) -> Subscription:
        return celery_broadcast.subscribe(page_oncall, JobFailed, name=name)

    subscribe_again()
    with pytest.raises(ConfigurationError, match="Two consumers are named 'page_oncall'"):
        subscribe_again()
    subscribe_again("page_oncall-2")

    assert [each.name for each in registry.subscriptions] == ["page_oncall", "page_oncall-2"]


def test_what_has_no_code_of_its_own_is_not_replaced_in_a_loop() -> None:
    for number in range(2):
        name = f"print-{number}"
        celery_broadcast.subscribe(print, name=name)
    with pytest.raises(ConfigurationError):
        celery_broadcast.subscribe(print, name=name)

    assert len(registry.subscriptions) == 2


class Process:
    """What a subscription's user may do, in any order; a reference that keeps the books."""

    def __init__(self) -> None:
        self.recorder, self.witness = Recorder(), Recorder()
        celery_broadcast.subscribe(self.witness.handle, name="witness")
        self.subscription: Subscription | None = None
        self.published = 0
        self.wanted: list[str] = []

    def subscribe(self) -> None:
        if self.subscription is None:
            self.subscription = celery_broadcast.subscribe(self.recorder.handle, name="store")

    def cancel(self) -> None:
        if self.subscription is not None:
            assert self.subscription.cancel(timeout=10.0)
            self.subscription = None
            self.seen_at_cancel = len(self.recorder.events)

    def pause(self) -> None:
        if self.subscription is not None:
            self.subscription.pause()

    def resume(self) -> None:
        if self.subscription is not None:
            self.subscription.resume()

    def notify(self) -> None:
        event = make_event(JobFinished, task_id=str(self.published))
        self.published += 1
        if self.subscription is not None:
            self.wanted.append(event.task_id)
        celery_broadcast.notify(event)
        self.witness.wait_for(self.published)  # so whoever comes later is too late for it

    def drain(self) -> None:
        celery_broadcast.drain()


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from(["subscribe", "cancel", "pause", "resume", "notify", "notify", "drain"]),
        max_size=30,
    )
)
def test_whatever_is_done_to_a_subscription_its_events_come_once_in_order_and_are_counted(
    actions: list[str],
) -> None:
    registry.clear()
    process = Process()
    with celery_broadcast.broadcasting():
        for action in ["subscribe", *actions]:
            getattr(process, action)()
            if process.subscription is None:
                assert len(process.recorder.events) == process.seen_at_cancel
        celery_broadcast.drain()
        stats = celery_broadcast.stats()

    handled = process.recorder.task_ids
    assert handled == [task_id for task_id in process.wanted if task_id in set(handled)]
    if "store" in stats:
        assert conserved(stats["store"])
        assert stats["store"].handled == len(handled)
        assert not stats["store"].pending
        assert set(stats["store"].dropped) <= {CANCELLED}
        if not stats["store"].dropped and "cancel" not in actions:
            assert handled == process.wanted
