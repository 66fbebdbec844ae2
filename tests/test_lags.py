"""Since when the oldest waiting event waits, at least."""

from __future__ import annotations

import time

import pytest
from nodes.deadline import wait_until
from recorder import HeldRecorder, numbered
from test_slots import as_in_a_child

import celery_broadcast
from celery_broadcast import installation
from celery_broadcast.lags import Lags
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import Slots


def test_the_lag_is_counted_from_the_first_look_at_which_the_event_was_there() -> None:
    lags = Lags()
    lags.mark("store", offered=3, settled=0, now=10.0)
    lags.mark("store", offered=5, settled=1, now=11.0)
    lags.mark("store", offered=5, settled=1, now=12.0)

    assert lags.lag("store", settled=1, now=13.0) == 3.0
    assert lags.lag("store", settled=3, now=13.0) == 2.0
    assert lags.lag("store", settled=4, now=13.0) == 2.0


def test_an_event_that_came_after_the_last_look_has_no_lag_yet() -> None:
    lags = Lags()
    lags.mark("store", offered=3, settled=0, now=10.0)

    assert lags.lag("store", settled=3, now=13.0) == 0.0
    assert lags.lag("page", settled=0, now=13.0) == 0.0


def test_a_long_backlog_takes_little_memory_and_never_seems_older_than_it_is() -> None:
    lags = Lags()
    for second in range(1, 10_001):
        lags.mark("store", offered=second, settled=0, now=float(second))

    assert len(lags._marks["store"]) <= 128
    for settled in range(0, 10_000, 100):
        assert lags.lag("store", settled, now=10_000.0) <= 10_000.0 - (settled + 1)
    assert lags.lag("store", 0, now=10_000.0) == 9_999.0


def test_who_is_gone_is_forgotten() -> None:
    lags = Lags()
    lags.mark("store", offered=3, settled=0, now=10.0)

    lags.keep(set())

    assert lags.lag("store", settled=0, now=13.0) == 0.0


def test_the_lag_of_a_pool_process_is_told_in_the_main_process() -> None:
    slots = Slots(count=1)
    main, child = Ledger(), Ledger()
    main.share(slots)
    child.share(as_in_a_child(slots))
    counts = child.counts("store")
    counts.offer(2)

    main.sample(time.monotonic() - 5.0)

    assert main.add_pool({})["store"].lag >= 5.0
    counts.settle(handled=2, declined=0, failed=0)
    assert main.add_pool({})["store"].lag == 0.0


@pytest.mark.usefixtures("broadcast_is_on")
def test_the_lag_of_a_consumer_ends_when_it_has_caught_up() -> None:
    recorder = HeldRecorder()
    celery_broadcast.subscribe(recorder.handle, name="store")
    for event in numbered(3):
        celery_broadcast.notify(event)
    wait_until(lambda: celery_broadcast.stats()["store"].pending == 3)
    assert celery_broadcast.stats()["store"].lag == 0.0

    installation.sample()

    wait_until(lambda: celery_broadcast.stats()["store"].lag > 0.0)
    recorder.freed.set()
    wait_until(lambda: celery_broadcast.stats()["store"].pending == 0)
    assert celery_broadcast.stats()["store"].lag == 0.0
