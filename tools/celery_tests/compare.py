"""Run Celery's own unit tests without the broadcast and with it on: each must end the same way.

But for those of `FIND_US`.

usage: python compare.py FOLDER

The tests of the installed Celery are downloaded into the folder, where the
logs of both runs stay. A test that ends in different ways by itself is found
out by running it again without the broadcast, and may end in any of those.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

PLUGINS = Path(__file__).parent
RUNS_OF_DIFFERING_TESTS = 5
FEWEST_EVENTS = 1_000
KINDS = (
    "JobStarted",
    "JobFinished",
    "JobFailed",
    "JobRetried",
    "JobRejected",
    "JobIgnored",
    "JobRevoked",
)

# They look at what is there, not at what becomes of a job, and find what is ours: that each
# control command has a method of Celery's client, and that the timer has nothing but an eta.
FIND_US = (
    "t/unit/app/test_control.py::test_client_implements_all_commands",
    "t/unit/app/test_control.py::test_inspect_implements_all_commands",
    "t/unit/worker/test_worker.py::test_Consumer::test_receive_message_eta",
)

# By the test's id: how often it ended how, its subtests too.
Outcomes: TypeAlias = Mapping[str, Mapping[str, int]]


def download(folder: Path, version: str) -> Path:
    """Return Celery's source distribution: the installed package comes without the tests."""
    archive = folder / f"celery-{version}.tar.gz"
    if not archive.exists():
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "celery")
        command = (sys.executable, "-m", "pip", "download", *options, f"celery=={version}")
        subprocess.run(command, cwd=folder, check=True)
    return archive


class Run:
    """One run of Celery's tests, in a folder of its own."""

    def __init__(self, name: str, archive: Path, *, broadcast: bool = False) -> None:
        self.folder = archive.parent / name
        self.log = archive.parent / f"{name}.log"
        self._broadcast = broadcast
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)
        with tarfile.open(archive) as source:
            for member in source.getmembers():
                _, _, path = member.name.partition("/")
                if path.startswith("t/") or path in {"pyproject.toml", "setup.cfg"}:
                    member.name = path  # not the package: the installed one is to be tested
                    source.extract(member, self.folder, filter="data")

    def start(self, paths: Sequence[str] = ("t/unit",)) -> subprocess.Popen[bytes]:
        """Start to run these tests, all if not told."""
        plugins = ["celery.contrib.pytest", "results", *["broadcast_on"] * self._broadcast]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(PLUGINS), os.environ.get("PYTHONPATH", ""))),
            "PYTHONHASHSEED": "0",  # the order of parameters that stand in a set
            "CELERY_BROADCAST_ENABLED": "1" if self._broadcast else "",
            "TMPDIR": str(self.folder / "tmp"),
            "OUTCOMES": str(self.folder / "outcomes.json"),
            "BROADCAST": str(self.folder / "broadcast.json"),
        }
        command = [sys.executable, "-m", "pytest", *paths, "--continue-on-collection-errors"]
        for plugin in ("no:cacheprovider", *plugins):
            command += ["-p", plugin]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def read(self, name: str) -> dict[str, Any]:
        """Return what a plugin wrote.

        Raises:
            SystemExit: it wrote nothing; the message has the end of the log.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            sys.exit(f"The run ended early. Its log, {self.log}, ends with:\n{self.log_end()}")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def log_end(self) -> str:
        """Return what the run wrote last."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def differing(without: Outcomes, with_it: Outcomes) -> list[str]:
    """Return the ids of the tests that ended differently, or only one run had."""
    ids = sorted({*without, *with_it})
    return [test for test in ids if without.get(test) != with_it.get(test)]


def unexplained(differing: Sequence[str], with_it: Outcomes, without: Run) -> list[str]:
    """Run the files of differing tests again; return those that never end so by themselves."""
    files = sorted({test.partition("::")[0] for test in differing})
    left = set(differing)
    for _ in range(RUNS_OF_DIFFERING_TESTS):
        without.start(files).wait()
        again: Outcomes = without.read("outcomes")["outcomes"]
        left = {test for test in left if again.get(test) != with_it.get(test)}
    return sorted(left)


def complaints_about(broadcast: Mapping[str, Any]) -> list[str]:
    """Return why the run with the broadcast proves nothing, or what went wrong in it."""
    events, (stats,) = broadcast["events"], broadcast["stats"].values()
    complaints = [f"In our log: {line}" for line in broadcast["complaints"]]
    complaints += [f"Not one event was a {kind}." for kind in KINDS if kind not in events]
    if sum(events.values()) < FEWEST_EVENTS:
        complaints.append(f"There were only {sum(events.values())} events: was it on?")
    if not sum(events.values()) == stats["handled"] == stats["offered"]:
        complaints.append(f"The consumer got {sum(events.values())} events, of {stats}.")
    return complaints


def main(folder: Path) -> None:
    version = importlib.metadata.version("celery")
    folder.mkdir(parents=True, exist_ok=True)
    archive = download(folder, version)
    without, with_it = Run("without", archive), Run("with", archive, broadcast=True)
    print(f"Celery {version}, its unit tests without the broadcast and with it, at the same time.")
    for process in [without.start(), with_it.start()]:
        process.wait()

    plain, ours = without.read("outcomes"), with_it.read("outcomes")
    broadcast = with_it.read("broadcast")
    complaints = complaints_about(broadcast)
    if plain["loaded"]:
        complaints.append("The run without the broadcast had it loaded.")
    found_us = differing(plain["outcomes"], ours["outcomes"])
    differ = [test for test in found_us if test not in FIND_US]
    if differ:
        print("These ended differently; they run again without the broadcast:", *differ, sep="\n  ")
        left = unexplained(differ, ours["outcomes"], without)
        for test in left:
            ways = f"{plain['outcomes'].get(test)} without, {ours['outcomes'].get(test)} with it"
            complaints.append(f"{test}: {ways}")
        print(f"{len(differ) - len(left)} of them do so by themselves.")
    counts: Counter[str] = Counter()
    for outcomes in ours["outcomes"].values():
        counts.update(outcomes)
    print("With it:", ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print(
        f"{sum(broadcast['events'].values())} events of {broadcast['tests']} tests were handled:",
        ", ".join(f"{count} {kind}" for kind, count in broadcast["events"].items()),
    )
    if complaints:
        sys.exit("\n".join(complaints))
    apart = len(found_us) - len(differ)
    print(
        f"Each of {len(ours['outcomes'])} tests ended the same way, but for {apart} that find our "
        "control commands, or our timer."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
