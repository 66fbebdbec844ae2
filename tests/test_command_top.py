"""The screen of `celery broadcast top`, and where it refuses to be shown."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from rich.console import Console
from test_rates import stats

from celery_broadcast.command_top import Screen
from celery_broadcast.commands import broadcast


def lines(screen: Screen, height: int = 24) -> list[str]:
    """Return what a terminal of 80 columns shows."""
    console = Console(width=80, height=height, force_terminal=False)
    with console.capture() as captured:
        console.print(screen.shown(height))
    return [line.rstrip() for line in captured.get().splitlines()]


def styles(screen: Screen) -> str:
    """Return the same with the codes that make colours."""
    console = Console(width=80, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(screen.shown(24))
    return captured.get()


def answer(**consumers: Any) -> dict[str, Any]:
    return {
        "state": "on",
        "off_since": None,
        "consumers": {name: msgspec.to_builtins(each) for name, each in consumers.items()},
    }


def test_before_the_first_answer_it_says_that_it_waits() -> None:
    assert lines(Screen())[0] == "Waits for the workers to answer."


def test_it_shows_rates_lag_and_drops() -> None:
    screen = Screen()
    screen.take(10.0, {"celery@a": answer(pager=stats())})
    pager = stats(
        handled=20, failed=1, dropped={"mailbox-full": 5}, pending=1_234_567, lag=3.0,
        processes={"stuck": 2, "running": 2},
    )  # fmt: skip
    screen.take(12.0, {"celery@a": answer(pager=pager)})

    assert lines(screen) == [
        "1 worker is on",
        "consumer           handled/s failed/s  dropped pending     lag",
        "pager                     10      0.5        5   1235k   3.0 s ████     2 stuck",
        "s sorted by lag  p pause  q quit",
    ]
    assert "\x1b[1;31m       5 " in styles(screen)


def test_no_line_is_longer_than_a_terminal() -> None:
    screen = Screen()
    everything = stats(
        handled=10**12, failed=10**12, dropped={"mailbox-full": 10**12}, pending=10**12,
        lag=123_456.0, processes={"stuck": 2, "gave-up": 30, "paused": 4},
    )  # fmt: skip
    name = "a.consumer.with.a.long.name"
    screen.take(1.0, {"celery@a": answer(**{name: stats()})})
    screen.take(2.0, {"celery@a": answer(**{name: everything})})

    assert max(map(len, lines(screen))) <= 80


def test_s_sorts_by_something_else() -> None:
    screen = Screen()
    orders = []
    for _ in range(6):
        orders.append(lines(screen)[-1].split()[3])
        screen.press("s")

    assert orders == ["lag", "dropped", "failed", "handled", "name", "lag"]


def test_p_stops_the_numbers_and_lets_them_go_on() -> None:
    screen = Screen()
    screen.press("p")
    screen.take(1.0, {"celery@a": answer(pager=stats())})
    assert lines(screen)[0] == "Waits for the workers to answer."
    assert lines(screen)[-1].endswith("paused")

    screen.press("p")
    screen.take(2.0, {"celery@a": answer(pager=stats())})
    assert lines(screen)[0] == "1 worker is on"


def test_q_quits_and_other_keys_do_nothing() -> None:
    screen = Screen()
    screen.press("x")
    assert not screen.is_quit

    screen.press("q")
    assert screen.is_quit


def test_what_does_not_fit_is_counted() -> None:
    screen = Screen()
    consumers = {f"consumer-{number:02}": stats() for number in range(30)}
    screen.take(1.0, {"celery@a": answer(**consumers)})

    shown = lines(screen, height=10)

    assert len(shown) == 10
    assert "and 23 more" in shown[-1]


def test_workers_that_are_not_on_are_named() -> None:
    screen = Screen()
    off = {"state": "switched-off", "off_since": 0.0, "consumers": {}}
    screen.take(1.0, {"celery@a": answer(), "celery@b": answer(), "celery@c": off})

    assert lines(screen)[0] == (
        "2 workers are on, celery@c is switched off since 1970-01-01 00:00:00 UTC"
    )


@pytest.mark.parametrize(
    "of_another",
    [
        {"state": "on", "consumers": {"store": {"offered": "many"}}},
        {"state": "switched-off", "off_since": 1e18},
        {"consumers": {}},
        ["on"],
        None,
    ],
    ids=str,
)
def test_a_worker_of_another_version_is_named_and_the_others_are_shown(of_another: Any) -> None:
    screen = Screen()

    screen.take(1.0, {"celery@a": answer(store=stats()), "celery@b": of_another})

    assert lines(screen)[0] == (
        "1 worker is on, celery@b is of another version of celery-broadcast"
    )
    assert "store" in lines(screen)[2]


def test_no_answer_and_no_broker_are_said() -> None:
    screen = Screen()
    screen.take(1.0, {})
    assert lines(screen)[0] == "No worker answered."

    screen.take(2.0, OSError("refused\x1b[2J"))
    assert lines(screen)[0] == "The workers can't be asked: OSError: refused?[2J"

    screen.take(3.0, click.ClickException("The broker is away"))
    assert lines(screen)[0] == "The broker is away"


def top(*arguments: str) -> Result:
    with Celery(broker="memory://", set_as_current=False) as app:
        context = CLIContext(app, no_color=True, workdir=None)
        return CliRunner().invoke(broadcast, ["top", *arguments], obj=context)


def test_in_a_pipe_it_refuses_and_says_what_to_use() -> None:
    result = top()

    assert result.exit_code == 2
    assert "top needs a terminal" in result.output
    assert "stats --watch" in result.output


def test_without_rich_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("_NamedTextIOWrapper", "EchoingStdin"):
        monkeypatch.setattr(f"click.testing.{stream}.isatty", lambda _self: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)

    result = top()

    assert result.exit_code == 2
    assert "pip install 'celery-broadcast[top]'" in result.output
