"""What happened in a run, as a table."""

from __future__ import annotations

from collections import Counter

from chaos.summary import counted, table

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
        "done": counted(result.done),
        "died of an event": counted(result.deaths),
        "workers ended by Celery": str(len(result.given_up)),
        "handled": counted(handled),
        "handled again": counted(duplicates(result)),
        "dead letters": counted(letters),
        "seconds": f"{result.seconds:.1f}",
    }
    return table(rows)
