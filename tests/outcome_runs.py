"""Runs every outcome of a pool on real workers, with the broadcast on and with it off."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery.canvas import Signature, chain, group
from nodes.deadline import wait_until
from outcomes import OUTCOMES, STAGES, Job, Outcome, Told, told_here
from reports import CallReport, EventReport, SignalReport
from running_worker import RunningWorker, started_worker

IMPORTS = (
    *("celery_broadcast.plugin", "job_app_outcomes"),
    *("job_app_consumers", "job_app_signals"),
)

# Enough that no job waits for one that waits for the test.
CONCURRENCY = {"prefork": 12, "threads": 16, "solo": 1, "gevent": 50, "eventlet": 50}

# Where a limit does something; elsewhere the job runs on.
ENFORCED = {"soft_time_limit": ("prefork",), "time_limit": ("prefork", "gevent")}
BEYOND_ANY_LIMIT_SECONDS = 60.0
BEYOND_THE_LIMIT_SECONDS = 1.0

# Celery says the one up to 5.4, and the other from 5.5 on.
COLD_SHUTDOWN = re.compile(r"Cold shutdown|Hitting Ctrl.C again")

# A worker may take five seconds to see that a process is gone.
TELLING_SECONDS = 20.0
STARTING_SECONDS = 60.0
ENDING_SECONDS = 60.0


@dataclass(frozen=True)
class Observed:
    """What was told of one job."""

    events: list[EventReport]
    signals: list[SignalReport]

    def attempts(self) -> list[list[EventReport]]:
        """Return the events of each attempt, its start first; that of the first start first."""
        attempts = defaultdict(list)
        for event in self.events:
            attempts[event.started_at or 0.0, event.job_pid].append(event)
        return [
            sorted(events, key=lambda event: event.ended_at or 0.0)
            for _, events in sorted(attempts.items())
        ]

    def story(self) -> str:
        """Return the names of the events, as `Told.events` has them."""
        return " ".join(event.event for attempt in self.attempts() for event in attempt)

    def heard(self, expected: Told) -> Told:
        """Return what the receivers heard, but for what may as well not come."""
        attempts: list[list[str]] = []
        elsewhere: list[str] = []
        latest: dict[tuple[int, str], list[str]] = {}  # by where it ran
        received = 0
        for report in self.signals:
            name = report.signal.removeprefix("task_")
            where = (report.pid, report.thread)
            if name == "received":
                received += 1
                continue
            if name == "prerun":
                latest[where] = []
                attempts.append(latest[where])
            if name == "postrun":
                name += ":" + report.arguments["state"].strip("'")
            if where in latest:
                latest[where].append(name)
            elif name not in expected.perhaps.split():
                elsewhere.append(name)
        if "postrun:None" in expected.perhaps.split():
            for attempt in attempts:
                attempt.extend(["postrun:None"] * (attempt == ["prerun"]))
        return Told(
            attempts=tuple(map(" ".join, attempts)),
            elsewhere=" ".join(elsewhere),
            received=received,
        )


@dataclass
class Run:
    """Some outcomes on one worker.

    Attributes:
        pool: of the worker.
        outcomes: those whose jobs it runs.
        worker: has a queue of its own.
        broadcasting: whether the broadcast is on.
        failure: why it came to nothing, if it did.
    """

    pool: str
    outcomes: Sequence[Outcome]
    worker: RunningWorker
    broadcasting: bool
    failure: Exception | None = None
    _ids: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for outcome in self.outcomes:
            job_id = str(uuid4())
            self._ids[outcome.name, ""] = job_id
            for member in outcome.members:
                self._ids[outcome.name, member] = f"{job_id}.{member}"

    def observed(self, outcome: Outcome) -> dict[str, Observed]:
        """Return what was told of each job, by the name of the member; the first has none."""
        return {member: self._observed(outcome, member) for member in outcome.tellings_in("")}

    def _observed(self, outcome: Outcome, member: str) -> Observed:
        task_id = self._ids[outcome.name, member]
        listener = self.worker.listener
        return Observed(
            listener.reports(EventReport, consumer="trail", task_id=task_id),
            listener.reports(SignalReport, task_id=task_id),
        )

    # The stages, in order.

    def prepare(self) -> None:
        """Revoke what is to be revoked before it is sent."""
        for outcome in self.outcomes:
            if outcome.is_revoked_first:
                self.worker.process.ready(STARTING_SECONDS)
                self._revoke(self._ids[outcome.name, ""])

    def send(self, *, stage: int) -> None:
        """Send the jobs of all outcomes of this stage."""
        for outcome in self._outcomes(stage=stage):
            self._send(outcome)

    def take_steps(self, *, stage: int) -> None:
        """Do to each job what is to be done, as soon as it runs."""
        for outcome in self._outcomes(stage=stage):
            for member, job in outcome.jobs().items():
                if job.steps:
                    job_id = self._ids[outcome.name, member]
                    pid = self._wait_until_running(job_id)
                    for step in job.steps:
                        self._take_step(step, job_id, pid)

    def wait_until_told(self, *, stage: int, deadline: float) -> None:
        """Return when as much has come as is to come; what hasn't by then, each row says."""
        outcomes = self._outcomes(stage=stage)
        self.worker.listener.hears(
            lambda: all(map(self._is_told, outcomes)),
            timeout_seconds=max(0.0, deadline - time.monotonic()),
        )

    def stop(self) -> None:
        """Begin to stop the worker, unless it has to end by itself."""
        if not any(self.pool in outcome.ends_worker for outcome in self.outcomes):
            self.worker.process.kill("SIGTERM")

    def wait(self) -> None:
        """Return when the worker has ended: nothing can come late."""
        self.worker.wait(ENDING_SECONDS)

    # What they need.

    def _outcomes(self, *, stage: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.stage == stage]

    def _send(self, outcome: Outcome) -> None:
        app = self.worker.app
        first, *others = (
            self._signature(job, self._ids[outcome.name, member])
            for member, job in outcome.jobs().items()
        )
        if outcome.canvas == "chain":
            chain(first, *others, app=app).apply_async()
        elif outcome.canvas == "group":
            group([first, *others], app=app).apply_async()
        elif outcome.canvas == "chord":
            # By the worker: Celery keeps the results of a header where it is sent, for ever.
            *header, body = (first, *others)
            app.send_task("job_app_outcomes.sends_chord", (header, body))
        else:
            first.apply_async()

    def _signature(self, job: Job, job_id: str) -> Signature[Any]:
        arguments = job.arguments
        if job.task.startswith("outlasts"):
            is_enforced = any(self.pool in ENFORCED[option] for option in job.options)
            beyond = max(job.options.values()) + BEYOND_THE_LIMIT_SECONDS
            arguments = (BEYOND_ANY_LIMIT_SECONDS if is_enforced else beyond,)
        return self.worker.app.signature(
            f"job_app_outcomes.{job.task}",
            arguments,
            dict(job.keywords),
            options={"task_id": job_id, **job.options},
            immutable=True,
        )

    def _wait_until_running(self, job_id: str) -> int:
        """Return the process that runs the job, when it does and its start was told."""
        listener = self.worker.listener
        (call,) = listener.wait_for(
            1, CallReport, consumer=job_id, timeout_seconds=STARTING_SECONDS
        )
        if self.broadcasting:
            listener.wait_for(1, EventReport, consumer="trail", task_id=job_id)
        if self.pool not in {"threads", "solo"}:
            # A job whose process dies before its parent knows that it runs it is run again.
            # Not with threads: a SIGQUIT that finds the main thread at its answer is lost,
            # for Celery takes it for an error of the command. And solo is deaf meanwhile.
            wait_until(self.worker.is_listening, STARTING_SECONDS)
            wait_until(lambda: job_id in (self.worker.active_jobs() or ()), STARTING_SECONDS)
        return call.pid

    def _take_step(self, step: str, job_id: str, pid: int) -> None:
        process = self.worker.process
        if step == "kill":
            os.kill(pid, signal.SIGKILL)
        elif step == "kill worker":
            process.kill("SIGKILL")
        elif step == "stop cold":
            process.kill("SIGQUIT")
            if self.pool in {"threads", "solo"}:  # which can't cut it off, or may not
                wait_until(lambda: COLD_SHUTDOWN.search(process.logs()))
                self._release(job_id)
        elif step == "release":
            self._release(job_id)
        else:
            _, name = step.split()
            self._revoke(job_id, terminate=True, signal=name)

    def _release(self, job_id: str) -> None:
        Path(self.worker.listener.path).with_name(job_id).touch()

    def _revoke(self, job_id: str, **arguments: Any) -> None:
        """Revoke a job, and wait until that is done, if the worker can hear it now."""
        if self.pool != "solo" or not arguments:
            wait_until(self.worker.is_listening, STARTING_SECONDS)
            arguments |= {"reply": True, "limit": 1, "timeout": 30}
        self.worker.app.control.revoke(
            job_id, destination=[self.worker.process.node_name], **arguments
        )

    def _is_told(self, outcome: Outcome) -> bool:
        """Tell whether as much has come as is to come."""
        for member, telling in outcome.tellings_in(self.pool).items():
            expected, observed = told_here(telling), self._observed(outcome, member)
            if len(observed.signals) < len(expected.signals):
                return False
            if self.broadcasting and len(observed.events) < len(expected.events.split()):
                return False
        return True


