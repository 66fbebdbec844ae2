"""What pausing, resuming and cancelling a subscription do while events come."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from conftest import broadcast_threads
from nodes.deadline import wait_until
from recorder import HeldRecorder, Recorder, make_event, numbered
from test_fork import in_child

import celery_broadcast
from celery_broadcast import Batch, Consumer, ConsumerStats, Subscription, notices
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, MAILBOX_FULL
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import Event, JobEvent, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry, registry
from celery_broadcast.switch import Switch

pytestmark = pytest.mark.usefixtures("broadcast_is_on")


def publish(count: int) -> None:
    for event in numbered(count):
        celery_broadcast.notify(event)


def stats(name: str = "store") -> ConsumerStats:
    return celery_broadcast.stats()[name]


def offered(count: int, name: str = "store") -> None:
    """Wait until so many events came as far as the consumer's mailbox."""
    wait_until(lambda: stats(name).offered == count)


def conserved(stats: ConsumerStats) -> bool:
    accounted = stats.handled + stats.failed + stats.dropped_total + stats.pending
    return stats.offered == accounted


@contextmanager
def another_thread(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run it on another thread during the block; at its end, wait for it."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield thread
    thread.join(10.0)
    assert not thread.is_alive()


def hold(name: str = "store", waiting: int = 0) -> tuple[HeldRecorder, Subscription]:
    """Return a consumer that has one event in hand, and so many that wait."""
    recorder = HeldRecorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name=name)
    before = celery_broadcast.stats()[name].offered
    publish(1 + waiting)
    assert recorder.held.wait(10.0)
    offered(before + 1 + waiting, name)
    return recorder, subscription


# Cancel.


def test_a_turn_reaches_every_broadcast_that_has_the_consumer() -> None:
    """That of a block, and the one around it, which still tells what had started before."""
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    around = Producer(Settings(), registry)
    subscription.pause()
    around.notify(make_event(JobFinished, task_id="around"))
    wait_until(lambda: around.stats()["store"].offered == 1)
    publish(1)
    offered(1)

    subscription.resume()
    recorder.wait_for(2)

    assert sorted(recorder.task_ids) == ["0", "around"]
    assert subscription.cancel()
    assert broadcast_threads() == ["broadcast", "broadcast"]
    around.drain()


def test_what_has_ended_is_no_longer_told_of_turns() -> None:
    subscription = celery_broadcast.subscribe(Recorder().handle, name="store")
    for _ in range(3):
        publish(1)
        celery_broadcast.drain()

    assert len(subscription.switch._attached) == 1


def test_a_cancel_waits_for_the_event_in_hand() -> None:
    recorder, subscription = hold()
    said: list[str] = []

    def cancel() -> None:
        assert subscription.cancel()
        said.append(f"cancelled after {len(recorder.events)} events")

    with another_thread(cancel) as canceller:
        wait_until(lambda: subscription.switch.is_cancelled)
        canceller.join(0.05)
        assert canceller.is_alive()
        recorder.freed.set()

    assert said == ["cancelled after 1 events"]
    assert stats().handled == 1


def test_after_a_cancel_the_consumer_gets_nothing() -> None:
    recorder, other = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    celery_broadcast.subscribe(other.handle, name="other")
    publish(3)
    recorder.wait_for(3)

    assert subscription.cancel()
    publish(3)
    other.wait_for(6)
    celery_broadcast.drain()

    assert len(recorder.events) == 3
    assert stats().offered == 3


def test_what_waits_at_a_cancel_is_dropped_and_counted_as_cancelled() -> None:
    recorder, subscription = hold(waiting=3)

    with another_thread(subscription.cancel):
        wait_until(lambda: stats().dropped == {CANCELLED: 3})
        recorder.freed.set()

    assert recorder.task_ids == ["0"]
    assert (stats().handled, stats().pending) == (1, 0)
    assert conserved(stats())


def test_what_waits_at_a_cancel_is_said_and_noticed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told: list[tuple[str, int, str]] = []

    def hear(consumer: str, *, count: int, reason: str) -> None:
        told.append((consumer, count, reason))

    recorder, subscription = hold(waiting=3)
    with notices.events_dropped.connected_to(hear):
        subscription.cancel(timeout=0)
        recorder.freed.set()
        publish(1)
        wait_until(lambda: told)

    assert told == [("store", 3, CANCELLED)]
    (line,) = [record for record in caplog.records if "lost" in record.getMessage()]
    assert line.getMessage().startswith("consumer 'store' lost 3 events within ")
    assert line.getMessage().endswith(
        "(cancelled). Its subscription was cancelled, or it ended itself. "
        "Jobs and other consumers are not affected"
    )


