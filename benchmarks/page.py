"""The tables of `docs/performance.md`, written from the results.

Each figure has a place there, between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Comparison
from benchmarks.report import Result, text_of

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def write(results: Mapping[str, Result], page: Path = PAGE) -> None:
    """Write each figure's table into its place.

    Raises:
        RuntimeError: a figure has no place there.
    """
    for name, result in results.items():
        put(block_of(result), name, page)


def put(block: str, name: str, page: Path) -> None:
    """Write a block into the place of that name, and leave the rest of the page alone.

    Raises:
        RuntimeError: there is no such place.
    """
    text = page.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    place = re.compile(f"(?<={re.escape(start)}).*?(?={re.escape(end)})", re.DOTALL)
    if not place.search(text):
        message = f"{page} has no place for {name}. Write {start.strip()} and {end} there."
        raise RuntimeError(message)
    page.write_text(place.sub(lambda _: block, text))


def block_of(result: Result) -> str:
    """Return the table of a figure, and what it was measured on."""
    unit = result.comparisons[0].unit
    lines = [
        f"| What | {unit} | Against | {unit} | Ratio | To reach |",
        "|---|---|---|---|---|---|",
        *(_row_of(comparison) for comparison in result.comparisons),
    ]
    noisy = any(comparison.is_noisy for comparison in result.comparisons)
    remark = "\n*Noisy: that ratio differs by more than 20 % from round to round.*\n"
    table = "\n".join(lines)
    return f"\n{table}\n{remark if noisy else ''}\n*{result.machine}.*\n\n"


def _row_of(row: Comparison) -> str:
    to_reach = [
        *([f"at least {row.at_least}"] if row.at_least is not None else []),
        *([f"at most {row.at_most}"] if row.at_most is not None else []),
        *([f"at most {row.value_at_most} {row.unit}"] if row.value_at_most is not None else []),
    ]
    verdict = ", **missed**" if row.is_missed else ""
    cells = [
        row.subject,
        text_of(row.value),
        row.peer,
        text_of(row.peer_value),
        f"{text_of(row.ratio)}{', *noisy*' if row.is_noisy else ''}",
        f"{' and '.join(to_reach)}{verdict}",
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
