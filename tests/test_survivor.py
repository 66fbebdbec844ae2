from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
import pytest
from conftest import broadcast_threads
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nodes.deadline import wait_until
from test_slots import FIRST_ACTED_PID, as_in_a_child, facts, killed_child, write_text

from celery_broadcast import slots as slots_module
from celery_broadcast.attempts import Attempt, Attempts, News
from celery_broadcast.events import (
    JobEnded,
    JobFailed,
    JobFinished,
    JobIgnored,
    JobRejected,
    JobRetried,
    JobRevoked,
)
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import Slot, Slots
from celery_broadcast.survivor import End, Survivor

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

monotonic = itertools.count(1_000).__next__


class Unhurried(Survivor):
    """Looks again only when it is told to."""

    def _look_again_soon(self) -> None:
        pass


class Process:
    """A pool process that is only acted, with a slot of its own."""

    def __init__(self, slots: Slots, pid: int) -> None:
        self.pid = pid
        self.slots = as_in_a_child(slots, pid)
        self.attempts = Attempts()
        self.attempts.share(self.slots)

    def start(self, task_id: str = "id-1", *, retries: int = 0, **others: Any) -> object:
        """Start an attempt; return its request."""
        request = object()
        attempt = Attempt(
            facts=facts(task_id, retries=retries, pid=self.pid),
            started_monotonic=float(monotonic()),
            **others,
        )
        self.attempts.start(request, attempt)
        assert attempt.note is not None
        return request

    def end(self, request: object, event_type: type[JobEnded] = JobFinished) -> bool:
        """End an attempt here; return whether that was for this process to do."""
        note = self.begin_to_end(request, event_type)
        if note is None:
            return False
        self.close(note)
        return True

    def begin_to_end(self, request: object, event_type: type[JobEnded]) -> int | None:
        """Tell the end of an attempt, but don't come to publish it; return the note."""
        attempt = self.attempts.find(request)
        if attempt is None or not self.attempts.can_end(attempt):
            return None
        note = self.attempts.tell(attempt, event_type)
        if note is None:  # too many are in use: as soon as the end is published
            self.attempts.close(attempt)
        self.attempts.end(request)
        return note

    def close(self, note: int) -> None:
        assert self.slots.mine is not None
        self.slots.mine.close(note)


