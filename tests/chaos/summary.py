"""What happened in a run, as a table."""

from __future__ import annotations

import os
from collections import Counter

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
        "kills": _counts(result.done),
        "attempts started": str(sum(attempt.starts for attempt in attempts)),
        "ends": _counts(ends),
        "told by the main process": _counts(by_parent),
        "without a start": _counts(without_start),
        "cut off while telling": str(cut_off),
        "dropped": _counts(drops),
        "seconds": f"{result.seconds:.1f}",
    }
    width = max(map(len, rows)) + 2
    return os.linesep.join(f"  {name:{width}}{value}" for name, value in rows.items())


def _counts(counter: Counter[str]) -> str:
    parts = (f"{count} {name}" for name, count in sorted(counter.items()))
    return f"{counter.total()}" + (f" ({', '.join(parts)})" if counter else "")
