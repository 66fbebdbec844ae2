from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import Any

import blinker
import pytest

from celery_broadcast import notices

NOTICES = [value for value in vars(notices).values() if isinstance(value, blinker.NamedSignal)]


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


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.name)
def test_a_notice_without_a_receiver_is_harmless(notice: blinker.NamedSignal) -> None:
    notices.send(notice, "store", count=1)


def test_a_receiver_hears_of_whom_and_what() -> None:
    listener = Listener()

    with notices.events_dropped.connected_to(listener):
        notices.send(notices.events_dropped, "store", count=3, reason="mailbox-full")

    assert listener.told == [("store", {"count": 3, "reason": "mailbox-full"})]


def test_a_notice_of_the_whole_broadcast_has_no_consumer() -> None:
    listener = Listener()

    with notices.broadcast_drained.connected_to(listener):
        notices.send(notices.broadcast_drained, handled=3, left=0)

    assert listener.told == [(None, {"handled": 3, "left": 0})]


def test_a_receiver_may_listen_to_one_consumer_only() -> None:
    listener = Listener()

    with notices.consumer_stopped.connected_to(listener, sender="store"):
        notices.send(notices.consumer_stopped, "audit")
        notices.send(notices.consumer_stopped, "store")

    assert listener.told == [("store", {})]


def test_a_raising_receiver_is_logged_and_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    listeners = [RaisingListener(), Listener(), RaisingListener(), Listener()]

    with ExitStack() as connected:
        for listener in listeners:
            connected.enter_context(notices.consumer_started.connected_to(listener))
        notices.send(notices.consumer_started, "store")

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
        notices.send(notices.consumer_started, "store")

    assert listener.told == [("store", {})]
    assert len(caplog.records) == 1


def test_a_receiver_may_leave_while_it_is_told() -> None:
    listener = Listener()

    def once(consumer: str) -> None:
        notices.consumer_started.disconnect(once)
        listener(consumer)

    notices.consumer_started.connect(once)
    notices.send(notices.consumer_started, "store")
    notices.send(notices.consumer_started, "store")

    assert listener.told == [("store", {})]


def test_a_receiver_that_exits_on_a_thread_of_the_broadcast_does_not_end_it() -> None:
    def leaves(_: object, **__: object) -> None:
        raise SystemExit(3)

    survived: list[bool] = []

    def send() -> None:
        notices.send(notices.consumer_stopped, "store")
        survived.append(True)

    with notices.consumer_stopped.connected_to(leaves):
        thread = threading.Thread(target=send)
        thread.start()
        thread.join(10)
        assert survived == [True]

        with pytest.raises(SystemExit):  # on the main thread it may be meant for the process
            notices.send(notices.consumer_stopped, "store")
