"""Which started attempts have not ended: each can be ended once, by whoever has the news."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from celery_broadcast import fork

# Two tellings of one end come within seconds of each other.
_REMOTE_ENDS_REMEMBERED = 1_000


class Attempt(msgspec.Struct, kw_only=True):
    """A started attempt.

    Attributes:
        facts: the fields of `JobEvent`, as they were when it started.
        started_monotonic: when it started, in seconds of the monotonic clock.
        traceback: what Celery told of a failure before the end, as text.
    """

    facts: Mapping[str, Any]
    started_monotonic: float
    traceback: str = ""


class Attempts:
    """The attempts of one process that have started and not ended.

    An attempt is known by the identity of its request: a task id isn't enough,
    since a retry and a redelivery have the same, and can start before the
    attempt before them has ended. Methods may be called on any thread.
    """

    def __init__(self) -> None:
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child has no part in its parent's attempts."""
        self._open: dict[int, Attempt] = {}
        self._aborted: dict[str, deque[Attempt]] = {}
        self._ended_remotely: deque[str] = deque(maxlen=_REMOTE_ENDS_REMEMBERED)

    def start(self, request: object, attempt: Attempt) -> None:
        """Note that the attempt with this request has started."""
        self._open[id(request)] = attempt

    def find(self, request: object) -> Attempt | None:
        """Return the attempt with this request; None if it has ended or never started here."""
        return self._open.get(id(request))

    def end(self, request: object) -> Attempt | None:
        """End the attempt with this request; None if that was done before."""
        return self._open.pop(id(request), None)

    def abort(self, request: object) -> None:
        """Note that the attempt is over, and that the news of how comes by its task id."""
        attempt = self.end(request)
        if attempt is not None:
            self._aborted.setdefault(attempt.facts["task_id"], deque()).append(attempt)

    def end_aborted(self, task_id: str) -> Attempt | None:
        """End the first aborted attempt of the task; None if there is none."""
        waiting = self._aborted.get(task_id)
        if not waiting:
            return None
        attempt = waiting.popleft()
        if not waiting:
            self._aborted.pop(task_id, None)
        return attempt

    def end_remote(self, task_id: str) -> bool:
        """End an attempt of another process that died under it; False if that was done before.

        Celery tells twice of a job that passed its hard time limit: when the
        limit passes, and when the process has been killed.
        """
        if task_id in self._ended_remotely:
            return False
        self._ended_remotely.append(task_id)
        return True
