from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast import notices
from celery_broadcast.counts import (
    CANCELLED,
    DRAIN_TIMEOUT,
    DROP_REASONS,
    GAVE_UP,
    INBOX_FULL,
    MAILBOX_FULL,
    PROCESS_DIED,
    STOPPED,
)
from celery_broadcast.losses import Losses, say_died


class Listener:
    """Keeps what the notice `events_dropped` tells."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, int, str]] = []

    def __call__(self, consumer: str | None, *, count: int, reason: str) -> None:
        self.told.append((consumer, count, reason))


def test_a_loss_is_said_in_one_line_with_its_number_its_reason_and_a_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = Losses("store")
    for now in (100.0, 101.0, 130.0):
        losses.note(now)

    losses.say({MAILBOX_FULL: 812}, now=160.0)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "celery_broadcast.losses"
    assert record.getMessage() == (
        "consumer 'store' lost 812 events within 60 s (mailbox-full). "
        "It is behind: raise its mailbox_size or make it faster. "
        "Jobs and other consumers are not affected"
    )


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (MAILBOX_FULL, "It is behind: raise its mailbox_size or make it faster"),
        (INBOX_FULL, "Something keeps this process from running any other thread"),
        (STOPPED, "They came after the broadcast had stopped"),
        (DRAIN_TIMEOUT, "Raise broadcast_drain_timeout, or the timeout of drain(), to keep them"),
        (GAVE_UP, "It crashed too often; see its error above"),
        (CANCELLED, "Its subscription was cancelled, or it ended itself"),
    ],
)
def test_each_reason_has_a_remedy(
    reason: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    Losses("store").say({reason: 2}, now=100.0)

    assert f" 2 events within 0 s ({reason}). {remedy}. Jobs" in caplog.records[0].getMessage()


def test_what_somebody_has_cancelled_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    Losses("store").say({CANCELLED: 2}, now=100.0)

    assert [record.levelname for record in caplog.records] == ["INFO"]


#: Of what another process took with it, others tell.
SAID_HERE = [reason for reason in DROP_REASONS if reason != PROCESS_DIED]


def test_each_reason_is_in_the_test_above() -> None:
    tested = [MAILBOX_FULL, INBOX_FULL, STOPPED, DRAIN_TIMEOUT, GAVE_UP, CANCELLED]

    assert tested == SAID_HERE


def test_a_loss_is_noticed() -> None:
    listener = Listener()

    with notices.events_dropped.connected_to(listener):
        Losses("store").say({MAILBOX_FULL: 3}, now=100.0)

    assert listener.told == [("store", 3, MAILBOX_FULL)]


def test_each_reason_has_a_line_and_a_notice_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()

    with notices.events_dropped.connected_to(listener):
        Losses("store").say({MAILBOX_FULL: 3, STOPPED: 1}, now=100.0)

    assert sorted(listener.told) == [("store", 1, STOPPED), ("store", 3, MAILBOX_FULL)]
    assert len(caplog.records) == 2


def test_what_was_said_is_not_said_again(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    losses = Losses("store")

    with notices.events_dropped.connected_to(listener):
        losses.say({MAILBOX_FULL: 3}, now=100.0)
        losses.say({MAILBOX_FULL: 3}, now=160.0)
        losses.say({MAILBOX_FULL: 10, STOPPED: 1}, now=220.0)

    assert listener.told == [
        ("store", 3, MAILBOX_FULL),
        ("store", 7, MAILBOX_FULL),
        ("store", 1, STOPPED),
    ]
    assert len(caplog.records) == 3


def test_without_a_loss_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses("store")

    losses.say({}, now=100.0)

    assert losses.due_in(now=100.0) is None
    assert caplog.records == []


def test_a_loss_is_said_a_second_after_it_and_then_once_a_minute() -> None:
    losses = Losses("store")
    losses.note(now=100.0)
    assert losses.due_in(now=100.0) == 1.0
    assert losses.due_in(now=101.0) == 0.0
    losses.say({MAILBOX_FULL: 1}, now=101.0)
    assert losses.due_in(now=101.0) is None

    losses.note(now=102.0)

    assert losses.due_in(now=102.0) == 59.0


@given(drops=st.lists(st.dictionaries(st.sampled_from(SAID_HERE), st.integers(1, 10)), max_size=10))
def test_every_loss_is_told_exactly_once(drops: list[dict[str, int]]) -> None:
    listener = Listener()
    losses = Losses("store")
    dropped: Counter[str] = Counter()

    with notices.events_dropped.connected_to(listener):
        for more in drops:
            dropped.update(more)
            losses.say(dropped, now=100.0)

    told: Counter[str] = Counter()
    for _, count, reason in listener.told:
        told[reason] += count
    assert told == dropped


def test_what_a_dead_process_had_waiting_is_said_in_one_line_and_noticed_for_each_consumer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()

    with notices.events_dropped.connected_to(listener):
        say_died(4121, {"store": 12, "pager": 1}, not_offered=2)

    (record,) = caplog.records
    shares = "store: 12, pager: 1, offered to nobody: 2"
    assert record.getMessage() == f"pool process 4121 died with 15 events unhandled ({shares})"
    assert listener.told == [
        ("store", 12, PROCESS_DIED),
        ("pager", 1, PROCESS_DIED),
        (None, 2, PROCESS_DIED),
    ]