@contextmanager
def all_runs(pool: str, config: Mapping[str, Any]) -> Iterator[list[Run]]:
    """Run every outcome of a pool twice: with the broadcast on, and with it off.

    All that leave a worker alive share one; each of the others has one of its own.
    """
    outcomes = [outcome for outcome in OUTCOMES if pool in outcome.pools]
    alone = [outcome for outcome in outcomes if pool in outcome.ends_worker or outcome.alone]
    batches = [[each for each in outcomes if each not in alone], *([each] for each in alone)]
    with ExitStack() as stack:
        runs = []
        for batch in batches:
            is_shared = batch is batches[0]
            for broadcasting in (True, False):
                worker = started_worker(
                    {**config, "broadcast_enabled": broadcasting, "imports": IMPORTS},
                    pool=pool,
                    concurrency=CONCURRENCY[pool] if is_shared or pool != "prefork" else 1,
                )
                runs.append(Run(pool, batch, stack.enter_context(worker), broadcasting))
        _enact(runs)
        yield runs


def _enact(runs: Sequence[Run]) -> None:
    """Take all runs through the stages, one stage after the other."""

    def each(stage: Callable[[Run], object]) -> None:
        for run in runs:
            if run.failure is None:
                try:
                    stage(run)
                except (AssertionError, RuntimeError, TimeoutError) as failure:
                    run.failure = failure  # for its rows to tell

    each(Run.prepare)
    for stage in STAGES:
        each(partial(Run.send, stage=stage))
        each(partial(Run.take_steps, stage=stage))
        deadline = time.monotonic() + TELLING_SECONDS
        each(partial(Run.wait_until_told, stage=stage, deadline=deadline))
    each(Run.stop)
    each(Run.wait)
