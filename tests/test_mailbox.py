from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nodes.deadline import wait_until

from celery_broadcast.counts import (
    CANCELLED,
    DRAIN_TIMEOUT,
    GAVE_UP,
    IN_RUNS,
    MAILBOX_FULL,
    STOPPED,
    Counts,
)
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.switch import Switch


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


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [4, 5]), ("drop_newest", [0, 1])])
def test_of_more_than_it_holds_a_mailbox_keeps_the_right_end(
    overflow: str, kept: list[int]
) -> None:
    mailbox: Mailbox[int] = Mailbox(size=2, overflow=overflow)
    mailbox.put(0)

    assert mailbox.put_all(range(1, 6)) == 4

    assert mailbox.take(demand=10, wait_seconds=0) == kept
    stats = mailbox.stats()
    assert (stats.offered, stats.dropped) == (6, {MAILBOX_FULL: 4})


# Runs.


def run(mailbox: Mailbox[int], handle: Callable[[int], object]) -> None:
    """Handle what waits, as the one thread of a consumer does."""
    begun = mailbox.begin_run()
    if begun is None:
        return
    take, numbers, handled = begun
    try:
        while not mailbox.is_interrupted:
            try:
                item = take()
            except IndexError:
                break
            handle(item)
            if mailbox.is_interrupted:
                break
            handled += 1
            numbers[IN_RUNS] = handled
    except BaseException:
        mailbox.end_run()
        raise
    mailbox.settle(handled=mailbox.end_run())


def test_what_is_handled_in_a_run_is_handled() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(5))
    handled: list[int] = []

    run(mailbox, handled.append)

    assert handled == [*range(5)]
    stats = mailbox.stats()
    assert (stats.offered, stats.handled, stats.pending) == (5, 5, 0)


def test_in_a_run_each_event_is_pending_until_it_is_handled() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(3))
    pending: list[int] = []

    run(mailbox, lambda _: pending.append(mailbox.stats().pending))

    assert pending == [3, 2, 1]


def test_what_comes_during_a_run_is_part_of_it() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(3))
    handled: list[int] = []

    def handle(item: int) -> None:
        handled.append(item)
        if item < 3:
            mailbox.put(item + 3)

    run(mailbox, handle)

    assert handled == [*range(6)]
    assert mailbox.stats().handled == 6


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [3, 4]), ("drop_newest", [1, 2])])
def test_during_a_run_a_full_mailbox_drops_by_its_policy(overflow: str, kept: list[int]) -> None:
    mailbox: Mailbox[int] = Mailbox(size=2, overflow=overflow)
    mailbox.put(0)
    handled: list[int] = []

    def handle(item: int) -> None:
        handled.append(item)
        if not item:
            put_all(mailbox, range(1, 5))

    run(mailbox, handle)

    assert handled == [0, *kept]
    stats = mailbox.stats()
    assert (stats.handled, stats.dropped, stats.pending) == (3, {MAILBOX_FULL: 2}, 0)


def test_what_is_not_handled_in_a_run_is_in_hand_after_it() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(3))

    def handle(item: int) -> None:
        if item == 1:
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        run(mailbox, handle)

    assert mailbox.stats().pending == 2
    mailbox.settle(failed=1)
    stats = mailbox.stats()
    assert (stats.handled, stats.failed, stats.pending) == (1, 1, 1)


def test_a_pause_ends_a_run_after_the_event_in_hand() -> None:
    switch = Switch()
    mailbox: Mailbox[int] = Mailbox(size=10, switch=switch)
    put_all(mailbox, range(3))
    handled: list[int] = []

    def handle(item: int) -> None:
        handled.append(item)
        switch.pause()
        mailbox.wake()  # as the crew does

    run(mailbox, handle)
    assert handled == [0]
    run(mailbox, handle)
    assert handled == [0]

    switch.resume()
    run(mailbox, handle)
    assert handled == [0, 1]


