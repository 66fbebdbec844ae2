"""A real Prometheus as a process of this machine, which scrapes once a second."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

from nodes.local_process import LOCALHOST, LocalProcess, find_program, free_port

_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: celery
    static_configs: [{{targets: ["{target}"]}}]
"""


class PrometheusProcess(LocalProcess):
    """Args:
    port: of 127.0.0.1, at which metrics are served.
    """

    ready_line = "Server is ready to receive web requests"

    def __init__(self, port: int) -> None:
        super().__init__("prometheus")
        self._address = f"{LOCALHOST}:{free_port()}"
        self._config = self.folder / "prometheus.yml"
        self._config.write_text(_CONFIG.format(target=f"{LOCALHOST}:{port}"))

    @property
    def command(self) -> list[str]:
        return [
            *(find_program("prometheus"), f"--config.file={self._config}"),
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self._address}",
        ]

    def ask(self, path: str, **parameters: object) -> list[dict[str, Any]]:
        """Return the series that a query gives.

        Args:
            path: of its API, "query" or "query_range".
            parameters: of the call, such as `query`.
        """
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found
