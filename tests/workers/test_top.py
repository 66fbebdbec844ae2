"""`celery broadcast top` in a real terminal, of a real worker with four children."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes.deadline import wait_until
from nodes.terminal import Terminal
from running_worker import running_worker

pytestmark = pytest.mark.worker

BROKERS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker)) for broker in ("redis", "rabbitmq")
]


@pytest.mark.parametrize("broker", BROKERS)
def test_it_shows_who_is_stuck_pauses_and_leaves_the_terminal_as_it_was(
    broker_config: Callable[[str], dict[str, Any]], broker: str, tmp_path: Path
) -> None:
    config = {
        **broker_config(broker),
        "result_backend": None,
        "imports": ["celery_broadcast.plugin", "job_app_stuck"],
        "broadcast_drain_timeout": 0,
        "broadcast_mailbox_size": 1,
    }
    with running_worker(config, concurrency=4) as worker, Terminal(tmp_path, rows=24) as terminal:
        wait_until(worker.is_listening)
        for _ in range(40):
            worker.send("noop")
        line = [
            *(sys.executable, "-m", "celery", "--broker", config["broker_url"], "broadcast"),
            *("top", "--destination", worker.process.node_name, "--timeout", "5"),
        ]
        terminal.type(f"cd {shlex.quote(str(tmp_path))}; stty -a > before")
        terminal.type(f"{shlex.join(line)}; echo $? > code; stty -a > end; mv end after")

        def row() -> list[str]:
            return next((each.split() for each in terminal.rows() if each.startswith("stuck ")), [])

        wait_until(lambda: row() and int(row()[3]) > 0, 60.0, lambda: "\n".join(terminal.rows()))
        assert terminal.rows()[0] == "1 worker is on"
        assert terminal.has_alternate_screen()
        terminal.press("p")
        wait_until(lambda: "paused" in str(terminal.rows()))
        terminal.press("s")
        wait_until(lambda: "s sorted by dropped" in str(terminal.rows()))
        terminal.press("q")
        wait_until((tmp_path / "after").exists)
        assert (tmp_path / "code").read_text() == "0\n"
        assert not terminal.has_alternate_screen()
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()
