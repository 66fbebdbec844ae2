from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fork import in_child
from test_slots import FIRST_ACTED_PID, as_in_a_child, killed_child, overwritten

from celery_broadcast.counts import (
    DRAIN_TIMEOUT,
    DROP_REASONS,
    MAILBOX_FULL,
    PROCESS_DIED,
    ConsumerStats,
    Counts,
)
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import ROWS, Slot, Slots

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def stats(offered: int, handled: int = 0, *, pending: int = 0, **others: Any) -> ConsumerStats:
    known = {"declined": 0, "failed": 0, "dropped": {}, **others}
    return ConsumerStats(offered=offered, handled=handled, pending=pending, **known)


def sharing(slots: Slots) -> Ledger:
    ledger = Ledger()
    ledger.share(slots)
    return ledger


def in_pool_process(slots: Slots, pid: int = FIRST_ACTED_PID) -> tuple[Ledger, Slot]:
    """Return the ledger of a new pool process, and its slot."""
    child = as_in_a_child(slots, pid)
    assert child.mine is not None
    return sharing(child), child.mine


# Where a process counts.


def test_a_consumer_has_the_same_counts_whenever_they_are_asked_for() -> None:
    ledger = Ledger()

    ledger.counts("store").offer(2)
    ledger.counts("store").offer(1)
    ledger.counts("page").offer(5)

    assert {name: counts.stats().offered for name, counts in ledger.own().items()} == {
        "store": 3,
        "page": 5,
    }


def test_a_main_process_counts_where_nobody_else_reads() -> None:
    slots = Slots(count=2)
    ledger = sharing(slots)

    ledger.counts("store").offer(2)

    assert sharing(slots).add_pool({}) == {}


def test_a_pool_process_counts_where_its_main_process_reads() -> None:
    slots = Slots(count=2)
    ledger, slot = in_pool_process(slots)

    counts = ledger.counts("store")
    counts.offer(3)
    counts.settle(handled=1, declined=0, failed=0)

    assert [name for name, _ in slot.rows()] == ["store"]
    assert sharing(slots).add_pool({}) == {"store": stats(3, 1, pending=2)}


def test_a_consumer_for_which_there_is_no_row_is_counted_in_its_own_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slots = Slots(count=1)
    ledger, _ = in_pool_process(slots)
    for number in range(ROWS):
        ledger.counts(f"consumer-{number}")

    assert caplog.messages == []

    ledger.counts("one too many").offer(3)
    ledger.counts("two too many").offer(3)

    (line,) = caplog.messages  # said once
    assert "more names than that" in line
    assert "'one too many'" in line
    assert ledger.counts("one too many").stats().offered == 3
    assert "one too many" not in sharing(slots).add_pool({})


def test_a_forked_child_counts_from_zero_in_a_slot_of_its_own() -> None:
    slots = Slots(count=2)
    ledger = sharing(slots)
    ledger.counts("store").offer(5)

    def child() -> Any:
        ledger.counts("store").offer(1)
        return [ledger.counts("store").stats().offered, slots.mine is not None]

    assert in_child(child) == [1, True]
    assert ledger.counts("store").stats().offered == 5


# What a main process adds up.


def test_the_numbers_of_the_pool_are_added_to_those_of_the_main_process() -> None:
    slots = Slots(count=4)
    main = sharing(slots)
    for pid in (FIRST_ACTED_PID, FIRST_ACTED_PID + 1):
        ledger, _ = in_pool_process(slots, pid)
        ledger.counts("store").offer(3)
        ledger.counts("store").drop(1, MAILBOX_FULL)
        ledger.counts(f"of-{pid}").offer(1)

    assert main.add_pool({"store": stats(2, 1, pending=1), "page": stats(1, 1)}) == {
        "store": stats(8, 1, pending=5, dropped={MAILBOX_FULL: 2}),
        "page": stats(1, 1),
        f"of-{FIRST_ACTED_PID}": stats(1, pending=1),
        f"of-{FIRST_ACTED_PID + 1}": stats(1, pending=1),
    }


def test_to_add_up_changes_nothing() -> None:
    slots = Slots(count=1)
    ledger, _ = in_pool_process(slots)
    ledger.counts("store").offer(3)
    main, own = sharing(slots), {"store": stats(2, 2)}

    first = main.add_pool(own)

    assert main.add_pool(own) == first
    assert own == {"store": stats(2, 2)}


def test_a_pool_process_does_not_add_what_others_have_counted() -> None:
    slots = Slots(count=2)
    other, _ = in_pool_process(slots)
    other.counts("store").offer(3)
    ledger, _ = in_pool_process(slots, FIRST_ACTED_PID + 1)

    assert ledger.add_pool({"store": stats(1, 1)}) == {"store": stats(1, 1)}


def test_without_slots_there_is_nothing_to_add() -> None:
    assert Ledger().add_pool({"store": stats(1, 1)}) == {"store": stats(1, 1)}


# Processes that are gone.


def test_what_was_pending_in_a_process_that_is_gone_is_counted_as_dropped() -> None:
    slots = Slots(count=2)
    main = sharing(slots)
    ledger, slot = in_pool_process(slots)
    ledger.counts("store").offer(5)
    ledger.counts("store").settle(handled=2, declined=1, failed=1)
    ledger.counts("store").drop(1, DRAIN_TIMEOUT)
    ledger.counts("page").offer(4)
    ledger.counts("audit").offer(1)
    ledger.counts("audit").settle(handled=1, declined=0, failed=0)

    assert main.bury(slots.living()[0]) == {"page": 4}

    assert slot.pid == 0
    assert slots.living() == []
    assert main.add_pool({}) == {
        "store": stats(5, 3, declined=1, failed=1, dropped={DRAIN_TIMEOUT: 1}),
        "page": stats(4, dropped={PROCESS_DIED: 4}),
        "audit": stats(1, 1),
    }


