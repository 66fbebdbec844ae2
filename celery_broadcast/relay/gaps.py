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
    another may have. So gaps can be told only by one that is alone. Nor can
    be told what was lost before the first event of a lane and after the last.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[Lane, int] = OrderedDict()

    def forget(self) -> None:
        """Begin anew: what came meanwhile may have gone to another replica."""
        self._last.clear()

    def note(self, lane: Lane, numbers: Iterable[int]) -> int:
        """Note numbers that came; return how many were left out before or between them.

        Args:
            lane: whose numbers they are.
            numbers: in their order, from 1. One that isn't above those before
                has come again, and fills no gap: that was counted for good.
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
        return missing
