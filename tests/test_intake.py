from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from crews import NOBODY, conserved
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_event, numbered

from celery_broadcast.batch import Batch
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.events import JobFinished
from celery_broadcast.intake import NO_KEY, Intake, Work
from celery_broadcast.mailbox import Mailbox


def arrived(task_id: str, seconds_ago: float = 0.0) -> Delivery:
    """Return an event that came to the mailboxes so long ago."""
    return Delivery(
        make_event(JobFinished, task_id=task_id),
        NOBODY,
        dispatched_at=time.monotonic() - seconds_ago,
    )


class Bench:
    """An intake with all that it needs, and what it made of the events."""

    def __init__(
        self,
        *,
        size: int | None = 100,
        overflow: str = "drop_oldest",
        batch: Batch | None = None,
        partition_by: Callable[[Any], Hashable] | None = None,
        selector: Callable[[str], bool] = lambda task_id: True,
    ) -> None:
        self.mailbox: Mailbox[Item] = Mailbox(size, overflow)
        self.failed: list[tuple[str, BaseException]] = []
        self._selector = selector
        self.intake = Intake(
            self.mailbox,
            batch=batch,
            key_of=None if partition_by is None else lambda d: partition_by(d.event),
            is_wanted=self._is_wanted,
            fail=self._fail,
        )

    def _is_wanted(self, delivery: Delivery) -> bool:
        is_wanted = self._selector(delivery.event.task_id)  # type: ignore[attr-defined]
        if not is_wanted:
            self.mailbox.settle(declined=1)
        return is_wanted

    def _fail(self, delivery: Delivery, error: BaseException) -> None:
        self.mailbox.settle(failed=1)
        self.failed.append((delivery.event.task_id, error))  # type: ignore[attr-defined]

    def put(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self.mailbox.put(delivery)

    def poll(self) -> list[str] | None:
        """Poll, and settle what comes; return the ids."""
        work = self.intake.poll()
        if work is None:
            return None
        self.mailbox.settle(handled=len(work.deliveries))
        return ids(work)


def ids(work: Work | None) -> list[str]:
    assert work is not None
    return [delivery.event.task_id for delivery in work.deliveries]  # type: ignore[attr-defined]


# One after the other.


def test_without_any_option_one_event_comes_after_the_other() -> None:
    bench = Bench()
    bench.put(*map(arrived, "ab"))

    assert bench.poll() == ["a"]
    assert bench.poll() == ["b"]
    assert bench.poll() is None
    assert (bench.intake.at_least, bench.intake.due_at) == (1, None)


def test_nothing_waits_behind_an_event_that_has_no_key() -> None:
    assert Bench().intake.next_of(NO_KEY) is None


# Batches.


def test_a_batch_comes_as_soon_as_it_is_full() -> None:
    bench = Bench(batch=Batch(max_events=3, max_wait=3600.0))
    bench.put(*map(arrived, "abcd"))

    assert bench.poll() == ["a", "b", "c"]
    assert bench.poll() is None


def test_a_batch_comes_when_its_first_event_has_waited_and_that_moment_is_known() -> None:
    bench = Bench(batch=Batch(max_events=3, max_wait=60.0))
    bench.put(arrived("early", seconds_ago=20.0))
    bench.put(arrived("late"))

    assert bench.poll() is None
    assert bench.intake.at_least == 1
    assert bench.intake.due_at is not None
    assert 39.0 < bench.intake.due_at - time.monotonic() <= 40.0

    late = Bench(batch=Batch(max_events=3, max_wait=60.0))
    late.put(arrived("early", seconds_ago=61.0), arrived("late"))
    assert late.poll() == ["early", "late"]


def test_a_batch_that_waits_for_nothing_gets_what_is_there() -> None:
    bench = Bench(batch=Batch(max_events=10, max_wait=0.0))
    bench.put(*map(arrived, "ab"))

    assert bench.poll() == ["a", "b"]


def test_a_batch_that_is_not_full_comes_at_a_stop() -> None:
    bench = Bench(batch=Batch(max_events=3, max_wait=3600.0))
    bench.put(arrived("a"))
    assert bench.poll() is None

    bench.mailbox.close()

    assert bench.poll() == ["a"]
    assert bench.poll() is None


def test_events_that_are_declined_take_no_place_in_a_batch() -> None:
    bench = Bench(
        batch=Batch(max_events=3, max_wait=3600.0), selector=lambda task_id: task_id.islower()
    )
    bench.put(*map(arrived, "aBCbDc"))

    assert bench.poll() == ["a", "b", "c"]
    assert bench.mailbox.stats().declined == 3


def test_where_all_are_declined_there_is_no_batch_and_nothing_to_wait_for() -> None:
    bench = Bench(batch=Batch(max_events=3, max_wait=0.0), selector=lambda _: False)
    bench.put(*map(arrived, "abcde"))

    assert bench.poll() is None
    assert (bench.intake.at_least, bench.intake.due_at) == (1, None)
    bench.mailbox.close()
    assert bench.poll() is None


def test_a_batch_may_be_larger_than_the_mailbox() -> None:
    bench = Bench(size=2, batch=Batch(max_events=5, max_wait=3600.0))
    for pair in ("ab", "cd"):
        bench.put(*map(arrived, pair))
        assert bench.poll() is None
    bench.put(arrived("e"))

    assert bench.poll() == ["a", "b", "c", "d", "e"]
    assert bench.mailbox.stats().dropped == {}


def test_a_selector_that_exits_costs_a_batch_no_event() -> None:
    exits = iter([True])

    def select(task_id: str) -> bool:
        if task_id == "b" and next(exits, False):
            sys.exit()
        return True

    bench = Bench(batch=Batch(max_events=4, max_wait=3600.0), selector=select)
    bench.put(*map(arrived, "abcd"))

    with pytest.raises(SystemExit):
        bench.poll()
    bench.mailbox.settle(failed=1)  # as whoever asked the selector does
    bench.mailbox.close()

    assert bench.poll() == ["a", "c", "d"]
    assert bench.mailbox.stats().pending == 0


@given(
    size=st.none() | st.integers(1, 8),
    overflow=st.sampled_from(["drop_oldest", "drop_newest"]),
    max_events=st.integers(1, 6),
    max_wait=st.sampled_from([0.0, 3600.0]),
    steps=st.lists(
        st.tuples(st.just("put"), st.booleans(), st.booleans()) | st.just(("poll", True, True)),
        max_size=40,
    ),
)
def test_a_batch_is_never_empty_and_never_too_long_and_all_come_in_order(
    size: int | None,
    overflow: str,
    max_events: int,
    max_wait: float,
    steps: list[tuple[str, bool, bool]],
) -> None:
    wanted: dict[str, bool] = {}
    bench = Bench(
        size=size,
        overflow=overflow,
        batch=Batch(max_events=max_events, max_wait=max_wait),
        selector=lambda task_id: wanted[task_id],
    )
    batches: list[list[str]] = []

    def poll() -> bool:
        batch = bench.poll()
        if batch is not None:
            batches.append(batch)
        assert conserved(bench.mailbox.stats())
        return batch is not None

    for number, (step, is_wanted, is_old) in enumerate(steps):
        if step == "put":
            wanted[str(number)] = is_wanted
            bench.put(arrived(str(number), seconds_ago=7200.0 if is_old else 0.0))
        elif poll():
            pass
        else:  # it knows what it waits for: one event fewer than that is not enough
            assert 1 <= bench.intake.at_least <= max_events
    bench.mailbox.close()
    while poll():
        pass

    got = [task_id for batch in batches for task_id in batch]
    stats = bench.mailbox.stats()
    assert all(1 <= len(batch) <= max_events for batch in batches)
    assert got == sorted(got, key=int)
    assert all(wanted[task_id] for task_id in got)
    assert len(got) + stats.declined + stats.dropped_total == len(wanted) == stats.offered
    assert stats.pending == 0


# Keys.


def first_letter(event: JobFinished) -> str:
    return event.task_id[0]


def test_an_event_waits_while_another_of_its_key_is_in_hand_and_other_keys_go_on() -> None:
    bench = Bench(partition_by=first_letter)
    bench.put(*map(arrived, ["a1", "a2", "b1"]))

    a1 = bench.intake.poll()
    b1 = bench.intake.poll()

    assert (ids(a1), ids(b1)) == (["a1"], ["b1"])
    assert bench.intake.poll() is None
    assert a1 is not None
    assert ids(bench.intake.next_of(a1.key)) == ["a2"]
    assert bench.intake.next_of(a1.key) is None


def test_a_key_is_free_once_nothing_waits_behind_it() -> None:
    bench = Bench(partition_by=first_letter)
    bench.put(*map(arrived, ["a1", "a2"]))
    assert ids(bench.intake.poll()) == ["a1"]
    assert bench.intake.next_of("a") is None

    assert ids(bench.intake.poll()) == ["a2"]


@pytest.mark.parametrize(
    ("partition_by", "error"),
    [
        (lambda event: event.task_id + 1, TypeError),
        (lambda event: [event.task_id], TypeError),
        (lambda event: {"a": "key", "b": []}[event.task_id], KeyError),
    ],
)
def test_a_key_that_cannot_be_told_fails_that_event_alone(
    partition_by: Callable[[Any], Hashable], error: type[Exception]
) -> None:
    def only_x_goes_wrong(event: JobFinished) -> Hashable:
        return partition_by(event) if event.task_id == "x" else event.task_id

    bench = Bench(partition_by=only_x_goes_wrong)
    bench.put(*map(arrived, "xa"))

    assert bench.poll() == ["a"]
    ((task_id, raised),) = bench.failed
    assert task_id == "x"
    assert isinstance(raised, error)
    assert bench.mailbox.stats().failed == 1


def test_a_key_function_that_exits_fails_that_event_and_the_next_comes_afterwards() -> None:
    def partition_by(event: JobFinished) -> str:
        return sys.exit() if event.task_id == "x" else event.task_id

    bench = Bench(partition_by=partition_by)
    bench.put(*map(arrived, "xa"))

    with pytest.raises(SystemExit):
        bench.poll()

    assert [task_id for task_id, _ in bench.failed] == ["x"]
    assert bench.poll() == ["a"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_what_waits_behind_a_stuck_key_fills_the_mailbox_too(overflow: str) -> None:
    bench = Bench(size=3, overflow=overflow, partition_by=first_letter)
    bench.put(arrived("a0"))
    assert ids(bench.intake.poll()) == ["a0"]  # and it is stuck

    for number in range(1, 10):
        bench.put(arrived(f"a{number}"))
        assert bench.intake.poll() is None

    stats = bench.mailbox.stats()
    assert (stats.pending, stats.dropped_total) == (1 + 3, 6)
    # Nothing waits but what was put aside, so whatever the policy, the new one goes.
    assert [ids(bench.intake.next_of("a")) for _ in range(3)] == [["a1"], ["a2"], ["a3"]]
    assert bench.intake.next_of("a") is None
    bench.put(*map(arrived, "bcd"))
    assert bench.mailbox.stats().dropped_total == 6


def test_what_waits_behind_keys_and_what_waits_before_them_share_the_room() -> None:
    bench = Bench(size=3, partition_by=first_letter)
    bench.put(*map(arrived, ["a0", "a1"]))
    assert ids(bench.intake.poll()) == ["a0"]
    assert bench.intake.poll() is None  # a1 is put aside

    bench.put(*map(arrived, ["b0", "b1", "b2"]))

    assert bench.mailbox.stats().dropped_total == 1
    assert ids(bench.intake.poll()) == ["b1"]


@given(
    keys=st.lists(st.integers(0, 3), max_size=30),
    choices=st.lists(st.integers(0, 5), min_size=1, max_size=10),
)
def test_events_of_a_key_come_in_order_whoever_ends_first(
    keys: list[int], choices: list[int]
) -> None:
    bench = Bench(size=None, partition_by=lambda event: event.task_id.split(":")[0])
    bench.put(*(arrived(f"{key}:{number}") for number, key in enumerate(keys)))
    came: dict[str, list[int]] = defaultdict(list)
    in_hand: list[Work] = []

    def begin(work: Work | None) -> bool:
        if work is None:
            return False
        (task_id,) = ids(work)
        key, number = task_id.split(":")
        assert key not in {each.key for each in in_hand}
        came[key].append(int(number))
        in_hand.append(work)
        return True

    turn = 0
    while True:
        choice = choices[turn % len(choices)]
        turn += 1
        if choice and begin(bench.intake.poll()):
            continue
        if not in_hand:
            if not begin(bench.intake.poll()):
                break
            continue
        ended = in_hand.pop(choice % len(in_hand))
        bench.mailbox.settle(handled=1)
        begin(bench.intake.next_of(ended.key))

    assert sum(map(len, came.values())) == len(keys) == bench.mailbox.stats().handled
    assert all(numbers == sorted(numbers) for numbers in came.values())


def test_many_threads_take_each_event_once_and_each_key_in_order() -> None:
    count, keys = 2_000, 7
    bench = Bench(size=None, partition_by=lambda event: int(event.task_id) % keys)
    bench.put(*(Delivery(event, NOBODY) for event in numbered(count)))
    bench.mailbox.close()
    came: dict[Hashable, list[int]] = defaultdict(list)
    taking = threading.Lock()

    def work_through() -> None:
        while True:
            with taking:
                work = bench.intake.poll()
            if work is None:
                return
            while work is not None:
                came[work.key] += map(int, ids(work))
                bench.mailbox.settle(handled=1)
                work = bench.intake.next_of(work.key)

    threads = [threading.Thread(target=work_through) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert came == {key: list(range(key, count, keys)) for key in range(keys)}
    assert bench.mailbox.stats().pending == 0
