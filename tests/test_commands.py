"""The commands of `celery broadcast`, run in this process, with a broker in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from memory_transport import MemoryBroker, MemoryTransport
from parcels import parcel_of
from recorder import numbered, subscribe

from celery_broadcast import JobFinished, installation
from celery_broadcast.commands import broadcast
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.transport import DeadLetter, Group, Parcel
from celery_broadcast.subscription import registry

PAGER = Group(name="pager", event_types=("JobFinished",))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """The broker of every app."""
    broker = MemoryBroker()
    monkeypatch.setattr(Choice, "new_transport", lambda _self: MemoryTransport(broker))
    return broker


@pytest.fixture
def shop(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app with a remote consumer and one that isn't, and without the jobs of other tests."""
    monkeypatch.setattr("celery._state._on_app_finalizers", set())
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.broadcast_enabled = True
    pager = subscribe(print, "pager", events=(JobFinished,), tasks=("shop.*",))
    local = msgspec.structs.replace(subscribe(print, "local"), declared_at="shop.py:12")
    registry.subscriptions = (msgspec.structs.replace(pager, remote=True), local)
    installation.install(app)
    yield app
    installation.uninstall(app)
    app.close()


def command(app: Celery, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(
        broadcast, arguments, obj=CLIContext(app, no_color=True, workdir=None), input=answer
    )


def put_aside(broker: MemoryBroker, count: int = 1) -> list[str]:
    """Put dead letters aside; return their ids."""
    letters = [
        DeadLetter(
            parcel=parcel_of(numbered(1)),
            reason="raised",
            error="Oh\nno",
            deliveries=5,
            put_aside_at=1.0,
        )
        for _ in range(count)
    ]
    MemoryTransport(broker).put_aside(PAGER, letters)
    return [letter.letter_id for letter in broker.letters["pager"]]


def test_a_group_is_declared(shop: Celery, broker: MemoryBroker) -> None:
    result = command(shop, "declare")

    assert result.exit_code == 0, result.output
    assert result.output == "pager: JobFinished of shop.*\n"
    assert set(broker.groups) == {"pager"}


def test_a_broker_that_is_away_is_an_error_with_a_code(shop: Celery, broker: MemoryBroker) -> None:
    broker.is_away = True

    result = command(shop, "declare")

    assert result.exit_code == 1
    assert "It is away" in result.output


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nobody"], "There is no consumer named 'nobody'. Remote ones are: pager."),
        (["pager", "local"], "The consumer 'local' (shop.py:12) isn't remote"),
    ],
)
@pytest.mark.parametrize("verb", ["consume", "declare"])
def test_a_name_that_is_not_a_remote_consumers_is_refused(
    shop: Celery, verb: str, names: list[str], message: str
) -> None:
    result = command(shop, verb, *names)

    assert result.exit_code == 2
    assert message in result.output


def test_an_app_without_remote_consumers_is_refused(shop: Celery) -> None:
    registry.clear()

    result = command(shop, "consume")

    assert result.exit_code == 2
    assert "has no remote consumer" in result.output


def test_a_broadcast_that_is_off_is_refused(shop: Celery) -> None:
    shop.conf.broadcast_enabled = False

    result = command(shop, "consume")

    assert result.exit_code == 2
    assert "The broadcast is off" in result.output


def test_a_wrong_setting_is_refused(shop: Celery) -> None:
    shop.conf.broadcast_relay_lease = "long"

    result = command(shop, "consume")

    assert result.exit_code == 2
    assert "broadcast_relay_lease" in result.output


def test_the_consumers_are_shown_with_what_they_want_and_where_they_run(shop: Celery) -> None:
    shown = command(shop, "consumers")
    pager, local = json.loads(command(shop, "consumers", "--json").stdout)

    assert shown.exit_code == 0, shown.output
    assert "  events: JobFinished\n  tasks: shop.*\n" in shown.output
    assert "  mailbox: 10000\n  overflow: drop_oldest\n" in shown.output
    assert (pager["name"], pager["runs"]) == ("pager", "remote, in celery broadcast consume")
    assert (pager["mailbox"], pager["overflow"]) == ("without a bound", None)
    assert (pager["payload"], local["payload"]) == ("text", None)
    assert local["declared_at"] == "shop.py:12"
    assert max(map(len, shown.output.splitlines())) <= 80


def test_workers_that_do_not_answer_are_an_error_with_a_code(shop: Celery) -> None:
    for verb in ("stats", "on", "off"):
        result = command(shop, verb, "--timeout", "0.01")
        assert result.exit_code == 1
        assert "No worker answered." in result.output


