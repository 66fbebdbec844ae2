"""docs/outcomes.md, made from the rows that the tests hold against real workers.

`python tests/outcome_table.py` writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from outcomes import OUTCOMES, POOLS, Changed, Outcome, Telling, Told

DOCUMENT = Path(__file__).parent.parent / "docs" / "outcomes.md"

INTRODUCTION = """\
# Outcomes

Every way in which an attempt can end, and the events that come of it. A start is `JobStarted`,
an end such as *Failed* is `JobFailed`; [events.md](events.md) says what is in them. Every attempt
that started has one end, whatever Celery tells of it. What that is stands in the last column, for
prefork: the signals around each attempt in the process that ran it, and those in the main process.

Where a process dies, its worker's main process tells the end; where there is none, in the other
pools, the worker dies with the job. That is the only start without an end: nobody is left.

This page is made from the rows that the tests hold against real workers of every pool with Celery
5.7, and of prefork with Celery 5.4, 5.5 and 5.6, by `python tests/outcome_table.py`.
"""

HEAD = ("What happens to the job", *POOLS, "Celery's signals, with prefork")


def table() -> str:
    """Return the whole page."""
    lines = [INTRODUCTION, row(HEAD), row(["---"] * len(HEAD))]
    for outcome in OUTCOMES:
        for member, sentence in sentences(outcome).items():
            tellings = {
                pool: outcome.tellings_in(pool)[member] for pool in POOLS if pool in outcome.pools
            }
            events = [in_pool(tellings.get(pool), events_of) for pool in POOLS]
            lines.append(row([sentence, *events, in_pool(tellings.get("prefork"), signals_of)]))
    return "\n".join(lines) + "\n"


def sentences(outcome: Outcome) -> dict[str, str]:
    """Return what happens to each job of an outcome, by the name of the member."""
    others = {member: f"… the *{member}* one of these." for member in outcome.members}
    return {"": outcome.sentence, **others}


def row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def in_pool(telling: Telling | None, text_of: Callable[[Told], str]) -> str:
    """Return the cell of one pool, with what other versions of Celery tell."""
    if telling is None:
        return "-"
    if isinstance(telling, Changed):
        now, before = in_pool(telling.now, text_of), in_pool(telling.before, text_of)
        if now == before:
            return now
        version = ".".join(map(str, telling.since))
        return f"{now}; before Celery {version}: {before}"
    return text_of(telling)


def events_of(told: Told) -> str:
    """Return the events in short: "Started, Failed"."""
    return ", ".join(event.removeprefix("Job") for event in told.events.split()) or "nothing"


def signals_of(told: Told) -> str:
    """Return the signals of each attempt, and those in the main process."""
    there = [attempt.replace(" ", ", ") for attempt in told.attempts]
    main = [f"main process: {told.elsewhere.replace(' ', ', ')}"] if told.elsewhere else []
    return "; ".join([*there, *main]) or "nothing"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
