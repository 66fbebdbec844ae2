"""What the user takes out of an event before it leaves the process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from celery_broadcast.events import JobEvent
from celery_broadcast.throttle import Throttle

logger: logging.Logger = logging.getLogger(__name__)

#: The user's: returns the event, another of the same type in its place, or None to keep it back.
Redact: TypeAlias = Callable[[JobEvent], JobEvent | None]

_SECONDS_BETWEEN_LINES = 60.0

#: What an event has of the job's own, and what stands in its place.
_NOTHING = {
    "args": None,
    "kwargs": None,
    "headers": None,
    "result": None,
    "exception_message": "",
    "traceback": "",
}


def without_data(event: JobEvent) -> JobEvent:
    """Return an event that tells what happened, but nothing of the job's own data."""
    fields = {name: _NOTHING[name] for name in event.__struct_fields__ if name in _NOTHING}
    return msgspec.structs.replace(event, **fields)


class Redaction:
    """Asks the user's function about each event. Belongs to one thread.

    Where it raises, or returns what is no such event, the event goes without
    the job's data, and never as it was.

    Args:
        redact: the user's function; None lets every event through.

    Attributes:
        kept_back: how many events it kept from leaving.
        failures: on how many it failed.
    """

    def __init__(self, redact: Redact | None) -> None:
        self._redact = redact
        self._lines = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_LINES)
        self.kept_back: int = 0
        self.failures: int = 0

    def apply(self, event: JobEvent) -> JobEvent | None:
        """Return what may leave the process; None if nothing."""
        if self._redact is None:
            return event
        try:
            redacted = self._redact(event)
        except Exception as error:  # noqa: BLE001  # theirs, and the event must not leave as it is
            self._say_failure(event, f"raised {type(error).__name__}", error)
            return without_data(event)
        if redacted is None:
            self.kept_back += 1
            return None
        if type(redacted) is not type(event):
            what = f"returned a {type(redacted).__name__}, not a {type(event).__name__} or None,"
            self._say_failure(event, what, None)
            return without_data(event)
        return redacted

    def _say_failure(self, event: JobEvent, what: str, error: Exception | None) -> None:
        self.failures += 1
        now = time.monotonic()
        self._lines.add(1, now)
        if self._lines.due_in(now) != 0.0:
            return
        count, _ = self._lines.say(now)
        more = f" ({count - 1} more since the last such line)" if count > 1 else ""
        logger.error(
            "broadcast_redact %s on %s; the event is sent without its args, kwargs, headers, "
            "result, message and traceback%s",
            what,
            event,
            more,
            exc_info=error,
        )
