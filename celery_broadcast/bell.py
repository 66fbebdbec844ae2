"""What wakes one thread, and loses no wake."""

from __future__ import annotations

import queue


class Bell:
    """Wakes the one thread that waits for it; who rings never waits.

    It loses no wake: who is about to wait says so, and looks then whether there is
    anything to do; who has something to be done leaves it, and looks then whether
    the bell is awaited. Only who waits changes that. So at worst it rings once
    too often.
    """

    def __init__(self) -> None:
        # Made through the module, so that it is the patched one under gevent.
        #: What wakes. Whoever puts there has seen that it is awaited.
        self.rings: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: Whether somebody waits, or is about to.
        self.is_awaited: bool = False

    def ring(self) -> None:
        """Wake who waits, or is about to. On any thread."""
        if self.is_awaited:
            self.rings.put(None)

    def be_about_to_wait(self) -> None:
        """Have it ring from now on."""
        while not self.rings.empty():  # several rang the last time
            self.rings.get()
        self.is_awaited = True

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it rings, after `be_about_to_wait`.

        Args:
            seconds: how long at most, not at all if 0; None is without a limit.
        """
        try:
            if seconds is None:
                self.rings.get()
            elif seconds > 0.0:
                self._get(seconds)
        except queue.Empty:
            pass
        finally:
            self.is_awaited = False

    def _get(self, seconds: float) -> None:
        # A `get` that finds the queue's lock free begins anew with the time that is left,
        # and waits for ever if that is below zero (Modules/_queuemodule.c; in Python 3.10
        # so it does with a time of 0). After one that doesn't wait, the lock is held.
        try:
            self.rings.get_nowait()
        except queue.Empty:
            self.rings.get(timeout=seconds)
