"""What a consumer handles next: an event, a batch, or the next event of a key."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import msgspec

from celery_broadcast.batch import Batch
from celery_broadcast.dispatcher import Delivery, Item, delivery_of
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.partitions import Partitions

#: The key of what has none.
NO_KEY: Final = object()


class Work(msgspec.Struct):
    """What one call of a consumer is about.

    Attributes:
        deliveries: one, or those of a batch.
        key: what `partition_by` said of it. Whoever has the work has the key.
    """

    deliveries: list[Delivery]
    key: Hashable = NO_KEY


class Intake:
    """Takes from the mailbox, for all threads of one consumer; never waits.

    `poll` is for one thread at a time, the others are for any.

    Args:
        mailbox: where the events are.
        batch: the size of the batches; None is one event after the other.
        key_of: gives the key of an event, and raises what the consumer's own code
            does; None is without keys.
        is_wanted: tells whether an event belongs into a batch; if not, it has
            been settled.
        fail: settles and says that `key_of` raised on an event.
    """

    def __init__(
        self,
        mailbox: Mailbox[Item],
        *,
        batch: Batch | None = None,
        key_of: Callable[[Delivery], Hashable] | None = None,
        is_wanted: Callable[[Delivery], bool],
        fail: Callable[[Delivery, BaseException], None],
    ) -> None:
        self._mailbox = mailbox
        self._batch = batch
        self._key_of = key_of
        self._is_wanted = is_wanted
        self._fail = fail
        self._to_ask: deque[Delivery] = deque()  # taken, not known to be wanted
        self._collected: list[Delivery] = []
        self._partitions: Partitions[Delivery] = Partitions()
        self._partitioning = threading.Lock()
        #: After a `poll` that gave nothing: how many events are worth another,
        self.at_least: int = 1
        #: and when it is time for one all the same, by the monotonic clock.
        self.due_at: float | None = None

    def poll(self) -> Work | None:
        """Return what is to be handled next, None if that isn't there yet."""
        if self._batch is not None:
            return self._collect(self._batch)
        if self._key_of is not None:
            return self._take_by_key(self._key_of)
        taken = self._mailbox.take(1, wait_seconds=0)
        return Work([delivery_of(taken[0])]) if taken else None

    def next_of(self, key: Hashable) -> Work | None:
        """Return what waits behind the key that the caller has; else the key is free."""
        if key is NO_KEY:
            return None
        with self._partitioning:
            delivery = self._partitions.next_of(key)
        if delivery is None:
            return None
        self._mailbox.put_aside(-1)
        return Work([delivery], key)

    def discard(self, reason: str, tell: Callable[[Sequence[Delivery]], None] | None = None) -> int:
        """Drop what waits behind keys; return how many events that were. On any thread.

        Args:
            reason: why.
            tell: called with what is dropped.
        """
        with self._partitioning:
            dropped = self._partitions.clear()
        if tell is not None:
            tell(dropped)
        return self._mailbox.drop_aside(len(dropped), reason)

    def _collect(self, batch: Batch) -> Work | None:
        """Collect a batch until it is full, or the first event in it has waited for so long."""
        while room := batch.max_events - len(self._collected):
            if not self._to_ask:  # else a selector has exited among them
                self._to_ask.extend(map(delivery_of, self._mailbox.take(room, wait_seconds=0)))
            if not self._to_ask:
                break
            while self._to_ask:
                delivery = self._to_ask.popleft()
                if self._is_wanted(delivery):
                    self._collected.append(delivery)
        self.at_least, self.due_at = room or 1, None
        if not self._collected:
            self.at_least = 1
            return None
        due_at = self._collected[0].dispatched_at + batch.max_wait
        if room and time.monotonic() < due_at and not self._mailbox.is_closed:
            self.due_at = due_at
            return None
        collected, self._collected = self._collected, []
        return Work(collected)

    def _take_by_key(self, key_of: Callable[[Delivery], Hashable]) -> Work | None:
        while taken := self._mailbox.take(1, wait_seconds=0):
            delivery = delivery_of(taken[0])
            try:
                key = key_of(delivery)
                with self._partitioning:
                    is_free = self._partitions.begin(key, delivery)
            except BaseException as error:
                self._fail(delivery, error)
                if not isinstance(error, Exception):
                    raise
                continue
            if is_free:
                return Work([delivery], key)
            self._mailbox.put_aside(1)
        return None
