"""How much longer a process takes to start with the plugin in it.

Each is a fresh process of this Python. A worker is timed to where it takes jobs, a
client to where it has sent one. Both have a broker in memory, as to connect to a real
one takes longer than much of this. The bare imports stand beside them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.measure import Comparison, measure_in_turn

_APP = """
import sys, time
from celery import Celery, signals

app = Celery("benchmark", broker="memory://")
app.conf.update(imports=[{imports}], broadcast_enabled={enabled})
"""
# They print the clock that all processes of a machine share.
_WORKER = """
@signals.worker_ready.connect
def say_ready(**_):
    print(time.monotonic(), file=sys.__stdout__, flush=True)  # sys.stdout is the log

app.worker_main(
    ["--quiet", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "ERROR",
     "--hostname", "benchmark@localhost", "--without-mingle", "--without-gossip"]
)
"""
_CLIENT = """
app.loader.import_default_modules()
app.send_task("benchmark.noop")
print(time.monotonic(), flush=True)
"""
_NOTHING = '"benchmarks.worker"'
_PLUGIN = f'"celery_broadcast.plugin", {_NOTHING}, "benchmarks.worker.one_consumer"'

# `import celery` alone loads next to nothing of it.
_CELERY = "import time; from celery import Celery"
_SAY = "print(time.monotonic(), flush=True)"

_OFF_AT_MOST, _ON_AT_MOST = 1.08, 1.15


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure."""
    celery, ours = f"{_CELERY}; {_SAY}", f"{_CELERY}; import celery_broadcast; {_SAY}"
    return [
        *_compare(_processes("worker", _WORKER), turns=3, rounds=rounds),
        *_compare(_processes("client", _CLIENT), turns=5, rounds=rounds),
        *_compare(
            {
                "from celery import Celery": start_of(celery),
                "the same, import celery_broadcast, off": start_of(
                    ours, CELERY_BROADCAST_ENABLED="0"
                ),
                "the same, import celery_broadcast, on": start_of(
                    ours, CELERY_BROADCAST_ENABLED="1"
                ),
            },
            turns=3,
            rounds=rounds,
        ),
    ]


def _processes(who: str, what_it_does: str) -> Mapping[str, Callable[[], float]]:
    def start(imports: str, *, enabled: bool) -> Callable[[], float]:
        return start_of(_APP.format(imports=imports, enabled=enabled) + what_it_does)

    return {
        f"a {who}": start(_NOTHING, enabled=False),
        f"a {who}, the plugin and a consumer, off": start(_PLUGIN, enabled=False),
        f"a {who}, the plugin and a consumer, on": start(_PLUGIN, enabled=True),
    }


def _compare(
    processes: Mapping[str, Callable[[], float]], *, turns: int, rounds: int
) -> list[Comparison]:
    """Measure a process without the plugin, with it off, and with it on, in this order."""
    measured = measure_in_turn(processes, unit="ms", rounds=rounds, turns=turns)
    without, off, on = processes
    return [
        measured.compare(off, without, at_most=_OFF_AT_MOST),
        measured.compare(on, without, at_most=_ON_AT_MOST),
    ]


def start_of(program: str, **variables: str) -> Callable[[], float]:
    """Return what measures a process, once all that it imports is compiled.

    Args:
        program: prints the monotonic clock when it has started.
        variables: of its environment.
    """
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONWARNINGS": "ignore",  # Celery has one for root
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Without `site`: what an editable install does there takes so long that ours looks short.
    start_process = partial(
        subprocess.Popen,
        [sys.executable, "-S", "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )

    def milliseconds() -> float:
        start = time.monotonic()
        with start_process() as process:
            try:
                assert process.stdout is not None  # noqa: S101  # it is a pipe
                said = process.stdout.readline()
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # a worker takes seconds to end by itself
        return (float(said) - start) * 1e3

    milliseconds()  # this one compiles
    return milliseconds
