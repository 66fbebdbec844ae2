from __future__ import annotations

import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any

import blinker
import pytest

from celery_broadcast import notices

NOTICES = [getattr(notices, name) for name in notices.NAMES]


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, dict[str, Any]]] = []

    def __call__(self, consumer: str | None, **facts: Any) -> None:
        self.told.append((consumer, facts))


class RaisingListener(Listener):
    """Keeps what it is told, and raises."""

    def __call__(self, consumer: str | None, **facts: Any) -> None:
        super().__call__(consumer, **facts)
        msg = "no"
        raise OSError(msg)


def test_the_notices_are_these() -> None:
    assert sorted(notice.name for notice in NOTICES) == [
        "attempt-lost",
        "broadcast-drained",
        "broadcast-started",
        "consumer-failed",
        "consumer-gave-up",
        "consumer-restarted",
        "consumer-started",
        "consumer-stopped",
        "consumer-stuck",
        "events-dropped",
    ]


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.name)
def test_a_notice_is_found_under_its_own_name(notice: blinker.NamedSignal) -> None:
    assert getattr(notices, notice.name.replace("-", "_")) is notice


@pytest.mark.parametrize("name", notices.NAMES)
def test_a_notice_without_a_receiver_is_harmless(name: notices.Notice) -> None:
    notices.send(name, "store", count=1)


def test_every_notice_is_known_to_a_type_checker() -> None:
    assert [name for name in notices.__annotations__ if name.islower() and name != "logger"] == [
        *notices.NAMES
    ]


def test_what_is_no_notice_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"notices' has no attribute 'consumer_bored'"):
        notices.consumer_bored  # type: ignore[attr-defined]  # noqa: B018


def test_blinker_is_loaded_when_somebody_asks_for_a_notice() -> None:
    program = (
        "import sys; from celery_broadcast import notices;"
        "notices.send('consumer_started', 'store');"
        "before = 'blinker' in sys.modules;"
        "notices.consumer_started; print(before, 'blinker' in sys.modules)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.split() == ["False", "True"]


def test_threads_that_ask_at_once_get_the_same_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Barrier(8)

    def ask(_: int) -> blinker.NamedSignal:
        asked.wait(timeout=10)
        return notices.consumer_started

    monkeypatch.delattr(notices, "consumer_started")
    with ThreadPoolExecutor(8) as threads:
        assert len(set(map(id, threads.map(ask, range(8))))) == 1


def test_a_receiver_hears_of_whom_and_what() -> None:
    listener = Listener()

    with notices.events_dropped.connected_to(listener):
        notices.send("events_dropped", "store", count=3, reason="mailbox-full")

    assert listener.told == [("store", {"count": 3, "reason": "mailbox-full"})]


def test_a_notice_of_the_whole_broadcast_has_no_consumer() -> None:
    listener = Listener()

    with notices.broadcast_drained.connected_to(listener):
        notices.send("broadcast_drained", handled=3, left=0)

    assert listener.told == [(None, {"handled": 3, "left": 0})]


def test_a_receiver_may_listen_to_one_consumer_only() -> None:
    listener = Listener()

    with notices.consumer_stopped.connected_to(listener, sender="store"):
        notices.send("consumer_stopped", "audit")
        notices.send("consumer_stopped", "store")

    assert listener.told == [("store", {})]


def test_a_raising_receiver_is_logged_and_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    listeners = [RaisingListener(), Listener(), RaisingListener(), Listener()]

    with ExitStack() as connected:
        for listener in listeners:
            connected.enter_context(notices.consumer_started.connected_to(listener))
        notices.send("consumer_started", "store")

    assert [listener.told for listener in listeners] == [[("store", {})]] * 4
    first, second = caplog.records
    assert first.getMessage() == second.getMessage()
    assert first.getMessage() == (
        "a receiver of the notice 'consumer-started' raised; it hurt nothing"
    )
    assert (first.levelno, first.name) == (logging.ERROR, "celery_broadcast.notices")
    assert first.exc_info is not None
    assert first.exc_info[0] is OSError


def test_a_receiver_of_other_arguments_is_logged_and_hurts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()

    def deaf() -> None: ...

    notices.consumer_started.connect(deaf)
    with notices.consumer_started.connected_to(listener):
        notices.send("consumer_started", "store")

    assert listener.told == [("store", {})]
    assert len(caplog.records) == 1


def test_a_receiver_may_leave_while_it_is_told() -> None:
    listener = Listener()

    def once(consumer: str) -> None:
        notices.consumer_started.disconnect(once)
        listener(consumer)

    notices.consumer_started.connect(once)
    notices.send("consumer_started", "store")
    notices.send("consumer_started", "store")

    assert listener.told == [("store", {})]


def test_a_receiver_that_exits_on_a_thread_of_the_broadcast_does_not_end_it() -> None:
    def leaves(_: object, **__: object) -> None:
        raise SystemExit(3)

    survived: list[bool] = []

    def send() -> None:
        notices.send("consumer_stopped", "store")
        survived.append(True)

    with notices.consumer_stopped.connected_to(leaves):
        thread = threading.Thread(target=send)
        thread.start()
        thread.join(10)
        assert survived == [True]

        with pytest.raises(SystemExit):  # on the main thread it may be meant for the process
            notices.send("consumer_stopped", "store")
