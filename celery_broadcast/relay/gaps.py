"""Which events of a producer have not come, by the numbers that it gives them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

#: What is numbered without holes: the events of one producer, of one type and one task.
Lane: TypeAlias = tuple[str, str, str]

_MOST_LANES = 10_000


class Gaps:
    """Looks at the numbers of what comes for the first time. Belongs to one thread.

    A group gets all events of a type and a task, or none, so the numbers of
    these have no natural holes. But its replicas share them: what one misses,
    another may have. So gaps can be told only by one that is alone, and only
    when it has been so for a while: what a replica had that has just died is
    handed out again, which shows that it was there. Nor can be told what was
    lost before the first event of a lane and after the last.

    Args:
        patience: after how many seconds what is missing is surely missing.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._last: OrderedDict[Lane, int] = OrderedDict()
        self._missing = 0
        self._missing_since = 0.0
        self._missing_lane: Lane | None = None

    def forget(self) -> None:
        """Begin anew: what didn't come may have gone to another replica."""
        self._last.clear()
        self._missing = 0

    def note(self, lane: Lane, numbers: Iterable[int], now: float) -> int:
        """Note numbers that came; return how many are left out before or between them.

        Args:
            lane: whose numbers they are.
            numbers: in their order, from 1. One that isn't above those before
                has come again, and fills no gap: that was counted for good.
            now: in seconds of the monotonic clock.
        """
        missing = 0
        last = self._last.pop(lane, None)
        for number in numbers:
            if last is not None and number > last:
                missing += number - last - 1
            last = number if last is None else max(last, number)
        if last is not None:
            self._last[lane] = last
            if len(self._last) > _MOST_LANES:  # producers come and go
                self._last.popitem(last=False)
        if missing:
            if not self._missing:
                self._missing_since = now
            self._missing += missing
            self._missing_lane = lane
        return missing

    def surely_missing(self, now: float) -> tuple[int, Lane] | None:
        """Return how many are missing for good, once, and the last lane of them; None if none."""
        if not self._missing or now - self._missing_since < self._patience:
            return None
        assert self._missing_lane is not None  # noqa: S101  # noted with the number
        missing, self._missing = self._missing, 0
        return missing, self._missing_lane
