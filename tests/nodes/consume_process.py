"""A real `celery broadcast consume` as a process of this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodes.worker_process import WorkerProcess


class ConsumeProcess(WorkerProcess):
    """Remote consumers of `job_app_consume`.

    Args:
        config: Celery's settings, which fit into JSON.
        handled: the file to which they write.
        names: of the consumers; none is all.
    """

    app = "job_app_consume"

    def __init__(
        self, config: Mapping[str, Any], handled: Path, names: Sequence[str] = ("pager",)
    ) -> None:
        super().__init__("consume", config, environment={"JOB_APP_HANDLED": str(handled)})
        self.ready_file = self.folder / "ready"
        self._names = names

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", self.app, "broadcast", "consume"),
            *("--ready-file", str(self.ready_file), *self._names),
        ]

    @property
    def ready_line(self) -> str:
        return "broadcast is ready"
