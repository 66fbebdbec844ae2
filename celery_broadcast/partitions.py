"""Which items wait because another of the same key is in somebody's hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Partitions(Generic[T]):
    """Lets the items of one key through one after the other, in the order they came.

    Whoever begins a key has it in hand until `next_of` answers None; the
    others' items of that key wait meanwhile. A key that nobody has in hand
    takes no memory. Not thread-safe: its owner locks.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[T]] = {}

    @property
    def waiting(self) -> int:
        """How many items wait behind keys; those in hand don't count."""
        return sum(map(len, self._waiting.values()))

    def begin(self, key: Hashable, item: T) -> bool:
        """Tell whether the caller may handle the item now; it waits if not.

        True gives the caller the key in hand: after the item, `next_of` is
        to be called, however the item ended.

        Raises:
            TypeError: the key can't be hashed. Nothing has changed.
        """
        behind = self._waiting.get(key)
        if behind is None:
            self._waiting[key] = deque()
            return True
        behind.append(item)
        return False

    def next_of(self, key: Hashable) -> T | None:
        """Return the next item that waits behind a key in hand; None frees the key.

        Called by whoever has the key in hand, when done with an item.

        Raises:
            KeyError: nobody has the key in hand.
        """
        behind = self._waiting[key]
        if behind:
            return behind.popleft()
        del self._waiting[key]
        return None

    def clear(self) -> list[T]:
        """Forget what waits, and return it. Keys in hand stay in hand until their `next_of`."""
        waiting = [item for behind in self._waiting.values() for item in behind]
        for behind in self._waiting.values():
            behind.clear()
        return waiting
