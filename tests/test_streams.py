"""Reading events in a loop: what is read, how the loop ends, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from conftest import broadcast_threads
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered
from test_fork import in_child
from test_switch import another_thread, conserved, offered, publish, stats

import celery_broadcast
from celery_broadcast import BroadcastError, installation, notices, testing
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, MAILBOX_FULL
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import Event, JobEvent, JobFailed, JobFinished
from celery_broadcast.subscription import Registry, registry

on = pytest.mark.usefixtures("broadcast_is_on")


def task_ids(events: Iterable[JobEvent]) -> list[str]:
    return [event.task_id for event in events]


class Reading:
    """A thread that reads a stream, from its own block on."""

    def __init__(self, *events: type[JobEvent], **options: Any) -> None:
        self.read: list[str] = []
        self._arguments = (events, options)
        self.opened = threading.Event()

    def __call__(self) -> None:
        events, options = self._arguments
        with celery_broadcast.stream(*events, **options) as stream:
            self.opened.set()
            for event in stream:
                self.read.append(event.task_id)


# Reading.


@on
def test_a_stream_gives_what_is_published_in_its_block_one_by_one() -> None:
    celery_broadcast.notify(make_event(JobFinished, task_id="before"))
    celery_broadcast.drain()

    with celery_broadcast.stream() as events:
        publish(3)
        read = [next(events).task_id for _ in range(3)]

    assert read == ["0", "1", "2"]
    assert stats("stream-1").handled == 3


@on
def test_a_stream_waits_for_the_next_event() -> None:
    reading = Reading()
    with another_thread(reading):
        assert reading.opened.wait(10.0)
        for number in range(3):
            celery_broadcast.notify(make_event(JobFinished, task_id=str(number)))
            wait_until(lambda: reading.read[-1:] == [str(number)])  # noqa: B023  # at once
        celery_broadcast.drain()

    assert reading.read == ["0", "1", "2"]


@on
def test_a_stream_gives_the_events_that_are_wanted_and_no_other() -> None:
    with celery_broadcast.stream(
        JobFailed, task="shop.*", selector=lambda event: event.task_id != "2"
    ) as events:
        celery_broadcast.notify(make_event(JobFailed, task_id="0"))
        celery_broadcast.notify(make_event(JobFinished, task_id="1"))
        celery_broadcast.notify(make_event(JobFailed, task_id="2"))
        celery_broadcast.notify(make_event(JobFailed, "mail.send", task_id="3"))
        celery_broadcast.notify(make_event(JobFailed, "shop.refund", task_id="4"))
        assert [next(events).task_id, next(events).task_id] == ["0", "4"]

    assert stats("stream-1").declined == 1
    assert conserved(stats("stream-1"))


@on
def test_a_selector_that_raises_fails_that_event_alone(caplog: pytest.LogCaptureFixture) -> None:
    with celery_broadcast.stream(selector=lambda event: 1 / int(event.task_id)) as events:
        publish(2)
        assert next(events).task_id == "1"

    assert (stats("stream-1").handled, stats("stream-1").failed) == (1, 1)
    assert "consumer 'stream-1' raised on JobFinished shop.charge[0]" in caplog.text


@on
def test_a_stream_of_events_of_ones_own() -> None:
    class Incident(Event, frozen=True, kw_only=True):
        failures: int

    with celery_broadcast.stream(Incident) as incidents:
        publish(1)
        celery_broadcast.notify(Incident(failures=10))
        assert next(incidents).failures == 10


@on
def test_an_event_counts_as_handled_once_the_next_one_is_asked_for() -> None:
    with celery_broadcast.stream(name="reader") as events:
        publish(2)
        next(events)
        offered(2, "reader")
        assert (stats("reader").handled, stats("reader").pending) == (0, 2)
        next(events)
        assert (stats("reader").handled, stats("reader").pending) == (1, 1)

    assert (stats("reader").handled, stats("reader").pending) == (2, 0)


@on
def test_a_slow_reader_costs_its_own_mailbox_only() -> None:
    other = Recorder()
    celery_broadcast.subscribe(other.handle, name="other")
    with celery_broadcast.stream(name="slow", mailbox_size=2, overflow="drop_newest") as events:
        publish(5)
        other.wait_for(5)
        offered(5, "slow")
        assert [next(events).task_id, next(events).task_id] == ["0", "1"]

    assert stats("slow").dropped == {MAILBOX_FULL: 3}


@on
def test_a_stream_takes_nothing_from_anybody_else_and_leaves_nothing_behind() -> None:
    recorder = Recorder()
    celery_broadcast.subscribe(recorder.handle, name="store")
    with celery_broadcast.stream() as first, celery_broadcast.stream() as second:
        publish(2)
        assert [next(first).task_id, next(second).task_id] == ["0", "0"]
        assert [next(second).task_id, next(first).task_id] == ["1", "1"]
    publish(1)
    recorder.wait_for(3)

    assert recorder.task_ids == ["0", "1", "0"]
    assert [each.name for each in registry.subscriptions] == ["store"]
    assert sorted(broadcast_threads()) == ["broadcast", "broadcast:store"]
    assert stats("stream-1").offered == stats("stream-2").offered == 2


@on
def test_a_stream_needs_no_thread_of_the_broadcast() -> None:
    with celery_broadcast.stream() as events:
        assert broadcast_threads() == []
        publish(1)
        next(events)
        assert broadcast_threads() == ["broadcast"]


# Its end.


@on
def test_a_loop_may_stop_where_it_likes() -> None:
    with celery_broadcast.stream() as events:
        publish(3)
        offered_to_stream = "stream-1"
        for event in events:
            if event.task_id == "1":
                break
        offered(3, offered_to_stream)

    assert stats("stream-1").handled == 2
    assert stats("stream-1").dropped == {CANCELLED: 1}
    assert conserved(stats("stream-1"))


@on
def test_what_waits_when_the_block_ends_is_cancelled_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    told: list[tuple[str, int, str]] = []

    def hear(consumer: str, *, count: int, reason: str) -> None:
        told.append((consumer, count, reason))

    with notices.events_dropped.connected_to(hear):
        with celery_broadcast.stream(name="reader"):
            publish(3)
            offered(3, "reader")
        publish(1)
        celery_broadcast.drain()

    assert told == [("reader", 3, CANCELLED)]
    assert "consumer 'reader' lost 3 events" in caplog.text
    assert stats("reader").offered == 3


@on
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(0)])
def test_a_block_that_raises_counts_its_event_as_failed(error: BaseException) -> None:
    def read() -> None:
        with celery_broadcast.stream(name="reader") as events:
            publish(3)
            for event in events:
                if event.task_id == "1":
                    offered(3, "reader")
                    raise error

    with pytest.raises(type(error)):
        read()

    assert (stats("reader").handled, stats("reader").failed) == (1, 1)
    assert stats("reader").dropped == {CANCELLED: 1}
    assert registry.subscriptions == ()


@on
def test_a_block_that_raises_between_two_events_fails_none() -> None:
    def read() -> None:
        with celery_broadcast.stream(name="reader"):
            publish(1)
            offered(1, "reader")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # as raised above
        read()

    assert stats("reader").failed == 0
    assert stats("reader").dropped == {CANCELLED: 1}


@on
def test_a_drain_on_another_thread_ends_the_loop_after_what_waits() -> None:
    reading = Reading(name="reader")
    with another_thread(reading):
        assert reading.opened.wait(10.0)
        publish(100)
        drained = celery_broadcast.drain()

    assert drained.left == 0
    assert len(reading.read) == 100
    assert stats("reader").handled == 100


@on
def test_a_drain_on_the_same_thread_waits_for_nothing_and_the_rest_is_read_after_it() -> None:
    with celery_broadcast.stream(name="reader") as events:
        publish(3)
        assert next(events).task_id == "0"

        assert celery_broadcast.drain(timeout=60.0).left == 0
        publish(1)

        assert task_ids(events) == ["1", "2"]
        assert list(events) == []
    celery_broadcast.drain()

    assert (stats("reader").offered, stats("reader").handled) == (3, 3)


@on
def test_a_drain_ends_a_loop_that_has_never_had_an_event() -> None:
    reading = Reading()
    with another_thread(reading):
        assert reading.opened.wait(10.0)
        celery_broadcast.drain()

    assert reading.read == []
    assert registry.subscriptions == ()


@on
def test_a_drain_ends_a_loop_that_began_after_the_last_event() -> None:
    recorder, reading = Recorder(), Reading()
    celery_broadcast.subscribe(recorder.handle, name="store")
    publish(1)
    recorder.wait_for(1)
    with another_thread(reading):
        assert reading.opened.wait(10.0)
        celery_broadcast.drain()

    assert reading.read == []


def test_the_end_of_the_broadcast_ends_the_loop() -> None:
    reading = Reading()
    with celery_broadcast.broadcasting():
        thread = threading.Thread(target=reading, daemon=True)
        thread.start()
        assert reading.opened.wait(10.0)
    thread.join(10.0)

    assert not thread.is_alive()


@on
def test_a_drain_counts_what_a_reader_has_not_read_by_its_deadline() -> None:
    held, go_on = threading.Event(), threading.Event()
    read: list[str] = []

    def slow() -> None:
        with celery_broadcast.stream(name="reader") as events:
            publish(3)
            for event in events:
                held.set()
                go_on.wait(10.0)
                read.append(event.task_id)

    with another_thread(slow):
        assert held.wait(10.0)
        drained = celery_broadcast.drain(timeout=0.05)
        assert drained.left == 3
        assert stats("reader").dropped == {DRAIN_TIMEOUT: 3}
        go_on.set()

    assert read == ["0"]
    assert conserved(stats("reader"))


@on
def test_a_stream_that_is_over_stays_over() -> None:
    with celery_broadcast.stream() as events:
        pass
    publish(1)

    assert list(events) == []


@on
def test_a_stream_is_for_one_block() -> None:
    stream = celery_broadcast.stream()
    with stream:
        pass

    with pytest.raises(BroadcastError) as caught, stream:
        pass

    assert str(caught.value) == (
        "This stream has been used. Make another: with celery_broadcast.stream(...)."
    )


@on
def test_a_stream_within_its_own_block_is_used_too() -> None:
    stream = celery_broadcast.stream()

    with stream, pytest.raises(BroadcastError, match="has been used"), stream:
        pass


@on
@pytest.mark.parametrize("read", [next, lambda events: asyncio.run(anext(events))])
def test_a_stream_is_read_within_a_block(read: Callable[[Any], object]) -> None:
    with pytest.raises(BroadcastError) as caught:
        read(celery_broadcast.stream())

    assert str(caught.value) == (
        "A stream is read within a with block. Write: "
        "with celery_broadcast.stream(...) as events: ..."
    )


# Off.


def test_while_the_broadcast_is_off_a_stream_is_over_at_once_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with celery_broadcast.stream(JobFailed) as events:
        assert list(events) == []

    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.getMessage().startswith(f"a stream was opened in {__file__}:")
    assert line.getMessage().endswith(
        "but the broadcast is off in this process, so it is over at once. "
        "Set broadcast_enabled, and install the app"
    )
    assert registry.subscriptions == ()


def test_a_stream_is_over_at_once_where_a_test_keeps_the_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with testing.job_events(), celery_broadcast.stream() as events:
        publish(1)

        with another_thread(lambda: list(events)):
            pass
    assert registry.subscriptions == ()
    assert "where no event is moved on" in caplog.text


@on
def test_a_stream_that_is_opened_after_the_last_drain_is_over_at_once() -> None:
    producer = installation.current_producer()
    assert producer is not None
    producer.drain(last=True)

    with celery_broadcast.stream() as events:
        publish(1)

        with another_thread(lambda: list(events)):
            pass


def test_while_the_broadcast_is_off_a_stream_of_asyncio_is_over_at_once_too() -> None:
    async def read() -> list[JobEvent]:
        async with celery_broadcast.stream() as events:
            return [event async for event in events]

    assert asyncio.run(read()) == []


# Names and options.


@on
def test_streams_have_names_of_their_own_which_are_used_again() -> None:
    for _ in range(2):
        with celery_broadcast.stream(), celery_broadcast.stream():
            assert [each.name for each in registry.subscriptions] == ["stream-1", "stream-2"]

    with celery_broadcast.stream():
        with celery_broadcast.stream():
            pass
        with celery_broadcast.stream():
            assert [each.name for each in registry.subscriptions] == ["stream-1", "stream-2"]


@on
def test_the_counts_of_a_streams_name_go_on() -> None:
    for _ in range(2):
        with celery_broadcast.stream() as events:
            publish(1)
            next(events)

    assert stats("stream-1").handled == 2


@on
def test_a_consumer_of_a_streams_usual_name_is_in_nobodys_way() -> None:
    celery_broadcast.subscribe(print, name="stream-1", selector=lambda _: False)

    with celery_broadcast.stream() as events:
        publish(1)
        next(events)

    assert stats("stream-2").handled == 1


@on
def test_a_name_that_is_taken_is_an_error_as_the_block_begins() -> None:
    celery_broadcast.subscribe(print, name="taken", selector=lambda _: False)
    stream = celery_broadcast.stream(name="taken")

    with pytest.raises(ConfigurationError, match="Two consumers are named 'taken'"), stream:
        pass
    with celery_broadcast.stream(name="free"):
        pass

    assert [each.name for each in registry.subscriptions] == ["taken"]


@on
def test_many_threads_may_open_streams_at_once() -> None:
    start = threading.Barrier(4, timeout=10.0)
    read: list[list[str]] = []
    opened = threading.Barrier(5, timeout=10.0)

    def open_one() -> None:
        start.wait()
        with celery_broadcast.stream() as events:
            opened.wait()
            read.append([next(events).task_id for _ in range(3)])

    threads = [threading.Thread(target=open_one, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    opened.wait()
    names = sorted(each.name for each in registry.subscriptions)
    publish(3)
    for thread in threads:
        thread.join(10.0)

    assert names == ["stream-1", "stream-2", "stream-3", "stream-4"]
    assert read == [["0", "1", "2"]] * 4


@on
def test_a_name_that_is_snatched_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    add, faster = Registry.add, celery_broadcast.stream()

    def be_late(*arguments: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Registry, "add", add)
            if registry.subscriptions == ():
                faster.__enter__()
            add(*arguments)

    monkeypatch.setattr(Registry, "add", be_late)
    with celery_broadcast.stream() as events:
        assert [each.name for each in registry.subscriptions] == ["stream-1", "stream-2"]
        publish(1)
        assert next(events) == next(faster)
        faster.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("JobFailed",),
            {},
            (
                "stream got 'JobFailed' (str). "
                "Pass the class: from celery_broadcast import JobFailed."
            ),
        ),
        (
            (),
            {"concurrency": 2},
            (
                "stream has no option 'concurrency'. There are: task, queue, exception, state, "
                "selector, name, mailbox_size, overflow."
            ),
        ),
        ((), {"overflow": "block"}, "overflow='block' is not a policy."),
        ((), {"mailbox_size": 0}, "mailbox_size must be a number of events of 1 or more"),
        ((), {"task": ""}, "task='' is not a glob."),
    ],
    ids=repr,
)
def test_a_wrong_option_is_an_error_where_the_stream_is_made(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    stream: Any = celery_broadcast.stream

    with pytest.raises(ConfigurationError) as caught:
        stream(*arguments, **options)

    assert str(caught.value).startswith(message)


# asyncio.


@on
def test_a_coroutine_reads_events_while_its_event_loop_goes_on() -> None:
    async def read() -> list[str]:
        went_on = asyncio.Event()

        async def publish_when_it_waits() -> None:
            went_on.set()
            await asyncio.to_thread(publish, 3)

        async with celery_broadcast.stream(JobFinished, name="reader") as events:
            publisher = asyncio.create_task(publish_when_it_waits())
            read = []
            async for event in events:
                read.append(event.task_id)
                if len(read) == 3:
                    break
            await publisher
            assert went_on.is_set()
            return read

    assert asyncio.run(read()) == ["0", "1", "2"]
    assert stats("reader").handled == 3
    assert registry.subscriptions == ()


@on
def test_a_drain_ends_a_coroutines_loop_after_what_waits() -> None:
    async def read() -> list[str]:
        async with celery_broadcast.stream(name="reader") as events:
            publish(3)
            assert (await anext(events)).task_id == "0"
            drain = asyncio.create_task(asyncio.to_thread(celery_broadcast.drain))
            rest = [event.task_id async for event in events]
            assert (await drain).left == 0
            return rest

    assert asyncio.run(read()) == ["1", "2"]


@on
def test_a_drain_ends_a_coroutines_loop_that_waits() -> None:
    async def read() -> list[JobEvent]:
        async with celery_broadcast.stream() as events:
            drain = asyncio.create_task(asyncio.to_thread(celery_broadcast.drain))
            rest = [event async for event in events]
            await drain
            return rest

    assert asyncio.run(asyncio.wait_for(read(), 10.0)) == []


@on
def test_a_coroutine_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    async def read() -> None:
        async with celery_broadcast.stream(name="reader") as events:
            publish(1)
            await anext(events)
            await asyncio.wait_for(anext(events), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(read())
    publish(1)
    celery_broadcast.drain()

    assert registry.subscriptions == ()
    assert (stats("reader").offered, stats("reader").handled) == (1, 1)


@on
def test_a_coroutine_whose_block_raises_counts_its_event_as_failed() -> None:
    async def read() -> None:
        async with celery_broadcast.stream(name="reader") as events:
            publish(1)
            async for _ in events:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # as raised above
        asyncio.run(read())

    assert stats("reader").failed == 1


@on
def test_two_coroutines_read_two_streams_on_one_event_loop() -> None:
    async def read_two() -> list[str]:
        async with celery_broadcast.stream() as events:
            return [(await anext(events)).task_id for _ in range(2)]

    async def read() -> list[list[str]]:
        readers = [asyncio.create_task(read_two()) for _ in range(2)]
        await asyncio.sleep(0)  # they begin
        assert len(registry.subscriptions) == 2
        publish(2)
        return await asyncio.gather(*readers)

    assert asyncio.run(read()) == [["0", "1"]] * 2


# Forked children.


@on
def test_a_forked_child_does_not_have_the_stream() -> None:
    with celery_broadcast.stream(name="reader") as events:
        publish(1)

        def child() -> Any:
            publish(2)
            celery_broadcast.drain()
            return [len(registry.subscriptions), "reader" in celery_broadcast.stats()]

        assert in_child(child) == [0, False]
        assert next(events).task_id == "0"
        publish(1)
        assert next(events).task_id == "0"


@on
def test_a_forked_child_may_open_a_stream_of_its_own() -> None:
    with celery_broadcast.stream():

        def child() -> Any:
            with celery_broadcast.stream() as events:
                publish(2)
                return [next(events).task_id, next(events).task_id, registry.subscriptions[0].name]

        assert in_child(child) == ["0", "1", "stream-1"]


@on
def test_in_a_forked_child_the_parents_stream_is_over() -> None:
    with celery_broadcast.stream(name="reader") as events:
        publish(3)
        assert next(events).task_id == "0"
        offered(3, "reader")

        def child() -> Any:
            rest = task_ids(events)
            events.__exit__(None, None, None)
            return rest

        assert in_child(child) == []
        assert next(events).task_id == "1"


@on
def test_a_child_forked_while_another_thread_subscribes_starts_all_the_same() -> None:
    streams = [celery_broadcast.stream() for _ in range(30)]
    for stream in streams:
        stream.__enter__()
    locked, go_on = threading.Event(), threading.Event()

    def subscribe() -> None:
        with registry._changing:
            locked.set()
            go_on.wait(10.0)

    with another_thread(subscribe):
        assert locked.wait(10.0)
        try:
            assert in_child(lambda: len(registry.subscriptions)) == 0
        finally:
            go_on.set()
    for stream in streams:
        stream.__exit__(None, None, None)


@on
def test_reading_ends_in_the_middle_of_a_burst_and_everything_is_accounted_for() -> None:
    stop = threading.Event()

    def fire() -> None:
        while not stop.is_set():
            for event in numbered(20):
                celery_broadcast.notify(event)

    with another_thread(fire):
        for _ in range(20):
            with celery_broadcast.stream(name="reader") as events:
                for _event, _ in zip(events, range(10), strict=False):
                    pass
        stop.set()
    celery_broadcast.drain()

    assert stats("reader").handled >= 200
    assert stats("reader").pending == 0
    assert conserved(stats("reader"))
