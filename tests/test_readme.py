"""What the README and the docs say is true: their code runs, their tables are the code's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from celery_broadcast import notices, settings
from celery_broadcast.batch import Batch
from celery_broadcast.commands import broadcast
from celery_broadcast.counts import DROP_REASONS, ConsumerStats
from celery_broadcast.events import EVENT_TYPES, JobEnded, JobEvent
from celery_broadcast.options import _MOST_CONCURRENT, OPTIONS
from celery_broadcast.restarts import Restart
from celery_broadcast.retry import Retry

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL)


def rows(document: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of a table by the first name in each row."""
    table = re.search(rf"^\| {heading} \|.*?\n\n", document, flags=re.MULTILINE | re.DOTALL)
    assert table, f"there is no table headed {heading}"
    lines = table.group().strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {names[0].strip("`"): names for names in cells}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split()[1])
def test_a_python_block_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    name = block.split()[1]
    (tmp_path / name).write_text(block)

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import runpy; runpy.run_path({name!r})"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


CONSUMERS = (ROOT / "docs" / "consumers.md").read_text()


@pytest.mark.parametrize(
    "block", blocks("python", CONSUMERS)[1:], ids=lambda block: block.split()[1]
)
def test_an_example_of_the_consumers_page_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(blocks("python", CONSUMERS)[0])
    (tmp_path / block.split()[1]).write_text(block)

    ran = subprocess.run(
        [sys.executable, "-W", "error", block.split()[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


RELAY = (ROOT / "docs" / "relay.md").read_text()


@pytest.mark.parametrize("block", blocks("python", RELAY), ids=lambda block: block.split()[1])
def test_an_example_of_the_relay_page_runs(block: str, tmp_path: Path) -> None:
    """Without a broker, which nothing of it asks for before there is an event."""
    (tmp_path / block.split()[1]).write_text(block)

    ran = subprocess.run(
        [sys.executable, "-W", "error", block.split()[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


OPENTELEMETRY = (ROOT / "docs" / "opentelemetry.md").read_text()


@pytest.mark.parametrize(
    "block", blocks("python", OPENTELEMETRY), ids=lambda block: block.split()[1]
)
def test_an_example_of_the_opentelemetry_page_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(blocks("python", OPENTELEMETRY)[0])
    (tmp_path / block.split()[1]).write_text(block)

    ran = subprocess.run(
        [sys.executable, "-W", "error", block.split()[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", "".join(blocks("console", RELAY)).splitlines()[5:])
def test_a_command_of_the_relay_page_exists(command: str) -> None:
    """The first five are run, in tests/workers/test_relay_page.py."""
    before, _, arguments = command.partition(" broadcast ")
    assert before == "$ celery -A shop"

    ran = CliRunner().invoke(broadcast, [*shlex.split(arguments), "--help"])

    assert ran.exit_code == 0, ran.output


def test_the_consumers_page_has_every_option_in_its_table_and_in_an_example() -> None:
    table = rows(CONSUMERS, "Option")
    examples = "".join(blocks("python", CONSUMERS))

    assert list(table) == ["event types", *OPTIONS]
    for option in OPTIONS:
        assert re.search(rf"\b{option}=", examples), option


def test_the_consumers_page_has_the_defaults_of_the_code() -> None:
    page = " ".join(row for cells in rows(CONSUMERS, "Option").values() for row in cells)
    shown = settings.Settings()

    assert f"Batch(max_events={Batch().max_events}, max_wait={Batch().max_wait})" in page
    assert f"Retry(attempts={Retry().attempts}, wait={Retry().wait}, on=Exception)" in page
    restart = Restart()
    assert (
        f'Restart("{restart.kind}", max_restarts={restart.max_restarts}, within={restart.within})'
        in page
    )
    assert f"{shown.mailbox_size:,}".replace(",", " ") in page
    assert f'"{shown.overflow}"' in page
    assert f"at most {_MOST_CONCURRENT:,}" in page


def test_the_tests_of_the_testing_page_pass(tmp_path: Path) -> None:
    """With pytest as a user has it: the fixtures come from the installed plugin."""
    code = blocks("python", (ROOT / "docs" / "testing.md").read_text())
    for block in code:
        (tmp_path / block.split()[1]).write_text(block)

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "--rootdir", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert f"{''.join(code).count('def test_')} passed" in ran.stdout


def test_the_ten_lines_page_somebody_for_a_job_that_fails(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(blocks("python")[0].replace("redis://", "memory://"))
    program = """
import shop
shop.app.loader.import_default_modules()  # as a worker does
shop.app.conf.task_always_eager = True

@shop.app.task(name="shop.charge")
def charge():
    raise ValueError("no money")

charge.delay()
"""

    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert re.fullmatch(r"shop\.charge failed after 0\.\d s: no money\n", ran.stdout)


def test_the_ten_lines_are_ten() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]

    assert len(lines) - 1 <= 10  # the first is the file's name


FIVE = blocks("console", RELAY)[0].splitlines()


def test_the_readme_gets_to_a_page_as_the_relay_page_does() -> None:
    """With commands that tests/workers/test_relay_page.py runs."""
    assert "\n".join(FIVE) in README
    assert len(FIVE) == 5


@pytest.mark.parametrize(
    "command", [each for each in "".join(blocks("console")).splitlines() if each not in FIVE]
)
def test_a_command_of_the_readme_exists(command: str) -> None:
    """Everything that they do is done elsewhere in the tests, or by what runs them."""
    program, *arguments = shlex.split(command.removeprefix("$ "), comments=True)
    if command == "$ pip install .":
        assert (ROOT / "setup.cfg").exists()
        return

    if program == "celery":
        assert arguments[:3] == ["-A", "shop", "broadcast"]
        helped = CliRunner().invoke(broadcast, [*arguments[3:], "--help"])
        assert helped.exit_code == 0, helped.output
        return

    assert program == "make"
    ran = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "example_project" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_names_every_option_of_the_decorator() -> None:
    table = README[README.index("| What a consumer can ask for |") :]

    for option in OPTIONS:
        assert f"`{option}`" in table[: table.index("\n\n")]


def test_the_readme_promises_what_is_tested() -> None:
    tested = (ROOT / "tests" / "test_promises.py").read_text()
    numbers = re.findall(r"^(\d+)\. \*\*", README, flags=re.MULTILINE)

    assert numbers == [str(number) for number in range(1, 12)]
    for number in numbers:
        assert f"def test_promise_{number}_" in tested


def test_the_settings_page_has_every_setting_with_its_default() -> None:
    table = rows((ROOT / "docs" / "settings.md").read_text(), "Setting")

    assert list(table) == [f"broadcast_{name}" for name in settings._CHECKS]
    for name, cells in table.items():
        default = getattr(settings.Settings(), name.removeprefix("broadcast_"))
        assert eval(cells[1].strip("`")) == default, name  # noqa: S307  # our own page


def test_the_events_page_has_every_event_with_its_state() -> None:
    table = rows((ROOT / "docs" / "events.md").read_text(), "Event")

    assert list(table) == list(EVENT_TYPES)
    for name, event_type in EVENT_TYPES.items():
        states = [f.default for f in msgspec.structs.fields(event_type) if f.name == "state"]
        assert table[name][2] == "".join(states)


EVERY_TYPE: list[type[JobEvent]] = [JobEvent, JobEnded, *EVENT_TYPES.values()]


def test_the_events_page_has_every_field() -> None:
    page = (ROOT / "docs" / "events.md").read_text()

    for event_type in EVERY_TYPE:
        for field in event_type.__struct_fields__:
            assert f"`{field}`" in page


def test_the_docstring_of_every_event_names_its_own_fields() -> None:
    for event_type in EVERY_TYPE:
        inherited = getattr(event_type.__base__, "__struct_fields__", ())
        for field in set(event_type.__struct_fields__) - set(inherited):
            assert f"{field}: " in (event_type.__doc__ or ""), f"{event_type.__name__}.{field}"


#: Where what is an example begins in a line of the log.
EXAMPLE = re.compile(r" '| of shop| in shop| \(| in pid | in on_| drained | after |: |\.\.\.| \d")
LEVEL = re.compile(r"\| (INFO|WARNING|ERROR|CRITICAL) \|")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_the_operations_page_has_every_number_reason_and_notice() -> None:
    numbers = [*ConsumerStats.__struct_fields__, "dropped_total"]

    assert sorted(rows(OPERATIONS, "Field")) == sorted(numbers)
    assert sorted(rows(OPERATIONS, "Reason")) == sorted(DROP_REASONS)
    assert sorted(rows(OPERATIONS, "Notice")) == sorted(notices.NAMES)


@pytest.mark.parametrize("page", [OPERATIONS, RELAY], ids=["operations", "relay"])
def test_the_log_lines_of_a_page_are_those_of_the_code(page: str) -> None:
    source = "".join(
        re.sub(r'"\s*"', "", file.read_text()) for file in (ROOT / "celery_broadcast").rglob("*.py")
    )
    lines = [line.split("|")[2].strip() for line in page.splitlines() if LEVEL.match(line)]

    assert len(lines) >= 10
    for line in lines:
        assert EXAMPLE.split(line)[0] in source, line
