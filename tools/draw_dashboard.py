"""Draw the Grafana dashboard of a worker that is in trouble, for docs/metrics.md.

A real worker runs jobs for a minute, a real Prometheus scrapes it, and gives what
the panels of contrib/grafana-dashboard.json ask for. Only the drawing isn't Grafana's.

usage: make dashboard
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from dashboard import panels, queries
from matplotlib.figure import Figure
from nodes.local_process import free_port
from nodes.prometheus_process import PrometheusProcess
from nodes.redis_process import RedisProcess
from running_worker import running_worker

from celery_broadcast.facts import DUE_AT

PICTURE = Path(__file__).parents[1] / "docs" / "dashboard.svg"

SECONDS = 100
FIRST_SECONDS = 40  # in which rates still grow
JOBS_A_SECOND = 20
COLUMNS = 3


def main() -> None:
    """Run the worker, and draw."""
    port = free_port()
    with RedisProcess() as redis:
        config = {
            "broker_url": redis.url,
            "imports": ["celery_broadcast.plugin", "job_app_dashboard"],
            "broadcast_metrics_port": port,
            "broadcast_drain_timeout": 0,
            "task_ignore_result": True,
        }
        with running_worker(config) as worker, PrometheusProcess(port) as prometheus:
            start = time.time()
            while time.time() < start + SECONDS:
                for number in range(JOBS_A_SECOND):
                    task = ("sleeps", 0.01 * number) if number % 5 else ("fails", "no money")
                    worker.send(*task, headers={DUE_AT: time.time()})
                time.sleep(1.0)
            draw(prometheus, start + FIRST_SECONDS, start + SECONDS)


def draw(prometheus: PrometheusProcess, start: float, end: float) -> None:
    """Draw what each panel shows between two times, in seconds since 1970."""
    found = panels()
    rows = math.ceil(len(found) / COLUMNS)
    figure = Figure(figsize=(15, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS)
    for place, panel in zip(axes.flat, found, strict=False):
        for query in queries(panel):
            for series in prometheus.ask("query_range", query=query, start=start, end=end, step=1):
                times, numbers = zip(*series["values"], strict=True)
                label = ": ".join(str(value) for value in series["metric"].values())
                place.plot([t - start for t in times], list(map(float, numbers)), label=label)
        dress(place, panel)
    for place in axes.flat[len(found) :]:
        place.axis("off")
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def dress(place: Any, panel: dict[str, Any]) -> None:
    """Give a panel its title, its unit and its legend."""
    unit = " (s)" if panel["fieldConfig"]["defaults"]["unit"] == "s" else ""
    place.set_title(panel["title"] + unit, fontsize=10)
    place.set_ylim(bottom=0)
    place.set_xticks([])
    place.grid(alpha=0.3)
    place.spines[["top", "right"]].set_visible(False)
    if place.get_legend_handles_labels()[0]:
        place.legend(fontsize=7, loc="best", frameon=False)


if __name__ == "__main__":
    main()
