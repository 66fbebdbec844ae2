"""What the broadcast is measured against gets each event to each handler, as it does itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import burst, peers
from celery_broadcast.settings import Settings


@pytest.mark.parametrize("name", peers.OUTLETS)
@pytest.mark.parametrize("consumers", [1, 3])
def test_each_handler_gets_each_event_once(name: str, consumers: int) -> None:
    events = burst.events_of_job(5)

    assert burst.thousands_per_second(peers.OUTLETS[name], consumers, events) > 0


def test_an_outlet_that_loses_an_event_is_not_timed() -> None:
    def lossy(handlers: Sequence[peers.Handler]) -> peers.Outlet:
        published: list[object] = []

        def publish(event: object) -> None:
            published.append(event)
            for handler in handlers[: 1 if len(published) == 3 else None]:
                handler(event)

        return peers.Outlet(publish, lambda: None)

    with pytest.raises(RuntimeError, match="did not get all"):
        burst.thousands_per_second(lossy, 2, burst.events_of_job(5), deadline_seconds=0.0)


def test_an_outlet_that_tells_an_event_twice_is_not_timed() -> None:
    def doubling(handlers: Sequence[peers.Handler]) -> peers.Outlet:
        def publish(event: object) -> None:
            for handler in (*handlers, handlers[0]):
                handler(event)

        return peers.Outlet(publish, lambda: None)

    with pytest.raises(RuntimeError, match="1 of 2 handlers got 26 events, not 13"):
        burst.thousands_per_second(doubling, 2, burst.events_of_job(5))


def test_a_burst_fits_into_the_default_mailbox() -> None:
    size = Settings().mailbox_size

    assert size is not None
    assert size >= peers.MOST_EVENTS + burst.WARM_UP_EVENTS
