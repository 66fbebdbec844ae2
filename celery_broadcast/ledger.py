"""The numbers of every consumer: of this process, and of the pool processes below it."""

from __future__ import annotations

import operator
import threading
from collections.abc import Mapping
from functools import reduce

from celery_broadcast import fork
from celery_broadcast.counts import (
    PROCESS_DIED,
    ConsumerStats,
    Counts,
    LastError,
    drop_pending,
    pending_of,
    stats_of,
    total_of,
)
from celery_broadcast.slots import Slot, Slots, row_key


class Ledger:
    """Keeps each consumer's numbers, by its name.

    A pool process counts in its slot, where the main process reads. The main
    process keeps what processes that are gone have counted. Methods may be
    called on any thread.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child counts from zero."""
        # Reentrant: a signal handler that buries a process may interrupt `stats`.
        self._lock = threading.RLock()
        self._own: dict[str, Counts] = {}
        self._departed: dict[str, list[int]] = {}
        self._departed_errors: dict[str, LastError | None] = {}

    def share(self, slots: Slots) -> None:
        """Count where these slots are read, and read those of others."""
        self._slots = slots

    def counts(self, name: str) -> Counts:
        """Return where this process counts for a consumer."""
        with self._lock:
            counts = self._own.get(name)
            if counts is None:
                slot = None if self._slots is None else self._slots.mine
                counts = self._own[name] = Counts(None if slot is None else slot.new_row(name))
            return counts

    def own(self) -> dict[str, Counts]:
        """Return where this process counts, by the consumer's name."""
        with self._lock:
            return dict(self._own)

    def bury(self, slot: Slot) -> dict[str, int]:
        """Keep what a process that is gone has counted; its slot is free then.

        Returns:
            How many events each consumer had pending there: they are counted
            as dropped, for the process died.
        """
        lost = {}
        with self._lock:
            for key, row in slot.rows():
                counts = Counts(row)
                numbers = counts.snapshot()
                if pending := pending_of(numbers):
                    lost[key] = pending
                departed = [drop_pending(numbers, PROCESS_DIED), *self._departed_of(key)]
                self._departed[key] = total_of(departed)
                errors = [self._departed_errors.get(key), counts.last_error()]
                self._departed_errors[key] = max(filter(None, errors), default=None)
            slot.free()
        return lost

    def add_pool(self, own: Mapping[str, ConsumerStats]) -> dict[str, ConsumerStats]:
        """Add, in the main process, what its pool processes have counted, living and gone.

        Args:
            own: the numbers of this process, by the consumer's name.
        """
        with self._lock:
            pool = {
                key: [stats_of(numbers, last_error=self._departed_errors.get(key))]
                for key, numbers in self._departed.items()
            }
            for slot in self._living_below():
                for key, row in slot.rows():
                    pool.setdefault(key, []).append(Counts(row).stats())
        names = {row_key(name): name for name in own}
        stats = dict(own)
        for key, several in pool.items():
            name = names.get(key, key)
            here = [stats[name]] if name in stats else []
            stats[name] = reduce(operator.add, [*here, *several])
        return stats

    def _departed_of(self, key: str) -> list[list[int]]:
        return [self._departed[key]] if key in self._departed else []

    def _living_below(self) -> list[Slot]:
        if self._slots is None or not self._slots.are_below():
            return []
        return self._slots.living()