@pytest.mark.parametrize("is_handled", [True, False])
def test_what_is_in_hand_in_a_run_that_is_abandoned_is_dropped_and_nothing_else(
    is_handled: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(4))
    abandoned: list[int] = []

    def handle(item: int) -> None:
        if item == 1:
            abandoned.append(mailbox.abandon(DRAIN_TIMEOUT))
            if not is_handled:
                raise OSError

    with contextlib.suppress(OSError):
        run(mailbox, handle)
    mailbox.settle(failed=1)  # which is late

    assert abandoned == [3]
    stats = mailbox.stats()
    assert (stats.handled, stats.failed, stats.dropped) == (1, 0, {DRAIN_TIMEOUT: 3})
    assert stats.pending == 0


def test_a_discard_leaves_the_event_in_hand_of_a_run() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(4))

    run(mailbox, lambda _: mailbox.discard(CANCELLED))

    stats = mailbox.stats()
    assert (stats.handled, stats.dropped, stats.pending) == (1, {CANCELLED: 3}, 0)


def test_one_mailbox_of_a_consumer_runs_at_a_time() -> None:
    counts = Counts()
    first: Mailbox[int] = Mailbox(size=10, counts=counts)
    second: Mailbox[int] = Mailbox(size=10, counts=counts)
    put_all(first, range(2))
    put_all(second, range(2))

    run(first, lambda _: run(second, lambda item: pytest.fail(f"{item} was handled")))

    assert (first.stats().pending, second.stats().pending) == (0, 2)
    run(second, print)
    assert second.stats().handled == 4


def test_however_a_run_and_the_other_threads_meet_every_event_is_counted_once() -> None:
    for _ in range(50):
        mailbox: Mailbox[int] = Mailbox(size=20)
        handled: list[int] = []

        def serve(mailbox: Mailbox[int] = mailbox, handled: list[int] = handled) -> None:
            while not mailbox.is_closed or mailbox.stats().pending:
                run(mailbox, handled.append)

        server = threading.Thread(target=serve)
        server.start()
        for number in range(0, 200, 5):
            mailbox.put_all(range(number, number + 5))
        mailbox.abandon(DRAIN_TIMEOUT)
        server.join(10)

        stats = mailbox.stats()
        assert stats.offered == 200 == stats.handled + stats.dropped_total
        assert stats.pending == 0
        # The one that was in hand as it was abandoned is handled, but counted as dropped.
        assert stats.handled <= len(handled) <= stats.handled + 1


# Waiting for more than one, and asking to be called.


def test_a_wait_may_be_for_several_events() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    waiting = threading.Thread(target=mailbox.wait, kwargs={"at_least": 3})
    waiting.start()
    wait_until(lambda: mailbox._waiters == 1)

    put_all(mailbox, range(2))
    assert mailbox._waiters == 1
    mailbox.put(2)

    waiting.join(10)
    assert not waiting.is_alive()
    assert mailbox.take(10, wait_seconds=0) == [0, 1, 2]


def test_a_full_mailbox_is_always_worth_a_look() -> None:
    mailbox: Mailbox[int] = Mailbox(size=2)
    put_all(mailbox, range(2))

    mailbox.wait(at_least=100)  # or it would never return


def test_a_wait_ends_with_its_time() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    mailbox.put(1)

    mailbox.wait(0.0, at_least=2)
    mailbox.wait(0.001, at_least=2)

    assert mailbox._waiters == 0


def test_a_call_comes_at_once_where_enough_is_there() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(2))
    called: list[str] = []

    mailbox.call_when_ready(lambda: called.append("now"), at_least=2)

    assert called == ["now"]


def test_a_call_comes_once_as_soon_as_there_is_enough() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    called: list[int] = []
    mailbox.call_when_ready(lambda: called.append(mailbox._counts.stats().offered), at_least=3)

    put_all(mailbox, range(6))

    assert called == [3]


@pytest.mark.parametrize("end", ["close", "abandon", "discard"])
def test_a_call_comes_at_an_end_too(end: str) -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    called: list[str] = []
    mailbox.call_when_ready(lambda: called.append("end"))

    getattr(mailbox, end)(DRAIN_TIMEOUT)

    assert called == ["end"]
    mailbox.call_when_ready(lambda: called.append("over"))
    assert called == ["end", "over"]


