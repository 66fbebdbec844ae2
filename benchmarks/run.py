"""Measure figures one after the other, and show, keep and draw what comes out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from benchmarks import charts, page, report, scaling
from benchmarks.measure import Comparison

FILE_WIDTH = 110  # characters a line


def run(measures: Mapping[str, Callable[[int], Sequence[Comparison]]], rounds: int) -> bool:
    """Measure figures; return whether one of them misses what it has to reach.

    Args:
        measures: what measures each, given the number of rounds.
        rounds: how many.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    missed = False
    for name, measure in measures.items():
        machine = report.describe_machine()
        began = time.monotonic()
        result = report.Result(machine, measure(rounds))
        report.save(name, result)
        report.show(name, result, console)
        console.print(f"[dim]It took {time.monotonic() - began:.0f} s.")
        missed |= any(comparison.is_missed for comparison in result.comparisons)
    results = report.load()
    page.write(results)
    scaling.write(results)
    written = ", ".join(sorted(path.name for path in charts.draw_all(results)))
    files = f"{report.RESULTS.name}, {page.PAGE.name}, {scaling.PAGE.name}"
    console.print(f"[dim]Written: {files}, {written}.")
    return missed