def test_the_numbers_of_a_child_that_was_killed_are_kept_and_it_is_buried_once() -> None:
    slots = Slots(count=2)
    ledger = sharing(slots)

    def count() -> None:
        ledger.counts("store").offer(5)
        ledger.counts("store").settle(handled=3, declined=0, failed=0)

    killed_child(count)

    assert ledger.add_pool({}) == {"store": stats(5, 3, pending=2)}
    assert [ledger.bury(slot) for slot in slots.gone()] == [{"store": 2}]
    assert slots.gone() == []
    assert ledger.add_pool({}) == {"store": stats(5, 3, dropped={PROCESS_DIED: 2})}


def test_the_numbers_of_processes_that_had_the_same_slot_add_up() -> None:
    slots = Slots(count=1)
    main = sharing(slots)
    for number in range(3):
        ledger, slot = in_pool_process(slots, FIRST_ACTED_PID + number)
        ledger.counts("store").offer(2)
        ledger.counts("store").settle(handled=1, declined=0, failed=0)
        assert main.bury(slot) == {"store": 1}
    ledger, _ = in_pool_process(slots)
    ledger.counts("store").offer(1)

    assert main.add_pool({"store": stats(1, 1)}) == {
        "store": stats(8, 4, pending=1, dropped={PROCESS_DIED: 3})
    }


def test_a_child_has_no_part_in_what_its_parent_has_kept_of_others() -> None:
    slots = Slots(count=2)
    main = sharing(slots)
    ledger, slot = in_pool_process(slots)
    ledger.counts("store").offer(2)
    main.bury(slot)

    assert in_child(lambda: main.add_pool({}) == {})
    assert main.add_pool({}) != {}


# Names.


@pytest.mark.parametrize("name", ["x" * 128, "x" * 129, "é" * 100, "x" + "é" * 100, "名" * 60])
def test_a_consumer_with_a_long_name_is_one_consumer_in_all_processes(name: str) -> None:
    slots = Slots(count=2)
    main = sharing(slots)
    for number in range(2):
        ledger, slot = in_pool_process(slots, FIRST_ACTED_PID + number)
        ledger.counts(name).offer(2)
    main.bury(slot)

    assert main.add_pool({name: stats(1, 1)}) == {
        name: stats(5, 1, pending=2, dropped={PROCESS_DIED: 2})
    }


def test_a_consumer_that_is_known_only_below_has_as_much_of_its_name_as_fits() -> None:
    slots = Slots(count=2)
    ledger, _ = in_pool_process(slots)
    ledger.counts("x" * 200).offer(2)

    assert sharing(slots).add_pool({}) == {"x" * 128: stats(2, pending=2)}


# Whatever happens.


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=300))
def test_rows_that_hold_rubbish_hurt_nothing(rubbish: bytes) -> None:
    slots = overwritten(rubbish)
    slots._slot(1)._ints[0] = FIRST_ACTED_PID
    main = sharing(slots)

    main.add_pool({"store": stats(1, 1)})
    for slot in map(slots._slot, range(1, slots._count)):
        main.bury(slot)
        assert slot.pid == 0
    main.add_pool({"store": stats(1, 1)})


names = st.sampled_from(["store", "page", "x" * 150])
amounts = st.integers(0, 5)
reasons = st.sampled_from(DROP_REASONS)
works = st.lists(st.tuples(names, amounts, amounts, amounts, amounts, reasons), max_size=5)

Work = tuple[str, int, int, int, int, str]


def do(counts: Counts, work: Work) -> int:
    """Count some events and what becomes of them; return how many they are."""
    _, handled, declined, failed, pending, reason = work
    dropped = handled  # as good as any other number
    counts.settle(handled, declined, failed)
    counts.drop(dropped, reason)
    offered = handled + declined + failed + dropped + pending
    counts.offer(offered)
    return offered


@given(st.lists(st.tuples(works, st.booleans()), max_size=8))
def test_no_event_gets_lost_on_paper_whichever_process_dies(
    processes: list[tuple[list[Work], bool]],
) -> None:
    slots = Slots(count=8)
    main = sharing(slots)
    offered: Counter[str] = Counter()
    pending: Counter[str] = Counter()
    died: Counter[str] = Counter()
    for number, (works, dies) in enumerate(processes):
        ledger, slot = in_pool_process(slots, FIRST_ACTED_PID + number)
        for work in works:
            name, handled, *_, left, reason = work
            offered[name] += do(ledger.counts(name), work)
            (died if dies else pending)[name] += left
            died[name] += handled if reason == PROCESS_DIED else 0
        if dies:
            main.bury(slot)

    total = main.add_pool({name: stats(0) for name in offered})

    assert Counter({name: each.offered for name, each in total.items()}) == offered
    assert Counter({name: each.pending for name, each in total.items()}) == pending
    assert Counter({name: each.dropped.get(PROCESS_DIED, 0) for name, each in total.items()}) == (
        died
    )
    for each in total.values():
        assert each.offered == each.handled + each.failed + each.dropped_total + each.pending
