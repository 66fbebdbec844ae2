"""The lines of `celery broadcast tail`, in this process, with a broker in memory."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from memory_transport import MemoryBroker, MemoryTransport
from parcels import as_json, parcel_of, sent
from recorder import make_event, subscribe

from celery_broadcast import JobEvent, JobFailed, JobFinished, JobStarted
from celery_broadcast.command_tail import cut, line_of
from celery_broadcast.commands import broadcast
from celery_broadcast.relay.choice import Choice
from celery_broadcast.subscription import registry


class Desk:
    """An app with remote consumers, and the broker that it has."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.broker = MemoryBroker()
        self.transport = MemoryTransport(self.broker)
        self._to_publish: list[Any] = []

    def happens(self, *events: JobEvent) -> None:
        """Have events sent as soon as they can be seen."""
        self._to_publish += [parcel_of([event]) for event in events]

    def tail(self, *arguments: str) -> Result:
        """Run the command until all of it was seen, and then Ctrl-C."""
        looks = itertools.count()

        def look(what: str) -> None:
            times = next(looks) if what == "watch" else 0
            if times == 1:  # the first only begins
                MemoryTransport(self.broker).publish(self._to_publish)
            elif times > len(self._to_publish) + 1:
                signal.raise_signal(signal.SIGINT)

        self.transport.before = look
        return CliRunner().invoke(
            broadcast, ["tail", *arguments], obj=CLIContext(self.app, no_color=True, workdir=None)
        )


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr("celery._state._on_app_finalizers", set())
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.broadcast_enabled = True
    pager = subscribe(print, "pager", events=(JobFailed,), tasks=("shop.*",))
    audit = subscribe(print, "audit", events=(JobFinished,))
    registry.subscriptions = tuple(
        msgspec.structs.replace(each, remote=True) for each in (pager, audit)
    )
    desk = Desk(app)
    monkeypatch.setattr(Choice, "new_transport", lambda _self: desk.transport)
    yield desk
    app.close()


FAILED = make_event(
    JobFailed,
    task_id="4c0f3b7e-0d3a-4a53-9f1e-0d51a54fbd6c",
    task_name="shop.charge",
    worker="celery@web-1",
    exception_type="ValueError",
    exception_message="no\n\x1b[2Jmoney",
    ended_at=1_763_842_052.5,
    runtime=0.1234,
)


def test_each_event_is_a_line(desk: Desk) -> None:
    desk.happens(FAILED)

    result = desk.tail()

    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "2025-11-22T20:07:32.500000Z JobFailed shop.charge 4c0f3b7e-0d3a-4a53-9f1e-0d51a54fbd6c "
        "celery@web-1 0.123 s ValueError: no ?[2Jmoney\n"
    )
    assert "Shows JobFinished, JobFailed of every task, as far as a " in result.stderr


def test_in_json_each_is_the_cloudevent_that_was_sent(desk: Desk) -> None:
    desk.happens(FAILED)

    result = desk.tail("--json")

    (line,) = result.stdout.splitlines()
    assert json.loads(line) == {**as_json(parcel_of([FAILED]))[0], "id": json.loads(line)["id"]}
    assert "\x1b" not in line


def test_only_the_types_and_tasks_that_are_asked_for_are_shown(desk: Desk) -> None:
    desk.happens(FAILED, make_event(JobFinished, task_name="shop.refund"))

    result = desk.tail("--event", "JobFailed", "--event", "JobFinished", "--task", "*.refund")

    assert len(result.stdout.splitlines()) == 1
    assert " JobFinished shop.refund " in result.stdout
    assert "of *.refund" in result.stderr


def test_the_base_of_several_types_means_them_all(desk: Desk) -> None:
    result = desk.tail("--event", "JobEnded")

    assert "Shows JobFinished, JobFailed of" in result.stderr
    assert "JobRetried isn't sent: no remote consumer wants it." in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("JobStarted", "JobStarted: no remote consumer wants that, so it isn't sent. Sent are: "),
        ("jobfailed", "--event 'jobfailed' is no event type. There are: JobEvent, Job"),
    ],
)
def test_what_can_never_be_shown_is_refused(desk: Desk, name: str, message: str) -> None:
    result = desk.tail("--event", name)

    assert result.exit_code == 2
    assert message in result.stderr


def test_an_app_without_remote_consumers_is_refused(desk: Desk) -> None:
    registry.clear()

    result = desk.tail()

    assert result.exit_code == 2
    assert "The app has no remote consumer" in result.stderr


def test_a_broker_that_is_away_is_an_error_with_a_code(desk: Desk) -> None:
    desk.broker.is_away = True

    result = desk.tail()

    assert result.exit_code == 1
    assert "It is away" in result.stderr


def test_in_a_terminal_a_line_is_no_longer_than_that(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True)
    desk.happens(FAILED)

    line = desk.tail().stdout.splitlines()[0]

    assert line == "20:07:32 JobFailed shop.charge 4c0f3b7e celery@web-1 0.12..."
    assert len(line) == 60


@pytest.mark.parametrize("moment", [float("1e300"), -1e300])
def test_a_time_that_is_none_is_shown_as_such(moment: float) -> None:
    (arrived,) = sent(make_event(JobFinished))
    odd = msgspec.structs.replace(
        arrived, event=msgspec.structs.replace(arrived.event, ended_at=moment)
    )

    assert line_of(odd, is_short=True).startswith("- JobFinished")


def test_a_start_has_no_runtime() -> None:
    (arrived,) = sent(make_event(JobStarted, worker="celery@a", started_at=0.0))

    assert line_of(arrived, is_short=True).startswith("00:00:00 JobStarted")
    assert line_of(arrived, is_short=True).endswith("celery@a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("1234567890", "1234567890"),
        ("12345678901", "1234567..."),
        ("注文注文注", "注文注文注"),
        ("注文注文注文", "注文注..."),
        ("1注文注文注", "1注文注..."),
        ("e\u0301" * 10, "e\u0301" * 10),
        ("e\u0301" * 11, "e\u0301" * 7 + "..."),
    ],
)
def test_a_line_is_cut_where_the_columns_of_the_terminal_end(text: str, shown: str) -> None:
    assert cut(text, 10) == shown
