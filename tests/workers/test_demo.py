"""What `make demo` shows, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil  # type: ignore[import-untyped]
import pytest
from nodes.local_process import LOCALHOST, free_port

pytestmark = pytest.mark.worker

ROOT = Path(__file__).parents[2]
LINE = re.compile(
    r" *\d+\.\d\d (?P<consumer>\S+) +(?P<thread>\S+) +(?P<event>Job\w+) +(?P<task>shop\.\S+)"
)
EVERY_LINE = Counter(
    {
        "trail JobStarted shop.payments.charge": 20,
        "trail JobFinished shop.payments.charge": 20,
        "trail JobStarted shop.payments.refund": 1,
        "trail JobFailed shop.payments.refund": 1,
        "trail JobStarted shop.parcels.ship": 2,
        "trail JobRetried shop.parcels.ship": 1,
        "trail JobFinished shop.parcels.ship": 1,
        "trail JobStarted shop.reports.sales": 1,
        "trail JobFinished shop.reports.sales": 1,
        "page_oncall JobFailed shop.payments.refund": 1,
        "slow-jobs JobFinished shop.reports.sales": 1,
        "Ledger JobFinished shop.payments.charge": 20,
        "Ledger JobFailed shop.payments.refund": 1,
        "Ledger JobFinished shop.parcels.ship": 1,
        "Ledger JobFinished shop.reports.sales": 1,
    }
)

Demo: TypeAlias = "subprocess.Popen[str]"
StartDemo: TypeAlias = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Start the demo; prove at the end that nothing of it is left."""
    demos: list[Demo] = []

    def start(**environment: str) -> Demo:
        without = {name: value for name, value in os.environ.items() if name != "BROKER_URL"}
        demos.append(
            subprocess.Popen(
                [sys.executable, "-m", "example_project.demo"],
                cwd=ROOT,
                env={**without, "TMPDIR": str(tmp_path), **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return demos[-1]

    yield start
    for demo in demos:
        demo.kill()
        demo.communicate()
        assert worker_processes(demo) == []
    assert list(tmp_path.iterdir()) == []


def worker_processes(demo: Demo) -> list[dict[str, Any]]:
    """Return the processes of the demo's worker; all have its queue in their command line."""
    return [
        process.info
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if any(f"shop-demo-{demo.pid}" in argument for argument in process.info["cmdline"] or ())
    ]


def wait_for_line(demo: Demo, text: str) -> str:
    """Return what the demo has shown when it shows this."""
    assert demo.stdout is not None
    shown = ""
    for line in demo.stdout:
        shown += line
        if text in line:
            return shown
    raise AssertionError(shown)


def test_the_demo_shows_every_event_on_its_consumer_and_both_times(start_demo: StartDemo) -> None:
    demo = start_demo()

    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0, output
    consumers, receivers = output.split("The same handlers as receivers of Celery's signals")
    for part, thread in ((consumers, "broadcast:{consumer}"), (receivers, "MainThread")):
        lines = list(LINE.finditer(part))
        # On a busy machine more jobs may be slow, so there may be more lines.
        assert Counter(" ".join(line.group(1, 3, 4)) for line in lines) >= EVERY_LINE
        assert {line["thread"] for line in lines} == {
            thread.format(consumer=line["consumer"]) for line in lines
        }
    for name in ("consumers", "receivers"):
        assert re.search(rf"{name} +│ after \d+\.\d\d s +│ after \d+\.\d\d s", receivers), output
    assert re.search(r"With receivers the jobs took \d+\.\d times as long\.", receivers)
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(
    start_demo: StartDemo, ending: signal.Signals
) -> None:
    demo = start_demo()
    wait_for_line(demo, "JobStarted")
    assert worker_processes(demo)

    demo.send_signal(ending)
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert "Stopped." in output
    assert "Traceback" not in output


def test_a_broker_that_is_not_there_is_said_in_one_line(start_demo: StartDemo) -> None:
    demo = start_demo(BROKER_URL=f"redis://{LOCALHOST}:{free_port()}")

    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 1
    assert "The broker is out of reach" in output
    assert "Traceback" not in output
