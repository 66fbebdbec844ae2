from __future__ import annotations

import logging

import pytest
from recorder import numbered

from celery_broadcast import notices
from celery_broadcast.calls import Call, Calls


def call_since(began_at: float, what: str = "its setup") -> Call:
    return Call(what, None, began_at, lambda: "  in shop.py, line 7\n")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_where_nothing_goes_on_and_nothing_waits_there_is_no_need_to_look_again() -> None:
    assert Calls("store", stuck_after=10.0).look(100.0, is_busy=False) is None


def test_where_something_waits_a_call_may_begin_at_any_time() -> None:
    assert Calls("store", stuck_after=10.0).look(100.0, is_busy=True) == 10.0


def test_the_next_look_is_when_the_oldest_call_has_taken_too_long() -> None:
    calls = Calls("store", stuck_after=10.0)
    calls.begin(call_since(93.0))
    calls.begin(call_since(98.0))

    assert calls.look(100.0, is_busy=True) == 3.0
    assert calls.look(100.0, is_busy=False) == 3.0


def test_a_call_that_is_over_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls("store", stuck_after=10.0)
    call = call_since(90.0)
    calls.begin(call)
    calls.end(call)
    calls.end(call)  # twice is harmless

    assert calls.look(200.0, is_busy=False) is None
    assert lines(caplog) == []


def test_a_call_that_takes_too_long_is_said_and_noticed_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[object, ...]] = []

    def hear(consumer: str, *, event: object, seconds: float, stack: str) -> None:
        told.append((consumer, event, seconds, stack))

    (event,) = numbered(1)
    calls = Calls("store", stuck_after=10.0)
    calls.begin(Call(None, event, 90.0, lambda: "  in shop.py, line 7\n"))

    with notices.consumer_stuck.connected_to(hear):
        assert calls.look(102.5, is_busy=False) is None
        assert calls.look(200.0, is_busy=False) is None

    assert told == [("store", event, 12.5, "  in shop.py, line 7\n")]
    assert lines(caplog) == [
        (
            "consumer 'store' has been at JobFinished shop.charge[0] for 12.5 s; it goes on. "
            "Just now it is here:\n  in shop.py, line 7"
        )
    ]


def test_each_call_is_an_occasion_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls("store", stuck_after=10.0)
    first, second = call_since(90.0, "first"), call_since(95.0, "second")
    calls.begin(first)
    calls.begin(second)

    assert calls.look(100.0, is_busy=False) == 5.0
    assert [line.split(" for ")[0] for line in lines(caplog)] == [
        "consumer 'store' has been at first"
    ]
    assert calls.look(105.0, is_busy=False) is None
    assert len(lines(caplog)) == 2
