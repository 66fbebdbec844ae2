"""The jobs of a run: how each ends is drawn at random."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

# The environment variable with the seed, for what the worker draws.
SEED = "CHAOS_SEED"

AWAITS_REVOKE = "awaits_revoke"


@dataclass(frozen=True)
class Job:
    """A job to be sent.

    Attributes:
        task: what is run, as it is called in `chaos.app`.
        task_id: the id it is sent under.
        arguments: keyword arguments of the task.
        options: how it is sent.
    """

    task: str
    task_id: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """Jobs that end alike.

    Attributes:
        weight: how many of a thousand jobs.
        arguments: draws the keyword arguments of the task.
        options: draws how it is sent.
    """

    weight: int
    arguments: Callable[[Random], dict[str, Any]] = lambda _: {}
    options: Callable[[Random], dict[str, Any]] = lambda _: {}


def _shortly(random: Random) -> dict[str, Any]:
    return {"seconds": random.uniform(0.001, 0.03)}


#: By task. Those that cost their process its life are few: a new one takes time.
KINDS: Mapping[str, Kind] = {
    "noop": Kind(400),
    "sleeps": Kind(230, _shortly),
    "fails": Kind(60, lambda _: {"message": "at random"}),
    "retries": Kind(50, lambda random: {"times": random.randint(1, 3)}),
    "ignored": Kind(30),
    "rejected": Kind(30, lambda random: {"requeue": random.random() < 0.5}),
    "exits": Kind(8, lambda random: {"code": random.randint(0, 3)}),
    "sleeps_late": Kind(60, _shortly),
    "dies_late": Kind(5),
    "follows_null": Kind(4),
    "segfaults": Kind(4),
    "passes_hard_limit": Kind(
        4, lambda _: {"seconds": 5.0}, lambda random: {"time_limit": random.uniform(0.02, 0.1)}
    ),
    # The limit strikes before, while and after the job returns.
    "passes_soft_limit": Kind(15, _shortly, lambda random: {"soft_time_limit": 0.02}),
    "catches_soft_limit": Kind(15, _shortly, lambda random: {"soft_time_limit": 0.02}),
    "expires": Kind(20, options=lambda _: {"expires": -1}),
    "nests": Kind(60, _shortly),
    AWAITS_REVOKE: Kind(10, lambda _: {"seconds": 1.0}),
}


def one_of_each(random: Random, without: Collection[str] = ()) -> Iterator[Job]:
    """Draw a job of each kind."""
    return (_draw(random, name) for name in KINDS if name not in without)


def mixed(random: Random, count: int, without: Collection[str] = ()) -> Iterator[Job]:
    """Draw this many jobs.

    Args:
        random: decides.
        count: how many.
        without: kinds to leave out.
    """
    weights = {name: kind.weight for name, kind in KINDS.items() if name not in without}
    for name in random.choices(list(weights), list(weights.values()), k=count):
        yield _draw(random, name)


def _draw(random: Random, name: str) -> Job:
    kind = KINDS[name]
    task_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
    return Job(name, task_id, kind.arguments(random), kind.options(random))