# Pauses.


def test_nothing_can_be_taken_during_a_pause_and_a_wake_ends_the_wait() -> None:
    switch = Switch()
    mailbox: Mailbox[int] = Mailbox(size=10, switch=switch)
    switch.pause()
    put_all(mailbox, range(2))
    called: list[str] = []
    mailbox.call_when_ready(lambda: called.append("ready"))
    waiting = threading.Thread(target=mailbox.wait)
    waiting.start()
    wait_until(lambda: mailbox._waiters == 1)

    mailbox.wake()  # it is paused still
    assert mailbox.take(10, wait_seconds=0) == []
    assert called == []
    switch.resume()
    mailbox.wake()

    waiting.join(10)
    assert not waiting.is_alive()
    assert called == ["ready"]
    assert mailbox.take(10, wait_seconds=0) == [0, 1]


def test_who_waits_for_the_end_of_a_pause_needs_no_event() -> None:
    switch = Switch()
    mailbox: Mailbox[int] = Mailbox(size=10, switch=switch)
    assert mailbox.wait_while_paused()
    switch.pause()
    assert not mailbox.wait_while_paused(0)
    called: list[str] = []
    mailbox.call_when_ready(lambda: called.append("again"))
    waiting = threading.Thread(target=mailbox.wait_while_paused)
    waiting.start()
    wait_until(lambda: mailbox._waiters == 1)

    switch.resume()
    mailbox.wake()

    waiting.join(10)
    assert not waiting.is_alive()
    assert called == ["again"]


def test_the_end_of_a_mailbox_is_the_end_of_its_pause() -> None:
    switch = Switch()
    mailbox: Mailbox[int] = Mailbox(size=10, switch=switch)
    switch.pause()
    mailbox.put(1)

    mailbox.close()

    assert not mailbox.is_paused
    assert mailbox.take(10) == [1]


# What is put aside.


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_what_is_put_aside_takes_room_until_its_turn_comes(overflow: str) -> None:
    mailbox: Mailbox[int] = Mailbox(size=2, overflow=overflow)
    put_all(mailbox, range(2))
    mailbox.take(2, wait_seconds=0)
    mailbox.put_aside(2)

    assert put_all(mailbox, range(2, 4)) == [False, False]  # there is none older to drop
    mailbox.put_aside(-1)
    assert put_all(mailbox, range(4, 6)) == [True, False]

    kept = 5 if overflow == "drop_oldest" else 4
    assert mailbox.take(10, wait_seconds=0) == [kept]


def test_a_discard_leaves_what_is_in_hand_to_be_settled() -> None:
    mailbox: Mailbox[int] = Mailbox(size=10)
    put_all(mailbox, range(5))
    mailbox.take(2, wait_seconds=0)

    assert mailbox.discard(CANCELLED) == 3

    mailbox.settle(handled=1, failed=1)
    stats = mailbox.stats()
    assert (stats.handled, stats.failed, stats.dropped) == (1, 1, {CANCELLED: 3})
    assert not mailbox.put(5)


def test_what_was_put_aside_can_be_dropped_alone_and_makes_room() -> None:
    mailbox: Mailbox[int] = Mailbox(size=3)
    put_all(mailbox, range(3))
    mailbox.take(3, wait_seconds=0)
    mailbox.put_aside(2)

    mailbox.drop_aside(2, CANCELLED)

    assert put_all(mailbox, range(3)) == [True, True, True]
    stats = mailbox.stats()
    assert (stats.dropped, stats.pending) == ({CANCELLED: 2}, 4)


def interrupted(
    operation: Callable[[], object], interrupt: Callable[[], object], *, at: int
) -> bool:
    """Interrupt it as a signal handler does: where a call begins, or has returned.

    Returns:
        False if there were not so many calls.
    """
    points = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal points
        is_ours = frame.f_code.co_filename.endswith(("mailbox.py", "counts.py"))
        if not is_ours or event == "c_call":
            return
        points += 1
        if points == at:
            sys.setprofile(None)
            interrupt()

    def run() -> None:
        sys.setprofile(profile)
        operation()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive(), "it waits for itself"
    return points >= at


