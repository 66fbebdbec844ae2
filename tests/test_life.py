from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from crews import declared, deliver, run
from recorder import BrokenConsumer, Recorder, numbered, subscribe

from celery_broadcast import notices
from celery_broadcast.consumer import Consumer, FunctionConsumer
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import JobEvent
from celery_broadcast.life import Life
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.retry import Retry
from celery_broadcast.station import Station

NOBODY: frozenset[str] = frozenset()


def new_life(
    consumer: Consumer, *events: JobEvent, selector: Callable[[JobEvent], object] | None = None
) -> tuple[Life, Mailbox[Item]]:
    """Give a consumer a mailbox with these events in it, and a life that runs no thread."""
    mailbox: Mailbox[Item] = Mailbox(size=100)
    for event in events:
        mailbox.put(Delivery(event, NOBODY))
    return Life(Station(subscribe(consumer, "store", selector=selector), mailbox)), mailbox


def test_a_step_handles_one_event_and_counts_it() -> None:
    recorder = Recorder()
    life, mailbox = new_life(recorder, *numbered(2))
    life.set_up()

    assert life.step()

    assert recorder.task_ids == ["0"]
    assert mailbox.stats().handled == 1
    assert mailbox.stats().pending == 1


def test_a_step_without_an_event_says_so() -> None:
    life, _ = new_life(Recorder())
    life.set_up()

    assert not life.step(wait_seconds=0)


def test_a_raising_consumer_loses_the_event_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    life, mailbox = new_life(BrokenConsumer(OSError("no route")), *numbered(1))
    life.set_up()

    assert life.step()

    assert mailbox.stats().failed == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "consumer 'store' raised on JobFinished shop.charge[0]; "
        "this event is lost, the consumer goes on"
    )
    assert record.exc_info is not None


def test_many_failures_are_summed_up_in_the_log_and_each_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[JobEvent] = []

    def hear(consumer: str, *, event: JobEvent, error: BaseException) -> None:
        assert (consumer, str(error)) == ("store", "no")
        told.append(event)

    events = numbered(50)
    life, mailbox = new_life(BrokenConsumer(OSError("no")), *events)
    life.set_up()

    with notices.consumer_failed.connected_to(hear):
        while life.step(wait_seconds=0):
            pass

    assert told == events
    assert mailbox.stats().failed == 50
    assert len([record for record in caplog.records if "raised on" in record.getMessage()]) < 10


def test_a_selector_that_says_no_declines_the_event() -> None:
    recorder = Recorder()
    life, mailbox = new_life(recorder, *numbered(3), selector=lambda event: event.task_id == "1")
    life.set_up()

    while life.step(wait_seconds=0):
        pass

    assert recorder.task_ids == ["1"]
    stats = mailbox.stats()
    assert (stats.handled, stats.declined) == (3, 2)


def test_a_selector_that_raises_fails_that_event_alone() -> None:
    recorder = Recorder()
    life, mailbox = new_life(recorder, *numbered(2), selector=lambda event: 1 / int(event.task_id))
    life.set_up()

    while life.step(wait_seconds=0):
        pass

    assert recorder.task_ids == ["1"]
    assert mailbox.stats().failed == 1


async def send(event: JobEvent) -> None:
    raise AssertionError("nothing runs it")


def send_later(event: JobEvent) -> Any:
    return send(event)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retry": Retry(attempts=2, wait=0.0)},
        {"selector": send_later},
        {"concurrency": 2, "partition_by": send_later},
    ],
)
def test_a_plain_function_that_returns_a_coroutine_fails_its_event_and_is_told_why(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def handle(event: JobEvent) -> object:
        return send_later(event) if not options.keys() - {"retry"} else None

    stats = run(handle, numbered(1), **options)

    assert (stats.handled, stats.failed) == (0, 1)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ConfigurationError)
    assert "returned a coroutine, send(), that nothing runs. Write it" in str(record.exc_info[1])


def test_a_plain_setup_that_returns_a_coroutine_raises() -> None:
    class Opens(Recorder):
        def setup(self) -> Any:
            return send_later(numbered(1)[0])

    life, _ = new_life(Opens())

    with pytest.raises(ConfigurationError, match="setup returned a coroutine"):
        life.set_up()


def test_whatever_else_a_plain_function_returns_is_its_own_affair() -> None:
    life, mailbox = new_life(FunctionConsumer(str), *numbered(1))
    life.set_up()

    assert life.step()

    assert mailbox.stats().handled == 1


def test_a_pause_holds_what_waits_behind_a_key_too() -> None:
    came: list[str] = []

    def handle(event: JobEvent) -> None:
        came.append(event.task_id)
        if event.task_id == "0":
            assert not other_life.step(wait_seconds=0)  # the others wait behind this one
            subscription.pause()

    subscription = declared(handle, concurrency=2, partition_by=lambda _: "one for all")
    mailbox: Mailbox[Item] = Mailbox(None, switch=subscription.switch)
    deliver(mailbox, numbered(3))
    station = Station(subscription, mailbox)
    life, other_life = Life(station), Life(station)
    life.set_up()
    other_life.set_up()

    assert life.step(wait_seconds=0)
    assert not life.step(wait_seconds=0)
    assert came == ["0"]
    subscription.resume()
    while life.step(wait_seconds=0):
        pass
    assert came == ["0", "1", "2"]


def test_a_consumer_that_cannot_be_called_fails_each_event_and_goes_on() -> None:
    class Shy(Consumer):
        def handle(self, event: JobEvent) -> None:
            """Not be reached."""

        def __getattribute__(self, name: str) -> Any:
            if name == "handle":
                raise AttributeError(name)
            return super().__getattribute__(name)

    stats = run(Shy, numbered(3))

    assert (stats.handled, stats.failed, stats.pending) == (0, 3, 0)
