"""Who wants what, and how: a subscription, and the registry of those of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from types import CodeType
from typing import TYPE_CHECKING, Any

import msgspec

from celery_broadcast import fork
from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import EVENT_TYPES, Event
from celery_broadcast.restarts import Restart
from celery_broadcast.selection import Selection
from celery_broadcast.settings import check_seconds
from celery_broadcast.switch import Switch

if TYPE_CHECKING:
    from celery_broadcast.retry import Retry
    from celery_broadcast.switch import Live

#: The name of the broadcast's own consumer, which sends to remote ones.
RELAY = "relay"

#: Stands for "as `broadcast_mailbox_size` says", since None means no bound.
FROM_SETTINGS = -1


class Subscription(msgspec.Struct, frozen=True, eq=False):
    """One consumer, the events it wants, and how it wants them.

    Attributes:
        name: the consumer's name, one of its kind in a process.
        make_consumer: makes the consumer; called on the consumer's own thread.
        selection: which events it wants, by what can be told without asking it.
        selector: says whether the consumer wants an event; called on the
            consumer's own thread, after all the rest matched.
        mailbox_size: events that may wait; None is no bound, `FROM_SETTINGS`
            is what the settings say.
        overflow: what a full mailbox drops; None is what the settings say.
        batch: the size of the lists it gets; None is one event after the other.
        concurrency: how many threads it has, or coroutines in flight.
        partition_by: the key of an event; those of one key stay in order.
        retry: when it is called again with what it raised on; None is never.
        rate_limit: calls per second at most; None is without a limit.
        stuck_after: seconds after which a call is said to hang; None is never.
        restart: when it starts again after a crash.
        remote: whether it runs in `celery broadcast consume`, not in the worker.
        payload: how `args`, `kwargs` and `result` come to it there, "text" or "json".
        is_async: whether its methods are coroutines.
        declared_at: the file and line of the declaration.
        code: of the function, or of the class's `handle`; None if that isn't Python's,
            or if only a `partial` or an instance of it was made where it was declared.
        is_at_run_time: whether it was made by a call that may be made again.
        reader: of a stream; None for what is called with its events.
        switch: what `pause`, `resume` and `cancel` turn.
    """

    name: str
    make_consumer: Callable[[], Consumer]
    selection: Selection = msgspec.field(default_factory=Selection)
    selector: Callable[[Any], object] | None = None
    mailbox_size: int | None = FROM_SETTINGS
    overflow: str | None = None
    batch: Batch | None = None
    concurrency: int = 1
    partition_by: Callable[[Any], Hashable] | None = None
    retry: Retry | None = None
    rate_limit: float | None = None
    stuck_after: float | None = None
    restart: Restart = msgspec.field(default_factory=Restart)
    remote: bool = False
    payload: str = "text"
    is_async: bool = False
    declared_at: str = ""
    code: CodeType | None = None
    is_at_run_time: bool = False
    reader: Live | None = None
    switch: Switch = msgspec.field(default_factory=Switch)

    def __repr__(self) -> str:
        """Show whose it is, and what it wants."""
        events = ", ".join(event_type.__name__ for event_type in self.selection.events)
        return f"<Subscription {self.name!r} of {events}, {self.declared_at}>"

    def pause(self) -> None:
        """Let the events pile up in the mailbox, whose overflow policy holds.

        What the consumer has in its hands goes on. A drain handles what has piled
        up; the next event finds the pause as it was.
        """
        self.switch.pause()

    def resume(self) -> None:
        """Go on after a pause, with what has piled up."""
        self.switch.resume()

    def cancel(self, timeout: float | None = None) -> bool:
        """Give the consumer no more events; what waits is dropped, and counted as cancelled.

        Waits until it is done with the event in its hands and torn down. Called
        by a consumer, itself or another, or by a receiver of a notice, it
        returns at once: they might wait for each other. Twice is harmless. The
        name is free for another consumer at once.

        Args:
            timeout: seconds to wait at most; None is without a limit.

        Returns:
            Whether it has waited, and the consumer is done.

        Raises:
            BaseException: what struck the thread that waits, such as the soft time
                limit of a job, or Ctrl-C. The consumer is cancelled all the same.
            ConfigurationError: the timeout is no number of seconds.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        # In this order: who finds it gone from the registry knows why.
        self.switch.cancel()
        registry.remove(self)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        return self.switch.wait_for_end(deadline)

    def is_again(self, known: Subscription) -> bool:
        """Tell whether this is `known` itself, whose module was imported again.

        Its place is the same then, but its code was compiled anew. In a loop,
        the code would be the same too.
        """
        if self.declared_at != known.declared_at or (self.is_at_run_time and self.code is None):
            return False
        return self.code is None or self.code is not known.code


class Registry:
    """The subscriptions of a process, in the order of their declaration.

    `subscriptions` is replaced, never changed, so that a reader on another
    thread sees a whole one, and can tell by `is` whether there is anything new.
    """

    def __init__(self) -> None:
        self.subscriptions = ()
        self._check: Callable[[Subscription], None] | None = None
        self.forget()
        fork.starts_clean(self)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """All of them."""
        return self._subscriptions

    @subscriptions.setter
    def subscriptions(self, subscriptions: tuple[Subscription, ...]) -> None:
        events = tuple(event for each in subscriptions for event in each.selection.events)
        #: The types of job events that one of them may want. Found here, as no job may
        #: have to ask each of them.
        self.wanted: AbstractSet[type[Event]] = frozenset(
            each for each in EVENT_TYPES.values() if issubclass(each, events)
        )
        self._subscriptions = subscriptions  # last: what it wants is known by then

    def forget(self) -> None:
        """Have a lock of its own, in a forked child; the subscriptions stay, but for streams."""
        self._changing = threading.RLock()  # a signal handler may subscribe
        self.subscriptions = tuple(each for each in self.subscriptions if each.reader is None)

    def add(self, subscription: Subscription) -> None:
        """Add a subscription; if its module was imported again, it replaces itself.

        Raises:
            ConfigurationError: another consumer has the same name, or the
                broadcast is on and this process can't run it.
        """
        if subscription.name == RELAY:
            msg = (
                f"A consumer can't be named {RELAY!r} ({subscription.declared_at}): so is the "
                "broadcast's own, which sends events to remote consumers. Give it another "
                'name="...".'
            )
            raise ConfigurationError(msg)
        if self._check is not None:
            self._check(subscription)
        with self._changing:
            others = {known.name: known for known in self.subscriptions}
            known = others.pop(subscription.name, None)
            if known is not None and not subscription.is_again(known):
                msg = (
                    f"Two consumers are named {known.name!r} "
                    f"({known.declared_at} and {subscription.declared_at}). "
                    'Give one of them name="...".'
                )
                raise ConfigurationError(msg)
            self.subscriptions = (*others.values(), subscription)

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription, if it is there."""
        with self._changing:
            self.subscriptions = tuple(
                known for known in self.subscriptions if known.switch is not subscription.switch
            )

    def clear(self) -> None:
        """Forget every subscription."""
        self.subscriptions = ()

    def check_each(self, check: Callable[[Subscription], None] | None) -> None:
        """Have each subscription checked, here and to come; None is no more.

        Args:
            check: raises `ConfigurationError` if this process can't run it.

        Raises:
            ConfigurationError: one that is here can't be run.
        """
        for subscription in self.subscriptions if check is not None else ():
            assert check is not None  # noqa: S101  # for those who read types
            check(subscription)
        self._check = check


#: What was declared in this process.
registry: Registry = Registry()
