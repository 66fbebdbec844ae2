"""How often a thing that can happen very often is said."""

from __future__ import annotations


class Throttle:
    """Counts what happens, and says when it is time for a line about it.

    Without a clock of its own: every method is told the time, in seconds of
    the monotonic clock. Not thread-safe: each belongs to one thread.
    """

    def __init__(self, first_after: float, then_every: float) -> None:
        """Be due `first_after` seconds after a first count, then every `then_every` seconds."""
        self.count: int = 0
        self._first_after = first_after
        self._then_every = then_every
        self._counting_since = 0.0
        self._said_at: float | None = None

    def add(self, count: int, now: float) -> None:
        """Count something that happened."""
        if not self.count:
            self._counting_since = now
        self.count += count

    def due_in(self, now: float) -> float | None:
        """Return the seconds until a line is due, 0.0 when it is; None if there is none to say."""
        if not self.count:
            return None
        due_at = self._counting_since + self._first_after
        if self._said_at is not None:
            due_at = max(due_at, self._said_at + self._then_every)
        return max(0.0, due_at - now)

    def say(self, now: float) -> tuple[int, float]:
        """Return what was counted since the last line and over how many seconds; start anew."""
        count, seconds = self.count, now - self._counting_since if self.count else 0.0
        self.count = 0
        self._said_at = now
        return count, seconds
