"""What came out: a table for people, and JSON for the page and the charts."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Comparison, Spread

RESULTS = Path(__file__).with_name("results.json")


class Result(msgspec.Struct, frozen=True):
    """A figure.

    Attributes:
        machine: what it was measured on, and when.
        comparisons: what was measured.
    """

    machine: str
    comparisons: Sequence[Comparison]


def describe_machine() -> str:
    """Describe this machine, and what else it is doing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu"))
    now = datetime.now(timezone.utc)
    return (
        f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{packages}; {now:%Y-%m-%d %H:%M} UTC, load before it {os.getloadavg()[0]:.1f}"
    )


def load() -> dict[str, Result]:
    """Return all results, by the names of the figures."""
    if not RESULTS.exists():
        return {}
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Result])


def save(name: str, result: Result) -> None:
    """Write a figure into the file of all results, in place of what was there of it."""
    results = load()
    results[name] = result
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results, order="sorted")) + b"\n")


def show(name: str, result: Result, console: Console) -> None:
    """Print a figure."""
    table = Table(title=f"\n[bold]{name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what, and its peer", no_wrap=True)
    table.add_column(result.comparisons[0].unit, justify="right")
    table.add_column("ratio", justify="right")
    for row in result.comparisons:
        table.add_row(
            f"{row.subject}\n[dim]{row.peer}[/]",
            f"{text_of(row.value)}\n[dim]{text_of(row.peer_value)}[/]",
            f"{text_of(row.ratio)}\n{_remarks(row)}",
            end_section=True,
        )
    console.print(table)
    console.print(f"[dim]Median (minimum - maximum) of the rounds. {result.machine}.")
    if any(row.is_noisy for row in result.comparisons):
        console.print(
            "[yellow]Noisy: from round to round the ratio differs by more than 20 %. "
            "Measure again while nothing else uses this machine."
        )


def text_of(spread: Spread) -> str:
    """Return "median (minimum - maximum)", to three digits."""
    median, minimum, maximum = (
        f"{value:.0f}" if value >= 100 else f"{value:#.3g}"  # noqa: PLR2004  # three digits
        for value in msgspec.structs.astuple(spread)
    )
    return f"{median} ({minimum} - {maximum})"


def _remarks(row: Comparison) -> str:
    """Tell what the ratio has to be, whether it is, and whether that can be trusted."""
    verdict = "[red]missed[/]" if row.is_missed else "reached"
    remarks = []
    if row.at_least is not None:
        remarks.append(f"at least {row.at_least}: {verdict}")
    if row.at_most is not None:
        remarks.append(f"at most {row.at_most}: {verdict}")
    if row.value_at_most is not None:
        remarks.append(f"at most {row.value_at_most} {row.unit}: {verdict}")
    if row.is_noisy:
        remarks.append("[yellow]noisy[/]")
    return ", ".join(remarks)
