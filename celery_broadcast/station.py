"""What the threads of one consumer share: where its work comes from, and when it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from celery_broadcast import django_connections
from celery_broadcast.counts import GAVE_UP
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.failures import Failures
from celery_broadcast.inbox import Post
from celery_broadcast.intake import Intake, Work
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.restarts import ended_on_purpose
from celery_broadcast.subscription import Subscription

# What few consumers ask for is loaded where one does.
if TYPE_CHECKING:
    from celery_broadcast.calls import Call, Calls
    from celery_broadcast.consumer import Consumer
    from celery_broadcast.rate_limit import RateLimit
    from celery_broadcast.receipt import Outcome, Receipt

#: The consumers in whose hands the present code runs; empty anywhere else.
hands: ContextVar[AbstractSet[str]] = ContextVar("celery_broadcast_hands", default=frozenset())

#: Stands among them for the producer, whose thread runs receivers of notices.
ITSELF = "broadcast itself"


class NotBegunError(BaseException):
    """The consumer was cancelled while an event in its hands waited for its turn."""


class Station:
    """Belongs to one consumer of one process; every thread of it may use all of it."""

    def __init__(
        self, subscription: Subscription, mailbox: Mailbox[Item], post: Post | None = None
    ) -> None:
        self.subscription = subscription
        self.name: str = subscription.name
        self.mailbox = mailbox
        #: Where its thread waits if it has one, and nothing else to do; None is its mailbox.
        self.post: Post | None = post
        self.failures: Failures = Failures(self.name)
        self.intake: Intake = Intake(
            mailbox,
            batch=subscription.batch,
            key_of=None if subscription.partition_by is None else self.key_of,
            is_wanted=self.is_wanted,
            fail=self.fail,
        )
        #: Held by the one thread that takes.
        self.taking: threading.Lock = threading.Lock()
        #: Set when the consumer is to handle what waits, and then to end.
        self.stop_requested: threading.Event = threading.Event()
        #: Set when what it has in its hands is counted as dropped: it is to do no more.
        self.is_over: threading.Event = threading.Event()
        #: Set when nothing is to be begun that only waits for its turn.
        self.is_cancelled: threading.Event = threading.Event()
        #: Of what was accepted and isn't settled; any thread adds and removes.
        self.receipts: set[Receipt] = set()
        #: Whether it has crashed too often, or ended itself.
        self.has_given_up: bool = False
        self._giving_up = threading.Lock()
        #: Called, on any thread, after one of them is set.
        self.on_turn: Callable[[], None] | None = None
        #: Makes of a consumer one that runs in the trace context of the job; None is as it is.
        self.trace: Callable[[Consumer], Consumer] | None = None
        self.rate_limit: RateLimit | None = None
        if subscription.rate_limit is not None:
            from celery_broadcast.rate_limit import RateLimit  # noqa: PLC0415

            self.rate_limit = RateLimit(subscription.rate_limit)
        self.calls: Calls | None = None
        if subscription.stuck_after is not None:
            from celery_broadcast.calls import Calls  # noqa: PLC0415

            self.calls = Calls(self.name, subscription.stuck_after, mailbox.counts.add_stuck)

    def dropped(self) -> int:
        """Return how many of the consumer's events were ever dropped."""
        return self.mailbox.stats().dropped_total

    def is_plain(self) -> bool:
        """Tell whether a call is about one event, and there is nothing else to it."""
        asked = self.subscription
        return not (asked.batch or asked.retry or asked.rate_limit or asked.stuck_after)

    def is_simple(self) -> bool:
        """Tell whether one thread takes each event as it comes, whatever it is."""
        asked = self.subscription
        return asked.concurrency == 1 and asked.selector is None and asked.partition_by is None

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Have the consumer handle events whose receipts somebody waits for; on any thread.

        They don't come through the dispatcher: they are for nobody else, and
        whoever gives them sees to it that they aren't too many.
        """
        if self.subscription.batch is not None:
            now = time.monotonic()
            for delivery in deliveries:
                delivery.dispatched_at = now
        self.receipts.update(_receipts_of(deliveries))
        if self.mailbox.put_all(deliveries):  # it has no bound, so it is closed
            self.tell(deliveries, "dropped")

    def stop(self) -> None:
        """Ask for the end, once all that waits is handled; return at once."""
        self.mailbox.close()
        self._turn(self.stop_requested)

    def cancel(self, reason: str) -> int:
        """Ask for the end, once what is in hand is handled; return at once.

        Returns:
            How many events that waited are dropped.
        """
        left = self.mailbox.discard(reason, self._tell_dropped)
        left += self.intake.discard(reason, self._tell_dropped)
        self.is_cancelled.set()
        self._turn(self.stop_requested)
        return left

    def abandon(self, reason: str) -> int:
        """Ask for the end here and now; return at once.

        Returns:
            How many events that waited or were in hand are dropped.
        """
        left = self.mailbox.abandon(reason)
        self.is_over.set()
        self.is_cancelled.set()
        with contextlib.suppress(KeyError):  # that is the end of them
            while True:
                self.receipts.pop().settle("dropped")
        self._turn(self.stop_requested)
        return left

    def give_up(self, reason: str) -> int | None:
        """Ask for the end here and now, and for good; return at once.

        Returns:
            How many events that waited or were in hand are dropped; None if
            another thread of the consumer has given up before.
        """
        with self._giving_up:
            if self.has_given_up:
                return None
            self.has_given_up = True
        if reason == GAVE_UP:  # and not since it ended itself
            self.mailbox.counts.set_gave_up(has_given_up=True)
        return self.abandon(reason)

    def _turn(self, event: threading.Event) -> None:
        event.set()
        on_turn = self.on_turn  # its owner may take it away just now
        if on_turn is not None:
            on_turn()

    # Around a call, on the consumer's threads.

    def argument(self, deliveries: list[Delivery]) -> Any:
        """Return what the consumer is called with."""
        if self.subscription.batch is not None:
            return [delivery.event for delivery in deliveries]
        return deliveries[0].event

    def hands_for(self, deliveries: Iterable[Delivery]) -> AbstractSet[str]:
        """Return in whose hands code runs that handles these."""
        return frozenset({self.name}).union(*(delivery.origin for delivery in deliveries))

    def is_wanted(self, delivery: Delivery) -> bool:
        """Ask the selector about an event; if it says no, or raises, the event is settled."""
        selector = self.subscription.selector
        if selector is None:
            return True
        before = hands.set(self.hands_for((delivery,)))
        try:
            with self.call(delivery.event, "its selector"):
                answer = selector(delivery.event)
                refuse_coroutine(answer, "The selector", "Write it as a plain function")
                is_wanted = bool(answer)
        except BaseException as error:
            self.fail(delivery, error)
            if not isinstance(error, Exception):
                raise
            return False
        finally:
            hands.reset(before)
        if not is_wanted:
            self.mailbox.settle(declined=1)
            self.tell((delivery,), "declined")
        return is_wanted

    def key_of(self, delivery: Delivery) -> Hashable:
        """Return what `partition_by` says of an event.

        Raises:
            BaseException: what it raised.
        """
        assert self.subscription.partition_by is not None  # noqa: S101  # or nobody asks
        with self.call(delivery.event, "its partition_by"):
            key = self.subscription.partition_by(delivery.event)
            refuse_coroutine(key, "partition_by", "Write it as a plain function")
            return key

    def fail(self, delivery: Delivery, error: BaseException) -> None:
        """Settle and say that a part of the subscription raised on an event."""
        self.mailbox.settle(failed=1)
        self.mailbox.counts.note_error(error)
        self.tell((delivery,), "failed", error)
        self.failures.say_lost(
            delivery.event,
            error,
            is_crash=not isinstance(error, Exception),
            comes_again=delivery.receipt is not None,
        )

    def drop(self, work: Work, reason: str) -> None:
        """Count events that were in hand, and that the consumer was never called with."""
        self.mailbox.drop_in_hand(len(work.deliveries), reason)
        self.tell(work.deliveries, "dropped")

    def settle_handled(self, work: Work) -> None:
        """Settle what the consumer has returned from."""
        self.mailbox.settle(handled=len(work.deliveries))
        self.tell(work.deliveries, "handled")

    def settle_failed(
        self,
        work: Work,
        error: BaseException,
        *,
        is_crash: bool,
        outcome: Outcome = "failed",
    ) -> None:
        """Settle and say that the consumer raised, unless that was its way to end.

        Args:
            work: what it was called with.
            error: what it raised.
            is_crash: whether it ends by that.
            outcome: what receipts are told; "dropped" where another event is to
                blame for the error.
        """
        if self.subscription.restart.kind == "transient" and ended_on_purpose(error):
            self.settle_handled(work)
            return
        self.mailbox.settle(failed=len(work.deliveries))
        self.mailbox.counts.note_error(error)
        self.tell(work.deliveries, outcome, error)
        self.failures.say_lost(
            self.argument(work.deliveries),
            error,
            is_crash=is_crash,
            comes_again=bool(_receipts_of(work.deliveries)),
        )

    def _tell_dropped(self, deliveries: Sequence[Item]) -> None:
        self.tell(deliveries, "dropped")

    def tell(
        self, items: Sequence[Item], outcome: Outcome, error: BaseException | None = None
    ) -> None:
        """Tell whoever waits for it what became of events."""
        if not self.receipts:  # as for nearly all consumers: their events come from here
            return
        for receipt in _receipts_of(items):
            self.receipts.discard(receipt)
            receipt.settle(outcome, error)

    @contextlib.contextmanager
    def call(self, event: Any = None, what: str | None = None) -> Iterator[None]:
        """Be around a call of the consumer's own code, on the thread that runs it.

        Args:
            event: what it is called with; None if that is nothing.
            what: what is called, if it isn't `handle`.
        """
        call = None if self.calls is None else self.begin_call(event, what)
        try:
            with django_connections.around_call():
                yield
        finally:
            self.end_call(call)

    def say_retry(self, argument: Any, error: BaseException, pause: float, attempt: int) -> None:
        """Say that the consumer is called again; a stop lets it pause no more."""
        seconds = 0.0 if self.stop_requested.is_set() else pause
        self.failures.say_retry(argument, error, seconds, attempt)

    def begin_call(
        self, event: Any, what: str | None, stack: Callable[[], str] | None = None
    ) -> Call | None:
        """Note that a call begins, if somebody wants to know when it hangs.

        Args:
            event: as `call` is told, and so is `what`.
            what: as above.
            stack: tells where it is, as text; by default where this thread is.
        """
        if self.calls is None:
            return None
        from celery_broadcast import stacks  # noqa: PLC0415
        from celery_broadcast.calls import Call  # noqa: PLC0415

        call = Call(what, event, time.monotonic(), stack or stacks.of_this_thread())
        self.calls.begin(call)
        return call

    def end_call(self, call: Call | None) -> None:
        """Note that a call is over."""
        if call is not None and self.calls is not None:
            self.calls.end(call)


def _receipts_of(items: Iterable[Item]) -> list[Receipt]:
    return [
        item.receipt for item in items if isinstance(item, Delivery) and item.receipt is not None
    ]


def refuse_coroutine(result: object, name: str, remedy: str) -> None:
    """Refuse what a plain function returned if it is a coroutine: nothing would run it.

    Args:
        result: what it returned; a coroutine is closed.
        name: how the message names the function.
        remedy: what to do instead.

    Raises:
        ConfigurationError: it is a coroutine.
    """
    if isinstance(result, CoroutineType):
        result.close()
        msg = f"{name} returned a coroutine, {result.__qualname__}(), that nothing runs. {remedy}."
        raise ConfigurationError(msg)
