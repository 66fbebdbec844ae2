"""Who disturbs the worker: kills its processes, revokes its jobs, and resizes its pool."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from celery.app.control import Control

from chaos.journal import Published
from chaos.main_process import MainProcess

#: What it does to a process or a job, and how often; together they are the kills.
KILLS = {
    "SIGKILL": 30,
    "SIGSEGV": 20,
    "SIGTERM": 20,
    "revoke by SIGTERM": 15,
    "revoke by SIGKILL": 15,
}

#: What it asks of the pool.
REQUESTS = ("pool_grow or pool_shrink", "pool_restart")

KILLS_PER_REQUEST = 10


def plan(random: Random, jobs: int, kills: int) -> list[tuple[int, str]]:
    """Draw what is done when this many jobs have been taken, in this order."""
    names = random.choices(list(KILLS), list(KILLS.values()), k=kills)
    names += random.choices(REQUESTS, k=kills // KILLS_PER_REQUEST)
    random.shuffle(names)
    moments = sorted(random.randrange(jobs) for _ in names)
    return list(zip(moments, names, strict=True))


class Killer:
    """Draws whom it strikes.

    Attributes:
        done: how often it did what.
    """

    def __init__(
        self, random: Random, main_process: MainProcess, control: Control, node_name: str
    ) -> None:
        self.done: Counter[str] = Counter()
        self._random = random
        self._main_process = main_process
        self._control = control
        self._destination = [node_name]
        self._grown = 0  # by so many processes

    def strike(self, name: str, running: Sequence[Published]) -> bool:
        """Do one thing of the plan; return False if there is nobody to do it to just now.

        Args:
            name: what to do.
            running: the starts of the attempts that run.
        """
        if name == "pool_restart":
            self._control.pool_restart(destination=self._destination)
        elif name in REQUESTS:
            self.resize()
        elif name.startswith("revoke by "):
            if not running:
                return False
            self.revoke(self._random.choice(running).task_id, name.removeprefix("revoke by "))
            return True
        else:
            children = self._main_process.children()
            if not children:
                return False
            try:
                os.kill(self._random.choice(children), signal.Signals[name])
            except ProcessLookupError:
                return False
        self.done[name] += 1
        return True

    def revoke(self, task_id: str, signal_name: str) -> None:
        """Have a running job terminated."""
        self._control.revoke(
            task_id, destination=self._destination, terminate=True, signal=signal_name
        )
        self.done[f"revoke by {signal_name}"] += 1

    def shrink_back(self) -> None:
        """Give the pool the size it had; to be called when no process is at work."""
        while self._grown and self._shrink():
            pass

    def resize(self) -> None:
        """Grow, or shrink if it has grown; Celery refuses to shrink where all are at work."""
        if self._grown:
            self._shrink()
        else:
            self._grown += self._is_accepted(self._control.pool_grow)

    def _shrink(self) -> bool:
        accepted = self._is_accepted(self._control.pool_shrink)
        self._grown -= accepted
        return accepted

    def _is_accepted(self, request: Callable[..., Any]) -> bool:
        answers = request(1, destination=self._destination, reply=True, limit=1, timeout=5.0)
        return any("ok" in answer for by_node in answers or () for answer in by_node.values())
