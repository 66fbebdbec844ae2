"""Since when the oldest waiting event of a consumer waits, at least, though no event is stamped."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

#: So many marks are kept of a consumer in a process; beyond them, every other one.
_MARKS = 128


class Lags:
    """Remembers, by what key it is told, how many events had been offered when.

    Events are done with about in the order in which they came: of so many that are
    settled, the next one is the oldest that waits. It was there at the latest when it
    was first seen among those offered. Not thread-safe.
    """

    def __init__(self) -> None:
        self._marks: dict[Hashable, deque[tuple[int, float]]] = {}

    def mark(self, key: Hashable, offered: int, settled: int, now: float) -> None:
        """Remember how many events were offered and settled.

        Args:
            key: which consumer, in which process.
            offered: how many it has ever been offered.
            settled: how many of them it is done with, or has lost.
            now: the time, in seconds of the monotonic clock.
        """
        marks = self._marks.setdefault(key, deque())
        _forget_settled(marks, settled)
        if offered <= settled or (marks and marks[-1][0] >= offered):
            return
        marks.append((offered, now))
        if len(marks) > _MARKS:
            # The first stays, as it is asked for next; who waits behind a mark that is gone
            # seems younger by one.
            self._marks[key] = deque(list(marks)[::2])

    def lag(self, key: Hashable, settled: int, now: float) -> float:
        """Return for how many seconds, at least, the oldest waiting event has waited.

        Args:
            key: as above, and so are the others.
            settled: how many it is done with by now.
            now: the time.

        Returns:
            0.0 if none waits that was there at a mark.
        """
        marks = self._marks.get(key)
        if not marks:
            return 0.0
        since = next((at for offered, at in marks if offered > settled), now)
        return max(0.0, now - since)

    def keep(self, keys: set[Hashable]) -> None:
        """Forget all but these: the others' processes are gone."""
        for key in self._marks.keys() - keys:
            del self._marks[key]


def _forget_settled(marks: deque[tuple[int, float]], settled: int) -> None:
    while marks and marks[0][0] <= settled:
        marks.popleft()