def test_a_cancelled_consumer_is_torn_down_on_its_own_thread() -> None:
    lives: list[str] = []

    class Store(Consumer):
        def setup(self) -> None:
            lives.append(f"set up on {threading.current_thread().name}")

        def handle(self, event: JobEvent) -> None:
            lives.append(f"event {event.task_id}")

        def teardown(self) -> None:
            lives.append(f"torn down on {threading.current_thread().name}")

    subscription = celery_broadcast.subscribe(Store, name="store")
    publish(1)
    wait_until(lambda: len(lives) == 2)

    assert subscription.cancel()

    assert lives == ["set up on broadcast:store", "event 0", "torn down on broadcast:store"]
    assert broadcast_threads() == ["broadcast"]


def test_a_cancel_waits_for_the_teardown_too() -> None:
    reached, allowed = threading.Event(), threading.Event()

    class SlowToEnd(Consumer):
        def handle(self, event: JobEvent) -> None: ...

        def teardown(self) -> None:
            reached.set()
            allowed.wait(10.0)

    subscription = celery_broadcast.subscribe(SlowToEnd, name="store")
    publish(1)
    wait_until(lambda: stats().handled == 1)

    assert not subscription.cancel(timeout=0.01)
    assert reached.wait(10.0)
    assert not subscription.cancel(timeout=0)
    allowed.set()
    assert subscription.cancel()


def test_a_drain_waits_for_the_teardown_of_one_that_was_cancelled_before() -> None:
    lives: list[str] = []
    allowed = threading.Event()

    class SlowToEnd(Consumer):
        def handle(self, event: JobEvent) -> None: ...

        def teardown(self) -> None:
            allowed.wait(10.0)
            lives.append("torn down")

    subscription = celery_broadcast.subscribe(SlowToEnd, name="store")
    publish(1)
    wait_until(lambda: stats().handled == 1)
    subscription.cancel(timeout=0)
    recorder = Recorder()
    celery_broadcast.subscribe(recorder.handle, name="audit")
    publish(1)  # whoever has nothing to handle any more is let go
    wait_until(lambda: len(recorder.events) == 1)

    def allow() -> None:
        wait_until(lambda: "broadcast" not in broadcast_threads())  # it is being drained
        allowed.set()

    helper = threading.Thread(target=allow)
    helper.start()
    celery_broadcast.drain()

    assert lives == ["torn down"]
    helper.join()


def test_a_cancel_with_a_timeout_goes_on_after_it_and_says_so() -> None:
    recorder, subscription = hold(waiting=1)

    assert not subscription.cancel(timeout=0.01)
    recorder.freed.set()
    assert subscription.cancel()

    assert recorder.task_ids == ["0"]
    assert conserved(stats())


@pytest.mark.parametrize("timeout", ["5", -1, True, float("nan")])
def test_a_cancel_without_a_valid_timeout_is_refused_and_cancels_nothing(timeout: Any) -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")

    with pytest.raises(ConfigurationError, match="timeout"):
        subscription.cancel(timeout=timeout)
    publish(1)

    recorder.wait_for(1)


def test_a_second_cancel_is_harmless() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    publish(1)
    recorder.wait_for(1)

    assert [subscription.cancel(), subscription.cancel()] == [True, True]


def test_a_subscription_that_is_cancelled_before_the_first_event_never_starts() -> None:
    recorder, other = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")

    assert subscription.cancel()
    celery_broadcast.subscribe(other.handle, name="other")
    publish(1)
    other.wait_for(1)

    assert broadcast_threads() == ["broadcast", "broadcast:other"]
    assert recorder.events == []
    assert "store" not in celery_broadcast.stats()


def test_a_cancel_while_the_broadcast_is_off_is_enough_for_later() -> None:
    with celery_broadcast.broadcasting(enabled=False):
        recorder = Recorder()
        subscription = celery_broadcast.subscribe(recorder.handle, name="store")
        assert subscription.cancel()
    publish(1)
    celery_broadcast.drain()

    assert recorder.events == []


