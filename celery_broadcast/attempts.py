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


class Attempt(msgspec.Struct, kw_only=True):
    """A started attempt.

    Attributes:
        facts: the fields of `JobEvent`, as they were when it started.
        started_monotonic: when it started, in seconds of the monotonic clock;
            None if it never did.
        eager: whether it runs inside of whatever called it, so that nobody
            elsewhere will ever tell of it.
        traceback: what Celery told of a failure before the end, as text.
    """

    facts: Mapping[str, Any]
    started_monotonic: float | None
    eager: bool = False
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
        self._aborted: dict[str, deque[Attempt]] = {}
        self._ended_elsewhere: deque[str] = deque(maxlen=_ENDS_REMEMBERED)

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
            self._slots.start(attempt.facts, attempt.started_monotonic)

    def find(self, request: object) -> Attempt | None:
        """Return the attempt with this request; None if it has ended or never started here."""
        return self._open.get(id(request))

    def end(self, request: object) -> Attempt | None:
        """End the attempt with this request; None if that was done before."""
        attempt = self._open.pop(id(request), None)
        if attempt is not None and self._slots is not None and not attempt.eager:
            self._slots.end()
        return attempt

    def leave_to_parent(self, request: object) -> None:
        """Note that the attempt is over here, and that the parent process ends it."""
        self._open.pop(id(request), None)

    def leave_to_news(self, request: object) -> None:
        """Note that the attempt is over, and that news of its end come by its task id."""
        attempt = self.end(request)
        if attempt is not None:
            self._aborted.setdefault(attempt.facts["task_id"], deque()).append(attempt)

    def is_running_in_child(self, task_id: str) -> bool:
        """Tell whether a pool process has started the task and not noted its end."""
        return self._slots is not None and self._slots.is_running(task_id)

    def end_by_news(self, news: Mapping[str, Any]) -> Attempt | None:
        """End the attempt of which the news come; None if that was done before.

        Celery tells twice of a job that passed its hard time limit: when the
        limit passes, and when the process has been killed.

        Args:
            news: the fields of `JobEvent`, as far as the news have them. All
                there is to know of an attempt that never started.
        """
        task_id = news["task_id"]
        if waiting := self._aborted.get(task_id):
            attempt = waiting.popleft()
            if not waiting:
                self._aborted.pop(task_id, None)
            return attempt
        running = self._slots.take(task_id) if self._slots is not None else None
        if running is None and task_id in self._ended_elsewhere:
            return None
        self._ended_elsewhere.append(task_id)
        if running is None:
            return Attempt(facts=news, started_monotonic=None)
        return Attempt(facts={**news, **running.facts}, started_monotonic=running.started_monotonic)
