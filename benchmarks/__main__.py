"""Measure the figures; the exit code tells whether each ratio is where it has to be."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from benchmarks import bookkeeping, job_thread_cost, jobs_per_second, report
from benchmarks.measure import Comparison

FIGURES: Mapping[str, Callable[[int], Sequence[Comparison]]] = {
    "bookkeeping": bookkeeping.measure,
    "job_thread_cost": job_thread_cost.measure,
    "jobs_per_second": jobs_per_second.measure,
}


def main() -> int:
    """Measure what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--rounds", type=int, default=7, help="how often (default: 7)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in FIGURES]:
        parser.error(f"There is no {unknown[0]}. There are: {', '.join(FIGURES)}.")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {arguments.rounds}.")

    # However it is ended, it tidies up on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    missed = False
    for name in arguments.names or FIGURES:
        machine = report.describe_machine()
        result = report.Result(machine, FIGURES[name](arguments.rounds))
        report.save(name, result)
        report.show(name, result, console)
        missed |= any(comparison.is_missed for comparison in result.comparisons)
    return int(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
