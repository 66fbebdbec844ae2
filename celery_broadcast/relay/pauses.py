"""How long to wait before a broker that failed is asked again: longer each time."""

from __future__ import annotations

import random

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 30.0
_MOST_DOUBLINGS = 10


def seconds_after(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: twice as many each time.

    Somewhat fewer by chance, so that a broker that is back doesn't get all at once.
    """
    doubled = _FIRST_SECONDS * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
    return min(doubled, _LONGEST_SECONDS) * random.uniform(0.75, 1.0)  # noqa: S311  # no secret
