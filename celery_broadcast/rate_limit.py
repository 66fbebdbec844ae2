"""How often a consumer may be called: Celery's rate limits, in Celery's syntax."""

from __future__ import annotations

import math
import threading
import time

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.settings import shown

_LONGEST_WAIT_SECONDS = 86_400.0


def check_rate_limit(option: str, value: object) -> float | None:
    """Return the calls per second that a rate limit means; None is without a limit.

    As for a task, "10/s", "100/m" and "10/h" are calls per second, minute and
    hour, a number alone is per second, and 0 or None is no limit.

    Args:
        option: how the user gave it, for the message.
        value: what the user gave.

    Raises:
        ConfigurationError: it is no rate limit.
    """
    from celery.utils.time import rate  # noqa: PLC0415  # a process without a limit needs none

    if value is None:
        return None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value).strip()
        try:
            per_second = float(rate(text))
        except (ValueError, KeyError):  # no number, or no such unit
            per_second = math.nan
        if text and 0.0 <= per_second < math.inf:
            return per_second or None
    msg = (
        f"{option}={shown(value)} is not a rate limit. Write '10/s', '100/m' or '10/h' for calls "
        "per second, minute or hour, a number for calls per second, or None for no limit."
    )
    raise ConfigurationError(msg)


class RateLimit:
    """The calls that one consumer may make in a process; its threads share it.

    A token bucket that holds one token, as a worker has one for each task: the
    time in which nothing came doesn't allow for a burst afterwards.
    """

    def __init__(self, per_second: float) -> None:
        """Allow for `per_second` calls, more than 0."""
        from kombu.utils.limits import TokenBucket  # noqa: PLC0415  # as Celery's above

        self._bucket = TokenBucket(per_second, capacity=1)
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token; return 0.0, or the seconds until it is worth asking again.

        It never waits. If it returns more than 0.0, nothing is taken, and
        another thread may be faster after that time.
        """
        with self._lock:
            while not self._bucket.can_consume(1):
                seconds = self._bucket.expected_time(1)
                if seconds > 0.0:  # else the token came between the two questions
                    return min(seconds, _LONGEST_WAIT_SECONDS)
            # kombu before 5.7 would count the time for which the bucket was full
            # once more, and refill it at once.
            self._bucket.timestamp = time.monotonic()
            return 0.0
