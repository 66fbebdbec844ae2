"""The header that says when a job was due, from who sends it to who runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from recorder import Recorder

import celery_broadcast
from celery_broadcast import JobStarted, installation
from celery_broadcast.due import note_due, wait_of
from celery_broadcast.facts import DUE_AT


def test_a_message_says_when_it_is_sent() -> None:
    headers: dict[str, Any] = {"eta": None}
    before = time.time()
    note_due(headers)

    assert before <= headers[DUE_AT] <= time.time()


def test_a_message_with_an_eta_is_due_then() -> None:
    headers: dict[str, Any] = {"eta": "2100-01-01T01:00:00+01:00"}
    note_due(headers)

    assert headers[DUE_AT] == 4_102_444_800.0


@pytest.mark.parametrize("eta", ["1970-01-01T00:00:00+00:00", "tomorrow", 5, "9999-12-31T23:59:59"])
def test_an_eta_that_is_past_or_none_is_passed_over(eta: object) -> None:
    headers: dict[str, Any] = {"eta": eta}
    note_due(headers)

    assert headers[DUE_AT] >= time.time() - 60


def test_a_copy_of_a_message_says_it_anew() -> None:
    headers: dict[str, Any] = {DUE_AT: 5.0}
    note_due(headers)

    assert headers[DUE_AT] > 5.0


@pytest.mark.parametrize("headers", [None, "headers", ()])
def test_headers_that_are_none_are_left_alone(headers: object) -> None:
    note_due(headers)


def test_who_starts_a_job_knows_how_long_it_waited() -> None:
    assert wait_of({DUE_AT: 100.0}, 101.5) == 1.5


def test_by_clocks_that_differ_a_job_has_not_waited_for_less_than_nothing() -> None:
    assert wait_of({DUE_AT: 100.0}, 99.0) == 0.0


@pytest.mark.parametrize(
    "headers",
    [None, {}, "", *({DUE_AT: odd} for odd in (None, "5", 5, True, 0.0, 1e300, float("nan")))],
)
def test_what_a_stranger_or_a_clock_that_was_never_set_has_put_there_is_no_wait(
    headers: object,
) -> None:
    assert wait_of(headers, 1.8e9) is None


@pytest.fixture(params=[True, False], ids=["with metrics", "without"])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.broadcast_enabled = True
    app.conf.broadcast_metrics_port = 9808 if request.param else None
    installation.install(app)
    yield app
    installation.uninstall(app)
    app.close()


def test_only_where_metrics_are_served_messages_say_it(app: Celery) -> None:
    assert app.conf.broadcast_enabled  # this is what makes Celery read the configuration
    with app.connection_for_write() as connection:
        app.send_task("shop.charge", connection=connection, queue="due")
        channel: Any = connection.default_channel
        message = channel.basic_get("due", no_ack=True)

    assert (DUE_AT in message.headers) == (app.conf.broadcast_metrics_port is not None)


def test_it_is_in_no_event(broadcasting_app: Celery) -> None:
    recorder = Recorder()
    subscription = celery_broadcast.subscribe(recorder.handle, JobStarted, name="audit")

    @broadcasting_app.task(name="shop.charge")
    def charge() -> None: ...

    headers: dict[str, Any] = {DUE_AT: 5.0, "tenant": "acme"}
    charge.apply(headers=headers)
    celery_broadcast.drain()
    subscription.cancel()

    (started,) = recorder.events
    assert started.headers is not None
    assert (DUE_AT in started.headers, started.headers["tenant"]) == (False, "acme")
