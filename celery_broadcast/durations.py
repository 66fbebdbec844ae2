"""How long calls took, as a histogram of fixed buckets."""

from __future__ import annotations

import operator
from bisect import bisect_left

import msgspec

#: The longest call, in seconds, of each bucket but the last, which has no bound.
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)

#: How many buckets there are.
BUCKETS = len(BOUNDS) + 1

_BOUNDS_NANOSECONDS = tuple(round(bound * 1e9) for bound in BOUNDS)

#: A call that takes no longer is in the first bucket.
FIRST_BOUND_NANOSECONDS: int = _BOUNDS_NANOSECONDS[0]


class Durations(msgspec.Struct, frozen=True):
    """How long the calls of a consumer took; a batch is one call.

    Attributes:
        buckets: how many calls took so long: one number for each of `BOUNDS`,
            and one for those beyond the last. A call is in one of them alone.
        seconds: all calls together.
    """

    buckets: tuple[int, ...] = (0,) * BUCKETS
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many calls there were."""
        return sum(self.buckets)

    def __add__(self, other: Durations) -> Durations:
        """Return those of both."""
        return Durations(
            buckets=tuple(map(operator.add, self.buckets, other.buckets)),
            seconds=self.seconds + other.seconds,
        )


def bucket_of(nanoseconds: int) -> int:
    """Return the number of the bucket of a call that took so long."""
    return bisect_left(_BOUNDS_NANOSECONDS, nanoseconds)
