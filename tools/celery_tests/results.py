"""A pytest plugin: writes what became of every test to the file that OUTCOMES names."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

_outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _outcomes[report.nodeid]["not collected" if report.failed else "skipped"] += 1


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count each report of a test; subtests have the id of their test, and no steady name."""
    kind = "" if type(report) is pytest.TestReport else "subtest "
    if hasattr(report, "wasxfail"):
        _outcomes[report.nodeid][f"{kind}xfailed"] += 1
    elif report.when == "call" or not report.passed:
        step = "" if report.when == "call" else f" in {report.when}"
        _outcomes[report.nodeid][f"{kind}{report.outcome}{step}"] += 1


def pytest_sessionfinish() -> None:
    # The entry points of the commands and of pytest are loaded in any case, the core is not.
    result = {"loaded": "celery_broadcast.bridge" in sys.modules, "outcomes": _outcomes}
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(result), encoding="utf-8")
