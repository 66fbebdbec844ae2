"""What happened in a run, as a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from chaos.attempts import attempts_of
from chaos.run import Result


def summary(result: Result) -> str:
    """Return the table."""
    attempts = attempts_of(result.lines, result.main_pid)
    ends = Counter(attempt.last_end or "none" for attempt in attempts)
    by_parent = Counter(end for attempt in attempts for end in attempt.told_by_parent)
    without_start = Counter(attempt.last_end for attempt in attempts if not attempt.starts)
    cut_off = sum(
        bool(attempt.begun_by_child and not attempt.told_by_child) for attempt in attempts
    )
    drops: Counter[str] = Counter()
    for stats in result.numbers.values():
        drops.update(stats.dropped)
    rows = {
        "jobs": str(result.order.jobs),
        "kills": counted(result.done),
        "attempts started": str(sum(attempt.starts for attempt in attempts)),
        "ends": counted(ends),
        "told by the main process": counted(by_parent),
        "without a start": counted(without_start),
        "cut off while telling": str(cut_off),
        "dropped": counted(drops),
        "seconds": f"{result.seconds:.1f}",
    }
    return table(rows)


def table(rows: Mapping[str, str]) -> str:
    """Return a line for each, with what there is to say of it."""
    width = max(map(len, rows)) + 2
    return os.linesep.join(f"  {name:{width}}{value}" for name, value in rows.items())


def counted(counter: Counter[str]) -> str:
    """Return the sum, and behind it what it is made of."""
    parts = (f"{count} {name}" for name, count in sorted(counter.items()))
    return f"{counter.total()}" + (f" ({', '.join(parts)})" if counter else "")
