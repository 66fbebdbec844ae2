from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.counts import (
    DROP_REASONS,
    LENGTH,
    MAILBOX_FULL,
    PROCESS_DIED,
    STOPPED,
    ConsumerStats,
    Counts,
    drop_pending,
    pending_of,
    stats_of,
    total_of,
)
from celery_broadcast.slots import NUMBERS

ALL_KINDS = ConsumerStats(
    offered=10, handled=5, declined=2, failed=1, dropped={MAILBOX_FULL: 2, STOPPED: 1}, pending=1
)

amounts = st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.tuples(amounts)),
        st.tuples(st.just("settle"), st.tuples(amounts, amounts, amounts)),
        st.tuples(st.just("drop"), st.tuples(amounts, st.sampled_from(DROP_REASONS))),
    ),
    max_size=20,
)


def counts_of_all_kinds() -> Counts:
    counts = Counts()
    counts.offer(10)
    counts.settle(handled=3, declined=2, failed=1)
    counts.drop(2, MAILBOX_FULL)
    counts.drop(1, STOPPED)
    return counts


def test_all_numbers_are_zero_at_first() -> None:
    assert Counts().stats() == ConsumerStats(
        offered=0, handled=0, declined=0, failed=0, dropped={}, pending=0
    )


def test_what_becomes_of_events_is_counted_by_kind() -> None:
    assert counts_of_all_kinds().stats() == ALL_KINDS


def test_an_event_is_offered_one_at_a_time_unless_said_otherwise() -> None:
    counts = Counts()

    counts.offer()
    counts.offer(3)

    assert counts.stats().offered == 4


def test_what_a_selector_turned_away_is_handled_too() -> None:
    counts = Counts()
    counts.offer(2)

    counts.settle(handled=0, declined=2, failed=0)

    assert (counts.stats().handled, counts.stats().declined) == (2, 2)
    assert counts.stats().pending == 0


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_what_is_dropped_is_counted_by_its_reason(reason: str) -> None:
    counts = Counts()
    counts.offer(3)

    counts.drop(2, reason)
    counts.drop(1, reason)

    assert counts.stats().dropped == {reason: 3}
    assert counts.stats().dropped_total == 3


def test_pending_is_what_is_not_accounted_for_unless_it_is_known() -> None:
    assert counts_of_all_kinds().stats().pending == 1
    assert counts_of_all_kinds().stats(pending=7).pending == 7
    assert counts_of_all_kinds().stats(pending=0).pending == 0


def test_more_than_was_offered_leaves_nothing_pending() -> None:
    counts = Counts()

    counts.settle(handled=3, declined=0, failed=0)

    assert counts.stats().pending == 0


def test_counts_are_kept_where_they_are_told_to_be() -> None:
    memory = memoryview(bytearray(8 * NUMBERS)).cast("Q")

    Counts(memory).offer(3)
    Counts(memory).drop(1, PROCESS_DIED)

    assert Counts(memory).stats() == ConsumerStats(
        offered=3, handled=0, declined=0, failed=0, dropped={PROCESS_DIED: 1}, pending=2
    )


def test_a_row_has_room_for_every_number() -> None:
    assert LENGTH <= NUMBERS
    assert len(Counts(memoryview(bytes(8 * NUMBERS)).cast("Q")).snapshot()) == LENGTH


def test_a_snapshot_does_not_change_with_the_counts() -> None:
    counts = counts_of_all_kinds()
    before = counts.snapshot()

    counts.offer(5)

    assert stats_of(before) == ALL_KINDS


class BusyNumbers:
    """Numbers of a process that goes on counting while they are read."""

    def __init__(self) -> None:
        self.numbers = [5, 5, *[0] * (LENGTH - 1)]

    def tolist(self) -> list[int]:
        read = self.numbers.copy()
        self.offer_and_handle()
        return read

    def __getitem__(self, number: int) -> int:
        return self.numbers[number]

    def offer_and_handle(self) -> None:
        self.numbers[0] += 1
        self.numbers[1] += 1


def test_never_more_events_are_read_as_done_with_than_as_offered() -> None:
    counts = Counts(BusyNumbers())  # type: ignore[arg-type]

    stats = stats_of(counts.snapshot())

    assert (stats.offered, stats.handled, stats.pending) == (6, 5, 1)


def test_what_was_pending_in_a_process_that_died_is_dropped_for_that() -> None:
    numbers = counts_of_all_kinds().snapshot()

    dropped = drop_pending(numbers, PROCESS_DIED)

    assert stats_of(dropped) == msgspec.structs.replace(
        ALL_KINDS, dropped={**ALL_KINDS.dropped, PROCESS_DIED: 1}, pending=0
    )
    assert stats_of(numbers) == ALL_KINDS
    assert drop_pending(dropped, PROCESS_DIED) == dropped


def test_numbers_of_several_processes_add_up() -> None:
    numbers = counts_of_all_kinds().snapshot()

    assert total_of([]) == [0] * LENGTH
    assert total_of([numbers]) == numbers
    assert stats_of(total_of([numbers, numbers, [0] * LENGTH])) == ALL_KINDS + ALL_KINDS


def test_the_stats_of_two_processes_add_up() -> None:
    other = ConsumerStats(
        offered=5, handled=1, declined=1, failed=1, dropped={STOPPED: 1, PROCESS_DIED: 1}, pending=1
    )

    assert ALL_KINDS + other == ConsumerStats(
        offered=15,
        handled=6,
        declined=3,
        failed=2,
        dropped={MAILBOX_FULL: 2, STOPPED: 2, PROCESS_DIED: 1},
        pending=2,
    )


@given(steps, st.integers(0, 5))
def test_every_offered_event_is_accounted_for(
    steps: list[tuple[str, tuple[int, ...]]], pending: int
) -> None:
    counts = Counts()
    for name, arguments in steps:
        getattr(counts, name)(*arguments)
    # What was done with was offered before.
    done = counts.stats()
    missing = done.handled + done.failed + done.dropped_total + pending - done.offered
    counts.offer(max(0, missing))

    for stats in (counts.stats(), stats_of(drop_pending(counts.snapshot(), PROCESS_DIED))):
        assert stats.offered == (stats.handled + stats.failed + stats.dropped_total + stats.pending)
        assert stats.declined <= stats.handled
    assert pending_of(counts.snapshot()) >= pending
