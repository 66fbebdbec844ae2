"""Which started attempts have not ended: each can be ended once, by whoever has the news."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from celery_broadcast import fork
from celery_broadcast.slots import Slots

# Two tellings of one end come within seconds of each other.
_ENDS_REMEMBERED = 1_000

# The news of a greenlet that was stopped come at once, if they come.
_MOST_WITHOUT_NEWS = 1_000


class Attempt(msgspec.Struct, kw_only=True):
    """A started attempt.

    Attributes:
        facts: the fields of `JobEvent`, as they were when it started.
        started_monotonic: when it started, in seconds of the monotonic clock;
            None if it never did.
        eager: whether it runs inside of whatever called it, so that nobody
            elsewhere will ever tell of it.
        noted: whether the parent process can read that it runs.
        traceback: what Celery told of a failure before the end, as text.
    """

    facts: Mapping[str, Any]
    started_monotonic: float | None
    eager: bool = False
    noted: bool = False
    traceback: str = ""


class Attempts:
    """The attempts of a process that have started and not ended, and those of its children.

    An attempt is known by the identity of its request: a task id isn't enough,
    since a retry and a redelivery have the same, and can start before the
    attempt before them has ended. Methods may be called on any thread.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child has no part in its parent's attempts."""
        self._open: dict[int, Attempt] = {}
        self._without_news: dict[str, deque[Attempt]] = {}
        self._told: deque[str] = deque(maxlen=_ENDS_REMEMBERED)

    def expect_children(self) -> None:
        """Be able to tell what each process that is forked from now on was running.

        Raises:
            OSError: the system gives no memory that processes can share.
        """
        if self._slots is None:
            self._slots = Slots()

    def start(self, request: object, attempt: Attempt) -> None:
        """Note that the attempt with this request has started."""
        self._open[id(request)] = attempt
        if self._slots is not None and not attempt.eager and attempt.started_monotonic is not None:
            attempt.noted = self._slots.start(attempt.facts, attempt.started_monotonic)

    def find(self, request: object) -> Attempt | None:
        """Return the attempt with this request; None if it has ended or never started here."""
        return self._open.get(id(request))

    def end(self, request: object) -> Attempt | None:
        """End the attempt with this request; None if that was done before.

        By the parent, too: it tells of a revoke at once, though the job may
        survive the signal.
        """
        attempt = self._open.pop(id(request), None)
        if attempt is not None and attempt.noted and self._slots is not None:
            return attempt if self._slots.end() else None
        return attempt

    def are_told_to_parent(self) -> bool:
        """Tell whether this is a pool process whose parent can read what it is running."""
        return self._slots is not None and self._slots.is_in_child()

    def leave_to_parent(self, request: object) -> None:
        """Note that the attempt is over here, and that the parent process ends it."""
        self._open.pop(id(request), None)

    def leave_to_news(self, request: object) -> Attempt | None:
        """Note that the attempt is over, and that news of its end come by its task id.

        Returns:
            An attempt for which no news ever came, since too many wait for some.
        """
        attempt = self.end(request)
        if attempt is None:
            return None
        self._without_news.setdefault(attempt.facts["task_id"], deque()).append(attempt)
        if len(self._without_news) > _MOST_WITHOUT_NEWS:
            return self._next_without_news(next(iter(self._without_news)))
        return None

    def give_up_waiting(self) -> list[Attempt]:
        """End every attempt for which no news came; return them."""
        attempts = [attempt for waiting in self._without_news.values() for attempt in waiting]
        self._without_news.clear()
        return attempts

    def is_running_in_child(self, task_id: str) -> bool:
        """Tell whether a living pool process has started the task and not noted its end."""
        return self._slots is not None and self._slots.is_running(task_id)

    def end_by_news(self, news: Mapping[str, Any], *, had_started: bool) -> Attempt | None:
        """End the attempt of which the news come; None if that was done before.

        Celery tells twice of a job that passed its hard time limit: when the
        limit passes, and when the process has been killed. And a cold shutdown
        cancels jobs that have ended in their own process, while their results
        are on the way.

        Args:
            news: the fields of `JobEvent`, as far as the news have them. All
                there is to know of an attempt that never started.
            had_started: whether the job was given to a process.
        """
        task_id = news["task_id"]
        if task_id in self._without_news:
            return self._next_without_news(task_id)
        running = self._slots.take(task_id) if self._slots is not None else None
        if running is not None:
            facts = {**news, **running.facts}
            return Attempt(facts=facts, started_monotonic=running.started_monotonic)
        if had_started and self._slots is not None and self._slots.are_used():
            return None  # its own process has ended it
        if task_id in self._told:
            return None
        self._told.append(task_id)
        return Attempt(facts=news, started_monotonic=None)

    def _next_without_news(self, task_id: str) -> Attempt:
        waiting = self._without_news[task_id]
        attempt = waiting.popleft()
        if not waiting:
            del self._without_news[task_id]
        return attempt
