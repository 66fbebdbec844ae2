from __future__ import annotations

import logging
from typing import Any

import pytest
from crews import run
from recorder import numbered

from celery_broadcast import Event, notices
from celery_broadcast.failures import Failures, text_of


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_each_loss_is_noticed_and_the_log_has_one_line_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []

    def hear(consumer: str, *, event: Any, error: BaseException) -> None:
        told.append((consumer, event, error))

    failures, error, events = Failures("store"), OSError("no"), numbered(20)
    with notices.consumer_failed.connected_to(hear):
        for event in events:
            failures.say_lost(event, error, is_crash=False)

    assert told == [("store", event, error) for event in events]
    assert lines(caplog, logging.ERROR) == [
        (
            "consumer 'store' raised on JobFinished shop.charge[0]; "
            "this event is lost, the consumer goes on"
        )
    ]


def test_the_next_line_tells_how_many_there_were_since_the_last(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("celery_broadcast.failures.time.monotonic", lambda: now)
    failures = Failures("store")
    for event in numbered(5):
        failures.say_lost(event, OSError("no"), is_crash=False)
    now += 1.5

    failures.say_lost(numbered(6)[5], OSError("no"), is_crash=False)

    assert lines(caplog, logging.ERROR)[1] == (
        "consumer 'store' raised on JobFinished shop.charge[5]; this event is lost, "
        "the consumer goes on (4 more since the last such line)"
    )


def test_an_exit_is_not_said_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    Failures("store").say_lost(numbered(3), SystemExit(3), is_crash=True)

    assert lines(caplog, logging.ERROR) == [
        (
            "consumer 'store' raised on 3 events, JobFinished shop.charge[0] the first; "
            "these are lost"
        )
    ]


def test_what_the_broker_has_again_is_not_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    (event,) = numbered(1)
    Failures("store").say_lost(event, OSError("no"), is_crash=False, comes_again=True)

    assert lines(caplog, logging.ERROR) == [
        (
            "consumer 'store' raised on JobFinished shop.charge[0]; it comes again, or goes to the "
            "dead letters, the consumer goes on"
        )
    ]


def test_another_try_is_said_without_the_stack_and_apart_from_the_losses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures("store")
    (event,) = numbered(1)

    for attempt in range(1, 6):
        failures.say_retry(event, OSError("no"), 2.0, attempt)
    failures.say_lost(event, OSError("no"), is_crash=False)

    assert lines(caplog, logging.WARNING) == [
        (
            "consumer 'store' raised OSError on JobFinished shop.charge[0], the first time; "
            "it is called again in 2.0 s"
        )
    ]
    assert next(record.exc_info for record in caplog.records) is None
    assert len(lines(caplog, logging.ERROR)) == 1


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        *((1, "first"), (2, "second"), (3, "third"), (4, "4th"), (11, "11th"), (12, "12th")),
        *((21, "21st"), (22, "22nd"), (33, "33rd"), (40, "40th"), (101, "101st"), (113, "113th")),
    ],
)
def test_the_number_of_a_try_is_said_in_words(
    caplog: pytest.LogCaptureFixture, attempt: int, said: str
) -> None:
    Failures("store").say_retry(numbered(1)[0], OSError("no"), 2.0, attempt)

    assert f", the {said} time; " in caplog.text


def test_an_event_and_a_batch_have_a_text_each() -> None:
    assert text_of(numbered(1)[0]) == "JobFinished shop.charge[0]"
    assert text_of(numbered(2)) == "2 events, JobFinished shop.charge[0] the first"
    assert text_of([]) == "0 events"  # a batch of which the consumer has taken all out


class Mute(Event, frozen=True):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_an_event_whose_text_raises_is_named_all_the_same() -> None:
    assert text_of(Mute()) == "Mute, whose text raised ValueError"
    assert text_of([Mute()]) == "1 events, Mute, whose text raised ValueError the first"


def test_an_event_whose_text_raises_is_handled_and_fails_like_any_other() -> None:
    def handle(event: Event) -> None:
        raise OSError("no")

    failing = run(handle, [Mute(), Mute()])
    watched = run(lambda _: None, [Mute(), Mute()], stuck_after=60.0)

    assert (failing.handled, failing.failed) == (0, 2)
    assert (watched.handled, watched.failed) == (2, 0)
