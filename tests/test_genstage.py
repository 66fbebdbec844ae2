"""What GenStage's own tests assert, where no other test here does, and the page of them all."""

from __future__ import annotations

import ast
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered, subscribe

import celery_broadcast
from celery_broadcast import Batch, Restart, notices
from celery_broadcast.counts import CANCELLED, GAVE_UP
from celery_broadcast.dispatcher import Dispatcher, Item
from celery_broadcast.events import Event, JobEvent, JobFailed, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.producer import Producer
from celery_broadcast.selection import Selection

MakeProducer = Callable[..., Producer]


def fail(_: Item, error: Exception) -> None:
    raise error


def test_what_one_consumer_has_not_asked_for_waits_for_it_alone() -> None:
    dispatcher = Dispatcher()
    slow, quick = Mailbox[Item](size=10), Mailbox[Item](size=10)
    dispatcher.add("slow", Selection(), slow)
    dispatcher.add("quick", Selection(), quick)
    deliveries = numbered(4)

    dispatcher.dispatch(deliveries[:2], fail)
    assert slow.take(demand=1, wait_seconds=0) == deliveries[:1]
    assert quick.take(demand=10, wait_seconds=0) == deliveries[:2]

    dispatcher.dispatch(deliveries[2:], fail)
    assert quick.take(demand=10, wait_seconds=0) == deliveries[2:]
    assert slow.take(demand=10, wait_seconds=0) == deliveries[1:]


def test_each_selector_gives_its_own_consumer_what_it_wants(make_producer: MakeProducer) -> None:
    wide, narrow = Recorder(), Recorder()
    producer = make_producer(
        subscribe(wide, "wide", selector=lambda event: event.task_id.startswith("pre")),
        subscribe(narrow, "narrow", selector=lambda event: event.task_id.startswith("prefix")),
    )

    for task_id in ("prefix-1", "other", "pre-1", "prefix-2"):
        producer.notify(make_event(JobFinished, task_id=task_id))
    producer.drain()

    assert wide.task_ids == ["prefix-1", "pre-1", "prefix-2"]
    assert narrow.task_ids == ["prefix-1", "prefix-2"]
    assert {name: stats.declined for name, stats in producer.stats().items()} == {
        "wide": 1,
        "narrow": 2,
    }


def test_a_take_gives_what_is_there_and_does_not_wait_for_the_rest() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    taken: list[int] = []
    for number in (1, 2):
        mailbox.put(number)

    taker = threading.Thread(target=lambda: taken.extend(mailbox.take(demand=5)))
    taker.start()
    taker.join(10)

    mailbox.close()  # or a taker that waits would outlive the test
    assert taken == [1, 2]


def test_takers_of_one_mailbox_share_its_events_and_get_none_twice() -> None:
    mailbox: Mailbox[int] = Mailbox(size=None)
    shares: list[list[int]] = [[], [], []]

    def take_all(share: list[int]) -> None:
        while taken := mailbox.take(demand=3):
            share.extend(taken)

    takers = [threading.Thread(target=take_all, args=(share,), daemon=True) for share in shares]
    for taker in takers:
        taker.start()
    for number in range(1_000):
        mailbox.put(number)
    mailbox.close()
    for taker in takers:
        taker.join(10)

    assert sorted(chain.from_iterable(shares)) == list(range(1_000))
    assert all(share == sorted(share) for share in shares)


