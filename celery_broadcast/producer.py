"""Where the events of a process enter: one inbox, one thread, every consumer behind it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import repeat, starmap
from typing import Any, TypeAlias

import msgspec

from celery_broadcast import fork, notices
from celery_broadcast.consumers import Consumers, MakeRelay, finish
from celery_broadcast.counts import DRAIN_TIMEOUT, INBOX_FULL, ConsumerStats, Counts
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery, Item, Route, delivery_of
from celery_broadcast.errors import BroadcastError
from celery_broadcast.events import Event, JobEvent, JobStarted
from celery_broadcast.inbox import Inbox, Post
from celery_broadcast.ledger import Ledger
from celery_broadcast.losses import say_died
from celery_broadcast.quiet_logs import keep_logs_quiet_in_forks
from celery_broadcast.reader import Reader
from celery_broadcast.selection import Kind, kind_of
from celery_broadcast.settings import Settings
from celery_broadcast.slots import Slots
from celery_broadcast.station import ITSELF, hands
from celery_broadcast.subscription import Registry
from celery_broadcast.throttle import Throttle
from celery_broadcast.waiting import wait_until_set

logger: logging.Logger = logging.getLogger(__name__)

#: How many events may wait for the producer's thread. It does nothing but move
#: them on, so they only pile up while nothing lets it run at all: a loop of
#: eager jobs that never yields, under gevent.
INBOX_SIZE = 100_000

# How long a drain waits for the producer's thread, however short its own
# deadline: only a receiver of a notice that doesn't return can hold it up.
_GRACE_SECONDS = 1.0

# And how long for another that moves events on just now.
_PATIENCE_SECONDS = 0.1

_SECONDS_BETWEEN_TROUBLES = 60.0

# How many events are moved on together, if so many are there.
_MOST_AT_ONCE = 500


class Drained(msgspec.Struct, frozen=True):
    """What a drain did.

    Attributes:
        handled: events that consumers got done with while it waited.
        left: events that nobody handled; they are counted as dropped.
    """

    handled: int = 0
    left: int = 0


class _DrainRequest:
    """Goes through the inbox, behind every event that was there before it.

    Attributes:
        reached: set once those events are in the mailboxes, and the mailboxes closed.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()


_Request: TypeAlias = "_DrainRequest | partial[None]"
_Inbox: TypeAlias = "Inbox[Item | _Request]"

_ITS_OWN_HANDS = frozenset({ITSELF})

_REQUESTS: frozenset[type] = frozenset({_DrainRequest, partial})
_MORE_THAN_EVENTS: frozenset[type] = _REQUESTS | {Delivery}


def check_outside_of_consumers() -> None:
    """Refuse to wait for the consumers where one of them, or their producer, waited for itself.

    Raises:
        BroadcastError: called by a consumer, or by a receiver of a notice.
    """
    if hands.get():
        names = ", ".join(sorted(hands.get() - {ITSELF}))
        who = f"The consumer {names}" if names else "A receiver of a notice of the broadcast"
        msg = f"{who} can't drain the broadcast: it would wait for itself."
        raise BroadcastError(msg)


def _say_undelivered(item: Item, error: Exception) -> None:
    event = delivery_of(item).event
    with contextlib.suppress(Exception):  # a handler of the log may raise, and others wait
        logger.error("broadcast can't deliver %s; it is lost", event, exc_info=error)


def _say_not_all_delivered(count: int, error: BaseException) -> None:
    logger.error("broadcast can't deliver all of %d events", count, exc_info=error)


