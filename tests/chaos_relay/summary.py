"""What happened in a run, as a table."""

from __future__ import annotations

import os
from collections import Counter

from chaos_relay.journal import Handled, Published
from chaos_relay.run import Result
from chaos_relay.verdicts import duplicates


def summary(result: Result) -> str:
    """Return the table."""
    published = [line for line in result.lines if isinstance(line, Published)]
    ended = {line.task_id for line in published if line.event != "JobStarted"}
    handled = Counter(line.group for line in result.lines if isinstance(line, Handled))
    letters = Counter(
        f"{group}: {letter.reason}" for group, of in result.letters.items() for letter in of
    )
    rows = {
        "jobs": f"{result.order.jobs}, of which {len(ended)} ran",
        "events published": str(len(published)),
        "done": _counts(result.done),
        "died of an event": _counts(result.deaths),
        "workers ended by Celery": str(result.crashes),
        "handled": _counts(handled),
        "handled again": _counts(duplicates(result)),
        "dead letters": _counts(letters),
        "seconds": f"{result.seconds:.1f}",
    }
    width = max(map(len, rows)) + 2
    return os.linesep.join(f"  {name:{width}}{value}" for name, value in rows.items())


def _counts(counter: Counter[str]) -> str:
    parts = (f"{count} {name}" for name, count in sorted(counter.items()))
    return f"{counter.total()}" + (f" ({', '.join(parts)})" if counter else "")
