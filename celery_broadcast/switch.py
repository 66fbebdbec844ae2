"""What can be done to a subscription while it lives: pause it, resume it, cancel it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_broadcast import fork

if TYPE_CHECKING:
    from typing import Protocol

    class Live(Protocol):
        """The part of a subscription that runs in this process."""

        def wake(self) -> None:
            """Look again: the switch was turned."""

        def stop(self) -> None:
            """Let what waits be handled, and then be over; return at once."""

        def cancel(self) -> None:
            """Take no more events; return at once."""

        def finish(self, deadline: float) -> bool:
            """Wait, after `cancel`, for all to be over until a time of the monotonic clock.

            Returns:
                Whether it is.
            """

        def is_over(self) -> bool:
            """Tell whether nothing of it runs any more, so that no turn matters to it."""

        def is_in_these_hands(self) -> bool:
            """Tell whether the present code is a part of it."""


class Switch:
    """Belongs to one subscription; any thread may turn it.

    Needs no lock: whoever attaches looks at the switch afterwards, and whoever
    turns it looks at what is attached afterwards, so one of them sees the other.
    """

    def __init__(self) -> None:
        #: Whether events only pile up for now.
        self.is_paused: bool = False
        #: Whether it is over.
        self.is_cancelled: bool = False
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Let go of what runs in the parent of a forked child."""
        self._attached: set[Live] = set()  # copied before each loop: any thread may add

    def attach(self, live: Live) -> None:
        """Have `live` told of each turn from now on, and of a cancel that came before."""
        # Most often one. But the broadcast of a block has another than the one
        # around it, which still tells the ends of what had started there.
        for other in tuple(self._attached):
            if other.is_over():
                self._attached.discard(other)
        self._attached.add(live)
        if self.is_cancelled:
            live.cancel()

    def pause(self) -> None:
        """Let events pile up."""
        self.is_paused = True
        for live in tuple(self._attached):
            live.wake()

    def resume(self) -> None:
        """Go on."""
        self.is_paused = False
        for live in tuple(self._attached):
            live.wake()

    def cancel(self) -> None:
        """Take no more events; return at once."""
        self.is_cancelled = True
        for live in tuple(self._attached):
            live.cancel()

    def wait_for_end(self, deadline: float) -> bool:
        """Wait, after `cancel`, until all is done; return whether it is.

        Args:
            deadline: when to go on all the same, by the monotonic clock.
        """
        # In its own hands it would wait for itself.
        attached = tuple(self._attached)
        ends = [not live.is_in_these_hands() and live.finish(deadline) for live in attached]
        return all(ends)