def test_dead_letters_are_listed_a_line_each(shop: Celery, broker: MemoryBroker) -> None:
    (letter_id,) = put_aside(broker)

    result = command(shop, "dead-letters", "list", "pager")

    assert result.exit_code == 0
    line = f"{letter_id}  1970-01-01T00:00:01+00:00  raised 5x  JobFinished shop.charge  no"
    assert line in result.output


def test_dead_letters_are_listed_and_shown_as_json(shop: Celery, broker: MemoryBroker) -> None:
    ids = put_aside(broker, 2)

    listed = json.loads(command(shop, "dead-letters", "list", "pager", "--json").output)
    shown = command(shop, "dead-letters", "show", "pager", ids[1], "--json").output

    assert [letter["id"] for letter in listed] == ids
    assert [letter["id"] for letter in json.loads(shown)] == ids[1:]


def test_a_dead_letter_is_shown_in_full(shop: Celery, broker: MemoryBroker) -> None:
    put_aside(broker)

    output = command(shop, "dead-letters", "show", "pager").output

    assert "reason: raised" in output
    assert "error:\nOh\nno\n" in output
    assert '"taskid": "0"' in output


@pytest.mark.parametrize("verb", ["list", "show"])
def test_nothing_in_a_dead_letter_can_write_over_the_terminal(
    shop: Celery, broker: MemoryBroker, verb: str
) -> None:
    hostile = "\x1b[2J\r\x9b\nx"
    letter = DeadLetter(
        parcel=Parcel(event_type=hostile, task_name=hostile, body=b"\x1b[2J"),
        reason=hostile,
        error=hostile,
        deliveries=5,
        put_aside_at=1e14,
    )
    MemoryTransport(broker).put_aside(PAGER, [letter])

    result = command(shop, "dead-letters", verb, "pager")

    assert result.exit_code == 0
    assert not {"\x1b", "\r", "\x9b"} & set(result.output)
    assert result.output.count("\nx") == (1 if verb == "show" else 0)  # within the error


def test_an_id_that_is_not_there_is_an_error_with_a_code(
    shop: Celery, broker: MemoryBroker
) -> None:
    put_aside(broker)

    for verb in ("show", "replay"):
        result = command(shop, "dead-letters", verb, "pager", "nothing")
        assert result.exit_code == 1
        assert "There is no dead letter nothing" in result.output


def test_dead_letters_are_replayed_to_their_group(shop: Celery, broker: MemoryBroker) -> None:
    ids = put_aside(broker, 3)

    one = command(shop, "dead-letters", "replay", "pager", ids[0])
    rest = command(shop, "dead-letters", "replay", "pager")

    assert one.output == "1 dead letter was sent to pager again\n"
    assert rest.output == "2 dead letters were sent to pager again\n"
    assert len(broker.waiting["pager"]) == 3
    assert broker.letters["pager"] == []


def test_dead_letters_are_purged_after_a_question(shop: Celery, broker: MemoryBroker) -> None:
    ids = put_aside(broker, 3)

    assert command(shop, "dead-letters", "purge", "pager", answer="n\n").exit_code == 1
    assert len(broker.letters["pager"]) == 3
    one = command(shop, "dead-letters", "purge", "pager", ids[0], "--force")
    rest = command(shop, "dead-letters", "purge", "pager", answer="y\n")

    assert one.output == "1 dead letter was thrown away\n"
    assert "2 dead letters were thrown away" in rest.output
    assert broker.letters["pager"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["stats"],
            ["on"],
            ["off"],
            ["consume"],
            ["declare"],
            ["dead-letters", "list"],
            ["dead-letters", "show"],
        ),
        *(["dead-letters", "replay"], ["dead-letters", "purge"]),
    ],
    ids=" ".join,
)
def test_every_command_has_help_with_an_example(arguments: list[str]) -> None:
    result = CliRunner().invoke(broadcast, [*arguments, "--help"])

    assert f"celery -A shop broadcast {' '.join(arguments)}" in result.output


def test_loading_the_commands_loads_nothing_of_the_core() -> None:
    program = (
        "import sys, celery.bin.celery, celery_broadcast.commands;"
        "print([name for name in sys.modules if name.startswith('celery_broadcast.')])"
    )

    answer: Any = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "['celery_broadcast.commands']"