class Producer:
    """The one of a process: starts on its first event, and starts clean in a forked child.

    Args:
        settings: sizes, policies and the drain's timeout.
        registry: the subscriptions; later ones are taken up as they come.
        inbox_size: how many events may wait for the producer's thread.
        relay: sends to remote consumers; without one they run here like the others.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        inbox_size: int = INBOX_SIZE,
        relay: MakeRelay | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._inbox_size = inbox_size
        self._relay = relay
        #: The numbers of every consumer.
        self.ledger: Ledger = Ledger()
        self._slots: Slots | None = None
        self.forget()
        fork.starts_clean(self)
        keep_logs_quiet_in_forks()  # this process has threads from here on, and they log

    def forget(self) -> None:
        """Be as new: no thread, no waiting event, no count, and locks of its own.

        Called in a forked child, before anything else runs there.
        """
        # All made through their modules, so that they are the patched ones under gevent.
        self._inbox: _Inbox = Inbox()
        # Held by the thread that takes from the inbox and moves on what it took: so
        # events arrive in the order they were published. No code of the user runs then,
        # but for the finalizers of what nobody wants or a mailbox drops.
        self._moving = threading.Lock()
        # Held by the one thread that serves: the producer's, or one that drains.
        self._serving = threading.Lock()
        # Whether an idle consumer may do so: only between the start of all and the drain.
        self._is_serving = False
        # How many events it moved on together.
        self._moved_last = 0
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._draining = threading.Lock()
        self._closed = False
        self._is_more_to_drain = False
        # The subscriptions that there were when a job asked what they want.
        self._asked: object = None
        self._refused: Counter[Kind] = Counter()
        self._refusing = threading.Lock()
        #: Those of this process, known to the producer's thread.
        self.consumers: Consumers = Consumers(
            self._settings, self._registry, self.ledger, self._new_post, self._relay
        )
        self._stopping: tuple[Crew | Reader, ...] = ()
        self._trouble = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_TROUBLES)

    @property
    def is_over(self) -> bool:
        """Whether nothing reaches a consumer here any more: the process is about to end."""
        return self._closed

    def share(self, slots: Slots) -> None:
        """Count, in a pool process, where the main process can read it."""
        self._slots = slots
        self.ledger.share(slots)

    def wants(self, event_type: type[JobEvent]) -> bool:
        """Tell whether some consumer, here or beyond, may want events of this type.

        Called on the thread that runs the job. Of the first event of a process, and
        of the first one after a subscription came or went, it says so in any case:
        that one starts the consumers, or ends them.
        """
        subscriptions = self._registry.subscriptions
        if self._asked is subscriptions:
            return event_type in self._registry.wanted or self._thread is None
        self._asked = subscriptions
        return True

    def notify(self, event: Event) -> None:
        """Publish an event; never block, never raise."""
        origin = hands.get()
        self.put(Delivery(event, origin) if origin else event)

    def delivery(self, event: Event, note: int | None = None) -> Delivery:
        """Return what `put` takes.

        Args:
            event: the event.
            note: the note, in this process's slot, of the attempt that it
                starts or ends. The main process tells, should this one die,
                what no consumer can have heard of.
        """
        return Delivery(event, hands.get(), note)

    def put(self, item: Item) -> None:
        """Publish an event; never block, never raise. A delivery may be put twice.

        Called on the thread that runs the job. Costs the same whatever the
        number and the state of the consumers. Safe inside of a signal handler
        that interrupted another call of it.
        """
        inbox = self._inbox
        if len(inbox.items) >= self._inbox_size and self._refuse(delivery_of(item).event):
            self._say_told(item)
            return
        slots = self._slots
        if slots is not None and slots.mine is not None:
            slots.mine.count_published()
        inbox.put(item)
        if type(item) is Delivery and item.origin:
            self._is_more_to_drain = True
        if self._thread is None:
            self._start()

    def announce(self, notice: notices.Notice, **facts: Any) -> None:
        """Send a notice about the whole broadcast, on the broadcast's own thread."""
        self._ask(partial(notices.send, notice, **facts))

    def accept(self, name: str, deliveries: Sequence[Delivery] = ()) -> None:
        """Give events from elsewhere to one consumer alone; start it, if it hasn't yet.

        Never waits. Their receipts tell what becomes of them; after a drain that
        was the last, it may be that nobody does.

        Args:
            name: the consumer's.
            deliveries: the events; they aren't too many, or the mailbox would be full.
        """
        self._ask(partial(self.consumers.accept, name, deliveries))

    def report_died(self, pid: int, lost: Mapping[str, int], not_offered: int) -> None:
        """Say, on the broadcast's own thread, what a pool process that is gone took with it.

        Args:
            pid: the process.
            lost: how many events each consumer there had pending.
            not_offered: how many events hadn't been offered to anyone.
        """
        self._ask(partial(say_died, pid, lost, not_offered))

    def _ask(self, request: partial[None]) -> None:
        self._inbox.put_for_producer(request)
        if self._thread is None:
            self._start()

    def drain(self, timeout_seconds: float | None = None, *, last: bool = False) -> Drained:
        """Have the consumers handle what waits, then stop them; a later event starts anew.

        Args:
            timeout_seconds: how long to wait; None is `broadcast_drain_timeout`.
            last: the process is about to end, so nothing starts any more.

        Raises:
            BroadcastError: called by a consumer, which would wait for itself.
        """
        check_outside_of_consumers()
        if timeout_seconds is None:
            timeout_seconds = self._settings.drain_timeout
        deadline = time.monotonic() + timeout_seconds
        if self._thread is None and self._inbox.has_any():
            self._start()  # there was no thread to be had, or it crashed
        if not self._draining.acquire(timeout=timeout_seconds):
            return Drained()  # another thread is at it, and says what is left
        try:
            if last:
                self._closed = True
            return self._drain_all(deadline)
        finally:
            self._stopping = ()
            self._draining.release()
            if self._thread is None and self._inbox.has_any():  # published while this waited
                self._start()

    def stats(self) -> dict[str, ConsumerStats]:
        """Return the numbers of every consumer, by its name: here, and in processes below."""
        return self.ledger.add_pool(self._own_stats())

    def sample(self) -> None:
        """Look how many events wait; once a second, so that `stats` can tell of lag."""
        self.ledger.sample(time.monotonic())

    def _own_stats(self) -> dict[str, ConsumerStats]:
        nothing = Counts().stats()
        stats = {subscription.name: nothing for subscription in self.consumers.wanted()}
        for name, counts in self.ledger.own().items():
            with counts.lock:
                stats[name] = self.ledger.own_stats(name)
        return stats

    def _start(self) -> None:
        """Start the producer's thread, which then starts the consumers'."""
        while self._starting.acquire(blocking=False):  # else another thread is at it
            try:
                is_held_back = self._draining.locked()
                if not is_held_back:
                    self._start_now()
            finally:
                self._starting.release()
            # A drain looks when it is done; but while this one held the lock it has found
            # that taken.
            if not is_held_back or self._draining.locked() or not self._inbox.has_any():
                return

    def _start_now(self) -> None:
        try:
            if self._closed:
                self._say_trouble("broadcast has stopped; %d late events are lost", last=True)
            elif self._thread is None:
                # Known before it starts: whatever strikes this thread while it
                # starts the other, there is never a second one.
                thread = threading.Thread(target=self._run, name="broadcast", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                finally:
                    if thread.ident is None:
                        self._thread = None
        except (RuntimeError, KeyError):  # no thread to be had; the next event tries again
            self._say_trouble("broadcast has no thread; %d events wait")

    def _say_trouble(self, message: str, *, last: bool = False) -> None:
        """Log it, not once an event."""
        now = time.monotonic()
        events = self._empty_inbox() if last else len(self._inbox.items)
        self._trouble.add(1, now)
        if self._trouble.due_in(now) == 0.0:
            self._trouble.say(now)
            logger.error(message, events, exc_info=not last)

    def _refuse(self, event: Event) -> bool:
        """Count an event that finds the inbox full; False if that can't be done just now.

        Never waits for the lock: its holder may be the very code that a signal
        handler interrupted to come here.
        """
        if not self._refusing.acquire(blocking=False):
            return False
        try:
            self._refused[kind_of(event)] += 1
        finally:
            self._refusing.release()
        return True

    # On the producer's own thread.

    def _run(self) -> None:
        """Serve until a drain is requested; after a crash, the next event starts anew."""
        thread = threading.current_thread()
        if self._thread is not thread:
            return  # what started it was struck down, and another is at work
        try:
            self._serve()
        except BaseException:
            logger.critical("broadcast's thread crashed; the next event starts it", exc_info=True)
        finally:
            self._thread = None  # once nobody serves
        if self._inbox.has_any():  # published after the drain was requested
            self._start()

    def _serve(self, request: _DrainRequest | None = None) -> None:
        """Move events from the inbox to the mailboxes, until a drain is requested.

        Only one thread does: another returns at once.

        Args:
            request: there is nothing to do if it has been served; None if it isn't
                for one.
        """
        if not self._serving.acquire(blocking=False):
            return
        before = hands.set(_ITS_OWN_HANDS)  # receivers of notices run here
        try:
            if request is None or not request.reached.is_set():
                self._serve_until_drained()
        finally:
            self._is_serving = False
            hands.reset(before)
            self._serving.release()

    def _serve_until_drained(self) -> None:
        self.consumers.take_up()
        self._say_started()
        self._is_serving = True
        request: _Request | None = None
        while not isinstance(request, _DrainRequest):
            request = None  # or it would live on with what it is about
            self._wait_for_items()
            self._do_what_is_left()
            request = self._move_next()
            if isinstance(request, partial):
                self._do(request)
        with self._moving:
            self._is_serving = False
            self._count_refused()
            self._stopping = self.consumers.stop()
        self._do_what_is_left()
        request.reached.set()

    def _do_what_is_left(self) -> None:
        while self._inbox.left:
            self._do(self._inbox.left.popleft())

    def _do(self, request: Callable[[], None]) -> None:
        try:
            request()
        except Exception:
            logger.exception("broadcast can't do %s", request)

    def _wait_for_items(self) -> None:
        """Wait until there is something; do meanwhile what it is time for."""
        if not self._inbox.has_any() and self.consumers.have_enough(beside=self._moved_last):
            self._inbox.collect()
        while not self._inbox.has_any():
            due_at = self.consumers.due_at
            if due_at is None:
                self._inbox.wait()
                continue
            wait_seconds = due_at - time.monotonic()
            if wait_seconds > 0.0:
                self._inbox.wait(wait_seconds)
                continue
            with contextlib.suppress(Exception):  # a handler of the log may raise
                self.consumers.do_what_is_due(time.monotonic())

    def _move_next(self) -> _Request | None:
        """Move on the next events, up to the first request, which is returned."""
        with self._moving:
            items, request = self._next_items(len(self._inbox.items))
            self._moved_last = len(items)
            if self._refused:
                self._count_refused()  # first: who subscribes now has not missed it
            try:
                self.consumers.take_up()
                losers = self._deliver(items, _say_undelivered)
            except Exception as error:  # noqa: BLE001  # said
                _say_not_all_delivered(len(items), error)
                return request
        self.consumers.look_after(losers)
        return request

    def _deliver(
        self, items: list[Item], failed: Callable[[Item, Exception], None]
    ) -> AbstractSet[str]:
        """Put events into the mailboxes; return the consumers that lost one by it."""
        if Delivery in map(type, items):
            opened = [self._open(item) if type(item) is Delivery else item for item in items]
        else:
            opened = items
        try:
            return self.consumers.dispatch(opened, failed)
        finally:
            self._count_dispatched(len(items))

    def _open(self, delivery: Delivery) -> Item:
        """Return what is still to be known of it from here on."""
        self._say_told(delivery)  # now: what a consumer may hear of, nobody tells again
        return delivery if delivery.origin else delivery.event

    def _say_told(self, item: Item) -> None:
        if type(item) is not Delivery or item.note is None:
            return
        if self._slots is None or self._slots.mine is None:
            return
        if isinstance(item.event, JobStarted):
            self._slots.mine.say_start_told(item.note)
        else:
            self._slots.mine.close(item.note)

    def _count_dispatched(self, count: int = 1) -> None:
        if self._slots is not None and self._slots.mine is not None:
            self._slots.mine.count_dispatched(count)

    def _say_started(self) -> None:
        names = self.consumers.names()
        if names:
            count = "1 consumer" if len(names) == 1 else f"{len(names)} consumers"
            logger.info("broadcast is on: %s (%s) in pid %d", count, ", ".join(names), os.getpid())
        else:
            logger.warning(
                "broadcast is on in pid %d, but there is no consumer. Name the module that "
                "declares them among the imports of the app's configuration",
                os.getpid(),
            )
        notices.send("broadcast_started", consumers=names, pid=os.getpid())

    def _next_items(self, count: int) -> tuple[list[Item], _Request | None]:
        """Take what is there, up to the first request.

        Args:
            count: how many are there.

        Returns:
            Events, those that were put twice once, and the request behind them.
        """
        taken: list[Item | _Request] = []
        inbox = self._inbox.items
        with contextlib.suppress(IndexError):  # a drain that gave up has emptied it
            # Without a line of Python for each.
            taken.extend(starmap(inbox.popleft, repeat((), min(count, _MOST_AT_ONCE))))
        if _MORE_THAN_EVENTS.isdisjoint(map(type, taken)):
            return taken, None  # type: ignore[return-value]  # as just seen
        items: list[Item] = []
        for number, item in enumerate(taken, 1):
            if type(item) in _REQUESTS:
                inbox.extendleft(reversed(taken[number:]))
                return items, item  # type: ignore[return-value]  # as just seen
            if type(item) is not Delivery:
                items.append(item)  # type: ignore[arg-type]  # an event
            elif item.taken:
                self._count_dispatched()
            else:
                item.taken = True
                items.append(item)
        return items, None

    def _count_refused(self) -> None:
        """Count what found the inbox full as dropped, for each consumer that wanted it."""
        with self._refusing:
            refused, self._refused = self._refused, Counter()
        for kind, count in refused.items():
            self.consumers.refuse(kind, count, INBOX_FULL)

    # On the thread of an idle consumer, which was woken in the place of the producer's.

    def _new_post(self) -> Post:
        return Post(self._inbox, self._move_on)

    def _move_on(self) -> None:
        """Move on the events that are there; leave all else to the producer's thread."""
        if not self._moving.acquire(blocking=False):
            return  # who has it looks again afterwards
        inbox, count = self._inbox.items, 0
        before = hands.set(_ITS_OWN_HANDS)  # those of the consumer have nothing to do with it
        try:
            # Before it is asked who is there: what comes later may be for who comes later.
            count = len(inbox)
            if self._is_serving and not self._refused and self.consumers.are_settled():
                route = self.consumers.routes_of_types.get(type(inbox[0])) if count == 1 else None
                if route is None:
                    self._move_events(count)
                else:
                    self._move_event(inbox.popleft(), route)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001  # it is none of the consumer's
            self._inbox.leave(partial(_say_not_all_delivered, count, error))
        finally:
            hands.reset(before)
            self._moving.release()
        if self._inbox.has_any():
            self._inbox.bell.ring()
            if self._thread is None:
                self._start()

    def _move_event(self, event: Event, route: Route) -> None:
        """Do as `_move_events` for the one event of an idle process, with as little as can be.

        All that is touched then has to come from far: nobody used it for so long.
        """
        losers: set[str] = set()
        for name, mailbox in route:
            if mailbox.put_all((event,)):
                losers.add(name)
        if self._slots is not None:
            self._count_dispatched()
        if losers:
            self._inbox.leave(partial(self.consumers.look_after, losers))

    def _move_events(self, count: int) -> None:
        for taken in range(0, count, _MOST_AT_ONCE):
            items, request = self._next_items(count - taken)
            losers = self._deliver(items, self._leave_undelivered)
            if losers:
                self._inbox.leave(partial(self.consumers.look_after, losers))
            if request is not None:
                self._inbox.items.appendleft(request)
                return

    def _leave_undelivered(self, item: Item, error: Exception) -> None:
        self._inbox.leave(partial(_say_undelivered, item, error))

    # On the thread that drains.

    def _drain_all(self, deadline: float) -> Drained:
        """Drain, and once more as long as consumers publish something meanwhile.

        Only who gets something starts again for it. That ends: what they make
        doesn't go back to those who had a hand in it, and what they make without
        an event, as they are torn down, not more often than there are consumers.
        """
        handled = left = 0
        try:
            for _ in range(1 + len(self._registry.subscriptions)):
                self._is_more_to_drain = False
                drained = self._drain(deadline)
                handled, left = handled + drained.handled, left + drained.left
                if not self._is_more_to_drain or time.monotonic() >= deadline:
                    break
                self.consumers.are_lazy = True
        finally:
            self.consumers.are_lazy = False
        return Drained(handled=handled, left=left)

    def _drain(self, deadline: float) -> Drained:
        started = time.monotonic()
        # It crashed if there is still somebody; else there was no event since the last drain.
        if self._thread is None and not self._inbox.items and not self.consumers.all():
            self.consumers.end_streams()
            return Drained()
        handled_before = self._handled()
        left: Counter[str] = Counter()
        request = _DrainRequest()
        self._inbox.put_for_producer(request)
        if self._thread is None and not request.reached.is_set():
            self._serve(request)  # no thread was to be had: then it is done here
        grace = started + _GRACE_SECONDS
        try:
            if not wait_until_set(request.reached, max(deadline, grace)):
                left += self._drop_inbox(request)
        except BaseException:
            deadline = started  # what struck this thread is not to wait
            raise
        finally:
            # While the thread goes on all the same, they are still its own.
            left += finish((*self.consumers.all(), *self._stopping), deadline)
        drained = Drained(handled=self._handled() - handled_before, left=left.total())
        self._say_drained(drained, left, time.monotonic() - started)
        return drained

    def _drop_inbox(self, request: _DrainRequest) -> Counter[str]:
        """Count what nobody moves on: a receiver of a notice has not returned.

        Returns:
            How many events each consumer lost.
        """
        left: Counter[str] = Counter()
        has_lock = self._moving.acquire(timeout=_PATIENCE_SECONDS)  # what holds that may hang
        try:
            with contextlib.suppress(IndexError):
                while True:
                    item = self._inbox.items.popleft()
                    if isinstance(item, Item):
                        self._say_told(item)
                        kind = kind_of(delivery_of(item).event)
                        left.update(self.consumers.refuse(kind, 1, DRAIN_TIMEOUT))
                        self._count_dispatched()
        finally:
            if has_lock:
                self._moving.release()
        self._inbox.put_for_producer(request)  # for the thread, when it goes on
        logger.error("broadcast can't stop its thread: some receiver of a notice doesn't return")
        return left

    def _say_drained(self, drained: Drained, left: Counter[str], seconds: float) -> None:
        self.consumers.say_all_losses(time.monotonic())
        if drained.left:
            shares = ", ".join(f"{name}: {count}" for name, count in left.items() if count)
            logger.warning(
                "broadcast stopped after %.1f s with %d events unhandled (%s). "
                "Raise broadcast_drain_timeout, or the timeout of your drain(), to keep them",
                seconds,
                drained.left,
                shares,
            )
        else:
            logger.info("broadcast drained %d events in %.1f s", drained.handled, seconds)
        notices.send(
            "broadcast_drained", handled=drained.handled, left=drained.left, seconds=seconds
        )

    def _handled(self) -> int:
        return sum(stats.handled + stats.failed for stats in self._own_stats().values())

    def _empty_inbox(self) -> int:
        """Take everything out of the inbox; return how many events that were."""
        count = 0
        while True:
            try:
                count += isinstance(self._inbox.items.popleft(), Item)
            except IndexError:
                return count
