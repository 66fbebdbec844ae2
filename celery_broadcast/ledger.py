"""The numbers of every consumer: of this process, and of the pool processes below it."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Hashable, Mapping
from functools import reduce
from typing import TYPE_CHECKING

import msgspec

from celery_broadcast import fork
from celery_broadcast.counts import (
    OFFERED,
    PROCESS_DIED,
    ConsumerStats,
    Counts,
    LastError,
    drop_pending,
    pending_of,
    stats_of,
    total_of,
)
from celery_broadcast.lags import Lags
from celery_broadcast.slots import Running, Slot, Slots, row_key

if TYPE_CHECKING:
    from celery_broadcast.jobs import JobNumbers, Jobs, Key


class Ledger:
    """Keeps each consumer's numbers, by its name.

    A pool process counts in its slot, where the main process reads. The main
    process keeps what processes that are gone have counted. Methods may be
    called on any thread.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        #: The jobs' own numbers, where somebody wants them.
        self.jobs: Jobs | None = None
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child counts from zero."""
        # Reentrant: a signal handler that buries a process may interrupt `stats`.
        self._lock = threading.RLock()
        self._own: dict[str, Counts] = {}
        self._lags = Lags()
        self._departed: dict[str, list[int]] = {}
        self._departed_errors: dict[str, LastError | None] = {}

    def share(self, slots: Slots) -> None:
        """Count where these slots are read, and read those of others."""
        self._slots = slots
        if self.jobs is not None:
            self.jobs.share(slots)

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

    def sample(self, now: float) -> None:
        """Look how many events wait, here and in pool processes, so that stats can tell of lag.

        To be called about once a second: a lag is known as exactly as that.

        Args:
            now: the time, in seconds of the monotonic clock.
        """
        with self._lock:
            all_of_them: dict[Hashable, Counts] = {
                (None, name): counts for name, counts in self._own.items()
            }
            for slot in self._living_below():
                for key, row in slot.rows():
                    all_of_them[slot.index, slot.generation, key] = Counts(row)
            for where, counts in all_of_them.items():
                numbers = counts.snapshot()
                settled = numbers[OFFERED] - pending_of(numbers)
                self._lags.mark(where, numbers[OFFERED], settled, now)
            self._lags.keep(set(all_of_them))

    def own_stats(self, name: str) -> ConsumerStats:
        """Return what this process has counted of a consumer."""
        with self._lock:
            return self._with_lag((None, name), self.counts(name).stats())

    def _with_lag(self, where: Hashable, stats: ConsumerStats) -> ConsumerStats:
        settled = stats.offered - stats.pending
        lag = self._lags.lag(where, settled, time.monotonic()) if stats.pending else 0.0
        return msgspec.structs.replace(stats, lag=lag) if lag else stats

    def settle_job(self, slot: Slot, note: int, running: Running) -> bool:
        """Finish what a process that is gone was about to count of an attempt it had noted.

        Returns:
            Whether the end of the attempt is counted among the jobs' own numbers.
        """
        with self._lock:
            return self.jobs is not None and self.jobs.settle(slot, note, running)

    def job_numbers(self) -> dict[Key, JobNumbers]:
        """Return the jobs' own numbers: of this process, and of its pool's, living and gone."""
        with self._lock:
            return {} if self.jobs is None else self.jobs.numbers(self._living_below())

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
            if self.jobs is not None:
                self.jobs.bury(slot)
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
                    where = (slot.index, slot.generation, key)
                    stats_there = self._with_lag(where, Counts(row).stats())
                    pool.setdefault(key, []).append(stats_there)
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
