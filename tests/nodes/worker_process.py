"""A real `celery worker` as a process of this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodes.local_process import LocalProcess

APPS_FOLDER = Path(__file__).parents[1]


class WorkerProcess(LocalProcess):
    """A worker of `job_app`, or, in a subclass, of another app that is configured like it.

    Args:
        name: of the node, before the "@"; no two workers of a broker share one.
        config: Celery's settings; what is in them must fit into JSON.
        pool: such as "prefork".
        concurrency: how many processes, threads or greenlets.
        arguments: further arguments of the command line.
        environment: further environment variables.

    Attributes:
        app: the module with the app, as seen from the folder of the tests.
    """

    app = "job_app"

    def __init__(  # noqa: PLR0913  # all but two by name
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name)
        self.config = config
        self.node_name = f"{name}@{self.id}"
        self._pool = pool
        self._concurrency = concurrency
        self._arguments = arguments
        self._environment = environment or {}

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", self.app, "worker"),
            *("--hostname", self.node_name),
            *("--pool", self._pool, "--concurrency", str(self._concurrency)),
            # Meeting the other workers takes a second, and there are none.
            *("--without-mingle", "--without-gossip", "--loglevel", "INFO"),
            *self._arguments,
        ]

    @property
    def ready_line(self) -> str:
        return f"{self.node_name} ready."

    @property
    def environment(self) -> Mapping[str, str]:
        python_path = (str(APPS_FOLDER), os.environ.get("PYTHONPATH", ""))
        inherited = dict(super().environment)
        inherited.pop("PYTHONUNBUFFERED", None)  # the user's log has a buffer, and its lock
        return {
            **inherited,
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
