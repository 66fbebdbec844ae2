from __future__ import annotations

import weakref
from itertools import chain

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_event, numbered, subscribe

from celery_broadcast.counts import INBOX_FULL, MAILBOX_FULL
from celery_broadcast.dispatcher import Delivery, Dispatcher, Item, delivery_of
from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
)
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.selection import Kind, Selection, kind_of
from celery_broadcast.subscription import Subscription

NOBODY: frozenset[str] = frozenset()


def add(dispatcher: Dispatcher, *subscriptions: Subscription) -> dict[str, Mailbox[Item]]:
    """Give each subscription a mailbox without a bound; return them by name."""
    mailboxes: dict[str, Mailbox[Item]] = {}
    for subscription in subscriptions:
        mailboxes[subscription.name] = Mailbox(size=None)
        dispatcher.add(subscription.name, subscription.selection, mailboxes[subscription.name])
    return mailboxes


def dispatch(dispatcher: Dispatcher, *items: Item) -> set[str]:
    """Dispatch events together; return who lost one by it."""
    return dispatcher.dispatch(items, fail)


def fail(_: Item, error: Exception) -> None:
    raise error


def items_in(mailbox: Mailbox[Item]) -> list[Item]:
    return mailbox.take(demand=100_000, wait_seconds=0)


class AskedSelection(Selection, frozen=True):
    """Remembers what it was asked, and wants all of it."""

    asked: list[str] = msgspec.field(default_factory=list)

    def wants(self, kind: Kind) -> bool:
        event_type, task_name, queue, *_ = kind
        self.asked.append(f"{event_type.__name__} {task_name} {queue}")
        return True


def test_an_event_goes_to_every_mailbox_that_wants_it_and_to_no_other() -> None:
    dispatcher = Dispatcher()
    mailboxes = add(
        dispatcher,
        subscribe(print, "everything"),
        subscribe(print, "failures", events=(JobFailed,)),
        subscribe(print, "bakery", tasks=("bakery.*",)),
        subscribe(print, "europe", queues=("eu-*",)),
    )
    started = make_event(JobStarted, queue="us-1")
    failed = make_event(JobFailed, queue="eu-1")
    baked = make_event(JobFinished, task_name="bakery.bake")

    dispatch(dispatcher, started, failed, baked)

    assert {name: items_in(mailbox) for name, mailbox in mailboxes.items()} == {
        "everything": [started, failed, baked],
        "failures": [failed],
        "bakery": [baked],
        "europe": [failed],
    }


def test_without_a_consumer_an_event_goes_nowhere() -> None:
    assert dispatch(Dispatcher(), make_event(JobStarted)) == set()


def test_events_keep_their_order() -> None:
    dispatcher = Dispatcher()
    mailboxes = add(dispatcher, subscribe(print, "store"))
    events = numbered(100)

    dispatch(dispatcher, *events)

    assert items_in(mailboxes["store"]) == events


def test_the_consumers_that_lost_an_event_are_named() -> None:
    dispatcher = Dispatcher()
    for name, size in (("tight", 1), ("wide", 10), ("narrow", 1)):
        dispatcher.add(name, Selection(), Mailbox(size=size))

    first = dispatch(dispatcher, make_event(JobStarted))
    second = dispatch(dispatcher, make_event(JobFinished))

    assert first == set()
    assert second == {"tight", "narrow"}


def test_a_full_mailbox_takes_nothing_from_another_one() -> None:
    dispatcher = Dispatcher()
    full, roomy = Mailbox[Item](size=1, overflow="drop_newest"), Mailbox[Item](size=10)
    dispatcher.add("full", Selection(), full)
    dispatcher.add("roomy", Selection(), roomy)
    events = numbered(5)

    dispatch(dispatcher, *events)

    assert items_in(full) == events[:1]
    assert full.stats().dropped == {MAILBOX_FULL: 4}
    assert items_in(roomy) == events


def test_a_consumer_in_whose_hands_a_job_ran_is_not_told_of_it() -> None:
    dispatcher = Dispatcher()
    mailboxes = add(dispatcher, subscribe(print, "retrier"), subscribe(print, "audit"))
    event = make_event(JobFinished)

    dispatch(dispatcher, Delivery(event, frozenset({"retrier", "somebody else"})))

    assert mailboxes["retrier"].stats().offered == 0
    assert [delivery_of(item).event for item in items_in(mailboxes["audit"])] == [event]


def test_a_delivery_carries_its_origin_to_the_consumer() -> None:
    dispatcher = Dispatcher()
    mailboxes = add(dispatcher, subscribe(print, "audit"))
    delivery = Delivery(make_event(JobFinished), frozenset({"retrier"}))

    dispatch(dispatcher, delivery)

    assert mailboxes["audit"].take(demand=1, wait_seconds=0) == [delivery]


