"""The page of all outcomes, and those in the process that calls: the rows without a worker."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject
from outcomes import EAGER, OUTCOMES, Outcome, page, told_here
from recorder import Recorder

import celery_broadcast
from celery_broadcast import JobEnded, JobStarted, on_job_event

PAGE = Path(__file__).parent.parent / "docs" / "outcomes.md"

HEARD = (
    *("task_received", "task_prerun", "task_success", "task_failure", "task_retry"),
    *("task_revoked", "task_rejected", "task_unknown", "task_internal_error", "task_postrun"),
)


def test_the_page_of_outcomes_is_what_the_command_writes() -> None:
    assert PAGE.read_text() == page(), "write it: python tests/outcomes.py > docs/outcomes.md"


def test_every_outcome_has_a_name_of_its_own() -> None:
    for outcomes in (OUTCOMES, EAGER):
        names = [outcome.name for outcome in outcomes]

        assert sorted(set(names)) == sorted(names)


def calls(app: Celery) -> dict[str, Callable[[], object]]:
    """Return what is called, by the name in the rows."""

    @app.task
    def returns() -> None:
        pass

    @app.task
    def raises() -> None:
        raise ValueError

    @app.task
    def exits() -> None:
        sys.exit(3)

    @app.task(bind=True, max_retries=1)
    def retries(self: Task[..., None], times: int) -> None:
        if self.request.retries < times:
            raise self.retry(exc=ConnectionError("no"), countdown=0)

    @app.task
    def ignored() -> None:
        raise Ignore

    @app.task
    def rejected() -> None:
        raise Reject("unwanted", requeue=False)

    def propagates() -> None:
        app.conf.task_eager_propagates = True
        raises.delay()

    return {
        "apply": returns.apply,
        "delay": returns.delay,
        "raises": raises.apply,
        "throws": partial(raises.apply, throw=True),
        "propagates": propagates,
        "exits": exits.apply,
        "retries once": partial(retries.apply, (1,)),
        "retries in vain": partial(retries.apply, (2,)),
        "is ignored": ignored.apply,
        "is rejected": rejected.apply,
        "calls": returns,
    }


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Names the signals that a user's receiver hears, a postrun with its state."""
    names: list[str] = []

    def hear(name: str, *, signal: object, state: str | None = None, **_: object) -> None:
        name = name.removeprefix("task_")
        names.append(f"{name}:{state}" if name == "postrun" else name)

    receivers = {name: partial(hear, name) for name in HEARD}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver, weak=False)
    yield names
    for name, receiver in receivers.items():
        getattr(signals, name).disconnect(receiver)


def enact(app: Celery, outcome: Outcome) -> None:
    with contextlib.suppress(ValueError, SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Celery's word for a thrown exception
        calls(app)[outcome.job.task]()


each_eager_outcome = pytest.mark.parametrize(
    "outcome", [pytest.param(outcome, id=outcome.name) for outcome in EAGER]
)


@each_eager_outcome
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
def test_receivers_hear_the_same_of_an_eager_job_with_the_broadcast_on_and_off(
    app: Celery, heard: list[str], outcome: Outcome, *, enabled: bool
) -> None:
    app.conf.broadcast_enabled = enabled
    celery_broadcast.install(app)

    enact(app, outcome)

    (told,) = outcome.tellings_in("eager").values()
    assert heard == told_here(told).signals


@each_eager_outcome
def test_each_attempt_of_an_eager_job_gives_its_start_and_its_one_end(
    broadcasting_app: Celery, outcome: Outcome
) -> None:
    recorder = Recorder()
    on_job_event(name="recorder")(recorder.handle)

    enact(broadcasting_app, outcome)

    celery_broadcast.drain()
    (told,) = outcome.tellings_in("eager").values()
    names = [type(event).__name__ for event in recorder.events]
    assert " ".join(names) == told_here(told).events
    starts = [event for event in recorder.events if isinstance(event, JobStarted)]
    ends = [event for event in recorder.events if isinstance(event, JobEnded)]
    facts = [
        [(each.started_at, each.pid, each.retries) for each in both] for both in (starts, ends)
    ]
    assert facts[0] == facts[1]
