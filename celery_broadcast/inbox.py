"""What was published and has not been moved on, and which thread is woken for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from celery_broadcast.bell import Bell
from celery_broadcast.naps import Naps

if TYPE_CHECKING:
    from celery_broadcast.mailbox import Mailbox

T = TypeVar("T")

# For so long what comes is collected, while no consumer has a use for it.
_SECONDS_TO_COLLECT = 0.005


class Inbox(Generic[T]):
    """Where all threads of a process publish.

    Belongs to the producer's thread, which is woken for what comes. But an idle
    consumer's thread may come to the front, and be woken in its place: then an
    event reaches it with one change of threads, not with two. And while all
    consumers have enough to do, nobody need be woken: what comes is collected,
    and a consumer that gets idle before that is over fetches it.

    Attributes:
        items: what waits, the oldest first.
        left: what others have left to the producer's thread to do.
        bell: of the producer's thread.
    """

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.left: deque[Callable[[], None]] = deque()
        self.bell: Bell = Bell()
        self._front = self.bell
        self._naps = Naps()
        # At the front while what comes is collected: it is never awaited.
        self._nobody = Bell()

    @property
    def is_collecting(self) -> bool:
        """Whether nobody is woken for what comes."""
        return self._front is self._nobody

    def put(self, item: T) -> None:
        """Add an item, and wake one thread for it. On any thread; never waits.

        Safe inside of a signal handler that interrupted another call of it.
        """
        try:
            self.items.append(item)
        finally:  # whatever struck this thread meanwhile
            # As `ring` does, without a call: that is felt in the job's thread, and Python
            # may raise what strikes as a call of its own begins.
            bell = self._front
            if bell.is_awaited:
                bell.rings.put(None)

    def put_for_producer(self, item: T) -> None:
        """Add an item that is the affair of the producer's thread alone, and wake that."""
        self.items.append(item)
        self.bell.ring()

    def leave(self, function: Callable[[], None]) -> None:
        """Leave something to the producer's thread, which does it before all else."""
        self.left.append(function)
        self.bell.ring()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until something is there, for so many seconds at most. On the producer's thread."""
        if self.has_any() or self._naps.nap(self.has_any):
            return
        self.bell.be_about_to_wait()
        self.bell.wait(0.0 if self.has_any() else seconds)

    def collect(self) -> None:
        """Let come what does, for a moment, without being woken. On the producer's thread.

        What is for this thread alone ends it. A consumer that gets idle in the
        very moment in which this begins may get an event by so much later.
        """
        if self._front is self.bell:
            self._front = self._nobody
        try:
            self.bell.be_about_to_wait()
            self.bell.wait(0.0 if self.has_any() else _SECONDS_TO_COLLECT)
        finally:
            if self._front is self._nobody:
                self._front = self.bell

    def has_any(self) -> bool:
        """Tell whether there is anything to do for the producer's thread."""
        return bool(self.items or self.left)

    def come_to_front(self, bell: Bell) -> bool:
        """Ring this bell for what comes, unless another consumer's is at the front.

        Nor while something is there: the producer's thread knows of that. It may
        have to do more than to move it on, and who isn't needed is to sleep.

        Returns:
            Whether it is at the front now.
        """
        if self.items or self._front not in (self.bell, self._nobody, bell):
            return False
        self._front = bell
        return True

    def step_back(self, bell: Bell) -> bool:
        """Ring the producer's bell again; return whether it was at the front.

        Who was looks then what has come.
        """
        if self._front is not bell:
            return False
        self._front = self.bell
        return True


class Post:
    """Where an idle consumer waits: for its mailbox, and in front of the inbox.

    Belongs to the one thread of a consumer.

    Args:
        inbox: what it waits in front of.
        move_on: puts what is there into the mailboxes, on the present thread, or
            has the producer's thread do it.
    """

    def __init__(self, inbox: Inbox[T], move_on: Callable[[], None]) -> None:
        self._inbox = inbox
        self._move_on = move_on
        self._naps = Naps()

    def wait(self, mailbox: Mailbox[Any]) -> None:
        """Wait until the mailbox may be ready; move on first what has come to the inbox."""
        inbox, bell = self._inbox, mailbox.bell
        try:
            if not inbox.come_to_front(bell):
                if inbox.is_collecting:
                    self._move_on()  # who can't wakes the producer's thread
                bell.be_about_to_wait()
                bell.wait(0.0 if mailbox.is_ready() else None)
            elif not self._naps.nap(lambda: bool(inbox.items) or mailbox.is_ready()):
                bell.be_about_to_wait()
                # What came before that has rung nobody.
                bell.wait(0.0 if inbox.items or mailbox.is_ready() else None)
        finally:  # also if another thread has struck this one
            if inbox.step_back(bell) and inbox.items:
                self._move_on()
