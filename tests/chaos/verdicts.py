"""Whether a run was as it should be: each check tells what was wrong, and with which job."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from chaos.attempts import Attempt, attempts_of
from chaos.journal import Drained, Handled, Published
from chaos.run import Result

# The only ends that an attempt can have which never started: it was revoked or
# had expired, or its process died before it began.
ENDS_WITHOUT_START = {"JobRevoked", "JobFailed"}

# The consumers whose tracebacks are wanted in the log.
RAISING = ("raises", "exits")

_DIGITS = re.compile(r"\d+")
_RECORD = re.compile(r"^(?=\[\d{4}-\d\d-\d\d )", re.MULTILINE)


def complaints(result: Result) -> list[str]:
    """Return all that is wrong, a text for each."""
    attempts = attempts_of(result.lines, result.main_pid)
    return [
        *result.troubles,
        *_of_attempts(attempts),
        *_of_numbers(result),
        *_of_order(result),
        *_of_holdings(result),
        *_of_log(result.log),
        *([] if result.exit_code == 0 else [f"The worker's exit code is {result.exit_code}."]),
    ]


def _of_attempts(attempts: Iterable[Attempt]) -> Iterator[str]:
    """Every started attempt has one end."""
    for attempt in attempts:
        if attempt.started_at is None:
            if attempt.last_end not in ENDS_WITHOUT_START:
                yield f"An attempt without a start can't end so: {attempt}"
        elif attempt.starts > 1:
            yield f"An attempt has {attempt.starts} starts: {attempt}"
        elif attempt.ends != 1 and (attempt.starts or attempt.ends):
            yield f"An attempt has {attempt.ends} ends: {attempt}"


def _of_numbers(result: Result) -> Iterator[str]:
    """Every event is accounted for, and the consumers have seen what is counted."""
    cut_short = _cut_short(result)
    lines: dict[str, Counter[bool]] = defaultdict(Counter)
    for line in result.lines:
        if isinstance(line, Handled):
            lines[line.consumer][line.raised] += 1
    for name in sorted(set(lines) - set(result.numbers)):
        yield f"There are no numbers of consumer {name!r}."
    for name, stats in result.numbers.items():
        accounted = stats.handled + stats.failed + stats.dropped_total + stats.pending
        if stats.offered != accounted:
            yield f"Consumer {name!r}: of {stats.offered} events {accounted} are counted: {stats}"
        if stats.pending:
            yield f"Consumer {name!r} has {stats.pending} events that nobody handles: {stats}"
        for what, counted, raised in (
            ("handled", stats.handled, False),
            ("failed", stats.failed, True),
        ):
            written = lines[name][raised]
            if not counted <= written <= counted + len(cut_short):
                yield (
                    f"Consumer {name!r} wrote down {written} events as {what}, counted are "
                    f"{counted}; it can be {len(cut_short)} more, one for each process that "
                    "ended without a complete drain"
                )


def _of_order(result: Result) -> Iterator[str]:
    """The consumer that behaves got in each process what was published there, in that order."""
    cut_short = _cut_short(result)
    published: dict[int, list[tuple[str, str, float | None]]] = defaultdict(list)
    handled: dict[int, list[tuple[str, str, float | None]]] = defaultdict(list)
    for line in result.lines:
        if isinstance(line, Published):
            published[line.writer].append((line.event, line.task_id, line.started_at))
        elif isinstance(line, Handled) and line.consumer == "trail":
            handled[line.writer].append((line.event, line.task_id, line.started_at))
    for pid in sorted(published.keys() | handled.keys()):
        rest = iter(published[pid])
        for event in handled[pid]:
            if event not in rest:
                yield f"In pid {pid} the trail got {event} out of order, or from nowhere"
                break
        lost = len(published[pid]) - len(handled[pid])
        # A SIGTERM may strike right before an event that was written down is published.
        if lost > 1 and pid not in cut_short:
            yield f"In pid {pid}, which drained, the trail lost {lost} events"


def _cut_short(result: Result) -> set[int]:
    """Return the processes that had events and ended without a drain that left nothing."""
    last: dict[int, bool] = {}
    for line in result.lines:
        if isinstance(line, Drained):
            last[line.writer] = line.left == 0
        elif isinstance(line, Published):
            last[line.writer] = False
    return {pid for pid, drained in last.items() if not drained}


def _of_holdings(result: Result) -> list[str]:
    """The main process holds no more than at the beginning."""
    if result.before is None or result.after is None:
        return ["It isn't known what the main process held."]
    return result.after.more_than(result.before)


def _of_log(log: str) -> Iterator[str]:
    """The worker said nothing of an error of ours."""
    wrong: Counter[str] = Counter()
    first: dict[str, str] = {}
    for record in _RECORD.split(log):
        if "broadcast failed in" in record or "Signal handler" in record or _is_our_error(record):
            alike = _DIGITS.sub("", record)
            wrong[alike] += 1
            first.setdefault(alike, record)
    for alike, count in wrong.items():
        yield f"The log has an error of ours, {count} times; first:\n{first[alike]}"


def _is_our_error(record: str) -> bool:
    """Tell whether a traceback leads through the package, not to a consumer that raises."""
    return (
        "Traceback" in record
        and "/celery_broadcast/" in record
        and not any(f"consumer '{name}' raised" in record for name in RAISING)
    )
