"""How much longer a process takes, from its start to its end, with the plugin in it.

Each is a fresh process of this Python: it makes an app, configures it, and
imports and sends what a worker does before it forks its pool. That is no whole
worker, which loads more of Celery, and whose ratios would look better.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.measure import Comparison, measure_in_turn

TURNS = 13
TURNS_OF_IMPORTS = 4  # nothing of the package is loaded there, which is soon seen

_WORKER = """
from celery import Celery, signals

app = Celery("benchmark", broker="memory://")
app.conf.update(imports=[{imports}], broadcast_enabled={enabled})
app.loader.import_default_modules()
app.finalize()
signals.worker_init.send(sender=None)
"""
_IMPORTS = '"benchmarks.worker"'
_IMPORTS_WITH_PLUGIN = f'"celery_broadcast.plugin", {_IMPORTS}, "benchmarks.worker.one_consumer"'

# `import celery` alone loads next to nothing of it.
_CELERY = "from celery import Celery"
_CELERY_AND_US = f"{_CELERY}; import celery_broadcast"


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    apps = measure_in_turn(
        {
            "an app": start_of(_WORKER.format(imports=_IMPORTS, enabled=False)),
            "an app, the plugin and a consumer, off": start_of(
                _WORKER.format(imports=_IMPORTS_WITH_PLUGIN, enabled=False)
            ),
            "an app, the plugin and a consumer, on": start_of(
                _WORKER.format(imports=_IMPORTS_WITH_PLUGIN, enabled=True)
            ),
        },
        unit="ms",
        rounds=rounds,
        turns=TURNS,
    )
    imports = measure_in_turn(
        {
            "from celery import Celery": start_of(_CELERY),
            "the same, import celery_broadcast, off": start_of(
                _CELERY_AND_US, CELERY_BROADCAST_ENABLED="0"
            ),
            "the same, import celery_broadcast, on": start_of(
                _CELERY_AND_US, CELERY_BROADCAST_ENABLED="1"
            ),
        },
        unit="ms",
        rounds=rounds,
        turns=TURNS_OF_IMPORTS,
    )
    celery = "from celery import Celery"
    return [
        apps.compare("an app, the plugin and a consumer, off", "an app", at_most=1.08),
        apps.compare("an app, the plugin and a consumer, on", "an app", at_most=1.15),
        imports.compare("the same, import celery_broadcast, off", celery, at_most=1.08),
        imports.compare("the same, import celery_broadcast, on", celery, at_most=1.15),
    ]


def start_of(program: str, **variables: str) -> Callable[[], float]:
    """Return what measures a process, once all that it imports is compiled."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Without `site`: what an editable install does there takes so long that ours looks short.
    run = partial(
        subprocess.run, [sys.executable, "-S", "-c", program], check=True, env=environment
    )
    run()  # this one compiles

    def milliseconds() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    return milliseconds
