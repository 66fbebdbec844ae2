"""Which attempts have started in this process and not ended: each can be ended once."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from celery_broadcast import fork
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.events import EVENT_TYPES, JobEnded
from celery_broadcast.slots import ABANDONED, CLOSED, Running, Slots

logger: logging.Logger = logging.getLogger(__name__)

# The news of a greenlet that was stopped come at once, if they come.
_MOST_WITHOUT_NEWS = 1_000

_ENDS_REMEMBERED = 1_000

# What a note says while its end is being published: after the other states.
_ENDINGS: Mapping[type[JobEnded], int] = {
    event_type: 16 + number
    for number, event_type in enumerate(EVENT_TYPES.values())
    if issubclass(event_type, JobEnded)
}


def ending_of(state: int) -> type[JobEnded] | None:
    """Return the end that was being published while a note was in this state, if one was."""
    return next((end for end, number in _ENDINGS.items() if number == state), None)


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What Celery told the main process of the end of a job.

    Attributes:
        event_type: how it ended.
        facts: the fields of `JobEvent`, as far as the news have them.
        details: the fields that `event_type` adds.
        had_started: whether the job was given to a process.
        retries: which attempt; None if the news don't say.
    """

    event_type: type[JobEnded]
    facts: Mapping[str, Any]
    details: Mapping[str, Any]
    had_started: bool
    retries: int | None = None

    def may_be_about(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether an attempt with these facts, that has started, may be meant."""
        if not self.had_started or facts["task_id"] != self.facts["task_id"]:
            return False
        return self.retries is None or self.retries == facts.get("retries")


class Attempt(msgspec.Struct, kw_only=True):
    """A started attempt.

    Attributes:
        facts: the fields of `JobEvent`, as they were when it started.
        started_monotonic: when it started, in seconds of the monotonic clock;
            None if it never did.
        eager: whether it runs inside of whatever called it, so that nobody
            elsewhere will ever tell of it.
        acks_late: whether the broker keeps its message until it has ended.
        muted: whether nothing is told of it. The main process doesn't even
            know of it, so as not to tell of it either.
        is_over: whether it has ended, and nobody is told.
        note: the number of the note by which the main process knows of it.
        traceback: what Celery told of a failure before the end, as text.
        start: its start, as it is published.
        end: its end, as it is published.
        news: what Celery has told of its end while it was running.
    """

    facts: Mapping[str, Any]
    started_monotonic: float | None
    eager: bool = False
    acks_late: bool = False
    muted: bool = False
    is_over: bool = False
    note: int | None = None
    traceback: str = ""
    start: Delivery | None = None
    end: Delivery | None = None
    news: News | None = None


class Attempts:
    """The attempts of this process that have started and not ended.

    An attempt is known by the identity of its request: a task id isn't enough,
    since a retry and a redelivery have the same, and can start before the
    attempt before them has ended. Methods may be called on any thread.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        self._not_noted_said = False
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child has no part in its parent's attempts."""
        #: This process; to ask the system again for each event is felt.
        self.pid: int = os.getpid()
        self._open: dict[int, Attempt] = {}
        self._without_news: dict[str, deque[Attempt]] = {}
        self._ended: deque[tuple[str, int]] = deque(maxlen=_ENDS_REMEMBERED)

    def share(self, slots: Slots) -> None:
        """Note each attempt of a pool process where its main process can read it."""
        self._slots = slots

    def start(self, request: object, attempt: Attempt) -> None:
        """Note that the attempt with this request has started. Twice is harmless."""
        self._open[id(request)] = attempt
        slot = self._slots.mine if self._slots is not None else None
        if slot is None or attempt.muted or attempt.started_monotonic is None:
            return
        if attempt.note is None:
            attempt.note = slot.take_note()
        if attempt.note is not None:
            running = Running(
                facts=attempt.facts,
                started_monotonic=attempt.started_monotonic,
                eager=attempt.eager,
                acks_late=attempt.acks_late,
            )
            if not slot.write(attempt.note, running):
                self.close(attempt)
                self._say_not_noted(attempt)

    def _say_not_noted(self, attempt: Attempt) -> None:
        if not self._not_noted_said:
            self._not_noted_said = True
            logger.warning(
                "broadcast can't note a job with such an id: %.100r. If its process dies, it may "
                "have no end, or two; this is said once in a process",
                attempt.facts["task_id"],
            )

    def leave_start_untold(self, attempt: Attempt) -> None:
        """Note that nobody wants to hear of the start."""
        if attempt.note is not None and self._slots is not None and self._slots.mine is not None:
            self._slots.mine.say_start_told(attempt.note)

    def find(self, request: object) -> Attempt | None:
        """Return the attempt with this request; None if it has ended or never started here."""
        return self._open.get(id(request))

    def can_end(self, attempt: Attempt) -> bool:
        """Tell whether it has not been ended yet: by the main process, as that goes."""
        if attempt.note is None or self._slots is None or self._slots.mine is None:
            return True
        return self._slots.mine.state(attempt.note) != CLOSED

    def tell(self, attempt: Attempt, event_type: type[JobEnded]) -> int | None:
        """Note that the end of an attempt is about to be published.

        Returns:
            The note, to be closed when a consumer may hear of the end: should
            the process die before, the main process publishes that end. None
            if it is to be closed at once.
        """
        if attempt.note is None or self._slots is None or self._slots.mine is None:
            return None
        slot = self._slots.mine
        if slot.has_few_notes():  # nothing lets the producer's thread run
            return None
        slot.set_state(attempt.note, _ENDINGS[event_type])
        return attempt.note

    def end(self, request: object) -> None:
        """Note that the end of the attempt with this request is published.

        Celery may tell of it once more, if something goes wrong in its own
        hands. Of a pool process it does so elsewhere.
        """
        attempt = self._open.pop(id(request), None)
        if attempt is not None and not self.are_told_to_parent():
            self._ended.append((attempt.facts["task_id"], attempt.facts["retries"]))

    def close(self, attempt: Attempt) -> None:
        """Note that an attempt has ended, so that the main process tells nobody of it."""
        note = attempt.note
        if note is not None and self._slots is not None and self._slots.mine is not None:
            # In this order: should it be struck in between, it can be done again.
            self._slots.mine.set_state(note, CLOSED)
            attempt.note = None
            self._slots.mine.give_back(note)

    def are_told_to_parent(self) -> bool:
        """Tell whether this is a pool process whose parent can read what it is running."""
        return self._slots is not None and self._slots.mine is not None

    def leave_to_parent(self, request: object) -> None:
        """Note that the attempt is over here, and that the main process ends it."""
        attempt = self._open.get(id(request))
        if attempt is None:
            return
        slot = None if self._slots is None else self._slots.mine
        if slot is not None and attempt.note is not None and self.can_end(attempt):
            slot.set_state(attempt.note, ABANDONED)
        self._open.pop(id(request), None)

    def leave_to_news(self, request: object) -> Attempt | None:
        """Note that the attempt is over, and that news of its end come by its task id.

        Returns:
            An attempt for which no news ever came, since too many wait for some.
        """
        attempt = self._open.pop(id(request), None)
        if attempt is None or not self.can_end(attempt):
            return None
        self.close(attempt)  # a pool of processes has no greenlets
        self._without_news.setdefault(attempt.facts["task_id"], deque()).append(attempt)
        if len(self._without_news) > _MOST_WITHOUT_NEWS:
            return self.end_by_news(next(iter(self._without_news)))
        return None

    def was_ended(self, news: News) -> bool:
        """Tell whether news are of an attempt that was ended here, not long ago."""
        return any(
            news.may_be_about({"task_id": task_id, "retries": retries})
            for task_id, retries in self._ended
        )

    def running(self, news: News) -> Attempt | None:
        """Return the attempt that runs here and that the news are about; None if none does."""
        return next(
            (
                attempt
                for attempt in list(self._open.values())
                if not attempt.eager and news.may_be_about(attempt.facts)
            ),
            None,
        )

    def end_by_news(self, task_id: str) -> Attempt | None:
        """End the attempt that was left to the news which now come; None if none was."""
        waiting = self._without_news.get(task_id)
        if not waiting:
            return None
        attempt = waiting.popleft()
        if not waiting:
            del self._without_news[task_id]
        return attempt

    def give_up_waiting(self) -> list[Attempt]:
        """End every attempt for which no news came; return them."""
        attempts = [attempt for waiting in self._without_news.values() for attempt in waiting]
        self._without_news.clear()
        return attempts
