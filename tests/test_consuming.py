"""A process that runs remote consumers, as far as it needs no process for that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_transport import MemoryBroker, MemoryTransport
from nodes.deadline import wait_until
from recorder import HeldRecorder, Recorder, make_event, numbered, subscribe

import celery_broadcast
from celery_broadcast import ConfigurationError, Event, JobFailed, JobFinished, Restart
from celery_broadcast.relay.consuming import Consuming, Signals, group_of, run
from celery_broadcast.relay.transport import Group, Limits
from celery_broadcast.relay.wire import Writer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Subscription

FINISHED = Group(name="", event_types=("JobFinished",))


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def consuming(broker: MemoryBroker, *subscriptions: Subscription, **settings: Any) -> Consuming:
    checked = Settings(**{"drain_timeout": 10.0, **settings})
    return Consuming(subscriptions, checked, lambda: MemoryTransport(broker), Limits())


def in_thread(function: Callable[[], int]) -> tuple[threading.Thread, list[int]]:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(function()))
    thread.start()
    return thread, codes


def publish(broker: MemoryBroker, count: int) -> None:
    MemoryTransport(broker).publish(Writer("producer", "/celery/tests").parcels(numbered(count)))


def test_the_group_is_what_the_consumer_wants() -> None:
    some = subscribe(print, "some", events=(JobFailed, JobFinished), tasks=("shop.*",))
    every = subscribe(print, "every")

    assert group_of(some) == Group(
        name="some", event_types=("JobFinished", "JobFailed"), tasks=("shop.*",)
    )
    assert group_of(every).tasks is None
    assert "JobLost" in group_of(every).event_types


def test_every_consumer_gets_every_event_once_and_the_numbers_tell(broker: MemoryBroker) -> None:
    recorders = Recorder(), Recorder()
    process = consuming(broker, *(subscribe(each, str(n)) for n, each in enumerate(recorders)))
    process.start()
    wait_until(lambda: process.is_ready)

    publish(broker, 3)

    for recorder in recorders:
        recorder.wait_for(3)
    process.stop()
    assert [recorder.task_ids for recorder in recorders] == [["0", "1", "2"]] * 2
    assert {name: each.handled for name, each in process.producer.stats().items()} == {
        "0": 3,
        "1": 3,
    }


def test_a_consumer_is_set_up_before_the_first_event(broker: MemoryBroker) -> None:
    recorder = Recorder()
    process = consuming(broker, subscribe(recorder, "pager"))
    process.start()

    wait_until(lambda: recorder.lives == ["setup"])

    process.stop()
    assert recorder.lives == ["setup", "teardown"]


def test_the_ready_file_is_there_while_all_are_read(broker: MemoryBroker, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text("of one that was killed")
    broker.is_away = True
    process = consuming(broker, subscribe(Recorder(), "pager"))
    thread, codes = in_thread(lambda: run(process, ready))
    wait_until(lambda: not ready.exists())

    broker.is_away = False
    wait_until(ready.exists)
    for incoming in process.incoming:
        incoming.stop()
    thread.join()

    assert codes == [0]
    assert not ready.exists()


def test_a_ready_file_that_cannot_be_is_refused(broker: MemoryBroker, tmp_path: Path) -> None:
    process = consuming(broker, subscribe(Recorder(), "pager"))

    with pytest.raises(ConfigurationError, match="can't be written"):
        run(process, tmp_path / "nowhere" / "ready")
    with pytest.raises(ConfigurationError, match="can't be written"):
        run(process, tmp_path)


def test_a_consumer_that_gives_up_ends_it_with_a_code(broker: MemoryBroker) -> None:
    def exits(_event: Event) -> None:
        raise SystemExit(1)

    quitter = subscribe(exits, "quitter", restart=Restart("temporary"))
    recorder = Recorder()
    process = consuming(broker, quitter, subscribe(recorder, "pager"))
    thread, codes = in_thread(lambda: run(process))
    wait_until(lambda: process.is_ready)

    publish(broker, 1)
    thread.join()

    assert codes == [1]
    assert process.failed == ["quitter"]
    assert len(broker.waiting["quitter"]) == 1


def test_a_consumer_that_ends_itself_is_no_failure(broker: MemoryBroker) -> None:
    def leaves(_event: Event) -> None:
        raise SystemExit(0)

    process = consuming(broker, subscribe(leaves, "leaver", restart=Restart("transient")))
    thread, codes = in_thread(lambda: run(process))
    wait_until(lambda: process.is_ready)

    publish(broker, 1)
    thread.join()

    assert codes == [0]
    assert broker.is_empty("leaver")


def test_stats_tell_of_the_remote_consumers_while_they_run(broker: MemoryBroker) -> None:
    seen: list[int] = []

    def look(_event: Event) -> None:
        seen.append(celery_broadcast.stats()["pager"].pending)

    process = consuming(broker, subscribe(look, "pager"))
    thread, _ = in_thread(lambda: run(process))
    wait_until(lambda: process.is_ready)
    publish(broker, 1)
    wait_until(lambda: seen)
    for incoming in process.incoming:
        incoming.stop()
    thread.join()

    assert seen == [1]
    assert celery_broadcast.stats() == {}


def test_what_is_published_in_the_process_does_not_come_back_to_it(broker: MemoryBroker) -> None:
    recorder = Recorder()
    process = consuming(broker, subscribe(recorder, "pager"))
    process.start()
    wait_until(lambda: process.is_ready)

    process.producer.notify(make_event(JobFinished))
    publish(broker, 1)

    wait_until(lambda: recorder.events)
    process.stop()
    assert recorder.task_ids == ["0"]


def test_what_strikes_the_drain_gives_back_what_is_in_hand(broker: MemoryBroker) -> None:
    held = HeldRecorder()
    process = consuming(broker, subscribe(held, "pager"))
    process.start()
    wait_until(lambda: process.is_ready)
    publish(broker, 1)
    assert held.held.wait(10.0)
    signals = Signals()

    with signals.caught():
        os.kill(os.getpid(), signal.SIGINT)
        timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            process.stop()

    assert signals.count == 2
    assert len(broker.waiting["pager"]) == 1
    held.freed.set()


def test_a_signal_handler_is_put_back(broker: MemoryBroker) -> None:
    before = signal.getsignal(signal.SIGTERM)

    with Signals().caught():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before
