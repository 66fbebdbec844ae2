"""What the numbers tell of now: how a consumer is, what it raised last, how often it restarted."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
from nodes.deadline import wait_until
from recorder import HeldRecorder, Recorder, numbered
from test_fork import in_child
from test_slots import as_in_a_child, killed_child

import celery_broadcast
from celery_broadcast import ConsumerStats, Event, Restart
from celery_broadcast.counts import Counts
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import Slots

pytestmark = [
    pytest.mark.usefixtures("broadcast_is_on"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def publish(count: int = 1) -> None:
    for event in numbered(count):
        celery_broadcast.notify(event)


def stats() -> ConsumerStats:
    return celery_broadcast.stats()["store"]


def is_in(processes: dict[str, int]) -> None:
    wait_until(lambda: stats().processes == processes)


def raising(error: BaseException) -> None:
    def store(_: Event) -> None:
        raise error

    celery_broadcast.subscribe(store, name="store", restart=Restart(max_restarts=2, within=0.1))
    publish(5)


def test_a_consumer_runs_from_its_first_event_to_its_drain() -> None:
    celery_broadcast.subscribe(Recorder().handle, name="store")
    assert stats().processes == {}

    publish()
    is_in({"running": 1})
    celery_broadcast.drain()

    assert stats().processes == {}


def test_a_paused_consumer_is_paused_until_it_is_resumed() -> None:
    subscription = celery_broadcast.subscribe(Recorder().handle, name="store", concurrency=2)
    subscription.pause()

    publish()
    is_in({"paused": 1})
    subscription.resume()

    is_in({"running": 1})


def test_a_consumer_is_stuck_while_a_call_of_it_is() -> None:
    recorder = HeldRecorder()
    celery_broadcast.subscribe(recorder.handle, name="store", stuck_after=0.05)

    publish()
    is_in({"stuck": 1})
    recorder.freed.set()

    is_in({"running": 1})


def test_a_consumer_that_crashes_too_often_gave_up_and_stays_so() -> None:
    raising(SystemExit("no disk"))

    is_in({"gave-up": 1})
    celery_broadcast.drain()

    assert stats().processes == {"gave-up": 1}
    assert stats().restarts == 2
    assert stats().last_error == "SystemExit: no disk"


def test_a_consumer_that_ended_itself_did_not_give_up() -> None:
    def store(_: Event) -> None:
        raise SystemExit

    celery_broadcast.subscribe(store, name="store", restart=Restart("transient"))
    publish()
    wait_until(lambda: stats().handled == 1)
    is_in({})

    assert stats().last_error is None


def test_the_last_error_is_told_with_its_time() -> None:
    before = time.time()
    raising(ValueError("no money"))
    celery_broadcast.drain()

    assert stats().last_error == "ValueError: no money"
    assert before - 0.01 <= (stats().last_error_at or 0.0) <= time.time()


def test_an_error_whose_text_raises_is_told_all_the_same() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise LookupError

    counts = Counts()
    counts.note_error(UnspeakableError())

    assert counts.stats().last_error == "UnspeakableError, whose text raised LookupError"


@pytest.mark.parametrize("letter", ["x", "é", "名", "\0", "\ud800"])
def test_a_long_error_is_cut(letter: str) -> None:
    counts = Counts()
    counts.note_error(ValueError(letter * 10_000))
    long = counts.stats().last_error or ""
    counts.note_error(ValueError())

    assert len(long) <= 500
    assert long.startswith("ValueError")
    assert counts.stats().last_error == "ValueError"


def test_numbers_of_two_processes_add_up_to_the_newest_error_and_the_longest_lag() -> None:
    def one(text: str | None, at: float | None, lag: float, state: str) -> ConsumerStats:
        stats = msgspec.structs.replace(Counts().stats(), restarts=2, lag=lag, processes={state: 1})
        return msgspec.structs.replace(stats, last_error=text, last_error_at=at)

    total = one("old", 1.0, 3.0, "running") + one("new", 2.0, 1.0, "stuck")
    total += one(None, None, 0.0, "running")

    assert (total.last_error, total.last_error_at) == ("new", 2.0)
    assert (total.lag, total.restarts) == (3.0, 6)
    assert total.processes == {"running": 2, "stuck": 1}


def count_all(counts: Counts) -> None:
    counts.add_threads(1)
    counts.add_restart()
    counts.add_calls(2_000_000, others=9)
    counts.note_error(ValueError("no money"))


def test_what_a_process_that_died_had_counted_is_kept_but_not_how_it_was() -> None:
    slots = Slots(count=2)
    main = Ledger()
    main.share(slots)
    killed_child(lambda: count_all(main.counts("store")))
    living = main.add_pool({})["store"]
    for slot in slots.gone():
        main.bury(slot)

    departed = main.add_pool({})["store"]

    assert living.processes == {"running": 1}
    assert departed.processes == {}
    assert (departed.restarts, departed.last_error) == (1, "ValueError: no money")
    assert departed.durations == living.durations
    assert departed.durations.count == 10


def test_a_switch_of_the_main_process_is_seen_in_its_children() -> None:
    slots = Slots(count=2)
    assert slots.switch[0] == 0

    slots.switch[0] = 1_700_000_000_123

    assert in_child(lambda: slots.switch[0] == 1_700_000_000_123)
    assert as_in_a_child(slots).switch[0] == 1_700_000_000_123


def test_memory_for_the_jobs_numbers_is_clean_for_the_next_process() -> None:
    slots = Slots(count=1)
    slot = as_in_a_child(slots).mine
    assert slot is not None
    slot.job_memory_used = 100
    slot.job_memory[:100] = b"x" * 100
    slot.free()

    again = as_in_a_child(slots).mine

    assert again is not None
    assert again.job_memory_used == 0
    assert bytes(again.job_memory[:100]) == bytes(100)
    assert len(again.job_memory) == 65_536


def test_numbers_of_several_threads_lose_no_call() -> None:
    counts = Counts()

    def call() -> None:
        for _ in range(2_000):
            counts.add_calls(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts.stats().durations.count == 8_000
