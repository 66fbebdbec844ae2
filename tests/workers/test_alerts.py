"""The alert rules, in Prometheus's own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from nodes.local_process import find_program

pytestmark = pytest.mark.worker

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("check", "contrib/prometheus-alerts.yml"),
        ("test", "tests/prometheus_alerts_test.yml"),  # what each says, and when
    ],
)
def test_prometheus_takes_the_alerts_and_they_speak_when_they_should(what: str, file: str) -> None:
    command = [find_program("promtool"), what, "rules", str(ROOT / file)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test() -> None:
    rules = (ROOT / "contrib" / "prometheus-alerts.yml").read_text()
    tests = (ROOT / "tests" / "prometheus_alerts_test.yml").read_text()

    names = [line.split()[-1] for line in rules.splitlines() if "- alert:" in line]
    assert names
    assert all(tests.count(f"alertname: {name}") == 2 for name in names)