def test_a_consumer_may_cancel_itself() -> None:
    said: list[object] = []

    def once(event: JobEvent) -> None:
        said.append((event.task_id, subscription.cancel()))

    subscription = celery_broadcast.subscribe(once, name="store")
    publish(1)
    wait_until(lambda: broadcast_threads() == ["broadcast"])
    publish(1)
    celery_broadcast.drain()

    assert said == [("0", False)]
    assert stats().handled == 1


def test_a_coroutine_may_cancel_itself() -> None:
    said: list[object] = []

    async def once(event: JobEvent) -> None:
        said.append((event.task_id, subscription.cancel()))

    subscription = celery_broadcast.subscribe(once, name="store")
    publish(1)
    wait_until(lambda: broadcast_threads() == ["broadcast"])
    publish(1)
    celery_broadcast.drain()

    assert said == [("0", False)]
    assert stats().handled == 1


def test_a_consumer_may_cancel_itself_while_it_sets_up() -> None:
    lives: list[str] = []

    class Reluctant(Consumer):
        def setup(self) -> None:
            lives.append("setup")
            subscription.cancel()

        def handle(self, event: JobEvent) -> None:
            lives.append("event")

        def teardown(self) -> None:
            lives.append("teardown")

    subscription = celery_broadcast.subscribe(Reluctant, name="store")
    publish(1)
    wait_until(lambda: lives == ["setup", "teardown"])
    celery_broadcast.drain()

    assert lives == ["setup", "teardown"]
    assert conserved(stats())


def test_a_selector_may_cancel_its_consumer() -> None:
    recorder = Recorder()

    def last(_: JobEvent) -> bool:
        return not subscription.cancel()

    subscription = celery_broadcast.subscribe(recorder.handle, name="store", selector=last)
    publish(1)
    recorder.wait_for(1)
    publish(2)
    celery_broadcast.drain()

    assert recorder.task_ids == ["0"]


def test_a_consumer_may_cancel_another_one_and_does_not_wait_for_it() -> None:
    recorder, other = hold("other", waiting=1)
    said: list[bool] = []
    celery_broadcast.subscribe(lambda _: said.append(other.cancel()), name="store")
    publish(1)
    wait_until(lambda: bool(said))

    recorder.freed.set()
    celery_broadcast.drain()

    assert said == [False]
    assert recorder.task_ids == ["0"]


def test_two_consumers_may_cancel_each_other() -> None:
    both = threading.Barrier(2, timeout=10)
    subscriptions: dict[str, Subscription] = {}
    said: list[str] = []

    def cancel(name: str) -> None:
        both.wait()
        subscriptions[name].cancel()
        said.append(name)

    subscriptions["first"] = celery_broadcast.subscribe(lambda _: cancel("second"), name="first")
    subscriptions["second"] = celery_broadcast.subscribe(lambda _: cancel("first"), name="second")
    publish(1)
    wait_until(lambda: len(said) == 2)


def test_a_receiver_of_a_notice_may_cancel_the_consumer_that_it_is_about() -> None:
    recorder, stuck = HeldRecorder(), threading.Event()

    def give_up(consumer: str, **_: Any) -> None:
        subscription.cancel()
        stuck.set()

    with notices.consumer_stuck.connected_to(give_up):
        subscription = celery_broadcast.subscribe(recorder.handle, name="store", stuck_after=0.01)
        healthy = Recorder()
        celery_broadcast.subscribe(healthy.handle, name="healthy")
        publish(1)
        assert stuck.wait(10)
        publish(1)

        healthy.wait_for(2)
        recorder.freed.set()


def test_all_threads_of_a_consumer_end_with_its_cancel() -> None:
    together = threading.Barrier(3, timeout=10.0)
    handled: list[str] = []

    def handle(event: JobEvent) -> None:
        together.wait()
        together.wait()
        handled.append(event.task_id)

    subscription = celery_broadcast.subscribe(handle, name="store", concurrency=2)
    publish(5)
    offered(5)
    together.wait()

    with another_thread(subscription.cancel):
        wait_until(lambda: stats().dropped == {CANCELLED: 3})
        together.wait()

    assert sorted(handled) == ["0", "1"]
    assert broadcast_threads() == ["broadcast"]


