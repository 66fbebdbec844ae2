"""Measure the figures; the exit code tells whether each ratio is where it has to be."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

#: The modules here with a `measure`, in the order in which they are measured.
FIGURES = (
    "bookkeeping",
    "job_thread_cost",
    "growth",
    "burst",
    "latency",
    "memory",
    "jobs_per_second",
    "scraping",
    "relay_jobs",
    "relay_events",
    "relay_redis",
    "relay_bytes",
    "process_start",
    "flag_off",
)

#: Instead of a figure: draw and write down what was measured before.
CHARTS = "charts"


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=", ".join((*FIGURES, f"or {CHARTS}"))
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often (default: 7)")
    arguments = parser.parse_args(words)
    known = (*FIGURES, CHARTS)
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"There is no {unknown[0]}. There are: {', '.join(known)}.")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {arguments.rounds}.")
    names = [name for name in arguments.names or FIGURES if name != CHARTS]

    # All that is needed, before anything is measured.
    try:
        run = import_module("benchmarks.run")
        measures = {name: import_module(f"benchmarks.{name}").measure for name in names}
    except ModuleNotFoundError as error:
        parser.exit(1, f"{say_missing(error.name or str(error))}\n")

    # However it is ended, it tidies up on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return int(run.run(measures, arguments.rounds))


def say_missing(module: str) -> str:
    """Say that a module isn't installed, and what to do."""
    return (
        f"{module.partition('.')[0]} is not installed, so nothing was measured. Everything that "
        "the broadcast is compared with has to be there: "
        "pip install 'celery-broadcast[bench]', or make bench, which does it."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
