"""When a consumer that crashed may start again, and when it is given up."""

from __future__ import annotations

from collections import deque

#: At most so many restarts within so many seconds: the default of OTP's supervisors.
MAX_RESTARTS = 3
WITHIN_SECONDS = 5.0

_FIRST_PAUSE_SECONDS = 0.5


class Restarts:
    """The recent restarts of one consumer. Not thread-safe: its thread owns it."""

    def __init__(
        self, max_restarts: int = MAX_RESTARTS, within_seconds: float = WITHIN_SECONDS
    ) -> None:
        self._within_seconds = within_seconds
        self._max_restarts = max_restarts
        self._crashed_at: deque[float] = deque()

    def pause_after_crash(self, now: float) -> float | None:
        """Return the seconds to wait before the next start; None to give up.

        The pause doubles with every crash of the last `within_seconds`.

        Args:
            now: the time of the crash, in seconds of the monotonic clock.
        """
        while self._crashed_at and now - self._crashed_at[0] > self._within_seconds:
            self._crashed_at.popleft()
        self._crashed_at.append(now)
        recent = len(self._crashed_at)
        if recent > self._max_restarts:
            return None
        return _FIRST_PAUSE_SECONDS * 2.0 ** (recent - 1)