class Pool:
    """A main process and its pool: the slots are real, no process is."""

    def __init__(self, count: int = 8, survivor: type[Survivor] = Unhurried) -> None:
        self.zombies: set[int] = set()
        self.reaped: set[int] = set()
        self.slots = Slots(count=count)
        self.ledger = Ledger()
        self.ledger.share(self.slots)
        self.ends: list[End] = []
        self.reports: list[tuple[int, dict[str, int], int]] = []
        self.survivor = survivor(
            self.ledger,
            publish=lambda end: self.publish(end),  # noqa: PLW0108  # a test may replace it
            died=lambda pid: {"exception_message": f"{pid} died"},
            report=lambda pid, lost, not_offered: self.reports.append(
                (pid, dict(lost), not_offered)
            ),
        )
        self.survivor.share(self.slots)
        self.pids = itertools.count(FIRST_ACTED_PID).__next__

    def publish(self, end: End) -> None:
        self.ends.append(end)

    def is_gone(self, pid: int, reaped: bool) -> bool:  # noqa: FBT001  # as what it stands for
        return pid in self.reaped or (not reaped and pid in self.zombies)

    def fork(self) -> Process:
        return Process(self.slots, self.pids())

    def kill(self, process: Process) -> None:
        self.zombies.add(process.pid)

    def reap(self, process: Process) -> None:
        """Let the system know that the process is gone, but not yet the survivor."""
        self.zombies.discard(process.pid)
        self.reaped.add(process.pid)

    def pass_time(self, seconds: float) -> None:
        """Make what the survivor has taken down that much older."""
        self.survivor._dead = [
            msgspec.structs.replace(dead, since=dead.since - seconds)
            for dead in self.survivor._dead
        ]

    def close(self) -> None:
        """Let no later fork wake up a survivor that waits for something still."""
        self.survivor._slots = None
        self.survivor.stop()
        self.survivor.forget()

    @property
    def told(self) -> list[tuple[str, str]]:
        """The ends that were published, as the kind and the job of each."""
        return [(end.event_type.__name__, end.attempt.facts["task_id"]) for end in self.ends]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    pool = Pool()
    monkeypatch.setattr(slots_module, "_is_gone", pool.is_gone)
    yield pool
    pool.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Return a pool whose survivor looks again by itself, as it really does."""
    pool = Pool(survivor=Survivor)
    monkeypatch.setattr(slots_module, "_is_gone", pool.is_gone)
    yield pool
    pool.close()


def news(
    event_type: type[JobEnded] = JobFailed,
    task_id: str = "id-1",
    *,
    retries: int | None = 0,
    had_started: bool = True,
    **told: Any,
) -> News:
    return News(
        event_type=event_type,
        facts={**facts(task_id, pid=0, started_at=None), "args": (1,), **told},
        details={"exception_message": "as Celery says"},
        had_started=had_started,
        retries=retries,
    )


# News of a process that is gone.


def test_a_killed_child_ends_as_the_news_say() -> None:
    pool = Pool()
    attempts = Attempts()
    attempts.share(pool.slots)

    def start() -> None:
        attempts.start(object(), Attempt(facts=facts("id-1"), started_monotonic=5.0))

    pid = killed_child(start)
    pool.survivor.hear(news(JobFailed))

    (end,) = pool.ends
    assert end.event_type is JobFailed
    assert end.details == {"exception_message": "as Celery says"}
    assert end.of_gone
    assert end.attempt.started_monotonic == 5.0
    assert end.attempt.facts["started_at"] == 100.0
    assert end.attempt.facts["args"] == (1,)
    assert end.attempt.facts["pid"] == pid
    assert pool.slots.living() == []


def test_news_that_come_after_the_death_was_seen_say_how_it_ended(pool: Pool) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)

    pool.survivor.look()
    assert pool.ends == []
    pool.survivor.hear(news(JobRevoked))

    assert pool.told == [("JobRevoked", "id-1")]


def test_news_that_come_before_the_death_say_how_it_ended(pool: Pool) -> None:
    process = pool.fork()
    process.start()

    pool.survivor.hear(news(JobRevoked))
    assert pool.ends == []
    pool.kill(process)
    pool.survivor.look()
    assert pool.ends == []  # Celery may still ask how it died
    pool.reap(process)
    pool.survivor.look()

    assert pool.told == [("JobRevoked", "id-1")]


@pytest.mark.parametrize("when", ["both before", "one before", "both after"])
def test_news_that_come_twice_end_an_attempt_once(when: str, pool: Pool) -> None:
    process = pool.fork()
    process.start()

    if when != "both after":
        pool.survivor.hear(news(JobFailed))
    if when == "both before":
        pool.survivor.hear(news(JobRevoked))
    pool.reap(process)
    for _ in range({"both before": 0, "one before": 1, "both after": 2}[when]):
        pool.survivor.hear(news(JobRevoked))
    pool.survivor.look()
    pool.survivor.note_that_all_is_told()
    pool.survivor.leave()

    assert len(pool.ends) == 1
    assert pool.ends[0].of_gone


def test_an_attempt_that_died_has_the_facts_it_noted_and_what_only_the_news_have(
    pool: Pool,
) -> None:
    process = pool.fork()
    process.start(retries=2)
    pool.reap(process)

    pool.survivor.hear(news(retries=2, headers={"by": "shop"}, worker="another"))

    (end,) = pool.ends
    assert end.attempt.facts["pid"] == process.pid
    assert end.attempt.facts["worker"] == "celery@web-1"
    assert end.attempt.facts["retries"] == 2
    assert end.attempt.facts["headers"] == {"by": "shop"}


def test_an_attempt_that_ended_itself_is_not_ended_by_news_that_come_late(pool: Pool) -> None:
    process = pool.fork()
    assert process.end(process.start())

    pool.survivor.hear(news(JobRetried))
    pool.reap(process)
    pool.survivor.hear(news(JobFailed))

    assert pool.ends == []


# No news.


@pytest.mark.parametrize("acks_late", [True, False])
def test_an_attempt_without_news_is_lost_when_celery_has_told_all_it_knows(
    acks_late: bool,  # noqa: FBT001  # pytest calls it by name
    pool: Pool,
) -> None:
    process = pool.fork()
    process.start(acks_late=acks_late)
    pool.reap(process)

    pool.survivor.look()
    assert pool.ends == []
    pool.survivor.note_that_all_is_told()
    assert pool.ends == []  # a child is about to be forked
    pool.survivor.look()

    assert pool.told == [("JobLost", "id-1")]
    assert pool.ends[0].details == {}
    assert pool.ends[0].of_gone


def test_news_that_come_after_an_attempt_was_lost_for_want_of_them_are_nothing_new(
    pool: Pool,
) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)
    pool.survivor.note_that_all_is_told()

    pool.survivor.hear(news(JobFailed))

    assert pool.told == [("JobLost", "id-1")]


def test_celery_has_not_told_all_of_a_process_whose_status_it_has_not_asked_for(
    pool: Pool,
) -> None:
    process = pool.fork()
    process.start()
    pool.kill(process)

    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.ends == []


def test_celery_has_not_told_all_of_a_process_that_is_on_its_list_still(pool: Pool) -> None:
    process, other = pool.fork(), pool.fork()
    process.start("id-1")
    other.start("id-2")
    pool.reap(process)
    pool.reap(other)

    pool.survivor.note_that_all_is_told(but=[other.pid])
    pool.survivor.hear(news(JobFailed, "id-2"))

    assert pool.told == [("JobLost", "id-1"), ("JobFailed", "id-2")]


def test_news_are_waited_for_fifteen_seconds(pool: Pool) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)

    pool.survivor.look()
    pool.pass_time(14.0)
    pool.survivor.look()
    assert pool.ends == []
    pool.pass_time(2.0)
    pool.survivor.look()

    assert pool.told == [("JobLost", "id-1")]


def test_a_clock_on_the_wall_that_jumps_hurries_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)
    pool.survivor.look()

    jumped = time.time() + 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: jumped)
    pool.survivor.look()

    assert pool.ends == []


def test_an_eager_job_in_a_process_that_died_has_failed_at_once(pool: Pool) -> None:
    process = pool.fork()
    process.start("outer")
    process.start("inner", eager=True, acks_late=True)
    pool.reap(process)

    pool.survivor.look()

    assert pool.told == [("JobFailed", "inner")]
    assert pool.ends[0].details == {"exception_message": f"{process.pid} died"}


@pytest.mark.parametrize(
    ("event_type", "details"),
    [
        (JobFinished, {}),
        (JobIgnored, {}),
        (JobRejected, {}),
        (JobFailed, {"exception_message": "100000000 died"}),
        (JobRetried, {"exception_message": "100000000 died"}),
    ],
)
def test_an_end_that_a_process_died_of_telling_is_told_by_the_parent_once(
    event_type: type[JobEnded], details: Mapping[str, Any], pool: Pool
) -> None:
    process = pool.fork()
    assert process.begin_to_end(process.start(), event_type) is not None
    pool.survivor.hear(news(JobRevoked))
    pool.survivor.look()
    assert pool.ends == []
    pool.reap(process)

    pool.survivor.look()
    pool.survivor.hear(news(JobRevoked))
    pool.survivor.leave()

    assert pool.told == [(event_type.__name__, "id-1")]
    assert pool.ends[0].details == details


def test_every_attempt_of_a_process_has_its_own_end(pool: Pool) -> None:
    process = pool.fork()
    process.start("id-1")
    process.start("id-2")
    process.start("id-3", eager=True)
    process.end(process.start("id-4"))
    pool.reap(process)

    pool.survivor.hear(news(JobRevoked, "id-1"))
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert sorted(pool.told) == [
        ("JobFailed", "id-3"),
        ("JobLost", "id-2"),
        ("JobRevoked", "id-1"),
    ]


# News of a process that lives on.


def test_news_of_what_then_ends_in_its_own_process_are_forgotten(pool: Pool) -> None:
    process = pool.fork()
    request = process.start()

    pool.survivor.hear(news(JobRevoked))
    assert process.end(request)
    pool.survivor.look()
    pool.reap(process)
    pool.survivor.look()
    pool.survivor.leave()

    assert pool.ends == []
    assert pool.survivor._verdicts == []


def test_news_of_one_attempt_do_not_end_the_next_one_in_the_same_note(pool: Pool) -> None:
    process = pool.fork()
    request = process.start()
    pool.survivor.hear(news(JobRevoked))
    assert process.end(request)
    for _ in range(slots_module.NOTES - 1):
        assert process.end(process.start("another"))
    request = process.start("id-1")  # in the note of the first

    pool.survivor.look()
    assert pool.ends == []
    assert pool.survivor._verdicts == []
    assert process.end(request)


def test_news_of_one_attempt_are_not_of_what_is_left_to_the_parent_in_the_same_note(
    pool: Pool,
) -> None:
    process = pool.fork()
    request = process.start()
    pool.survivor.hear(news(JobRevoked))
    assert process.end(request)
    for _ in range(slots_module.NOTES - 1):
        assert process.end(process.start("another"))

    process.attempts.leave_to_parent(process.start("id-1"))
    pool.survivor.look()

    assert pool.ends == []


def test_what_a_process_leaves_to_its_parent_ends_as_the_news_said_before(pool: Pool) -> None:
    process = pool.fork()
    request = process.start()

    pool.survivor.hear(news(JobRevoked))
    process.attempts.leave_to_parent(request)
    pool.survivor.look()

    assert pool.told == [("JobRevoked", "id-1")]


@pytest.mark.parametrize("looks", range(1, 5))
def test_what_a_process_leaves_to_its_parent_while_the_news_come_ends_as_they_say(
    looks: int, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = pool.fork()
    request = process.start()
    look, looked = Slot.state, itertools.count(1)

    def look_and_leave(slot: Slot, note: int) -> int:
        state = look(slot, note)
        if next(looked) == looks:  # right after the main process has looked so often
            process.attempts.leave_to_parent(request)
        return state

    monkeypatch.setattr(Slot, "state", look_and_leave)
    pool.survivor.hear(news(JobRevoked))
    monkeypatch.undo()
    process.attempts.leave_to_parent(request)  # at the latest
    pool.reap(process)
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.told == [("JobRevoked", "id-1")]


def test_what_a_process_has_left_to_its_parent_ends_with_the_news(pool: Pool) -> None:
    process = pool.fork()
    process.attempts.leave_to_parent(process.start())

    pool.survivor.look()
    assert pool.ends == []
    pool.survivor.hear(news(JobRevoked))
    pool.reap(process)
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.told == [("JobRevoked", "id-1")]
    assert pool.ends[0].of_gone


def test_what_a_process_has_left_to_its_parent_is_lost_without_news_when_it_is_gone(
    pool: Pool,
) -> None:
    process = pool.fork()
    process.attempts.leave_to_parent(process.start())
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()
    assert pool.ends == []

    pool.reap(process)
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.told == [("JobLost", "id-1")]


# Which attempt the news are about.


@pytest.mark.parametrize("retries", [0, 1])
def test_news_are_of_one_retry_and_of_no_other(retries: int, pool: Pool) -> None:
    processes = [pool.fork(), pool.fork()]
    for number, process in enumerate(processes):
        process.start(retries=number)
        pool.reap(process)

    pool.survivor.hear(news(JobRevoked, retries=retries))

    assert pool.told == [("JobRevoked", "id-1")]
    assert pool.ends[0].attempt.facts["pid"] == processes[retries].pid


def test_news_of_a_try_that_is_over_leave_the_next_one_alone(pool: Pool) -> None:
    first, second = pool.fork(), pool.fork()
    first.start(retries=0)
    request = second.start(retries=1)

    pool.survivor.hear(news(JobFailed, retries=0))
    pool.reap(first)
    pool.survivor.look()

    assert pool.told == [("JobFailed", "id-1")]
    assert pool.ends[0].attempt.facts["retries"] == 0
    assert second.end(request)


def test_news_that_do_not_say_which_try_they_are_of_are_of_the_last_that_died(pool: Pool) -> None:
    processes = [pool.fork(), pool.fork()]
    for number, process in enumerate(processes):
        process.start(retries=number)
        pool.reap(process)

    for _ in range(2):
        pool.survivor.hear(news(JobFailed, retries=None))

    assert [end.attempt.facts["retries"] for end in pool.ends] == [1, 0]


def test_news_of_twins_are_of_the_one_that_is_gone(pool: Pool) -> None:
    dies, lives = pool.fork(), pool.fork()
    dies.start()
    request = lives.start()

    pool.survivor.hear(news(JobFailed))
    pool.reap(dies)
    pool.survivor.look()
    assert [end.attempt.facts["pid"] for end in pool.ends] == [dies.pid]

    assert lives.end(request)
    pool.survivor.look()
    pool.survivor.leave()
    assert len(pool.ends) == 1


def test_twins_that_both_die_have_an_end_each(pool: Pool) -> None:
    twins = [pool.fork(), pool.fork()]
    for process in twins:
        process.start()
        pool.reap(process)

    for _ in range(3):
        pool.survivor.hear(news(JobFailed))

    assert sorted(end.attempt.facts["pid"] for end in pool.ends) == [
        process.pid for process in twins
    ]


def test_news_of_a_job_that_had_not_started_leave_its_running_twin_alone(pool: Pool) -> None:
    process = pool.fork()
    request = process.start()

    pool.survivor.hear(news(JobRevoked, had_started=False))

    assert pool.told == [("JobRevoked", "id-1")]
    assert pool.ends[0].attempt.started_monotonic is None
    assert process.end(request)


def test_news_of_a_job_that_had_not_started_leave_a_twin_that_died_alone(pool: Pool) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)

    pool.survivor.hear(news(JobRevoked, had_started=False))
    pool.survivor.hear(news(JobFailed))

    assert pool.told == [("JobRevoked", "id-1"), ("JobFailed", "id-1")]
    assert [end.of_gone for end in pool.ends] == [False, True]


def test_news_are_not_of_an_eager_job_with_the_same_id(pool: Pool) -> None:
    process = pool.fork()
    request = process.start(eager=True)

    pool.survivor.hear(news(JobRevoked))
    pool.reap(process)
    pool.survivor.look()

    assert pool.told == [("JobRevoked", "id-1"), ("JobFailed", "id-1")]
    assert [end.of_gone for end in pool.ends] == [False, True]
    assert not process.end(request)


# News of what never started.


def test_each_message_that_is_thrown_away_is_told_of(pool: Pool) -> None:
    pool.fork()

    for _ in range(3):
        pool.survivor.hear(news(JobRevoked, "nightly-report", had_started=False))

    assert pool.told == [("JobRevoked", "nightly-report")] * 3


def test_news_of_what_a_process_never_came_to_start_are_told_once(pool: Pool) -> None:
    pool.fork()
    for _ in range(2):
        pool.survivor.hear(news(JobRevoked))

    (end,) = pool.ends
    assert end == End(
        event_type=JobRevoked,
        attempt=Attempt(facts=news().facts, started_monotonic=None),
        details={"exception_message": "as Celery says"},
        of_gone=False,
        ended_at=end.ended_at,
        ended_monotonic=end.ended_monotonic,
    )


def test_what_has_ended_is_not_remembered_for_ever(pool: Pool) -> None:
    pool.survivor.hear(news(JobRevoked, "id-1"))
    for number in range(1_000):
        pool.survivor.hear(news(JobRevoked, f"other-{number}"))
    pool.survivor.hear(news(JobRevoked, "id-1"))

    assert Counter(pool.told)["JobRevoked", "id-1"] == 2
    assert len(pool.survivor._told) == 1_000


def test_a_job_that_goes_back_and_never_started_has_no_end(pool: Pool) -> None:
    pool.fork()

    pool.survivor.hear(news(JobRetried))

    assert pool.ends == []


def test_a_job_that_goes_back_has_an_end_where_it_may_have_run_without_a_slot(
    pool: Pool,
) -> None:
    for _ in range(9):
        as_in_a_child(pool.slots)
    assert pool.slots.refused == 1

    pool.survivor.hear(news(JobRetried))

    assert pool.told == [("JobRetried", "id-1")]


def test_without_slots_the_news_are_all_there_is_to_know() -> None:
    ends: list[End] = []
    survivor = Survivor(Ledger(), publish=ends.append, died=lambda _: {}, report=lambda *_: None)

    survivor.look()
    survivor.before_fork()
    for event_type in (JobRetried, JobFailed):
        survivor.hear(news(event_type, event_type.__name__))
    survivor.hear(news(JobFailed, "JobFailed"))
    survivor.leave()

    assert [end.event_type for end in ends] == [JobRetried, JobFailed]
    assert broadcast_threads() == []


def test_a_pool_process_speaks_for_nobody(pool: Pool) -> None:
    process = pool.fork()
    process.start()
    ends: list[End] = []
    survivor = Survivor(Ledger(), publish=ends.append, died=lambda _: {}, report=lambda *_: None)
    survivor.share(process.slots)
    pool.reap(process)

    survivor.look()
    survivor.before_fork()
    survivor.leave()

    assert ends == []


# The main process goes.


def test_a_main_process_that_leaves_ends_what_living_processes_run(pool: Pool) -> None:
    process = pool.fork()
    requests = [process.start("id-1"), process.start("id-2", acks_late=True)]

    pool.survivor.leave()

    assert pool.told == [("JobFailed", "id-1"), ("JobLost", "id-2")]
    assert [process.end(request) for request in requests] == [False, False]


def test_a_main_process_that_leaves_ends_as_the_news_say(pool: Pool) -> None:
    process = pool.fork()
    process.start("id-1")
    process.start("id-2")
    pool.survivor.hear(news(JobRetried, "id-2"))

    pool.survivor.leave()

    assert sorted(pool.told) == [("JobFailed", "id-1"), ("JobRetried", "id-2")]
    assert pool.survivor._verdicts == []


def test_a_main_process_that_leaves_does_not_end_what_a_process_is_telling(pool: Pool) -> None:
    process = pool.fork()
    note = process.begin_to_end(process.start(), JobFinished)

    pool.survivor.leave()

    assert note is not None
    assert pool.ends == []


def test_a_main_process_that_leaves_ends_what_it_had_waited_for(pool: Pool) -> None:
    seen, unseen, unread = pool.fork(), pool.fork(), pool.fork()
    seen.start("seen")
    unseen.start("unseen")
    unread.start("unread")
    pool.reap(seen)
    pool.survivor.look()
    pool.kill(unseen)  # nobody will ask any more
    pool.reap(unread)

    pool.survivor.leave()
    pool.survivor.look()
    pool.survivor.leave()

    assert sorted(pool.told) == [
        ("JobFailed", "seen"),
        ("JobFailed", "unread"),
        ("JobFailed", "unseen"),
    ]
    assert pool.slots.living() == []


# Whoever comes first works through all there is.


def test_ends_are_not_published_while_a_child_is_born_but_soon_after(hasty: Pool) -> None:
    process = hasty.fork()
    process.start(eager=True)
    hasty.reap(process)
    published_on: list[str] = []
    published = threading.Event()

    def publish(end: End) -> None:
        published_on.append(threading.current_thread().name)
        published.set()

    hasty.publish = publish  # type: ignore[method-assign]
    hasty.survivor.before_fork()

    assert published.wait(10.0)
    assert published_on == ["broadcast-survivor"]


def test_a_survivor_looks_again_for_as_long_as_there_is_something_to_wait_for(
    hasty: Pool,
) -> None:
    process = hasty.fork()
    process.start()
    hasty.survivor.hear(news(JobRevoked))

    hasty.reap(process)
    wait_until(lambda: hasty.ends)

    assert hasty.told == [("JobRevoked", "id-1")]
    wait_until(lambda: not broadcast_threads())


def test_a_survivor_that_has_nothing_to_wait_for_starts_no_thread(hasty: Pool) -> None:
    process = hasty.fork()
    request = process.start()
    hasty.survivor.look()
    hasty.survivor.before_fork()
    assert process.end(request)
    hasty.reap(process)
    hasty.survivor.look()

    assert hasty.survivor._timer is None
    assert broadcast_threads() == []


def test_a_survivor_looks_less_and_less_often_until_there_is_news(
    hasty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: pauses.append(timer.interval))
    process = hasty.fork()
    process.start()
    hasty.reap(process)

    for _ in range(7):
        hasty.survivor.look()
    hasty.survivor.hear(news(JobRevoked, "another", had_started=False))

    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.05]


def test_a_survivor_that_will_look_again_starts_no_second_thread_for_it(
    hasty: Pool,
) -> None:
    hasty.survivor._pause = 60.0
    process = hasty.fork()
    process.start()
    hasty.reap(process)

    for _ in range(5):
        hasty.survivor.look()
    assert broadcast_threads() == ["broadcast-survivor"]

    hasty.survivor.stop()
    wait_until(lambda: not broadcast_threads())


def test_where_no_thread_can_start_the_next_occasion_will_do(
    hasty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    process = hasty.fork()
    process.start()
    hasty.survivor.hear(news(JobRevoked))
    hasty.reap(process)

    hasty.survivor.look()

    assert hasty.told == [("JobRevoked", "id-1")]


def test_an_error_while_looking_is_logged_and_hurts_nobody(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*, reaped: bool = True) -> list[Slot]:
        raise OSError("no")

    monkeypatch.setattr(pool.slots, "gone", gone)

    pool.survivor._look_again()

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "broadcast failed to look after its pool processes"
    monkeypatch.undo()
    pool.survivor.hear(news(JobRevoked, "id-2", had_started=False))
    assert pool.told == [("JobRevoked", "id-2")]


def test_an_end_that_cannot_be_published_is_said_and_the_next_one_is_published(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(end: End) -> None:
        pool.ends.append(end)
        if len(pool.ends) == 1:
            raise OSError("no")

    pool.publish = publish  # type: ignore[method-assign]
    process = pool.fork()
    process.start("id-1", eager=True)
    process.start("id-2", eager=True)
    pool.reap(process)

    pool.survivor.look()

    assert pool.told == [("JobFailed", "id-1"), ("JobFailed", "id-2")]
    (record,) = caplog.records
    assert record.getMessage() == "broadcast can't tell of a pool process that is gone"


def test_whoever_leaves_waits_for_another_thread_that_is_at_work(pool: Pool) -> None:
    at_work, go_on = threading.Event(), threading.Event()
    gone = pool.slots.gone

    def slowly_gone(*, reaped: bool = True) -> list[Slot]:
        at_work.set()
        go_on.wait(10.0)
        return gone(reaped=reaped)

    process = pool.fork()
    process.start()
    pool.reap(process)
    pool.slots.gone = slowly_gone  # type: ignore[method-assign]
    other = threading.Thread(target=pool.survivor.look)
    other.start()
    at_work.wait(10.0)
    soon = threading.Timer(0.05, go_on.set)
    soon.start()

    pool.survivor.leave()

    assert pool.told == [("JobFailed", "id-1")]
    other.join()
    soon.join()


def test_news_that_come_while_others_are_worked_through_end_each_attempt_once(
    pool: Pool,
) -> None:
    process = pool.fork()
    for number in range(4):
        process.start(f"id-{number}")
    pool.reap(process)
    depths: list[int] = []
    depth = 0

    def publish(end: End) -> None:  # a signal handler may do what it does after
        nonlocal depth
        depth += 1
        depths.append(depth)
        pool.ends.append(end)
        for number in range(4):
            pool.survivor.hear(news(JobRevoked, f"id-{number}"))
        pool.survivor.note_that_all_is_told()
        pool.survivor.leave()
        depth -= 1

    pool.publish = publish  # type: ignore[method-assign]
    pool.survivor.hear(news(JobRevoked, "id-0"))

    assert sorted(pool.told) == [("JobRevoked", f"id-{number}") for number in range(4)]
    assert depths == [1] * 4


def test_news_on_another_thread_do_not_wait_and_are_not_lost(pool: Pool) -> None:
    process = pool.fork()
    process.start("id-1")
    process.start("id-2")
    pool.reap(process)
    publishing, let_go = threading.Event(), threading.Event()

    def publish(end: End) -> None:
        pool.ends.append(end)
        publishing.set()
        assert let_go.wait(10.0)

    pool.publish = publish  # type: ignore[method-assign]
    slow = threading.Thread(target=pool.survivor.hear, args=(news(JobRevoked, "id-1"),))
    slow.start()
    assert publishing.wait(10.0)
    pool.survivor.hear(news(JobRevoked, "id-2"))
    pool.survivor.look()
    assert pool.told == [("JobRevoked", "id-1")]

    let_go.set()
    slow.join(10.0)
    assert pool.told == [("JobRevoked", "id-1"), ("JobRevoked", "id-2")]


def test_threads_that_all_hear_at_once_end_each_attempt_once(pool: Pool) -> None:
    for _ in range(8):
        process = pool.fork()
        for number in range(4):
            process.start(f"{process.pid}-{number}")
        pool.reap(process)
    task_ids = [f"{pid}-{number}" for pid in sorted(pool.reaped) for number in range(4)]
    together = threading.Barrier(4)

    def hear_all(order: Callable[[list[str]], Any]) -> None:
        together.wait(10.0)
        for task_id in order(task_ids):
            pool.survivor.hear(news(JobRevoked, task_id))

    threads = [
        threading.Thread(target=hear_all, args=(order,))
        for order in (sorted, reversed, sorted, partial(sorted, reverse=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(pool.told) == [("JobRevoked", task_id) for task_id in task_ids]


# What a process takes with it.


def test_what_a_process_takes_with_it_is_reported_once(pool: Pool) -> None:
    process, other = pool.fork(), pool.fork()
    ledger = Ledger()
    ledger.share(process.slots)
    ledger.counts("store").offer(5)
    ledger.counts("store").settle(3, 0, 0)
    ledger.counts("page").offer(1)
    ledger.counts("page").settle(1, 0, 0)
    assert process.slots.mine is not None
    for _ in range(4):
        process.slots.mine.count_published()
    process.slots.mine.count_dispatched()
    pool.reap(process)
    pool.reap(other)

    pool.survivor.look()
    pool.survivor.look()

    assert pool.reports == [(process.pid, {"store": 2}, 3)]


@pytest.mark.parametrize("is_start_told", [True, False])
def test_a_start_that_nobody_has_heard_of_is_told_with_its_end(
    is_start_told: bool,  # noqa: FBT001
    pool: Pool,
) -> None:
    process = pool.fork()
    request = process.start()
    attempt = process.attempts.find(request)
    assert attempt is not None
    assert attempt.note is not None
    assert process.slots.mine is not None
    process.slots.mine.count_published()  # the start, which a consumer hears of or doesn't
    if is_start_told:
        process.slots.mine.say_start_told(attempt.note)
        process.slots.mine.count_dispatched()

    pool.reap(process)
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    (end,) = pool.ends
    assert end.is_start_told == is_start_told
    assert pool.reports == []  # nothing is lost either way


def test_an_end_that_the_parent_tells_again_is_not_reported_as_taken_along(pool: Pool) -> None:
    process = pool.fork()
    request = process.start()
    mine, attempt = process.slots.mine, process.attempts.find(request)
    assert mine is not None
    assert attempt is not None
    assert attempt.note is not None
    mine.count_published()
    mine.say_start_told(attempt.note)
    mine.count_dispatched()
    assert process.begin_to_end(request, JobFinished) is not None
    mine.count_published()
    pool.reap(process)

    pool.survivor.look()

    assert pool.told == [("JobFinished", "id-1")]
    assert pool.reports == []


def test_rubbish_in_a_note_is_said_once_and_the_others_have_their_ends(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    process = pool.fork()
    for number in range(3):
        process.start(f"id-{number}")
    assert process.slots.mine is not None
    for note in (0, 1):
        write_text(process.slots.mine, note, b"\xc1" * 20)
    pool.reap(process)

    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.told == [("JobLost", "id-2")]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(
        f"broadcast can't read what pool process {process.pid} was running"
    )


def test_a_survivor_that_forgets_has_nothing_to_tell(pool: Pool) -> None:
    process = pool.fork()
    process.start()
    pool.reap(process)
    pool.survivor.look()

    pool.survivor.forget()
    pool.survivor.note_that_all_is_told()
    pool.survivor.look()

    assert pool.ends == []


# All of it at once.

task_ids = st.sampled_from(["id-1", "id-2"])
retries = st.integers(0, 1)
which = st.integers(0, 20)
own_ends = st.sampled_from([JobFinished, JobFailed, JobRetried, JobRejected])
told_ends = st.sampled_from([JobFailed, JobRevoked, JobRetried])


class Started(msgspec.Struct, eq=False):
    """What the machine below knows of an attempt that it has started."""

    process: Process
    request: object
    started_monotonic: float
    event_type: type[JobEnded] | None = None  # an end that its process tells
    note: int | None = None  # while it tells it
    is_abandoned: bool = False


class OneEndEach(RuleBasedStateMachine):
    """Whatever happens to processes, in whatever order one hears of it: each attempt has one end.

    And for as long as a process may still tell an end itself, nobody else does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.pool = Pool(count=3)
        self.patch.setattr(slots_module, "_is_gone", self.pool.is_gone)
        self.pool.publish = self.publish  # type: ignore[method-assign]
        self.processes: list[Process] = []  # that live
        self.started: list[Started] = []
        self.heard = 0
        self.ends: Counter[float] = Counter()  # by when the attempt started
        self.types: dict[float, type[JobEnded]] = {}
        self.ends_of_nothing = 0

    def publish(self, end: End) -> None:
        self.pool.survivor.look()  # as a signal handler might
        started_monotonic = end.attempt.started_monotonic
        assert end.of_gone == (started_monotonic is not None)
        if started_monotonic is None:
            self.ends_of_nothing += 1
        else:
            self.ends[started_monotonic] += 1
            self.types[started_monotonic] = end.event_type

    # What happens in the pool.

    @precondition(lambda self: len(self.pool.slots.living()) < 3)
    @rule(is_seen=st.booleans())
    def fork(self, is_seen: bool) -> None:  # noqa: FBT001  # hypothesis calls it by name
        if is_seen:
            self.pool.survivor.before_fork()
        self.processes.append(self.pool.fork())

    @precondition(lambda self: self.processes)
    @rule(
        where=which,
        task_id=task_ids,
        retries=retries,
        eager=st.sampled_from([False] * 4 + [True]),
        acks_late=st.booleans(),
    )
    def start(
        self, where: int, task_id: str, retries: int, *, eager: bool, acks_late: bool
    ) -> None:
        process = self.processes[where % len(self.processes)]
        assert process.slots.mine is not None
        if not process.slots.mine._free_notes:
            return
        request = process.start(task_id, retries=retries, eager=eager, acks_late=acks_late)
        attempt = process.attempts.find(request)
        assert attempt is not None
        assert attempt.started_monotonic is not None
        self.started.append(Started(process, request, attempt.started_monotonic))

    def running(self) -> list[Started]:
        return [
            one
            for one in self.started
            if one.process in self.processes and one.process.attempts.find(one.request) is not None
        ]

    @precondition(lambda self: self.running())
    @rule(one=which, event_type=own_ends, is_published=st.booleans())
    def end(self, one: int, event_type: type[JobEnded], is_published: bool) -> None:  # noqa: FBT001
        ending = self.running()[one % len(self.running())]
        ending.note = ending.process.begin_to_end(ending.request, event_type)
        ending.event_type = event_type
        if ending.note is None:  # too many notes are in use
            self.ends[ending.started_monotonic] += 1
        elif is_published:
            self.come_to_publish(ending)

    @precondition(lambda self: any(one.note is not None for one in self.started))
    @rule(one=which)
    def publish_what_waits(self, one: int) -> None:
        waiting = [
            started
            for started in self.started
            if started.note is not None and started.process in self.processes
        ]
        if waiting:
            self.come_to_publish(waiting[one % len(waiting)])

    def come_to_publish(self, ending: Started) -> None:
        assert ending.note is not None
        self.ends[ending.started_monotonic] += 1
        ending.process.close(ending.note)
        ending.note = None

    @precondition(lambda self: self.running())
    @rule(one=which)
    def abandon(self, one: int) -> None:
        left = self.running()[one % len(self.running())]
        left.process.attempts.leave_to_parent(left.request)
        left.is_abandoned = True

    @precondition(lambda self: self.processes)
    @rule(where=which, is_reaped=st.booleans())
    def kill(self, where: int, is_reaped: bool) -> None:  # noqa: FBT001  # as above
        process = self.processes.pop(where % len(self.processes))
        self.pool.kill(process)
        if is_reaped:
            self.pool.reap(process)

    @precondition(lambda self: self.pool.zombies)
    @rule()
    def reap(self) -> None:
        self.pool.reaped.add(self.pool.zombies.pop())

    # What the main process hears and does.

    @rule(
        event_type=told_ends,
        task_id=task_ids,
        retries=st.none() | retries,
        had_started=st.sampled_from([True] * 4 + [False]),
    )
    def hear(
        self,
        event_type: type[JobEnded],
        task_id: str,
        retries: int | None,
        *,
        had_started: bool,
    ) -> None:
        self.heard += 1
        self.pool.survivor.hear(news(event_type, task_id, retries=retries, had_started=had_started))

    @rule()
    def look(self) -> None:
        self.pool.survivor.look()

    @rule()
    def all_is_told(self) -> None:
        self.pool.survivor.note_that_all_is_told()

    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.pass_time(seconds)

    # What always holds.

    @invariant()
    def no_attempt_ends_twice(self) -> None:
        assert all(count == 1 for count in self.ends.values()), self.ends

    @invariant()
    def a_process_has_the_last_word_until_it_is_known_to_be_gone(self) -> None:
        for one in self.started:
            if one.process.pid not in self.pool.reaped and not one.is_abandoned:
                is_told = one.event_type is not None and one.note is None
                assert self.ends[one.started_monotonic] == is_told

    @invariant()
    def only_news_tell_of_what_never_started(self) -> None:
        assert self.ends_of_nothing <= self.heard

    def teardown(self) -> None:
        try:
            self.pool.survivor.leave()
            for one in self.started:
                if one.process in self.processes:
                    assert not one.process.end(one.request)
                    if one.note is not None:
                        self.come_to_publish(one)
            for process in self.processes:
                self.pool.reap(process)
            self.pool.survivor.leave()
            self.pool.survivor.look()
            assert self.ends == {one.started_monotonic: 1 for one in self.started}
            for one in self.started:
                if one.event_type is not None and one.started_monotonic in self.types:
                    assert self.types[one.started_monotonic] is one.event_type
            assert self.pool.slots.living() == []
        finally:
            self.patch.undo()


OneEndEach.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_every_attempt_has_one_end_whatever_happens_to_its_process = OneEndEach.TestCase
