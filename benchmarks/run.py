"""Measure figures one after the other, and show, keep and draw what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from benchmarks import report
from benchmarks.measure import Comparison


def run(measures: Mapping[str, Callable[[int], Sequence[Comparison]]], rounds: int) -> bool:
    """Measure figures; return whether one of them misses what it has to reach.

    Args:
        measures: what measures each, given the number of rounds.
        rounds: how many.
    """
    console = Console(highlight=False)
    missed = False
    for name, measure in measures.items():
        machine = report.describe_machine()
        result = report.Result(machine, measure(rounds))
        report.save(name, result)
        report.show(name, result, console)
        missed |= any(comparison.is_missed for comparison in result.comparisons)
    return missed
