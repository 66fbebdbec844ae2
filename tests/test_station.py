from __future__ import annotations

import sys

import pytest
from crews import NOBODY, declared, deliver
from recorder import numbered

from celery_broadcast.batch import Batch
from celery_broadcast.counts import CANCELLED, DRAIN_TIMEOUT, STOPPED
from celery_broadcast.dispatcher import Delivery, Item, delivery_of
from celery_broadcast.events import JobEvent
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.station import Station, hands


def station_with(count: int, **options: object) -> Station:
    mailbox: Mailbox[Item] = Mailbox(None)
    deliver(mailbox, numbered(count))
    return Station(declared(lambda _: None, **options), mailbox)


def test_a_stop_leaves_what_waits_to_be_handled() -> None:
    station = station_with(2)
    turns: list[bool] = []
    station.on_turn = lambda: turns.append(station.stop_requested.is_set())

    station.stop()

    assert turns == [True]
    assert not station.is_over.is_set()
    assert station.mailbox.stats().pending == 2
    deliver(station.mailbox, numbered(1))
    assert station.mailbox.stats().dropped == {STOPPED: 1}


def test_a_cancel_drops_what_waits_and_leaves_what_is_in_hand() -> None:
    station = station_with(3)
    assert station.intake.poll() is not None

    assert station.cancel(CANCELLED) == 2

    assert station.stop_requested.is_set()
    assert not station.is_over.is_set()
    assert station.mailbox.stats().pending == 1


def test_a_cancel_drops_what_waits_behind_a_key_too() -> None:
    station = station_with(4, concurrency=2, partition_by=lambda _: "key")
    work = station.intake.poll()
    assert work is not None
    assert station.intake.poll() is None

    assert station.cancel(CANCELLED) == 3

    assert station.intake.next_of(work.key) is None
    assert station.mailbox.stats().dropped == {CANCELLED: 3}
    assert station.mailbox.stats().pending == 1


def test_an_abandon_drops_what_is_in_hand_too_and_ends_all() -> None:
    station = station_with(4, concurrency=2, partition_by=lambda _: "key")
    turns: list[bool] = []
    station.on_turn = lambda: turns.append(station.is_over.is_set())
    station.intake.poll()
    station.intake.poll()

    assert station.abandon(DRAIN_TIMEOUT) == 4
    assert station.cancel(CANCELLED) == 0  # they are counted

    assert turns == [True, True]
    assert station.mailbox.stats().dropped == {DRAIN_TIMEOUT: 4}


def test_a_consumer_is_called_with_an_event_or_with_the_list_of_a_batch() -> None:
    deliveries = [Delivery(event, NOBODY) for event in numbered(2)]

    assert station_with(0).argument(deliveries[:1]) is deliveries[0].event
    assert station_with(0, batch=Batch()).argument(deliveries) == numbered(2)


def test_a_batch_runs_in_the_hands_of_all_that_its_events_come_from() -> None:
    events = numbered(2)
    deliveries = [
        Delivery(events[0], frozenset({"one"})),
        Delivery(events[1], frozenset({"two", "one"})),
    ]

    assert station_with(0).hands_for(deliveries) == {"store", "one", "two"}


def test_a_selector_runs_in_the_hands_of_its_consumer_and_says_what_is_wanted() -> None:
    seen: list[object] = []

    def select(event: JobEvent) -> int:
        seen.append(hands.get())
        return int(event.task_id)

    station = station_with(2, selector=select)
    declined, wanted = (Delivery(event, frozenset({"other"})) for event in numbered(2))
    station.mailbox.take(2, wait_seconds=0)

    assert not station.is_wanted(declined)
    assert station.is_wanted(wanted)

    assert seen == [{"store", "other"}] * 2
    assert hands.get() == NOBODY
    stats = station.mailbox.stats()
    assert (stats.handled, stats.declined, stats.pending) == (1, 1, 1)


def test_a_selector_that_raises_settles_its_event_and_an_exit_goes_on_its_way() -> None:
    def select(event: JobEvent) -> bool:
        if event.task_id == "0":
            raise OSError("no")
        sys.exit(3)

    station = station_with(2, selector=select)
    raises, exits = map(delivery_of, station.mailbox.take(2, wait_seconds=0))

    assert not station.is_wanted(raises)
    with pytest.raises(SystemExit):
        station.is_wanted(exits)

    assert station.mailbox.stats().failed == 2
    assert hands.get() == NOBODY


def test_all_events_of_a_call_that_raised_are_settled() -> None:
    station = station_with(3, batch=Batch(max_events=3))
    work = station.intake.poll()
    assert work is not None

    station.settle_failed(work, OSError("no"), is_crash=False)

    stats = station.mailbox.stats()
    assert (stats.failed, stats.pending) == (3, 0)


def test_calls_are_noted_only_where_somebody_wants_to_know_when_they_hang() -> None:
    calm, watched = station_with(0), station_with(0, stuck_after=10.0)
    (event,) = numbered(1)

    assert calm.begin_call(event, None, str) is None
    calm.end_call(None)
    call = watched.begin_call([event], None, str)
    setup = watched.begin_call(None, "its setup", str)

    assert call is not None
    assert setup is not None
    assert (str(call), call.event) == ("1 events, JobFinished shop.charge[0] the first", [event])
    assert (str(setup), setup.event) == ("its setup", None)
    watched.end_call(call)
    watched.end_call(setup)
    assert watched.calls is not None
    assert watched.calls.look(call.began_at + 100.0, is_busy=False) is None
