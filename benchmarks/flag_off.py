"""What a process in which the flag is off pays for its jobs: nothing, as nobody listens.

No time is measured: each of Celery's signals has the same receivers as before
the broadcast was installed, so that a job does what it does without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery, signals
from celery.utils.dispatch import Signal

import celery_broadcast
from benchmarks.measure import Comparison, Rounds

_SIGNALS = [signal for signal in vars(signals).values() if isinstance(signal, Signal)]


def measure(_: int) -> list[Comparison]:
    """Compare the receivers; once is enough."""
    app = Celery("benchmark", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True, broadcast_enabled=False)
    noop = app.task(name="benchmark.noop", shared=False)(ignore)
    before = receivers()
    celery_broadcast.install(app)
    noop.delay()
    same = sum(now == then for now, then in zip(receivers(), before, strict=True))
    celery_broadcast.uninstall(app)
    measured = Rounds(
        "signals", {"the same receivers, off": [[same]], "all of Celery's": [[len(_SIGNALS)]]}
    )
    return [measured.compare("the same receivers, off", "all of Celery's", at_least=1.0)]


def ignore() -> None:
    """Do nothing, as a job."""


def receivers() -> Sequence[object]:
    """Return who listens, signal by signal."""
    return [list(signal.receivers) for signal in _SIGNALS]
