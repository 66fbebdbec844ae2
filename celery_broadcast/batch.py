"""How many events one call of a consumer gets, and how long the first waits for others."""

from __future__ import annotations

import msgspec

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.settings import check_seconds, is_whole, shown


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The size of the lists in which a consumer gets its events.

    Attributes:
        max_events: events of one call at most, 1 or more.
        max_wait: seconds that the first event waits at most for others, from
            0 to a day; with 0 a call gets what is there.

    Raises:
        ConfigurationError: one of them is wrong.
    """

    max_events: int = 100
    max_wait: float = 1.0

    def __post_init__(self) -> None:
        if not is_whole(self.max_events, 1):
            msg = (
                f"Batch(max_events={shown(self.max_events)}) can't be: a call gets 1 event or "
                "more. Write a whole number, such as Batch(max_events=100)."
            )
            raise ConfigurationError(msg)
        check_seconds("The max_wait of a Batch", self.max_wait)
