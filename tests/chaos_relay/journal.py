"""What workers and replicas write down: what was published, and who has handled it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from chaos.journal import Line

from celery_broadcast.counts import ConsumerStats

#: An event's type, its job, the process that ran it, and when that started it.
Key: TypeAlias = tuple[str, str, int, "float | None"]


class Told(Line, frozen=True, kw_only=True):
    """A consumer got an event.

    Attributes:
        event: its type, which with the other fields makes it that one event.
    """

    event: str
    task_id: str
    pid: int
    started_at: float | None

    @property
    def key(self) -> Key:
        """What tells the event from all others."""
        return self.event, self.task_id, self.pid, self.started_at


class Published(Told, frozen=True, kw_only=True, tag=True):
    """A consumer in the worker got it, as the relay does."""


class Handled(Told, frozen=True, kw_only=True, tag=True):
    """A remote consumer is about to return from it."""

    group: str
    event_id: str


class Drained(Line, frozen=True, kw_only=True, tag=True):
    """A process of a worker has drained; what it has counted, by the consumer's name."""

    numbers: dict[str, ConsumerStats]


AnyLine: TypeAlias = Published | Handled | Drained
DECODER: msgspec.json.Decoder[AnyLine] = msgspec.json.Decoder(AnyLine)
