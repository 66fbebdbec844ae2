"""What the main process of a worker ends, because the process that ran it is gone.

A pool process tells the ends of its own attempts for as long as it lives. What
it noted and did not end, the main process ends when the system says that it is
gone: as Celery's news of the job say, or, where Celery has no news, because
the process died.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec

from celery_broadcast import fork
from celery_broadcast.attempts import Attempt, News, ending_of
from celery_broadcast.events import JobEnded, JobFailed, JobLost, JobRetried
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import ABANDONED, CLOSED, RUNNING, Running, Slot, Slots

logger: logging.Logger = logging.getLogger(__name__)

# Two tellings of one end come within seconds of each other.
_ENDS_REMEMBERED = 1_000

# How much longer news are waited for than Celery waits before it has some.
_PATIENCE_SECONDS = 5.0

_LAST_WORK_SECONDS = 1.0

_FIRST_LOOK_SECONDS = 0.05
_SLOWEST_LOOK_SECONDS = 1.0


class _Dead(msgspec.Struct, frozen=True):
    """An attempt whose process is gone, or won't end it.

    Attributes:
        running: the attempt.
        pid: its process.
        is_start_told: whether a consumer may have heard of its start.
        is_end_counted: whether its process has counted its end.
        since: when that was found, in seconds of the monotonic clock. Celery
            may still have news.
        seen_at: the same, in seconds since 1970, UTC.
    """

    running: Running
    pid: int
    is_start_told: bool
    is_end_counted: bool = False
    since: float = msgspec.field(default_factory=time.monotonic)
    seen_at: float = msgspec.field(default_factory=time.time)


class _Verdict(msgspec.Struct, frozen=True):
    """News of a process that still lives: it has the last word as long as it does.

    Attributes:
        news: what it is about to die of, as far as Celery knows.
        candidates: where the attempts are noted that this may be about.
    """

    news: News
    candidates: list[tuple[Slot, int, Running]]


class End(msgspec.Struct, frozen=True):
    """The end of an attempt, to be published.

    Attributes:
        event_type: how it ended.
        attempt: the attempt.
        details: the fields that `event_type` adds.
        of_gone: whether it had started, in a process that is gone.
        is_start_told: whether a consumer may have heard of its start.
        is_counted: whether the process that ran it has counted the end.
        ended_at: when its process was seen to be gone, in seconds since 1970, UTC.
        ended_monotonic: the same, by the monotonic clock.
    """

    event_type: type[JobEnded]
    attempt: Attempt
    details: Mapping[str, Any]
    of_gone: bool = True
    is_start_told: bool = True
    is_counted: bool = False
    ended_at: float = msgspec.field(default_factory=time.time)
    ended_monotonic: float = msgspec.field(default_factory=time.monotonic)


#: Gives the fields that `JobFailed` adds if that process has died.
Died: TypeAlias = Callable[[int], Mapping[str, Any]]

#: Says what a process took with it: its pid, how many events of which consumer,
#: and how many that no consumer was offered.
Report: TypeAlias = Callable[[int, Mapping[str, int], int], None]


# Why to look who is gone, but for news. Making an `enum` takes a process that starts 0.2 ms.
_Occasion: TypeAlias = Literal["asked", "fork", "all is told", "leaving"]


class Survivor:
    """Speaks for the pool processes that can't any more.

    Its methods may be called on any thread, and inside of a signal handler
    that has interrupted another of them: each leaves a message, and whoever
    comes first works through all there are.

    Args:
        ledger: where the numbers of processes that are gone are kept.
        publish: publishes an end; must neither block nor raise.
        died: what `JobFailed` tells of a job whose process died.
        report: says what such a process took with it.
    """

    def __init__(
        self, ledger: Ledger, *, publish: Callable[[End], None], died: Died, report: Report
    ) -> None:
        self._ledger = ledger
        self._publish = publish
        self._died = died
        self._report = report
        self._slots: Slots | None = None
        self.wait_longer_than(10.0)  # as long as Celery does by default
        self.forget()
        fork.starts_clean(self)

    def forget(self) -> None:
        """Forget all: a forked child survives nobody."""
        self._messages: deque[News | _Occasion] = deque()
        self._working = threading.Lock()
        self._dead: list[_Dead] = []
        self._verdicts: list[_Verdict] = []
        self._to_say: deque[Callable[[], None]] = deque()
        self._told: deque[str] = deque(maxlen=_ENDS_REMEMBERED)
        self._timer: threading.Timer | None = None
        self._pause = _FIRST_LOOK_SECONDS
        self._rubbish_said = False
        self._not_told_yet: frozenset[int] = frozenset()

    def share(self, slots: Slots) -> None:
        """Speak for the processes that have these slots."""
        self._slots = slots

    def wait_longer_than(self, seconds: float) -> None:
        """Wait for news for longer than Celery waits before it takes a job for lost."""
        self._wait_seconds = seconds + _PATIENCE_SECONDS

    def before_fork(self) -> None:
        """Have a look: a process is often born because another has died."""
        if self._is_main():
            self._leave_message("fork")

    def hear(self, news: News) -> None:
        """End the attempt that the news are about, now or when its process is gone."""
        self._leave_message(news)

    def look(self) -> None:
        """See who is gone."""
        self._leave_message("asked")

    def note_that_all_is_told(self, but: Collection[int] = ()) -> None:
        """End the attempts of all that are gone: Celery won't tell more of them.

        Called before a process is made in place of another.

        Args:
            but: the pids of processes of which Celery may not have told yet.
        """
        self._not_told_yet = frozenset(but)
        self._leave_message("all is told")

    def leave(self) -> None:
        """End every attempt there still is: the main process is about to go."""
        self._leave_message("leaving")
        # Another thread may be at it, and the process won't wait for that one.
        if self._working.acquire(timeout=_LAST_WORK_SECONDS):
            self._working.release()
        self.stop()

    def stop(self) -> None:
        """Look no more by itself."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _is_main(self) -> bool:
        return self._slots is not None and self._slots.are_below()

    def _leave_message(self, message: News | _Occasion) -> None:
        self._messages.append(message)
        while self._messages:
            if not self._working.acquire(blocking=False):
                return  # whoever is at work will find it
            try:
                while self._messages:
                    self._work(self._messages.popleft())
            finally:
                self._working.release()

    # One at a time from here on.

    def _work(self, message: News | _Occasion) -> None:
        is_leaving = message == "leaving"
        is_before_fork = message in ("fork", "all is told")
        if self._slots is not None and self._slots.are_below():
            self._bury(self._slots.gone(reaped=not is_leaving))
            self._carry_out_verdicts()
        if isinstance(message, News):
            self._take_in(message)
        if message != "asked":
            self._pause = _FIRST_LOOK_SECONDS
        if is_leaving:
            self._end_all()
        self._give_up_waiting(message)
        # Not just before a fork: consumers that start then may hold locks of
        # theirs while the child is born.
        while self._to_say and not is_before_fork:
            self._say(self._to_say.popleft())
        if (self._dead or self._verdicts or self._to_say) and not is_leaving:
            self._look_again_soon()

    def _say(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception:
            logger.exception("broadcast can't tell of a pool process that is gone")

    def _bury(self, slots: list[Slot]) -> None:
        """Take down what processes that are gone have left behind."""
        for slot in slots:
            pid, not_dispatched = slot.pid, slot.not_dispatched()
            for note, running in slot.open_notes():
                ending = ending_of(slot.state(note))
                slot.set_state(note, CLOSED)
                if running is None:
                    self._say_rubbish(pid)
                    continue
                is_counted = self._ledger.settle_job(slot, note, running)
                dead = _Dead(running, pid, slot.is_start_told(note), is_counted)
                # What it had published and nobody has heard is told again.
                not_dispatched -= (not dead.is_start_told) + (ending is not None)
                if ending is not None:
                    self._end_dead(ending, dead)
                elif running.eager:
                    self._end_dead(JobFailed, dead)
                else:
                    self._dead.append(dead)
            lost = self._ledger.bury(slot)
            if lost or not_dispatched > 0:
                not_offered = max(0, not_dispatched)
                self._to_say.append(partial(self._report, pid, lost, not_offered))

    def _carry_out_verdicts(self) -> None:
        """End what has ended as the news said; forget news of what ended otherwise."""
        standing = []
        for verdict in self._verdicts:
            undecided = []
            for candidate in verdict.candidates:
                slot, note, running = candidate
                state = slot.state(note)  # once, and first: its process may write just now
                dead = [dead for dead in self._dead if dead.running == running]
                if dead:
                    self._dead.remove(dead[0])
                    self._end_by_news(verdict.news, dead[0])
                elif slot.read(note) == running and state == ABANDONED:
                    slot.set_state(note, CLOSED)
                    # It tells the start itself, before it goes.
                    self._end_by_news(verdict.news, _Dead(running, slot.pid, is_start_told=True))
                elif slot.read(note) == running and state == RUNNING:
                    undecided.append(candidate)
            if undecided:
                standing.append(_Verdict(verdict.news, undecided))
        self._verdicts = standing

    def _take_in(self, news: News) -> None:
        dead = [dead for dead in self._dead if is_about(news, dead.running)]
        if dead:
            last = max(dead, key=lambda dead: dead.running.started_monotonic)
            self._dead.remove(last)
            self._end_by_news(news, last)
        elif candidates := self._living_candidates(news):
            self._verdicts.append(_Verdict(news, candidates))
            self._carry_out_verdicts()
        elif not self._has_ended(news):
            if news.had_started:
                self._told.append(news.facts["task_id"])
            attempt = Attempt(facts=news.facts, started_monotonic=None)
            end = End(news.event_type, attempt, news.details, of_gone=False)
            self._to_say.append(partial(self._publish, end))

    def _living_candidates(self, news: News) -> list[tuple[Slot, int, Running]]:
        if not news.had_started or self._slots is None or not self._slots.are_below():
            return []
        return [
            (slot, note, running)
            for slot in self._slots.living()
            for note, running in slot.notes_of(news.facts["task_id"])
            if slot.state(note) in {RUNNING, ABANDONED} and is_about(news, running)
        ]

    def _has_ended(self, news: News) -> bool:
        """Tell whether news that nothing is left for are of an attempt that was ended before.

        Celery tells twice of a job that passed its hard time limit: when the
        limit passes, and when the process has been killed. And a cold shutdown
        cancels jobs that have ended in their own process, while their results
        are on the way.
        """
        task_id = news.facts["task_id"]
        if not news.had_started:
            return False  # each message that is thrown away is told of once
        if task_id in self._told:
            return True
        if self._slots is None or not self._slots.are_used():
            return False
        if self._slots.has_ended(task_id, news.retries):
            return True
        # What goes back without having started has no end, for it had no start.
        return news.event_type is JobRetried and not self._slots.refused

    def _give_up_waiting(self, message: News | _Occasion) -> None:
        """End attempts of which Celery has no news, and won't have any.

        While the worker goes on, that means that the job has not failed: its
        message goes back to the broker, or to another process if this one
        died before Celery had heard that it began, or its result was stored
        already. When the main process goes, a message that is acknowledged
        goes with it.
        """
        is_leaving = message == "leaving"
        now = time.monotonic()
        waiting, self._dead = self._dead, []
        for dead in waiting:
            is_told = message == "all is told" and dead.pid not in self._not_told_yet
            if is_leaving or is_told or now - dead.since > self._wait_seconds:
                is_gone = is_leaving and not dead.running.acks_late
                self._end_dead(JobFailed if is_gone else JobLost, dead)
            else:
                self._dead.append(dead)

    def _end_all(self) -> None:
        """End what living processes run: nobody will be there to hear how that ends."""
        if self._slots is None or not self._slots.are_below():
            return
        for slot in self._slots.living():
            for note, running in slot.open_notes():
                if running is None or slot.state(note) not in {RUNNING, ABANDONED}:
                    continue
                slot.set_state(note, CLOSED)
                dead = _Dead(running, slot.pid, slot.is_start_told(note))
                news = [
                    verdict.news for verdict in self._verdicts if is_about(verdict.news, running)
                ]
                if news:
                    self._end_by_news(news[0], dead)
                else:
                    self._dead.append(dead)
        self._verdicts = []

    def _end_by_news(self, news: News, dead: _Dead) -> None:
        self._end(news.event_type, _attempt(dead.running, news.facts), news.details, dead)

    def _end_dead(self, event_type: type[JobEnded], dead: _Dead) -> None:
        tells_why = issubclass(event_type, (JobFailed, JobRetried))
        details = self._died(dead.pid) if tells_why else {}
        self._end(event_type, _attempt(dead.running, {}), details, dead)

    def _end(
        self,
        event_type: type[JobEnded],
        attempt: Attempt,
        details: Mapping[str, Any],
        dead: _Dead,
    ) -> None:
        end = End(
            event_type,
            attempt,
            details,
            is_start_told=dead.is_start_told,
            is_counted=dead.is_end_counted,
            ended_at=dead.seen_at,
            ended_monotonic=dead.since,
        )
        self._to_say.append(partial(self._publish, end))

    def _say_rubbish(self, pid: int) -> None:
        if not self._rubbish_said:
            self._rubbish_said = True
            logger.error(
                "broadcast can't read what pool process %d was running: something has written over "
                "its memory. That attempt has no end; this is said once",
                pid,
            )

    def _look_again_soon(self) -> None:
        if self._timer is not None and self._timer.is_alive():
            return
        timer = threading.Timer(self._pause, self._look_again)
        timer.name, timer.daemon = "broadcast-survivor", True
        try:
            timer.start()
        except RuntimeError:  # no thread to be had; the next death or news look again
            return
        self._timer = timer
        self._pause = min(2 * self._pause, _SLOWEST_LOOK_SECONDS)

    def _look_again(self) -> None:
        self._timer = None
        try:
            self.look()
        except Exception:
            logger.exception("broadcast failed to look after its pool processes")


def is_about(news: News, running: Running) -> bool:
    """Tell whether news may be about an attempt that a pool process has noted."""
    return not running.eager and news.may_be_about(running.facts)


def _attempt(running: Running, news: Mapping[str, Any]) -> Attempt:
    facts = {"task_name": "", **news, **running.facts}
    return Attempt(facts=facts, started_monotonic=running.started_monotonic)
