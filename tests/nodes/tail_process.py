"""A real `celery broadcast tail` as a process of this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nodes.worker_process import WorkerProcess


class TailProcess(WorkerProcess):
    """What is sent to the remote consumers of `job_app_consume`, read along.

    Args:
        config: Celery's settings, which fit into JSON.
        options: of the command.
    """

    app = "job_app_consume"

    def __init__(self, config: Mapping[str, Any], *options: str) -> None:
        super().__init__("tail", config, environment={"JOB_APP_HANDLED": "/dev/null"})
        self._options = options

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", self.app, "broadcast", "tail"),
            *self._options,
        ]

    @property
    def ready_line(self) -> str:
        return "Ctrl-C ends it."

    def lines(self) -> list[str]:
        """Return the lines of events that it has shown."""
        return [line for line in self.logs().splitlines() if "Z JobFinished " in line]
