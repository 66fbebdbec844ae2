"""What the journal tells of each attempt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.journal import AnyLine, Closed, Published


@dataclass
class Attempt:
    """A started attempt, or what was told of one that never started.

    Attributes:
        task_name: the name of its task.
        task_id: the id of its job; other attempts have the same.
        pid: the process that ran it.
        started_at: when it started; None if it never did.
        starts: how often its start was published.
        told_by_parent: the ends that the main process published.
        begun_by_child: the ends that its own process was about to publish.
        told_by_child: those of them that were published for sure.
    """

    task_name: str
    task_id: str
    pid: int
    started_at: float | None
    starts: int = 0
    told_by_parent: list[str] = field(default_factory=list)
    begun_by_child: list[str] = field(default_factory=list)
    told_by_child: list[str] = field(default_factory=list)

    @property
    def ends(self) -> int:
        """How many ends it has.

        If its process died while it published one, and the main process
        published none, the one was out already.
        """
        in_between = bool(
            self.begun_by_child and not self.told_by_child and not self.told_by_parent
        )
        return len(self.told_by_parent) + len(self.told_by_child) + in_between

    @property
    def last_end(self) -> str:
        """The event it ended with; "" if it has no end."""
        return (["", *self.begun_by_child, *self.told_by_child, *self.told_by_parent])[-1]

    def __str__(self) -> str:
        return (
            f"{self.task_name}[{self.task_id}] in pid {self.pid}, started at {self.started_at!r}: "
            f"{self.starts} starts, "
            f"from the main process {self.told_by_parent}, "
            f"begun in its own {self.begun_by_child}, done there {self.told_by_child}"
        )


def attempts_of(lines: Iterable[AnyLine], main_pid: int) -> list[Attempt]:
    """Return all attempts, those that never started too.

    Args:
        lines: the journal.
        main_pid: the main process of the worker.
    """
    started: dict[tuple[str, int, float], Attempt] = {}
    never_started: list[Attempt] = []
    for line in lines:
        if not isinstance(line, Published | Closed):
            continue
        if line.started_at is None:
            if isinstance(line, Published):
                attempt = Attempt(line.task_name, line.task_id, line.pid, None)
                attempt.told_by_parent.append(line.event)
                never_started.append(attempt)
            continue
        key = (line.task_id, line.pid, line.started_at)
        if isinstance(line, Closed):
            # What the main process publishes is counted when it does so.
            if line.writer != main_pid:
                started[key].told_by_child.append(line.event)
            continue
        attempt = started.setdefault(key, Attempt(line.task_name, *key))
        if line.event == "JobStarted":
            attempt.starts += 1
        elif line.writer == main_pid:
            attempt.told_by_parent.append(line.event)
        else:
            attempt.begun_by_child.append(line.event)
    return [*started.values(), *never_started]
