"""Who gave an event away for good, and wants to know what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

#: What can become of an event. "dropped" is that the consumer never got it, or
#: that nobody knows how far it came with it: it is to be given to another.
Outcome: TypeAlias = Literal["handled", "declined", "failed", "dropped"]


class Receipt:
    """Belongs to one event; the first word on what became of it is the last.

    Args:
        settled: called once, on whatever thread settles the event, with what
            became of it and with what the consumer raised, if that is why. It
            must not wait, and not raise.
    """

    def __init__(self, settled: Callable[[Outcome, BaseException | None], None]) -> None:
        # A list, since taking from it is one step, whatever other threads do.
        self._to_call = [settled]

    @property
    def is_settled(self) -> bool:
        """Whether it is known what became of the event."""
        return not self._to_call

    def settle(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Say what became of the event; later words change nothing."""
        try:
            settled = self._to_call.pop()
        except IndexError:
            return
        settled(outcome, error)