def test_a_cancelled_consumer_of_coroutines_ends_what_is_in_flight() -> None:
    handled: list[str] = []
    began, go_on = threading.Event(), threading.Event()

    async def handle(event: JobEvent) -> None:

        began.set()
        await asyncio.to_thread(go_on.wait, 10.0)
        handled.append(event.task_id)

    subscription = celery_broadcast.subscribe(handle, name="store")
    publish(3)
    offered(3)
    assert began.wait(10.0)

    assert not subscription.cancel(timeout=0)
    go_on.set()
    assert subscription.cancel()

    assert handled == ["0"]
    assert stats().dropped == {CANCELLED: 2}
    assert broadcast_threads() == ["broadcast"]


def test_a_batch_that_is_being_collected_at_a_cancel_is_the_last_one() -> None:
    batches: list[list[str]] = []

    def handle(events: list[JobEvent]) -> None:
        batches.append([event.task_id for event in events])

    subscription = celery_broadcast.subscribe(
        handle, name="store", batch=Batch(max_events=10, max_wait=60.0)
    )
    publish(3)
    offered(3)

    assert subscription.cancel()
    publish(1)
    celery_broadcast.drain()

    assert sum(map(len, batches)) + stats().dropped_total == 3
    assert conserved(stats())
    assert stats().pending == 0


def test_what_waits_behind_a_key_at_a_cancel_is_dropped_too() -> None:
    recorder = HeldRecorder()
    subscription = celery_broadcast.subscribe(
        recorder.handle, name="store", concurrency=2, partition_by=lambda event: event.task_name
    )
    publish(3)
    assert recorder.held.wait(10.0)
    offered(3)
    other = make_event(JobFinished, task_id="other", task_name="other")
    celery_broadcast.notify(other)  # taken after those, so they are behind their key by now
    offered(4)

    assert not subscription.cancel(timeout=0)
    recorder.freed.set()
    assert subscription.cancel()

    assert "1" not in recorder.task_ids
    assert "2" not in recorder.task_ids
    assert stats().dropped[CANCELLED] >= 2
    assert conserved(stats())


# The name, and what is counted under it.


def test_the_name_is_free_at_once_and_its_counts_go_on() -> None:
    first, second = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(first.handle, name="store")
    publish(2)
    first.wait_for(2)
    subscription.cancel()

    celery_broadcast.subscribe(second.handle, name="store")
    publish(3)
    second.wait_for(3)
    celery_broadcast.drain()

    assert len(first.events) == 2
    assert (stats().offered, stats().handled) == (5, 5)


def test_the_name_is_free_while_the_old_one_has_an_event_in_hand() -> None:
    old, subscription = hold(waiting=1)
    new = Recorder()
    assert not subscription.cancel(timeout=0)

    celery_broadcast.subscribe(new.handle, name="store")
    publish(2)
    new.wait_for(2)
    wait_until(lambda: stats().handled == 2)
    assert (stats().offered, stats().pending, stats().dropped) == (4, 1, {CANCELLED: 1})
    old.freed.set()
    assert subscription.cancel()

    assert (stats().handled, stats().pending) == (3, 0)
    assert conserved(stats())


def test_a_drain_waits_for_the_old_one_of_a_name_too() -> None:
    old, subscription = hold()
    new = Recorder()
    assert not subscription.cancel(timeout=0)
    celery_broadcast.subscribe(new.handle, name="store")
    publish(1)
    new.wait_for(1)

    drained = celery_broadcast.drain(timeout=0.05)

    assert drained.left == 1
    assert stats().dropped == {DRAIN_TIMEOUT: 1}
    assert stats().pending == 0
    old.freed.set()


def test_a_cancel_leaves_the_next_of_its_name_alone() -> None:
    recorder = Recorder()
    old = celery_broadcast.subscribe(print, name="store")
    old.cancel()
    new = celery_broadcast.subscribe(recorder.handle, name="store")

    old.cancel()
    publish(1)

    recorder.wait_for(1)
    assert registry.subscriptions == (new,)


