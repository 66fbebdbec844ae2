"""The queries of the Grafana dashboard, as Grafana sends them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[1] / "contrib" / "grafana-dashboard.json"

#: What Grafana puts in the place of its variables, with everything chosen.
VARIABLES = {"$instance": ".*", "$consumer": ".*", "$task": ".*", "$__rate_interval": "30s"}


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something, each with its queries."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries(panel: dict[str, Any]) -> list[str]:
    """Return the queries of a panel in PromQL."""
    found = [target["expr"] for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        found = [query.replace(variable, value) for query in found]
    return found
