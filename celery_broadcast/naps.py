"""Where event follows upon event, a thread collects them for a moment, and need not be woken."""

from __future__ import annotations

import time
from collections.abc import Callable

_NAP_SECONDS = 0.000_1
# Who comes back so soon, and so often in a row, takes one;
_SOON_SECONDS = 0.000_4
_NAPS_AFTER = 3
# and after one that was in vain, so often none.
_NO_NAPS_AFTER = 20


class Naps:
    """Those of a thread that would wait for something else to do.

    To wake it costs the thread that runs the job about as much as all else that an
    event costs there. Who naps wakes by itself; so nobody may have to ring for it
    meanwhile, and it looks afterwards what has come. Alone, or a few in a row, an
    event never waits for a nap to end.
    """

    def __init__(self) -> None:
        self._came_at = 0.0  # the last time, by the monotonic clock
        self._soon_again = 0  # how often in a row it came back soon

    def nap(self, has_come: Callable[[], bool]) -> bool:
        """Sleep a moment, if it is likely to pay; return whether something has come by then."""
        now = time.monotonic()
        self._soon_again = self._soon_again + 1 if now < self._came_at + _SOON_SECONDS else 0
        self._came_at = now
        if self._soon_again < _NAPS_AFTER:
            return False
        time.sleep(_NAP_SECONDS)
        if has_come():
            return True
        self._soon_again = -_NO_NAPS_AFTER
        return False