class SlowToSetUp(Recorder):
    """Isn't ready until it is allowed to be."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.allowed = threading.Event()

    def setup(self) -> None:
        self.began.set()
        self.allowed.wait(10.0)
        super().setup()

    def handle(self, event: JobEvent) -> None:
        self.lives.append(f"event {event.task_id}")
        super().handle(event)


def test_setup_is_over_before_the_first_event(make_producer: MakeProducer) -> None:
    consumer = SlowToSetUp()
    producer = make_producer(subscribe(consumer, "store"))

    producer.notify(make_event(JobFinished, task_id="1"))
    assert consumer.began.wait(10.0)
    consumer.allowed.set()
    producer.drain()

    assert consumer.lives == ["setup", "event 1", "teardown"]


def test_a_consumer_that_is_ready_late_gets_what_was_published_before(
    make_producer: MakeProducer,
) -> None:
    late, ready = SlowToSetUp(), Recorder()
    producer = make_producer(subscribe(late, "late"), subscribe(ready, "ready"))
    events = numbered(5)

    for event in events:
        producer.notify(event)
    ready.wait_for(5)
    assert late.events == []
    late.allowed.set()
    producer.drain()

    assert late.events == events


def test_whoever_listens_hears_of_a_consumers_start_and_end(make_producer: MakeProducer) -> None:
    heard: list[str] = []
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))

    def hear(what: str, consumer: str) -> None:
        heard.append(f"{consumer} {what} after {len(recorder.events)} events")

    with ExitStack() as listening:
        for what, notice in (
            ("started", notices.consumer_started),
            ("stopped", notices.consumer_stopped),
        ):
            listening.enter_context(notice.connected_to(partial(hear, what)))
        for event in numbered(3):
            producer.notify(event)
        producer.drain()

    assert heard == ["store started after 0 events", "store stopped after 3 events"]


def test_threads_of_one_consumer_share_its_events_and_no_more_are_at_work_at_once(
    make_producer: MakeProducer,
) -> None:
    together = threading.Barrier(4, timeout=10.0)  # three of theirs, and the test
    handled: list[str] = []

    def handle(event: JobEvent) -> None:
        together.wait()
        together.wait()
        handled.append(event.task_id)

    producer = make_producer(subscribe(handle, "store", concurrency=3))
    for event in numbered(6):
        producer.notify(event)
    wait_until(lambda: producer.stats()["store"].offered == 6)

    for done in (0, 3):
        together.wait()  # three are at work
        assert len(handled) == done
        assert producer.stats()["store"].pending == 6 - done
        together.wait()
        wait_until(lambda: producer.stats()["store"].handled == done + 3)  # noqa: B023  # now

    assert sorted(handled) == ["0", "1", "2", "3", "4", "5"]


def task_of(event: JobEvent) -> str:
    return event.task_name


def test_events_of_one_key_are_handled_one_after_the_other_in_their_order(
    make_producer: MakeProducer,
) -> None:
    at_work: dict[str, int] = defaultdict(int)
    handled: dict[str, list[str]] = defaultdict(list)
    most = 0

    def handle(event: JobEvent) -> None:
        nonlocal most
        at_work[event.task_name] += 1
        most = max(most, at_work[event.task_name])
        handled[event.task_name].append(event.task_id)
        at_work[event.task_name] -= 1

    producer = make_producer(subscribe(handle, "store", concurrency=4, partition_by=task_of))
    for event in numbered(200):
        for task in ("charge", "refund", "ship"):
            producer.notify(make_event(JobFinished, task, task_id=event.task_id))
    producer.drain()

    assert most == 1
    assert dict(handled) == {
        task: [str(number) for number in range(200)] for task in ("charge", "refund", "ship")
    }


def test_a_key_whose_event_is_in_hand_lets_its_own_events_wait_and_no_others(
    make_producer: MakeProducer,
) -> None:
    go_on = threading.Event()
    handled: list[str] = []

    def handle(event: JobEvent) -> None:
        if event.task_id == "slow":
            go_on.wait(10.0)
        handled.append(event.task_id)

    producer = make_producer(subscribe(handle, "store", concurrency=2, partition_by=task_of))
    producer.notify(make_event(JobFinished, "charge", task_id="slow"))
    producer.notify(make_event(JobFinished, "charge", task_id="behind"))
    producer.notify(make_event(JobFinished, "refund", task_id="other"))
    wait_until(lambda: handled)
    assert handled == ["other"]
    go_on.set()
    producer.drain()

    assert handled == ["other", "slow", "behind"]


def test_a_key_that_can_not_be_one_fails_its_event_alone(make_producer: MakeProducer) -> None:
    recorder = Recorder()

    def key_of(event: JobEvent) -> object:
        return [] if event.task_id == "1" else None

    producer = make_producer(subscribe(recorder, "store", concurrency=2, partition_by=key_of))
    for event in numbered(3):
        producer.notify(event)
    producer.drain()

    assert recorder.task_ids == ["0", "2"]
    assert producer.stats()["store"].failed == 1


def test_events_come_in_batches_of_at_most_the_size_asked_for(make_producer: MakeProducer) -> None:
    batches: list[list[str]] = []

    def handle(events: list[JobEvent]) -> None:
        batches.append([event.task_id for event in events])

    producer = make_producer(
        subscribe(handle, "store", batch=Batch(max_events=4, max_wait=3_600.0))
    )
    for event in numbered(10):
        producer.notify(event)
    wait_until(lambda: len(batches) == 2)
    producer.drain()

    assert batches == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


class Incident(Event, frozen=True, kw_only=True):
    """So many failures at once."""

    failures: int


@pytest.mark.usefixtures("broadcast_is_on")
def test_a_stage_in_the_middle_makes_one_event_of_ten_for_all_who_want_it() -> None:
    heard: list[str] = []
    told: dict[str, list[Event]] = {"pager": [], "chat": []}

    def find_incidents(event: JobFailed | Incident) -> None:
        heard.append(str(event))
        if len(heard) % 10 == 0:
            celery_broadcast.notify(Incident(failures=10))

    celery_broadcast.subscribe(find_incidents, JobFailed, Incident)
    for name, events in told.items():
        celery_broadcast.subscribe(events.append, Incident, name=name)
    for event in numbered(20):
        celery_broadcast.notify(event)
        celery_broadcast.notify(make_event(JobFailed, task_id=event.task_id))
    wait_until(lambda: all(len(events) == 2 for events in told.values()))
    celery_broadcast.drain()

    assert told == dict.fromkeys(("pager", "chat"), [Incident(failures=10)] * 2)
    assert heard == [f"JobFailed shop.charge[{number}]" for number in range(20)]  # none of its own


@pytest.mark.parametrize(
    ("kind", "crash", "lives", "dropped"),
    [
        ("permanent", SystemExit(0), 2, {}),
        ("permanent", OSError("no"), 2, {}),
        ("transient", SystemExit(0), 1, {CANCELLED: 2}),
        ("transient", OSError("no"), 2, {}),
        ("temporary", SystemExit(0), 1, {CANCELLED: 2}),
        ("temporary", OSError("no"), 1, {GAVE_UP: 2}),
    ],
)
def test_a_consumer_starts_again_as_its_restart_says(
    kind: Any,
    crash: BaseException,
    lives: int,
    dropped: dict[str, int],
    make_producer: MakeProducer,
) -> None:
    class CrashesOnce(SlowToSetUp):
        def setup(self) -> None:
            super().setup()
            if self.lives == ["setup"]:
                raise crash

    consumer = CrashesOnce()
    producer = make_producer(subscribe(consumer, "store", restart=Restart(kind)))
    for event in numbered(2):
        producer.notify(event)
    wait_until(lambda: producer.stats()["store"].offered == 2)
    consumer.allowed.set()
    wait_until(lambda: not producer.stats()["store"].pending)
    producer.drain()

    assert consumer.lives.count("setup") == lives
    assert producer.stats()["store"].dropped == dropped
    assert consumer.task_ids == ([] if dropped else ["0", "1"])


TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "genstage.md").read_text()
BEHAVIOURS = [
    tuple(cell.strip() for cell in line.split("|")[1:-1])
    for line in PAGE.partition("\n## Broadcast")[2].splitlines()
    if line.startswith("| ") and line != "| In GenStage | Here |"
]
NAMED_TEST = re.compile(r"`([a-z_/]+\.py)::(test_\w+)`")


def names_of_tests(file: str) -> set[str]:
    """Return the names of the tests in a file; a state machine's is assigned."""
    names: set[str] = set()
    for node in ast.parse((TESTS / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if name.startswith("test_")}


def test_the_page_has_every_file_of_genstages_tests_that_it_is_about() -> None:
    files = re.findall(r"^`(\w+\.exs)`$", PAGE, flags=re.MULTILINE)

    assert set(files) == {
        "broadcast_dispatcher_test.exs",
        "buffer_test.exs",
        "demand_dispatcher_test.exs",
        "partition_dispatcher_test.exs",
        "gen_stage_test.exs",
        "consumer_supervisor_test.exs",
    }
    assert len(BEHAVIOURS) > 90


@pytest.mark.parametrize("row", BEHAVIOURS, ids=lambda row: row[0][:60])
def test_each_row_of_the_page_has_a_test_or_a_reason(row: tuple[str, ...]) -> None:
    behaviour, ours = row
    reason = re.match(r"(Different|Nothing alike): .{10}", ours)

    assert behaviour
    assert reason or NAMED_TEST.search(ours)


def test_each_test_that_the_page_names_exists() -> None:
    for file, name in NAMED_TEST.findall(PAGE):
        assert name in names_of_tests(file), f"{file}::{name}"
    assert PAGE.count(".py::") == len(NAMED_TEST.findall(PAGE))


def test_each_behaviour_that_is_tested_here_is_on_the_page() -> None:
    for name in names_of_tests("test_genstage.py"):
        assert "_page" in name or f"`test_genstage.py::{name}`" in PAGE, name
