from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_broadcast.counts import DRAIN_TIMEOUT, GAVE_UP, MAILBOX_FULL, STOPPED, Counts
from celery_broadcast.mailbox import Mailbox


def put_all(mailbox: Mailbox[int], items: range) -> list[bool]:
    return [mailbox.put(item) for item in items]


def test_events_leave_in_the_order_they_came() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)

    put_all(mailbox, range(3))

    assert mailbox.take(demand=2, wait_seconds=0) == [0, 1]
    assert mailbox.take(demand=2, wait_seconds=0) == [2]


def test_a_full_mailbox_drops_the_oldest_event_and_counts_it() -> None:
    mailbox: Mailbox[int] = Mailbox(size=2, overflow="drop_oldest")

    assert put_all(mailbox, range(3)) == [True, True, False]

    assert mailbox.take(demand=10, wait_seconds=0) == [1, 2]
    assert mailbox.stats().dropped == {MAILBOX_FULL: 1}


def test_a_full_mailbox_can_drop_the_newest_event_instead() -> None:
    mailbox: Mailbox[int] = Mailbox(size=2, overflow="drop_newest")

    assert put_all(mailbox, range(3)) == [True, True, False]

    assert mailbox.take(demand=10, wait_seconds=0) == [0, 1]
    assert mailbox.stats().dropped == {MAILBOX_FULL: 1}


def test_a_mailbox_without_a_bound_drops_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox(size=None)

    put_all(mailbox, range(20_000))

    assert mailbox.stats().pending == 20_000


def test_what_is_in_hand_is_pending_until_it_is_settled() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(3))
    mailbox.take(demand=2, wait_seconds=0)
    assert mailbox.stats().pending == 3

    mailbox.settle(handled=1, failed=1)

    stats = mailbox.stats()
    assert (stats.handled, stats.failed, stats.pending) == (1, 1, 1)


def test_a_declined_event_is_a_handled_one() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(1))
    mailbox.take(demand=1, wait_seconds=0)

    mailbox.settle(declined=1)

    assert (mailbox.stats().handled, mailbox.stats().declined) == (1, 1)


def test_taking_from_an_empty_mailbox_waits_only_as_long_as_it_is_told() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)

    assert mailbox.take(demand=1, wait_seconds=0) == []


def test_an_event_wakes_the_thread_that_waits_for_it() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    taken: list[int] = []
    taker = threading.Thread(target=lambda: taken.extend(mailbox.take(demand=1)))
    taker.start()

    mailbox.put(7)

    taker.join(10)
    assert taken == [7]


def test_closing_wakes_the_thread_that_waits() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    taker = threading.Thread(target=mailbox.take, args=(1,))
    taker.start()

    mailbox.close()

    taker.join(10)
    assert not taker.is_alive()


def test_a_closed_mailbox_gives_what_it_has_and_accepts_no_more() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    mailbox.put(1)

    mailbox.close()

    assert not mailbox.put(2)
    assert mailbox.take(demand=10) == [1]
    assert mailbox.take(demand=10) == []
    assert mailbox.stats().dropped == {STOPPED: 1}


def test_abandoning_drops_what_waits_and_what_is_in_hand() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(3))
    mailbox.take(demand=1, wait_seconds=0)

    assert mailbox.abandon(DRAIN_TIMEOUT) == 3

    assert mailbox.stats().dropped == {DRAIN_TIMEOUT: 3}
    assert mailbox.stats().pending == 0


def test_a_consumer_that_returns_after_it_was_abandoned_changes_no_number() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    mailbox.put(1)
    mailbox.take(demand=1, wait_seconds=0)
    mailbox.abandon(DRAIN_TIMEOUT)
    before = mailbox.stats()

    mailbox.settle(handled=1)

    assert mailbox.stats() == before


def test_counts_go_on_in_the_next_mailbox() -> None:
    counts = Counts()
    first: Mailbox[int] = Mailbox(size=10, counts=counts)
    first.put(1)
    first.abandon(GAVE_UP)

    second: Mailbox[int] = Mailbox(size=10, counts=counts)
    second.put(2)

    assert second.stats().offered == 2
    assert second.stats().dropped == {GAVE_UP: 1}


class Conservation(RuleBasedStateMachine):
    """Whatever happens in whatever order, every event is accounted for."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[int] = Mailbox(size=3, overflow="drop_oldest")
        self.in_hand = 0
        self.put_count = 0

    @rule()
    def put(self) -> None:
        self.mailbox.put(self.put_count)
        self.put_count += 1

    @rule(count=st.integers(1, 5))
    def refuse(self, count: int) -> None:
        self.mailbox.refuse(count, MAILBOX_FULL)
        self.put_count += count

    @rule(demand=st.integers(1, 5))
    def take(self, demand: int) -> None:
        self.in_hand += len(self.mailbox.take(demand, wait_seconds=0))

    @precondition(lambda self: self.in_hand)
    @rule(outcome=st.sampled_from(["handled", "declined", "failed"]))
    def settle(self, outcome: str) -> None:
        self.mailbox.settle(**{outcome: 1})
        self.in_hand -= 1

    @rule()
    def close(self) -> None:
        self.mailbox.close()

    @rule()
    def abandon(self) -> None:
        self.mailbox.abandon(DRAIN_TIMEOUT)
        self.in_hand = 0

    @invariant()
    def every_event_is_accounted_for(self) -> None:
        stats = self.mailbox.stats()
        assert stats.offered == self.put_count
        assert stats.offered == stats.handled + stats.failed + stats.dropped_total + stats.pending
        assert stats.pending >= self.in_hand


test_every_event_is_accounted_for_whatever_happens = Conservation.TestCase


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
@given(size=st.integers(1, 20), count=st.integers(0, 60))
def test_a_mailbox_keeps_the_right_end_of_what_was_put(
    overflow: str, size: int, count: int
) -> None:
    mailbox: Mailbox[int] = Mailbox(size=size, overflow=overflow)
    everything = list(range(count))

    put_all(mailbox, range(count))

    kept = everything[-size:] if overflow == "drop_oldest" else everything[:size]
    assert mailbox.take(demand=100, wait_seconds=0) == kept