def test_what_was_lost_on_the_way_is_counted_for_each_who_wanted_it() -> None:
    dispatcher = Dispatcher()
    mailboxes = add(
        dispatcher,
        subscribe(print, "everything"),
        subscribe(print, "failures", events=(JobFailed,)),
        subscribe(print, "starts", events=(JobStarted,)),
    )

    losers = dispatcher.refuse(kind_of(make_event(JobFailed)), count=3, reason=INBOX_FULL)

    assert losers == ["everything", "failures"]
    for name in losers:
        assert mailboxes[name].stats().offered == 3
        assert mailboxes[name].stats().dropped == {INBOX_FULL: 3}
    assert mailboxes["starts"].stats().offered == 0


def test_events_of_one_kind_are_those_of_one_type_task_and_queue() -> None:
    event = make_event(JobStarted, task_name="shop.charge", queue="eu", task_id="1")

    assert kind_of(event)[:3] == (JobStarted, "shop.charge", "eu")
    assert kind_of(event) == kind_of(make_event(JobStarted, queue="eu", task_id="2"))
    assert kind_of(event) != kind_of(make_event(JobStarted))


def test_a_subscription_is_asked_once_about_each_kind() -> None:
    selection = AskedSelection()
    dispatcher = Dispatcher()
    dispatcher.add("store", selection, Mailbox(size=None))

    for _ in range(100):
        dispatch(dispatcher, make_event(JobStarted), make_event(JobFinished, queue="eu"))

    assert selection.asked == ["JobStarted shop.charge None", "JobFinished shop.charge eu"]


def test_a_consumer_that_comes_later_gets_events_from_then_on() -> None:
    dispatcher = Dispatcher()
    add(dispatcher, subscribe(print, "first"))
    before, after = (
        make_event(JobStarted, task_id="before"),
        make_event(JobStarted, task_id="after"),
    )
    dispatch(dispatcher, before)

    late = add(dispatcher, subscribe(print, "late"))["late"]
    dispatch(dispatcher, after)

    assert items_in(late) == [after]


def test_a_consumer_that_is_added_again_gets_its_events_in_the_new_mailbox_only() -> None:
    dispatcher = Dispatcher()
    old = add(dispatcher, subscribe(print, "store"))["store"]
    new = add(dispatcher, subscribe(print, "store", events=(JobEnded,)))["store"]
    end = make_event(JobFinished)

    dispatch(dispatcher, make_event(JobStarted), end)

    assert items_in(old) == []
    assert items_in(new) == [end]


class Name(str):
    """A task name that can be seen to be forgotten."""

    __slots__ = ("__weakref__",)


def test_task_names_without_end_are_not_remembered_without_end() -> None:
    dispatcher = Dispatcher()
    dispatcher.add("store", Selection(), Mailbox(size=1))
    remembered: weakref.WeakSet[Name] = weakref.WeakSet()

    for number in range(25_000):
        name = Name(number)
        remembered.add(name)
        dispatch(dispatcher, make_event(JobStarted, task_name=name))

    assert len(remembered) <= 10_001


names = st.sampled_from(["shop.charge", "shop.refund", "bakery.bake"])
queues = st.sampled_from(["eu-1", "eu-2", "us-1"])
subscriptions = st.lists(
    st.builds(
        subscribe,
        st.just(print),
        st.sampled_from("abcdef"),
        events=st.lists(
            st.sampled_from([JobEvent, JobEnded, *EVENT_TYPES.values()]), min_size=1
        ).map(tuple),
        tasks=st.lists(names | st.just("shop.*"), max_size=2).map(tuple),
        queues=st.lists(queues | st.just("eu-*"), max_size=2).map(tuple),
    ),
    unique_by=lambda subscription: subscription.name,
)
events = st.builds(
    make_event,
    st.sampled_from(list(EVENT_TYPES.values())),
    names,
    queue=st.none() | queues,
    task_id=st.text(max_size=3),
)
origins = st.frozensets(st.sampled_from("abcdef"), max_size=2)
items_together = st.lists(
    # As a tuple first: its annotations have a name that is there for type checkers only.
    events | st.tuples(events, origins).map(lambda known: Delivery(*known)),
    max_size=10,
)


@given(subscriptions=subscriptions, dispatches=st.lists(items_together, max_size=5))
def test_each_mailbox_gets_exactly_what_its_subscription_wants_in_order(
    subscriptions: list[Subscription], dispatches: list[list[Item]]
) -> None:
    dispatcher = Dispatcher()
    mailboxes = add(dispatcher, *subscriptions)

    for items in dispatches:
        assert dispatch(dispatcher, *items) == set()

    for subscription in subscriptions:
        assert items_in(mailboxes[subscription.name]) == [
            item
            for item in chain.from_iterable(dispatches)
            if subscription.selection.wants(kind_of(delivery_of(item).event))
            and subscription.name not in delivery_of(item).origin
        ]
