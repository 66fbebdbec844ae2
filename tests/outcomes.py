"""Every way an attempt can end, in every pool: what is sent, and what is told of it.

The tests of the workers hold each row against real workers of every pool.
`python tests/outcomes.py` writes docs/outcomes.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import celery

POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")
ONE_PROCESS = ("threads", "solo", "gevent", "eventlet")
GREENLETS = ("gevent", "eventlet")

# What an outcome does to its process. They are enacted in this order, since Celery may
# forget a job that it gives to a process on its way out, and tells something else of a job
# that dies in a process which was meant to be terminated before.
HARMLESS, KILLS, EXITS, MARKS = STAGES = range(4)


@dataclass(frozen=True)
class Told:
    """What is told of a job, from its first attempt to the end of its last.

    Signals are named without their "task_", and a `postrun` with its state.

    Attributes:
        events: of all attempts, in order.
        attempts: the signals of each attempt, where it ran.
        elsewhere: the signals on any other thread: with prefork, in the main
            process. Without `task_received`, which is in no order to these.
        perhaps: signals elsewhere of which Celery sends some, now and then; and
            a `postrun:None` for which a process that is killed may have no time.
        received: how many messages the worker took for the job; None is one
            for each attempt.
    """

    events: str = ""
    attempts: tuple[str, ...] = ()
    elsewhere: str = ""
    perhaps: str = ""
    received: int | None = None

    @property
    def messages(self) -> int:
        return len(self.attempts) if self.received is None else self.received

    @property
    def signals(self) -> list[str]:
        """Every signal that is sure to come."""
        heard = ["received"] * self.messages
        return [*heard, *" ".join((*self.attempts, self.elsewhere)).split()]


@dataclass(frozen=True)
class Changed:
    """What one version of Celery tells otherwise than those before it.

    Attributes:
        since: the version, such as (5, 7).
        now: what is told from that version on.
        before: what was told before.
    """

    since: tuple[int, int]
    now: Telling
    before: Telling


Telling: TypeAlias = "Told | Changed"


def told_by(version: tuple[int, int], telling: Telling) -> Told:
    """Return what this version of Celery tells."""
    while isinstance(telling, Changed):
        telling = telling.now if version >= telling.since else telling.before
    return telling


def told_here(telling: Telling) -> Told:
    """Return what the Celery that is installed tells."""
    return told_by((celery.VERSION.major, celery.VERSION.minor), telling)


@dataclass(frozen=True)
class Job:
    """A job, and what is done to it.

    Attributes:
        task: the name in `job_app_outcomes`.
        arguments: positional ones.
        keywords: further arguments.
        options: of `apply_async`.
        steps: what the test does when the job has started, such as "kill".
    """

    task: str
    arguments: tuple[object, ...] = ()
    keywords: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """Another job that belongs to an outcome; without `job`, the first one runs it."""

    telling: Telling
    job: Job | None = None


@dataclass(frozen=True)
class Outcome:
    """One way to end.

    Attributes:
        name: in a word or two; of the tests.
        sentence: what happens to the job, for a reader of the documents.
        job: what is sent.
        telling: what is told of it in most pools.
        otherwise: what is told of it in the others.
        ends_worker: in which pools no worker is left afterwards.
        pools: where there is such a thing.
        stage: what it does to its process; see `KILLS` and the others.
        alone: whether it needs a worker of its own even where it doesn't end it.
        is_revoked_first: whether it is revoked before it is sent.
        canvas: how it is sent together with `members`, such as "chain".
        members: what is told of the jobs that belong to it.
    """

    name: str
    sentence: str
    job: Job
    telling: Telling
    otherwise: Mapping[str, Telling] = field(default_factory=dict)
    ends_worker: tuple[str, ...] = ()
    pools: tuple[str, ...] = POOLS
    stage: int = HARMLESS
    alone: bool = False
    is_revoked_first: bool = False
    canvas: str = ""
    members: Mapping[str, Member] = field(default_factory=dict)

    def tellings_in(self, pool: str) -> dict[str, Telling]:
        """Return what is told of each job, by the name of the member; the first has none."""
        members = {name: member.telling for name, member in self.members.items()}
        return {"": self.otherwise.get(pool, self.telling), **members}

    def jobs(self) -> dict[str, Job]:
        """Return the jobs that are sent, by the name of the member; the first has none."""
        members = {name: member.job for name, member in self.members.items() if member.job}
        return {"": self.job, **members}


FINISHED = Told("JobStarted JobFinished", ("prerun success postrun:SUCCESS",))
FAILED = Told("JobStarted JobFailed", ("prerun failure postrun:FAILURE",))
RETRIED_THEN_FINISHED = Told(
    "JobStarted JobRetried JobStarted JobFinished",
    ("prerun retry postrun:RETRY", "prerun success postrun:SUCCESS"),
)
RETRIED_THEN_FAILED = Told(
    "JobStarted JobRetried JobStarted JobFailed",
    ("prerun retry postrun:RETRY", "prerun failure postrun:FAILURE"),
)
IGNORED = Told("JobStarted JobIgnored", ("prerun postrun:IGNORED",))
NOTHING = Told()
ABORTED = Told("JobStarted JobFailed", ("prerun postrun:None",))
STARTED_ONLY = Told("JobStarted", ("prerun",))


def one_process(telling: Telling) -> dict[str, Telling]:
    return dict.fromkeys(ONE_PROCESS, telling)


def since_5_7(now: Telling, before: Telling) -> Changed:
    return Changed((5, 7), now, before)


RETURNS_OR_RAISES = (
    Outcome("success", "It returns.", Job("returns", (1,)), FINISHED),
    Outcome("exception", "It raises.", Job("raises", (1,)), FAILED),
    Outcome("bad arguments", "It is called with the wrong arguments.", Job("returns"), FAILED),
    Outcome("before_start raises", "Its `before_start` raises.", Job("prepares_badly"), FAILED),
    Outcome(
        "on_success raises",
        "It returns, and its `on_success` raises.",
        Job("succeeds_badly"),
        since_5_7(
            FINISHED,
            Told("JobStarted JobFinished", ("prerun postrun:SUCCESS internal_error failure",)),
        ),
    ),
    Outcome(
        "after_return raises",
        "It returns, and its `after_return` raises.",
        Job("returns_badly"),
        since_5_7(
            FINISHED,
            Told(
                "JobStarted JobFinished", ("prerun success postrun:SUCCESS internal_error failure",)
            ),
        ),
    ),
    Outcome(
        "on_failure raises",
        "It raises, and so does its `on_failure`, which ends a solo worker.",
        Job("fails_badly"),
        Told("JobStarted JobFailed", ("prerun postrun:None internal_error",)),
        {
            "prefork": Told(
                "JobStarted JobFailed", ("prerun postrun:None internal_error",), "failure"
            )
        },
        ends_worker=("solo",),
    ),
    Outcome(
        "result not encodable",
        "Its result can't be encoded.",
        Job("gives_what_nobody_can_encode"),
        FAILED,
    ),
    Outcome(
        "exception not picklable",
        "It raises an exception that can't be pickled.",
        Job("raises_what_nobody_can_pickle"),
        FAILED,
    ),
    Outcome(
        "MemoryError",
        "It raises `MemoryError`, which ends the worker with prefork and solo.",
        Job("runs_out_of_memory"),
        FAILED,
        ends_worker=("prefork", "solo"),
    ),
    Outcome(
        "SystemExit",
        "It raises `SystemExit`, as by `sys.exit`, which ends a solo worker.",
        Job("exits", (3,)),
        ABORTED,
        {
            "prefork": since_5_7(
                Told("JobStarted JobFailed", ("prerun postrun:None",), "failure"), ABORTED
            )
        },
        ends_worker=("solo",),
        stage=EXITS,
    ),
    Outcome(
        "KeyboardInterrupt",
        "It raises `KeyboardInterrupt`, which ends a solo worker.",
        Job("interrupts"),
        ABORTED,
        {
            "prefork": since_5_7(
                Told("JobStarted JobFailed", ("prerun postrun:None",), "failure"), ABORTED
            )
        },
        ends_worker=("solo",),
        stage=EXITS,
    ),
)

REJECTED_IN_SILENCE = Told("JobStarted JobRejected", ("prerun postrun:REJECTED",))
REJECTED = since_5_7(
    Told("JobStarted JobRejected", ("prerun postrun:REJECTED failure",)), REJECTED_IN_SILENCE
)
REJECTED_PREFORK = since_5_7(
    Told("JobStarted JobRejected", ("prerun postrun:REJECTED",), "failure"), REJECTED_IN_SILENCE
)

AGAIN_OR_UNWANTED = (
    Outcome(
        "retry", "It is retried, and returns then.", Job("retries", (1,)), RETRIED_THEN_FINISHED
    ),
    Outcome(
        "retries exhausted",
        "It is retried, and has no more retries then.",
        Job("retries", (2,)),
        RETRIED_THEN_FAILED,
    ),
    Outcome(
        "retries exhausted without a reason",
        "The same, by `self.retry()` without `exc`.",
        Job("retries", (2,), {"with_reason": False}),
        RETRIED_THEN_FAILED,
    ),
    Outcome(
        "autoretry",
        "It raises what is in its `autoretry_for`, and returns then.",
        Job("is_retried", (1,)),
        RETRIED_THEN_FINISHED,
    ),
    Outcome(
        "autoretries exhausted",
        "The same, and has no more retries then.",
        Job("is_retried", (2,)),
        RETRIED_THEN_FAILED,
    ),
    Outcome(
        "on_retry raises",
        "It is retried, its `on_retry` raises, and it returns then.",
        Job("retries_badly"),
        Told(
            "JobStarted JobFailed JobStarted JobFinished",
            ("prerun postrun:None internal_error failure", "prerun success postrun:SUCCESS"),
        ),
    ),
    Outcome(
        "replaced",
        "It is replaced by `self.replace`.",
        Job("replaces_itself"),
        Told(
            "JobStarted JobIgnored JobStarted JobFinished",
            ("prerun postrun:IGNORED", "prerun success postrun:SUCCESS"),
        ),
    ),
    Outcome(
        "ignored",
        "It raises `Ignore`.",
        Job("ignored"),
        IGNORED,
    ),
    Outcome(
        "rejected",
        "It raises `Reject`.",
        Job("rejected", keywords={"requeue": False}),
        REJECTED,
        {"prefork": REJECTED_PREFORK},
    ),
    Outcome(
        "rejected late",
        "The same, with `acks_late`.",
        Job("rejected_late", keywords={"requeue": False}),
        REJECTED,
        {"prefork": REJECTED_PREFORK},
    ),
    Outcome(
        "rejected with requeue",
        "It raises `Reject(requeue=True)` with `acks_late`; it is delivered again, and returns.",
        Job("rejected_late", keywords={"requeue": True}),
        Told(
            "JobStarted JobRejected JobStarted JobFinished",
            ("prerun postrun:REJECTED", "prerun success postrun:SUCCESS"),
        ),
    ),
    Outcome(
        "rejected with requeue too late",
        "It raises `Reject(requeue=True)` without `acks_late`: nothing is delivered again.",
        Job("rejected", keywords={"requeue": True}),
        Told("JobStarted JobRejected", ("prerun postrun:REJECTED",)),
    ),
)

REVOKED_BEFORE = Told("JobRevoked", (), "revoked")

NEVER_STARTED = (
    Outcome(
        "expired",
        "It has expired before it starts.",
        Job("returns", (1,), options={"expires": -1}),
        REVOKED_BEFORE,
    ),
    Outcome(
        "revoked before",
        "It is revoked before it starts.",
        Job("returns", (1,)),
        REVOKED_BEFORE,
        is_revoked_first=True,
    ),
    Outcome(
        "unregistered",
        "The worker doesn't know its task.",
        Job("nobody_knows"),
        Told("", (), "unknown"),
    ),
)

STOPPED_GREENLET = Told("JobStarted JobRevoked", ("prerun postrun:None",), "revoked")
REVOKED_GREENLET: dict[str, Telling] = {
    "gevent": Changed((5, 5), STOPPED_GREENLET, FINISHED),
    "eventlet": STOPPED_GREENLET,
}


def revoked(signal: str) -> Job:
    return Job("waits", steps=(f"revoke {signal}", "release"))


KILLED_AT_LIMIT = Told(
    "JobStarted JobFailed", ("prerun postrun:None",), "failure", perhaps="postrun:None"
)

LIMITS_AND_REVOKES = (
    Outcome(
        "soft time limit",
        "It passes its soft time limit.",
        Job("outlasts", options={"soft_time_limit": 0.5}),
        FINISHED,
        {"prefork": FAILED},
    ),
    Outcome(
        "soft time limit caught",
        "It catches the soft time limit's exception, and returns.",
        Job("outlasts_softly", options={"soft_time_limit": 0.5}),
        FINISHED,
    ),
    Outcome(
        "hard time limit",
        "It passes its time limit.",
        Job("outlasts", options={"time_limit": 0.5}),
        FINISHED,
        {
            "prefork": since_5_7(
                replace(KILLED_AT_LIMIT, elsewhere="failure failure"),
                KILLED_AT_LIMIT,
            ),
            "gevent": since_5_7(
                Told("JobStarted JobFailed", ("prerun postrun:None failure",)), ABORTED
            ),
        },
        stage=EXITS,
    ),
    Outcome(
        "hard time limit requeued",
        "The same, with `acks_late` and `acks_on_failure_or_timeout=False`.",
        # What comes back has the same limit, and is to end within it on a busy machine.
        Job("outlasts_at_first", options={"time_limit": 3.0}),
        FINISHED,
        {
            "prefork": since_5_7(
                Told(
                    "JobStarted JobFailed JobStarted JobFinished",
                    ("prerun postrun:None", "prerun success postrun:SUCCESS"),
                    "failure",
                    perhaps="postrun:None",
                ),
                Changed(
                    (5, 5),
                    Told(
                        "JobStarted JobLost JobStarted JobFinished",
                        ("prerun postrun:None", "prerun success postrun:SUCCESS"),
                        perhaps="postrun:None",
                    ),
                    KILLED_AT_LIMIT,
                ),
            ),
            "gevent": since_5_7(
                Told(
                    "JobStarted JobFailed JobStarted JobFinished",
                    ("prerun postrun:None failure", "prerun success postrun:SUCCESS"),
                ),
                ABORTED,
            ),
        },
        stage=EXITS,
    ),
    Outcome(
        "revoked by SIGTERM",
        "It is revoked while it runs (`terminate=True`, that is SIGTERM).",
        revoked("SIGTERM"),
        FINISHED,
        {
            "prefork": Told("JobStarted JobRevoked", ("prerun postrun:None",), "revoked"),
            **REVOKED_GREENLET,
        },
        stage=EXITS,
    ),
    Outcome(
        "revoked without a result",
        "The same, with `ignore_result`.",
        Job("waits", options={"ignore_result": True}, steps=("revoke SIGTERM", "release")),
        FINISHED,
        {
            "prefork": Told("JobStarted JobRevoked", ("prerun postrun:None",), "revoked"),
            **REVOKED_GREENLET,
        },
        stage=EXITS,
    ),
    Outcome(
        "revoked by SIGKILL",
        "It is revoked while it runs, by SIGKILL.",
        revoked("SIGKILL"),
        FINISHED,
        {
            "prefork": Told("JobStarted JobRevoked", ("prerun",), "revoked"),
            **REVOKED_GREENLET,
        },
        stage=KILLS,
    ),
    Outcome(
        "revoked by SIGUSR1",
        "The same, by SIGUSR1, the soft time limit's signal.",
        revoked("SIGUSR1"),
        FINISHED,
        {
            "prefork": Told("JobStarted JobFailed", ("prerun failure postrun:FAILURE",), "revoked"),
            **REVOKED_GREENLET,
        },
        stage=MARKS,
    ),
    Outcome(
        "revoked by SIGINT",
        "The same, by SIGINT, which pool processes ignore.",
        revoked("SIGINT"),
        FINISHED,
        {
            "prefork": Told(
                "JobStarted JobFinished", ("prerun success postrun:SUCCESS",), "revoked"
            ),
            **REVOKED_GREENLET,
        },
        stage=MARKS,
    ),
    Outcome(
        "survives SIGTERM",
        "It is revoked while it runs, catches the `SystemExit`, and returns.",
        Job("goes_on", steps=("revoke SIGTERM", "release")),
        FINISHED,
        {
            "prefork": Told(
                "JobStarted JobFinished", ("prerun success postrun:SUCCESS",), "revoked"
            ),
            **REVOKED_GREENLET,
        },
        stage=MARKS,
    ),
    Outcome(
        "survives SIGUSR1",
        "It is revoked by SIGUSR1, catches the soft time limit's exception, and returns.",
        Job("goes_on", steps=("revoke SIGUSR1", "release")),
        FINISHED,
        {
            "prefork": Told(
                "JobStarted JobFinished", ("prerun success postrun:SUCCESS",), "revoked"
            ),
            **REVOKED_GREENLET,
        },
        stage=MARKS,
    ),
    Outcome(
        "survives SIGTERM and dies",
        "It is revoked while it runs, catches the `SystemExit`, and its process dies then.",
        Job("goes_on_and_dies", ("os._exit",), steps=("revoke SIGTERM", "release")),
        Told("JobStarted JobRevoked", ("prerun",), "revoked"),
        pools=("prefork",),
        stage=MARKS,
    ),
    Outcome(
        "survives SIGUSR1 and dies",
        "The same, by SIGUSR1.",
        Job("goes_on_and_dies", ("os._exit",), steps=("revoke SIGUSR1", "release")),
        Told("JobStarted JobRevoked", ("prerun",), "revoked"),
        pools=("prefork",),
        stage=MARKS,
    ),
)

# 5.5 and 5.6 forget about it when they have no way to cut off the job.
COLD_SHUTDOWN_ENDS_SOLO = not (5, 5) <= celery.VERSION[:2] < (5, 7)

LOST = Told("JobStarted JobFailed", ("prerun",), "failure")
LOST_AND_REDELIVERED = Told(
    "JobStarted JobLost JobStarted JobFinished", ("prerun", "prerun success postrun:SUCCESS")
)

DEATHS = (
    Outcome(
        "killed",
        "Its process is killed, as by `kill -9` or for want of memory.",
        Job("waits", steps=("kill",)),
        STARTED_ONLY,
        {"prefork": LOST},
        ends_worker=ONE_PROCESS,
        stage=KILLS,
    ),
    Outcome(
        "os._exit",
        "It calls `os._exit`.",
        Job("dies", ("os._exit",), steps=("release",)),
        STARTED_ONLY,
        {"prefork": LOST},
        ends_worker=ONE_PROCESS,
        stage=KILLS,
    ),
    Outcome(
        "segfault",
        "Its process crashes (SIGSEGV).",
        Job("dies", ("segfault",), steps=("release",)),
        STARTED_ONLY,
        {"prefork": LOST},
        ends_worker=ONE_PROCESS,
        stage=KILLS,
    ),
    Outcome(
        "killed and redelivered",
        "Its process is killed, with `acks_late` and `reject_on_worker_lost`; it is delivered "
        "again, and returns.",
        Job("dies_at_first", ("os._exit",), steps=("kill",)),
        LOST_AND_REDELIVERED,
        pools=("prefork",),
        stage=KILLS,
    ),
    Outcome(
        "os._exit and redelivered",
        "It calls `os._exit`, with the same.",
        Job("dies_at_first", ("os._exit",), steps=("release",)),
        LOST_AND_REDELIVERED,
        pools=("prefork",),
        stage=KILLS,
    ),
    Outcome(
        "killed and retried",
        "Its process is killed, with `retry_on_worker_lost` (Celery 5.7).",
        Job("dies_and_is_retried", ("os._exit",), steps=("kill",)),
        since_5_7(
            Told(
                "JobStarted JobRetried JobStarted JobFinished",
                ("prerun", "prerun success postrun:SUCCESS"),
                "retry",
            ),
            LOST,
        ),
        pools=("prefork",),
        stage=KILLS,
    ),
    Outcome(
        "dies after another's revoke",
        "It survives a revoke by SIGUSR1; the *next* job in its process calls `os._exit`.",
        Job("goes_on", steps=("revoke SIGUSR1", "release")),
        Told("JobStarted JobFinished", ("prerun success postrun:SUCCESS",), "revoked"),
        pools=("prefork",),
        alone=True,
        canvas="chain",
        members={
            "next": Member(
                Told("JobStarted JobRevoked", ("prerun",), "revoked"),
                Job("dies", ("os._exit",), steps=("release",)),
            )
        },
    ),
    Outcome(
        "cold shutdown",
        "The worker is stopped cold (SIGQUIT) while it runs.",
        Job("waits", steps=("stop cold",)),
        Changed(
            (5, 5),
            Told("JobStarted JobRetried", ("prerun postrun:None",), perhaps="retry"),
            STARTED_ONLY,
        ),
        {
            "prefork": Changed(
                (5, 5),
                Told("JobStarted JobRetried", ("prerun postrun:None",), "retry"),
                Told("JobStarted JobFailed", ("prerun postrun:None",), "failure"),
            ),
            "threads": FINISHED,
            "solo": Changed((5, 5), FAILED, FINISHED),
        },
        ends_worker=tuple(pool for pool in POOLS if pool != "solo" or COLD_SHUTDOWN_ENDS_SOLO),
        alone=True,
    ),
    Outcome(
        "worker killed",
        "The worker's main process is killed.",
        Job("waits", steps=("kill worker",)),
        STARTED_ONLY,
        pools=("prefork",),
        ends_worker=("prefork",),
    ),
)

CANVASES = (
    Outcome(
        "nested apply",
        "It calls another by `apply()` (*inner*).",
        Job("applies"),
        FINISHED,
        members={
            "inner": Member(
                Told("JobStarted JobFinished", ("prerun success postrun:SUCCESS",), received=0)
            )
        },
    ),
    Outcome(
        "nested call",
        "It calls another as a function (*inner*).",
        Job("calls"),
        FINISHED,
        members={"inner": Member(NOTHING)},
    ),
    Outcome(
        "chain",
        "It is in a chain.",
        Job("returns", (1,)),
        FINISHED,
        canvas="chain",
        members={"next": Member(FINISHED, Job("returns", (2,)))},
    ),
    Outcome(
        "group",
        "It is in a group.",
        Job("returns", (1,)),
        FINISHED,
        canvas="group",
        members={"other": Member(FINISHED, Job("returns", (2,)))},
    ),
    Outcome(
        "chord",
        "It is in the header of a chord.",
        Job("returns", (1,)),
        FINISHED,
        canvas="chord",
        members={
            "other": Member(FINISHED, Job("returns", (2,))),
            "body": Member(FINISHED, Job("returns", (3,))),
        },
    ),
    Outcome(
        "chord whose header fails",
        "It fails in the header of a chord, which has an *other* job and a *body*.",
        Job("raises", (1,)),
        FAILED,
        canvas="chord",
        members={
            "other": Member(FINISHED, Job("returns", (2,))),
            "body": Member(NOTHING, Job("returns", (3,))),
        },
    ),
)


def eager(name: str, sentence: str, call: str, told: Told) -> Outcome:
    """Return an outcome in the process that calls the task; `call` names the call in the tests."""
    return Outcome(name, sentence, Job(call), replace(told, received=0), pools=("eager",))


THROWN = Told("JobStarted JobFailed", ("prerun postrun:None internal_error",))

EAGER = (
    eager("apply", "`apply()`: it returns.", "apply", FINISHED),
    eager("delay", "`delay()` with `task_always_eager`: it returns.", "delay", FINISHED),
    eager("exception", "It raises.", "raises", FAILED),
    eager("exception thrown", "It raises, with `throw=True`.", "throws", THROWN),
    eager("exception propagated", "The same by `task_eager_propagates`.", "propagates", THROWN),
    eager("SystemExit", "It raises `SystemExit`.", "exits", ABORTED),
    eager("retry", "It is retried, and returns then.", "retries once", RETRIED_THEN_FINISHED),
    eager(
        "retries exhausted",
        "It is retried, and has no more retries then.",
        "retries in vain",
        RETRIED_THEN_FAILED,
    ),
    eager("ignored", "It raises `Ignore`.", "is ignored", IGNORED),
    eager("rejected", "It raises `Reject`.", "is rejected", REJECTED_IN_SILENCE),
    eager("direct call", "It is called as a function.", "calls", NOTHING),
)

SECTIONS = {
    "It returns or raises": RETURNS_OR_RAISES,
    "It is tried again, or not wanted": AGAIN_OR_UNWANTED,
    "It never starts": NEVER_STARTED,
    "It takes too long, or is revoked while it runs": LIMITS_AND_REVOKES,
    "Its process or its worker ends": DEATHS,
    "It belongs to others": CANVASES,
    "It runs in the process that calls it": EAGER,
}

#: Those that need a worker.
OUTCOMES = tuple(
    outcome for outcomes in SECTIONS.values() if outcomes is not EAGER for outcome in outcomes
)


# The page.

VERSIONS = ((5, 4), (5, 5), (5, 6), (5, 7))

INTRODUCTION = """\
# Outcomes