OPERATIONS: dict[str, Callable[[Mailbox[int]], object]] = {
    "put": lambda mailbox: mailbox.put(9),
    "take": lambda mailbox: mailbox.take(1, wait_seconds=0),
    "take several": lambda mailbox: mailbox.take(9, wait_seconds=0),
    "settle": lambda mailbox: mailbox.settle(handled=1, failed=1),
    "drop in hand": lambda mailbox: mailbox.drop_in_hand(2, CANCELLED),
    "refuse": lambda mailbox: mailbox.refuse(1, MAILBOX_FULL),
    "close": lambda mailbox: mailbox.close(),
    "discard": lambda mailbox: mailbox.discard(CANCELLED),
    "abandon": lambda mailbox: mailbox.abandon(DRAIN_TIMEOUT),
    "stats": lambda mailbox: mailbox.stats(),
}


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("interruption", ["discard", "abandon", "settle", "stats"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_wherever_a_signal_handler_interrupts_every_event_is_counted_once(
    operation: str, interruption: str, size: int | None
) -> None:
    at = 0
    is_interrupted = True
    while is_interrupted:
        at += 1
        counts = Counts()
        mailbox: Mailbox[int] = Mailbox(size=size, counts=counts)
        put_all(mailbox, range(4))
        mailbox.take(4, wait_seconds=0)
        put_all(mailbox, range(4))

        is_interrupted = interrupted(
            lambda mailbox=mailbox: OPERATIONS[operation](mailbox),  # type: ignore[misc]
            lambda mailbox=mailbox: OPERATIONS[interruption](mailbox),  # type: ignore[misc]
            at=at,
        )

        assert mailbox.stats().pending == counts.stats().pending, f"at call {at}"
        mailbox.abandon(STOPPED)
        assert mailbox.stats().pending == counts.stats().pending == 0, f"at call {at}"
    assert at > 1


def test_after_an_abandon_nothing_is_dropped_twice() -> None:
    mailbox: Mailbox[int] = Mailbox(size=3)
    put_all(mailbox, range(3))
    mailbox.take(3, wait_seconds=0)
    mailbox.put_aside(2)
    mailbox.abandon(DRAIN_TIMEOUT)

    mailbox.drop_aside(2, CANCELLED)

    assert mailbox.stats().dropped == {DRAIN_TIMEOUT: 3}


class Conservation(RuleBasedStateMachine):
    """Whatever happens in whatever order, every event is accounted for."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[int] = Mailbox(size=3, overflow="drop_oldest")
        self.in_hand = 0
        self.aside = 0  # of those in hand
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

    @precondition(lambda self: self.in_hand > self.aside)
    @rule()
    def put_aside(self) -> None:
        self.mailbox.put_aside(1)
        self.aside += 1

    @precondition(lambda self: self.aside)
    @rule()
    def take_up_again(self) -> None:
        self.mailbox.put_aside(-1)
        self.aside -= 1

    @rule()
    def drop_aside(self) -> None:
        self.mailbox.drop_aside(self.aside, CANCELLED)
        self.in_hand -= self.aside
        self.aside = 0

    @precondition(lambda self: self.in_hand > self.aside)
    @rule(outcome=st.sampled_from(["handled", "declined", "failed"]))
    def settle(self, outcome: str) -> None:
        self.mailbox.settle(**{outcome: 1})
        self.in_hand -= 1

    @rule()
    def close(self) -> None:
        self.mailbox.close()

    @rule()
    def discard(self) -> None:
        self.mailbox.discard(CANCELLED)

    @rule()
    def abandon(self) -> None:
        self.mailbox.abandon(DRAIN_TIMEOUT)
        self.mailbox.put_aside(-self.aside)
        self.in_hand = self.aside = 0

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