@pytest.mark.parametrize("between", [(Registry, "remove"), (Switch, "cancel")])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_event_at_any_moment_of_a_cancel_leaves_nothing_behind(
    between: tuple[type, str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer's thread looks at the subscriptions in the middle of it."""
    recorder, other = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    celery_broadcast.subscribe(other.handle, name="other")
    publish(1)
    recorder.wait_for(1)
    owner, name = between
    step: Callable[..., Any] = getattr(owner, name)

    def publish_one() -> None:
        before = len(other.wait_for(1))
        # So that there is something to look at.
        celery_broadcast.subscribe(print, name=f"new-{before}", selector=lambda _: False)
        publish(1)
        other.wait_for(before + 1)

    def interrupted(*arguments: Any) -> Any:
        if moment == "before":
            publish_one()
        answer = step(*arguments)
        if moment == "after":
            publish_one()
        return answer

    started: list[str] = []
    with notices.consumer_started.connected_to(started.append):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            assert subscription.cancel()
        publish_one()
        known = stats().offered
        publish(5)
        celery_broadcast.drain()

    assert "store" not in started
    assert stats().offered == known
    assert conserved(stats())


# Pause and resume.


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop_oldest", ["3", "4"]), ("drop_newest", ["0", "1"])]
)
def test_a_paused_consumer_lets_its_mailbox_fill_whose_policy_holds(
    overflow: Literal["drop_oldest", "drop_newest"], kept: list[str]
) -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(
        recorder.handle, name="store", mailbox_size=2, overflow=overflow
    )
    subscription.pause()

    publish(5)
    offered(5)
    assert recorder.events == []
    assert (stats().pending, stats().dropped) == (2, {MAILBOX_FULL: 3})
    subscription.resume()

    recorder.wait_for(2)
    assert recorder.task_ids == kept


def test_a_pause_holds_a_consumer_that_is_at_work_already() -> None:
    recorder, other = Recorder(), Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    celery_broadcast.subscribe(other.handle, name="other")
    publish(1)
    recorder.wait_for(1)

    subscription.pause()
    publish(3)
    other.wait_for(4)
    offered(4)
    assert stats().pending == 3
    subscription.resume()

    assert recorder.wait_for(4) == other.events


def test_the_event_in_hand_goes_on_in_a_pause() -> None:
    recorder, subscription = hold(waiting=1)

    subscription.pause()
    recorder.freed.set()
    recorder.wait_for(1)
    wait_until(lambda: stats().handled == 1)

    assert stats().pending == 1
    subscription.resume()
    recorder.wait_for(2)


def test_a_pause_holds_all_threads_of_a_consumer() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store", concurrency=3)
    subscription.pause()

    publish(30)
    offered(30)
    assert stats().pending == 30
    subscription.resume()

    recorder.wait_for(30)


def test_a_pause_holds_a_consumer_of_coroutines() -> None:
    recorder = Recorder()

    async def handle(event: JobEvent) -> None:
        recorder.handle(event)

    subscription = celery_broadcast.subscribe(handle, name="store")
    publish(1)
    recorder.wait_for(1)

    subscription.pause()
    publish(3)
    offered(4)
    assert stats().pending == 3
    subscription.resume()

    recorder.wait_for(4)


def test_a_drain_handles_what_a_pause_has_held() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    subscription.pause()
    publish(3)

    drained = celery_broadcast.drain()

    assert (drained.handled, drained.left) == (3, 0)
    assert recorder.task_ids == ["0", "1", "2"]


def test_a_cancel_in_a_pause_drops_what_it_has_held() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    subscription.pause()
    publish(3)
    offered(3)

    assert subscription.cancel()

    assert recorder.events == []
    assert stats().dropped == {CANCELLED: 3}


def test_a_resume_without_a_pause_and_a_second_pause_are_harmless() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    subscription.resume()
    subscription.pause()
    subscription.pause()
    publish(1)
    offered(1)

    subscription.resume()

    recorder.wait_for(1)


def test_a_consumer_may_pause_itself() -> None:
    handled: list[str] = []

    def handle(event: JobEvent) -> None:
        handled.append(event.task_id)
        subscription.pause()

    subscription = celery_broadcast.subscribe(handle, name="store")
    publish(3)
    wait_until(lambda: stats().handled == 1)
    offered(3)
    assert handled == ["0"]

    subscription.resume()
    wait_until(lambda: stats().handled == 2)
    assert handled == ["0", "1"]


def test_a_decorated_consumer_has_a_switch_too() -> None:
    recorder = Recorder()
    celery_broadcast.on_job_event(name="store")(recorder.handle)
    (subscription,) = registry.subscriptions

    assert subscription.cancel()
    publish(1)
    celery_broadcast.drain()

    assert recorder.events == []


def test_whoever_waits_is_not_woken_in_a_pause_but_by_its_end() -> None:
    switch = Switch()
    mailbox: Mailbox[int] = Mailbox(size=10, switch=switch)
    woken: list[str] = []
    switch.pause()
    mailbox.put(1)

    mailbox.call_when_ready(lambda: woken.append("ready"))
    mailbox.put(2)
    mailbox.wake()
    assert woken == []
    switch.resume()
    mailbox.wake()

    assert woken == ["ready"]
    assert mailbox.take(10, wait_seconds=0) == [1, 2]


# Forked children.


def test_a_forked_child_has_what_is_subscribed_and_not_what_is_cancelled() -> None:
    recorder, gone = Recorder(), Recorder()
    celery_broadcast.subscribe(recorder.handle, name="store")
    celery_broadcast.subscribe(gone.handle, name="gone").cancel()

    def child() -> Any:
        publish(2)
        celery_broadcast.drain()
        return [recorder.task_ids, gone.task_ids]

    assert in_child(child) == [["0", "1"], []]


def test_a_cancel_in_a_forked_child_waits_for_nothing_of_the_parent() -> None:
    recorder, subscription = hold(waiting=1)

    def child() -> Any:
        done = subscription.cancel()
        publish(1)
        celery_broadcast.drain()
        return [done, registry.subscriptions == (), recorder.task_ids]

    assert in_child(child) == [True, True, []]
    recorder.freed.set()
    recorder.wait_for(2)
    assert not subscription.switch.is_cancelled


def test_a_pause_goes_on_in_a_forked_child_which_may_end_it() -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, name="store")
    subscription.pause()

    def child() -> Any:
        publish(2)
        offered(2)
        held = stats().pending
        subscription.resume()
        return [held, len(recorder.wait_for(2))]

    assert in_child(child) == [2, 2]
    publish(1)
    offered(1)
    assert stats().pending == 1


