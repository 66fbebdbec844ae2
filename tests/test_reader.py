"""A stream among the other consumers of its process."""

from __future__ import annotations

import pytest

import celery_broadcast
from celery_broadcast import Event
from celery_broadcast.counts import CANCELLED


class Ping(Event, frozen=True, kw_only=True):
    number: int


@pytest.mark.usefixtures("broadcasting_app")
def test_a_stream_goes_on_when_others_subscribe() -> None:
    with celery_broadcast.stream(Ping, name="reader") as events:
        celery_broadcast.notify(Ping(number=1))
        assert next(events).number == 1

        celery_broadcast.subscribe(lambda event: None, Ping, name="another")
        celery_broadcast.notify(Ping(number=2))

        assert next(events).number == 2
    assert celery_broadcast.stats()["reader"].dropped == {}


@pytest.mark.usefixtures("broadcasting_app")
def test_what_was_taken_as_a_signal_struck_is_counted_when_the_stream_is_closed() -> None:
    with celery_broadcast.stream(Ping, name="reader") as events:
        celery_broadcast.notify(Ping(number=1))
        reader = events._reader
        assert reader is not None
        reader.mailbox.wait(10.0)
        reader.mailbox.take(1, wait_seconds=0)  # and before it is noted, an exception

    stats = celery_broadcast.stats()["reader"]
    assert (stats.pending, stats.dropped) == (0, {CANCELLED: 1})
