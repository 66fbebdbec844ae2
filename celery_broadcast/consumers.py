"""The consumers of a process: who is there, who gets what, and what they lose by it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from celery_broadcast.counts import DRAIN_TIMEOUT
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery, Dispatcher, Item, Route, delivery_of
from celery_broadcast.inbox import Post
from celery_broadcast.ledger import Ledger
from celery_broadcast.losses import Losses
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.reader import Reader
from celery_broadcast.selection import Kind
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import FROM_SETTINGS, RELAY, Registry, Subscription

if TYPE_CHECKING:
    from celery_broadcast.consumer import Consumer

logger: logging.Logger = logging.getLogger(__name__)

#: Makes the relay to remote consumers, a consumer of our own.
MakeRelay: TypeAlias = Callable[[tuple[Subscription, ...]], Subscription]

# How long a drain waits, after its deadline, for coroutines that it has cancelled: the
# process may be about to end, and theirs to clean up with it.
_CLEANUP_SECONDS = 0.2


class Consumers:
    """Those of one process.

    Belongs to the producer's thread, but for `mailbox_for`. Who moves events on in
    its place asks for `are_settled`, and calls `dispatch`.

    Args:
        settings: sizes and policies.
        registry: the subscriptions; later ones are taken up as they come.
        ledger: knows where each consumer is counted.
        new_post: makes what an idle consumer waits at; None is its mailbox alone.
        relay: sends to remote consumers; without one they run here like the others.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        ledger: Ledger,
        new_post: Callable[[], Post] | None = None,
        relay: MakeRelay | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._ledger = ledger
        self._new_post = new_post
        self._make_relay = relay
        # What was made for which remote ones.
        self._relay: tuple[tuple[Subscription, ...], Subscription] | None = None
        self._losses: dict[str, Losses] = {}
        self._before: dict[str, Crew | Reader] = {}
        #: Whether a consumer starts with its first event only, not at once.
        self.are_lazy: bool = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._here: dict[str, Crew | Reader] = {}
        self._asleep: list[Crew] = []
        self._leaving: list[Crew | Reader] = []
        self._known: tuple[Subscription, ...] = ()
        self._dispatcher = Dispatcher()
        self._are_batches_asked_for = False
        #: Where events go of which nothing but the type is to be known, as far as that is known.
        self.routes_of_types: Mapping[type, Route] = {}
        self._is_any_watched = False
        self._loss_line_due_at: float | None = None
        self._look_due_at: float | None = None

    def names(self) -> list[str]:
        """Return the names of those who get events."""
        return list(self._here)

    def all(self) -> tuple[Crew | Reader, ...]:
        """Return all that have something to do, cancelled ones too."""
        return (*self._leaving, *self._here.values())

    # Who is there.

    def wanted(self) -> tuple[Subscription, ...]:
        """Return the subscriptions that are to run in this process; on any thread.

        Remote ones aren't: the relay is in their place. With other remote ones
        it is another, which begins as the one before ends.

        Raises:
            Exception: what is needed for the relay can't be loaded.
        """
        known = self._registry.subscriptions
        remote = tuple(each for each in known if each.remote)
        if self._make_relay is None or not remote:
            return known
        if self._relay is None or self._relay[0] != remote:
            self._relay = remote, self._make_relay(remote)
        return (*(each for each in known if not each.remote), self._relay[1])

    def take_up(self) -> None:
        """Look whether there are other subscriptions than before.

        Each new one gets a mailbox and threads, and a cancelled one no more events.
        """
        if self._registry.subscriptions is self._known:
            return
        self._known = self._registry.subscriptions
        wanted = self.wanted()
        self._let_go(wanted)
        dispatcher = self._dispatcher
        for subscription in wanted:
            name = subscription.name
            if name in self._here or subscription.switch.is_cancelled:
                continue
            crew = self._new_crew(subscription)
            self._losses.setdefault(name, Losses(name))
            self._here[name] = crew
            dispatcher.add(name, subscription.selection, crew.mailbox)
        here = self._here.values()
        self._are_batches_asked_for = any(crew.subscription.batch is not None for crew in here)
        self.routes_of_types = {} if self._are_batches_asked_for else dispatcher.routes_of_types
        # Also of those that are leaving: the call in their hands may hang.
        self._is_any_watched = any(crew.subscription.stuck_after is not None for crew in self.all())

    def _new_crew(self, subscription: Subscription) -> Crew | Reader:
        if isinstance(subscription.reader, Reader):
            return subscription.reader
        before = self._before.get(subscription.name)
        if not isinstance(before, Crew) or before.subscription is not subscription:
            before = None
        elif before.has_given_up:
            return before  # for good: it only counts what it doesn't get
        post = None if self._new_post is None else self._new_post()
        trace = self._trace_of(subscription)
        crew = Crew(subscription, self.mailbox_for(subscription), before, post, trace)
        if self.are_lazy:
            self._asleep.append(crew)
        else:
            crew.start()
        return crew

    def _trace_of(self, subscription: Subscription) -> Callable[[Consumer], Consumer] | None:
        """Return what makes a consumer run in the trace context of the job, if that is set."""
        if not self._settings.opentelemetry or subscription.name == RELAY:
            return None
        try:
            from celery_broadcast import otel_tracing  # noqa: PLC0415  # an extra
        except ImportError:
            logger.error(  # noqa: TRY400  # it says all
                "consumer %r has no trace context: broadcast_opentelemetry is set, and "
                "opentelemetry-api isn't installed. Install the extra, celery-broadcast[otel]",
                subscription.name,
            )
            return None
        if subscription.is_async:
            return otel_tracing.TracedCoroutineConsumer
        return otel_tracing.TracedConsumer

    def _wake_up(self) -> None:
        """Start those who have got their first event."""
        for crew in self._asleep:
            if crew.mailbox.stats().pending:
                crew.start()
        self._asleep = [crew for crew in self._asleep if not crew.mailbox.stats().pending]

    def _let_go(self, wanted: Sequence[Subscription]) -> None:
        """Send nothing more to cancelled consumers, and to those declared anew since."""
        known = {subscription.name: subscription for subscription in wanted}
        for name, crew in list(self._here.items()):
            is_cancelled = crew.subscription.switch.is_cancelled
            # Its switch is what is its own: a stream is registered as a copy.
            is_another = name in known and known[name].switch is not crew.subscription.switch
            if is_cancelled or is_another:
                if not is_cancelled:
                    crew.stop()  # it handles what waits, as its successor begins
                self._dispatcher.remove(name)
                self._leaving.append(self._here.pop(name))
                self._note_losses((name,))
        self._leaving = [crew for crew in self._leaving if not crew.is_gone()]

    def mailbox_for(self, subscription: Subscription) -> Mailbox[Item]:
        """Return a new mailbox, as the subscription and the settings want it; on any thread."""
        size = subscription.mailbox_size
        return Mailbox(
            size=self._settings.mailbox_size if size == FROM_SETTINGS else size,
            overflow=subscription.overflow or self._settings.overflow,
            counts=self._ledger.counts(subscription.name),
            switch=subscription.switch,
        )

    def stop(self) -> tuple[Crew | Reader, ...]:
        """Let all handle what waits and then end; the next event finds none of them here.

        Returns:
            Those to be waited for.
        """
        self.end_streams()
        stopping = self.all()
        self._before |= self._here
        self._begin_anew()
        for crew in stopping:
            crew.stop()
        return stopping

    def end_streams(self) -> None:
        """Let the streams be over, also those that have not been taken up: no event came since."""
        for subscription in self._registry.subscriptions:
            if subscription.reader is not None:
                subscription.reader.stop()

    # Who gets what.

    def have_enough(self, beside: int) -> bool:
        """Tell whether each was at work when events came, and hasn't got to them yet.

        Args:
            beside: how many events came.
        """
        here = self._here.values()
        return bool(here) and all(crew.mailbox.has_enough(beside) for crew in here)

    def are_settled(self) -> bool:
        """Tell whether events need only be dispatched: nobody is to come, to go, or to be woken."""
        is_known = self._registry.subscriptions is self._known
        return is_known and not (self._asleep or self._is_any_watched)

    def dispatch(
        self, items: Sequence[Item], failed: Callable[[Item, Exception], None]
    ) -> set[str]:
        """Give events to everyone who wants them, in their order.

        Args:
            items: the events.
            failed: called with one that can't be given to anyone, and why.

        Returns:
            The consumers that lost an event by it: a full mailbox dropped one.
        """
        if self._are_batches_asked_for:
            items = _stamped(items)
        return self._dispatcher.dispatch(items, failed)

    def look_after(self, losers: Collection[str]) -> None:
        """Do what a dispatch has made necessary.

        Args:
            losers: what it returned.
        """
        with contextlib.suppress(Exception):  # a handler of the log may raise
            self._note_losses(losers)
            if self._asleep:
                self._wake_up()
            if self._is_any_watched and self._look_due_at is None:
                self._look_at_calls(time.monotonic())

    def accept(self, name: str, deliveries: Sequence[Delivery]) -> None:
        """Give events to one consumer alone, whatever it wants; their receipts are settled."""
        crew = self._here.get(name)
        if not isinstance(crew, Crew):  # cancelled
            for delivery in deliveries:
                if delivery.receipt is not None:
                    delivery.receipt.settle("dropped")
            return
        crew.accept(deliveries)
        if self._is_any_watched and self._look_due_at is None:
            self._look_at_calls(time.monotonic())

    def has_given_up(self, name: str) -> bool:
        """Tell whether a consumer handles nothing more in this process; on any thread."""
        crew = self._here.get(name)
        return isinstance(crew, Crew) and crew.has_given_up

    def refuse(self, kind: Kind, count: int, reason: str) -> list[str]:
        """Count events that were dropped on their way; return who has lost them."""
        losers = self._dispatcher.refuse(kind, count, reason)
        self._note_losses(losers)
        return losers

    # What is to be said of it.

    @property
    def due_at(self) -> float | None:
        """When it is time for `do_what_is_due`, by the monotonic clock; None is not yet known."""
        dues = [due for due in (self._loss_line_due_at, self._look_due_at) if due is not None]
        return min(dues, default=None)

    def do_what_is_due(self, now: float) -> None:
        """Say what consumers lost, and which of their calls are stuck."""
        # Each is planned anew by what it calls; if that raises, by the next event.
        if self._loss_line_due_at is not None and self._loss_line_due_at <= now:
            self._loss_line_due_at = None
            self._say_losses(now)
        if self._look_due_at is not None and self._look_due_at <= now:
            self._look_due_at = None
            self._look_at_calls(now)

    def say_all_losses(self, now: float) -> None:
        """Say what was lost since the last time, also what isn't due yet."""
        for name, losses in self._losses.items():
            losses.say(self._ledger.counts(name).stats().dropped, now)

    def _look_at_calls(self, now: float) -> None:
        """Say which calls are stuck, and plan the next look.

        Needed only while a consumer has something to do, of which this thread
        is the first to know.
        """
        waits = [crew.look(now) for crew in self.all()]
        soonest = min((wait for wait in waits if wait is not None), default=None)
        self._look_due_at = None if soonest is None else now + soonest

    def _note_losses(self, names: Collection[str]) -> None:
        if not names:
            return
        now = time.monotonic()
        for name in names:
            self._losses[name].note(now)
        self._plan_loss_line(now)

    def _plan_loss_line(self, now: float) -> None:
        waits = (losses.due_in(now) for losses in self._losses.values())
        soonest = min((wait for wait in waits if wait is not None), default=None)
        self._loss_line_due_at = None if soonest is None else now + soonest

    def _say_losses(self, now: float) -> None:
        for name, losses in self._losses.items():
            if losses.due_in(now) == 0.0:
                losses.say(self._ledger.counts(name).stats().dropped, now)
        self._plan_loss_line(now)


def _stamped(items: Sequence[Item]) -> list[Item]:
    now = time.monotonic()
    deliveries: list[Item] = []
    for item in items:
        delivery = delivery_of(item)
        delivery.dispatched_at = now
        deliveries.append(delivery)
    return deliveries


def finish(stopping: Collection[Crew | Reader], deadline: float) -> Counter[str]:
    """Wait until those that were stopped are done; what they leave is counted as dropped.

    Args:
        stopping: all of them.
        deadline: when to go on all the same, by the monotonic clock.

    Returns:
        How many events each of them left.
    """
    left: Counter[str] = Counter()
    cancelled = []
    try:
        for crew in stopping:
            crew.finish(deadline)
    finally:  # Ctrl-C too
        for crew in stopping:
            if not crew.has_ended():
                left[crew.name] += crew.abandon(DRAIN_TIMEOUT)
                if crew.subscription.is_async:
                    cancelled.append(crew)
    cleaned_up_by = time.monotonic() + _CLEANUP_SECONDS
    for crew in cancelled:
        crew.finish(cleaned_up_by)
    return left