def test_a_child_forked_while_a_cancel_waits_is_free_of_it() -> None:
    recorder, subscription = hold(waiting=1)

    with another_thread(subscription.cancel):
        wait_until(lambda: subscription.switch.is_cancelled)

        def child() -> Any:
            publish(1)
            celery_broadcast.drain()
            return [subscription.cancel(), recorder.task_ids]

        assert in_child(child) == [True, []]
        recorder.freed.set()


# Several threads.


def test_threads_that_subscribe_and_cancel_at_once_do_not_hurt_each_other() -> None:
    other = Recorder()
    celery_broadcast.subscribe(other.handle, name="other")
    late: list[Event] = []
    rounds, count = 50, 3

    def come_and_go(name: str) -> None:
        for _ in range(rounds):
            over = threading.Event()

            def handle(event: JobEvent, over: threading.Event = over) -> None:
                if over.is_set():
                    late.append(event)

            subscription = celery_broadcast.subscribe(handle, name=name)
            publish(1)
            assert subscription.cancel(timeout=10.0)
            over.set()

    threads = [threading.Thread(target=come_and_go, args=(f"{n}",)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    other.wait_for(rounds * count)
    celery_broadcast.drain()

    assert late == []
    assert [subscription.name for subscription in registry.subscriptions] == ["other"]
    assert all(conserved(each) and not each.pending for each in celery_broadcast.stats().values())
    assert stats("other").offered == stats("other").handled == rounds * count


def test_a_name_is_of_one_thread_at_a_time() -> None:
    holders = 0
    most: list[int] = []
    refused: list[str] = []
    start = threading.Barrier(3, timeout=10.0)

    def contend() -> None:
        nonlocal holders
        start.wait()
        for _ in range(200):
            try:
                subscription = celery_broadcast.subscribe(print, name="store")
            except ConfigurationError as error:
                refused.append(str(error))
                continue
            holders += 1
            most.append(holders)
            holders -= 1
            subscription.cancel()

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)

    assert set(most) == {1}
    assert len(most) + len(refused) == 600
    assert registry.subscriptions == ()
