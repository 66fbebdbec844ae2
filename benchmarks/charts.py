"""The charts of `docs/performance.md`, drawn from the results.

The same results always give the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import Spread
from benchmarks.report import Result

DOCS = Path(__file__).parents[1] / "docs"

OURS = "the broadcast"
OUR_COLOUR = "#c0392b"
COLOURS = ("#1f4e79", "#2e8b57", "#8e6bb0", "#8c6d31", "#5f6b73", "#d98200")
MARKERS = ("s", "^", "v", "D", "P", "X")

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "celery-broadcast",  # else the ids in the file are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",  # on a dark page too
}


def draw_all(results: Mapping[str, Result], folder: Path = DOCS) -> list[Path]:
    """Draw a chart of each figure that has one, and return the files."""
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in CHARTS.items():
            if name in results:
                figure = draw(results[name])
                path = folder / f"{name}.svg"
                figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
                written.append(path)
    return written


def values_of(result: Result) -> dict[str, Spread]:
    """Return what was measured of each thing, subject or peer."""
    values: dict[str, Spread] = {}
    for row in result.comparisons:
        values.setdefault(row.peer, row.peer_value)
        values.setdefault(row.subject, row.value)
    return values


def by_last_part(values: Mapping[str, Spread]) -> dict[str, dict[str, Spread]]:
    """Sort values by what stands behind the last comma of their names."""
    parts: dict[str, dict[str, Spread]] = {}
    for name, value in values.items():
        first, _, last = name.rpartition(", ")
        parts.setdefault(last, {})[first] = value
    return parts


def draw_burst(result: Result) -> Figure:
    """Draw a line for the broadcast and each peer, over the number of consumers."""
    columns = by_last_part(values_of(result))
    numbers = [int(column.split()[0]) for column in columns]
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    looks = iter(zip(COLOURS, MARKERS, strict=True))
    for name in sorted(names, key=lambda name: name != OURS):
        spreads = [column[name] for column in columns.values()]
        colour, marker = (OUR_COLOUR, "o") if name == OURS else next(looks)
        axes.errorbar(
            numbers,
            [spread.median for spread in spreads],
            yerr=_reaching(spreads),
            label=name,
            color=colour,
            marker=marker,
            linewidth=2.5 if name == OURS else 1.2,
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("consumers")
    axes.set_ylabel("thousand events delivered per second")
    axes.set_title("A burst: more is better")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw_bars(title: str, *, panels: bool) -> Callable[[Result], Figure]:
    """Return what draws a bar for each thing.

    Args:
        title: what it shows, and whether more is better.
        panels: whether what stands behind the last comma of the names parts them.
    """

    def draw(result: Result) -> Figure:
        values = values_of(result)
        parts = by_last_part(values) if panels else {"": values}
        longest = max(len(part) for part in parts.values())
        figure = Figure(
            figsize=(8, len(parts) * (0.7 + 0.32 * longest) + 0.5), layout="constrained"
        )
        figure.suptitle(title)
        every_axes = figure.subplots(len(parts), squeeze=False)[:, 0]
        for axes, (part, bars) in zip(every_axes, parts.items(), strict=True):
            _draw_panel(axes, bars, part)
        every_axes[-1].set_xlabel(result.comparisons[0].unit)
        return figure

    return draw


def _draw_panel(axes: Axes, bars: Mapping[str, Spread], title: str) -> None:
    medians = [spread.median for spread in bars.values()]
    axes.barh(
        list(bars),
        medians,
        xerr=_reaching(list(bars.values())),
        color=COLOURS[0],
        error_kw={"ecolor": "#666666", "capsize": 3},
    )
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _reaching(spreads: Sequence[Spread]) -> tuple[list[float], list[float]]:
    """Return how far below and above their medians they reach."""
    below = [spread.median - spread.minimum for spread in spreads]
    return below, [spread.maximum - spread.median for spread in spreads]


#: What draws the chart of a figure, by the figure's name.
CHARTS: Mapping[str, Callable[[Result], Figure]] = {
    "job_thread_cost": draw_bars("What an event costs the job: less is better", panels=True),
    "burst": draw_burst,
    "latency": draw_bars("From an event to its handler: less is better", panels=True),
    "jobs_per_second": draw_bars("Jobs per second: more is better", panels=False),
    "relay_jobs": draw_bars("Jobs per second, with events sent: more is better", panels=False),
    "relay_events": draw_bars("Events per second of one core: more is better", panels=True),
}
