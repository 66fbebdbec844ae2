"""A real `celery worker` as a process of this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nodes.local_process import LocalProcess

APPS_FOLDER = Path(__file__).parents[1]


class WorkerProcess(LocalProcess):
    """A worker of `job_app`.

    Args:
        name: of the node, before the "@"; no two workers of a broker share one.
        config: Celery's settings; what is in them must fit into JSON.
        pool: such as "prefork".
        concurrency: how many processes, threads or greenlets.
        environment: further environment variables.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name)
        self.config = config
        self.node_name = f"{name}@{self.id}"
        self._pool = pool
        self._concurrency = concurrency
        self._environment = environment or {}

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "job_app", "worker"),
            *("--hostname", self.node_name),
            *("--pool", self._pool, "--concurrency", str(self._concurrency)),
            # Meeting the other workers takes a second, and there are none.
            *("--without-mingle", "--without-gossip", "--loglevel", "INFO"),
        ]

    @property
    def ready_line(self) -> str:
        return f"{self.node_name} ready."

    @property
    def environment(self) -> Mapping[str, str]:
        python_path = (str(APPS_FOLDER), os.environ.get("PYTHONPATH", ""))
        return {
            **super().environment,
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "JOB_APP_CONFIG": json.dumps(self.config),
            **self._environment,
        }

    def worker_name(self) -> str:
        """The node's name as pytest-celery asks for it: without the host."""
        return self.name

    def worker_queue(self) -> str:
        """The queue that pytest-celery is to send jobs to."""
        return str(self.config["task_default_queue"])