What happens to a job, what Celery tells of it, and which events you get. Every row is held
against real workers by the tests, which also see that your own signal receivers hear the same
with the broadcast on as off.

An attempt gives one `JobStarted` and one end. A semicolon stands between two attempts of the same
job. Where a job never started, the end is alone. Where the whole worker is killed, nobody is
left to tell the end.

Celery's signals are named without their `task_`, and without `task_received`. They come from
where the job runs; those after "main:" come from the main process, of a job that runs or ran in
a pool process, or from another thread of it. One in brackets comes or doesn't.

A line without a version holds for Celery 5.4 to 5.7. A line without a pool holds for all of them.
"""


def page() -> str:
    """Return docs/outcomes.md."""
    parts = [INTRODUCTION]
    for title, outcomes in SECTIONS.items():
        lines = [
            f"## {title}",
            "",
            "| What happens | Where | What Celery tells | Events |",
            "|---|---|---|---|",
            *(line for outcome in outcomes for line in _lines(outcome)),
            "",
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _lines(outcome: Outcome) -> list[str]:
    """Return a line for each telling, with the pools and versions in which it holds."""
    where: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = {}
    for pool in outcome.pools:
        for version in VERSIONS:
            tellings = outcome.tellings_in(pool)
            told = {name: told_by(version, telling) for name, telling in tellings.items()}
            cells = (_cell(told, _signals_text), _cell(told, _events_text))
            where.setdefault(cells, {}).setdefault(pool, []).append(version)
    sentences = [outcome.sentence, *("" for _ in where)]
    return [
        f"| {sentence} | {_where_text(outcome, places)} | {signals} | {events} |"
        for sentence, ((signals, events), places) in zip(sentences, where.items(), strict=False)
    ]


def _cell(told: Mapping[str, Told], text: Callable[[Told], str]) -> str:
    """Return what is told of the job, and of its members where that differs."""
    texts = {member: text(each) for member, each in told.items()}
    others = {member: each for member, each in texts.items() if each != texts[""]}
    return "<br>".join([texts[""], *(f"{member}: {each}" for member, each in others.items())])


def _events_text(told: Told) -> str:
    attempts = told.events.replace(" JobStarted", "; JobStarted")
    return re.sub(r"(\w+)", r"`\1`", attempts).replace("` `", "`, `") or "none"


def _signals_text(told: Told) -> str:
    attempts = [re.sub(r":\w+", "", attempt).replace(" ", ", ") for attempt in told.attempts]
    perhaps = [name for name in told.perhaps.split() if name != "postrun:None"]
    elsewhere = [*told.elsewhere.split(), *(f"({name})" for name in perhaps)]
    main = ["main: " + ", ".join(elsewhere)] if elsewhere else []
    return "; ".join([*attempts, *main]) or "nothing"


def _where_text(outcome: Outcome, places: Mapping[str, list[tuple[int, int]]]) -> str:
    """Return the pools and versions, such as "threads, solo; gevent 5.7"."""
    pools_of: dict[str, list[str]] = {}
    for pool, versions in places.items():
        pools_of.setdefault(_versions_text(versions), []).append(pool)
    texts = {
        versions: "" if tuple(pools) in {POOLS, ("eager",)} else ", ".join(pools)
        for versions, pools in pools_of.items()
    }
    return "; ".join(f"{pools} {versions}".strip() for versions, pools in texts.items())


def _versions_text(versions: Sequence[tuple[int, int]]) -> str:
    first, last = (".".join(map(str, version)) for version in (versions[0], versions[-1]))
    if tuple(versions) == VERSIONS:
        return ""
    return first if first == last else f"{first} to {last}"


if __name__ == "__main__":
    sys.stdout.write(page())
