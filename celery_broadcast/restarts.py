"""When a consumer that crashed may start again, and when it is given up."""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.settings import check_seconds, is_whole, shown

#: At most so many restarts within so many seconds: the default of OTP's supervisors.
MAX_RESTARTS = 3
WITHIN_SECONDS = 5.0

_KINDS = ("permanent", "transient", "temporary")
_FIRST_PAUSE_SECONDS = 0.5
_MOST_DOUBLINGS = 20  # that is days, more than any share, and a float still holds it


class _Kind(msgspec.Struct, frozen=True):
    """What a `Restart` also takes without its name."""

    kind: Literal["permanent", "transient", "temporary"] = "permanent"


class Restart(_Kind, frozen=True, kw_only=True):
    """When a consumer whose life ended starts again, in the words of OTP's supervisors.

    Attributes:
        kind: "permanent" starts again whatever ended it. "transient" does so
            unless it ended itself on purpose, by `SystemExit` with the code
            None or 0. "temporary" never starts again.
        max_restarts: restarts within that time at most, 0 or more; with one
            crash more the consumer is given up.
        within: seconds that a crash counts, more than 0 and at most a day.

    Raises:
        ConfigurationError: one of them is wrong.
    """

    max_restarts: int = MAX_RESTARTS
    within: float = WITHIN_SECONDS

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            msg = (
                f"Restart({shown(self.kind)}) is not a kind of restart. Use 'permanent' (always), "
                "'transient' (unless it ended itself, by SystemExit) or 'temporary' (never)."
            )
            raise ConfigurationError(msg)
        if not is_whole(self.max_restarts, 0):
            msg = (
                f"Restart(max_restarts={shown(self.max_restarts)}) can't be. Write a whole number "
                "of 0 or more, such as Restart(max_restarts=3)."
            )
            raise ConfigurationError(msg)
        if not check_seconds("The within of a Restart", self.within):
            msg = (
                f"Restart(within={shown(self.within)}) would forget every crash at once. Write "
                "seconds of more than 0, or Restart('temporary') for no restart."
            )
            raise ConfigurationError(msg)


def ended_on_purpose(crash: BaseException) -> bool:
    """Tell whether a consumer ended itself with success: `sys.exit()`, or with 0."""
    if not isinstance(crash, SystemExit):
        return False
    return crash.code is None or (isinstance(crash.code, int) and crash.code == 0)


class Restarts:
    """The recent restarts of one consumer. Not thread-safe: its thread owns it."""

    def __init__(self, restart: Restart | None = None) -> None:
        self._restart = Restart() if restart is None else restart
        self._crashed_at: deque[float] = deque()

    def pause_after_crash(self, crash: BaseException, now: float) -> float | None:
        """Return the seconds to wait before the next start; None to start no more.

        The pause doubles with every crash of the last `within` seconds, up to
        its share of them: pauses that outlast them would let every crash be
        forgotten, and a consumer that can't start would never be given up.

        Args:
            crash: what ended the consumer.
            now: the time of the crash, in seconds of the monotonic clock.
        """
        kind = self._restart.kind
        if kind == "temporary" or (kind == "transient" and ended_on_purpose(crash)):
            return None
        while self._crashed_at and now - self._crashed_at[0] > self._restart.within:
            self._crashed_at.popleft()
        self._crashed_at.append(now)
        recent = len(self._crashed_at)
        if recent > self._restart.max_restarts:
            return None
        share = self._restart.within / (self._restart.max_restarts + 1)
        return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(recent - 1, _MOST_DOUBLINGS), share)