def test_check_shows_each_setting_with_where_it_is_from(
    shop: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.conf.broadcast_mailbox_size = 7
    shop.conf.broadcast_relay_url = "redis://:hunter2@localhost/1"
    shop.conf.broadcast_relay_key = "hunter2 hunter2 hunter2"
    monkeypatch.setenv("CELERY_BROADCAST_ENABLED", "1")

    result = command(shop, "check")

    assert result.exit_code == 0, result.output
    assert "mailbox_size = 7 (broadcast_mailbox_size)" in result.output
    assert "overflow = 'drop_oldest' (default)" in result.output
    assert "enabled = True (the environment variable CELERY_BROADCAST_ENABLED)" in result.output
    assert "relay's broker: reachable" in result.output
    assert "hunter2" not in result.output + command(shop, "check", "--json").output
    assert all(len(line) <= 80 for line in result.output.splitlines())


def test_check_shows_every_mistake_at_once(shop: Celery) -> None:
    installation.uninstall(shop)  # or Celery's log, too, tells of the first
    shop.conf.broadcast_mailbox_size = -1
    shop.conf.broadcast_overflow = "drop"
    shop.conf.broadcast_mailboxsize = 1
    shop.conf.broadcast_events = ["JobFinish"]
    shop.conf.broadcast_relay_key = "hunter2"
    shop.conf.imports = ("no_such_module", "no_other_module")

    result = command(shop, "check", "--json")

    assert result.exit_code == 1
    mistakes = "\n".join(json.loads(result.output)["mistakes"])
    for wrong in (
        "broadcast_mailbox_size must be",
        "broadcast_overflow='drop'",
        "Did you mean broadcast_mailbox_size?",
        "'JobFinish', which is no event",
        "broadcast_relay_key must be",
        "no_such_module",
        "no_other_module",
    ):
        assert wrong in mistakes
    assert "hunter2" not in mistakes


def test_check_names_the_packages_that_are_missing(
    shop: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.conf.broadcast_metrics_port = 9808
    shop.conf.broadcast_opentelemetry = True
    assert command(shop, "check").exit_code == 0

    monkeypatch.setattr("celery_broadcast.command_check.find_spec", lambda _: None)
    result = command(shop, "check", "--json")

    assert result.exit_code == 1
    metrics, tracing = json.loads(result.output)["mistakes"]
    assert metrics.startswith("broadcast_metrics_port is set, and prometheus_client isn't")
    assert tracing.endswith('pip install "celery-broadcast[otel]".')


def test_check_says_that_nothing_installs_the_broadcast(shop: Celery) -> None:
    assert command(shop, "check").output.endswith("\nNothing is wrong.\n")

    installation.uninstall(shop)
    result = command(shop, "check", "--json")

    assert result.exit_code == 1
    (mistake,) = json.loads(result.output)["mistakes"]
    assert mistake.startswith("broadcast_enabled is set, and nothing installs the broadcast.")


def test_check_says_why_nothing_happens_though_nothing_is_wrong(shop: Celery) -> None:
    registry.clear()
    no_consumer = command(shop, "check")
    shop.conf.broadcast_enabled = False
    off = command(shop, "check")

    assert (no_consumer.exit_code, off.exit_code) == (0, 0)
    assert no_consumer.output.endswith("Nothing is wrong, but there is no consumer.\n")
    assert off.output.endswith(
        "Nothing is wrong, but the broadcast is off and there is no consumer.\n"
    )


def test_check_says_that_the_relays_broker_is_away(shop: Celery, broker: MemoryBroker) -> None:
    broker.is_away = True

    result = command(shop, "check")

    assert result.exit_code == 1
    assert "relay's broker: not reachable" in result.output
    assert "It is away" in result.output


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("KeyError('broadcast_stats')", "doesn't know the broadcast"),
        ("OSError('no memory')", "answers with an error: OSError('no memory')"),
    ],
)
def test_an_error_that_a_worker_answers_is_shown_as_it_is(
    shop: Celery, monkeypatch: pytest.MonkeyPatch, error: str, told: str
) -> None:
    monkeypatch.setattr(shop.control, "broadcast", lambda *_, **__: [{"a@b": {"error": error}}])

    result = command(shop, "stats")

    assert result.exit_code == 1
    assert told in result.output
    assert len(result.output.splitlines()) == 1


def test_what_a_terminal_can_not_show_costs_no_more_than_that_letter(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from celery import Celery\n"
        "from celery_broadcast import on_job_event\n"
        "app = Celery('shop', broker='memory://')\n"
        "on_job_event(name='\u4f1a\u8a08')(print)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}

    ran = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", "broadcast", "consumers"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "??\n" in ran.stdout
