"""The relay where jobs run: a consumer of our own, which sends what remote ones want."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from celery_broadcast.batch import Batch
from celery_broadcast.consumer import PatientConsumer
from celery_broadcast.errors import RelayError
from celery_broadcast.events import JobEvent
from celery_broadcast.relay.pauses import seconds_after
from celery_broadcast.relay.transport import Parcel, Transport
from celery_broadcast.restarts import Restart
from celery_broadcast.selection import AnyOf, any_of, kind_of
from celery_broadcast.subscription import RELAY, Subscription

logger: logging.Logger = logging.getLogger(__name__)

#: What the relay sends at once.
BATCH = Batch(max_events=100, max_wait=0.2)

# It is never given up: what it needs may be there again after a day.
_RESTART = Restart("permanent", max_restarts=8_000, within=86_400.0)

_PAUSE_IN_DRAIN_SECONDS = 0.2


class Writer(Protocol):
    """Makes parcels of events, whatever they have in them, and never raises."""

    def parcels(self, events: Sequence[JobEvent], payload: str) -> list[Parcel]:
        """Return parcels, each of one event type and one task, with what `payload` says."""


class Means(Protocol):
    """What the relay needs. Asked on the relay's own thread, in each process and life anew."""

    def new_writer(self) -> Writer:
        """Return a writer with a producer id of its own."""

    def new_transport(self) -> Transport:
        """Return a transport that has no connection yet."""


class Outgoing(PatientConsumer):
    """Sends events to the broker, and has patience with it. Belongs to one thread.

    A batch is sent again, as the very same parcels, until the broker has
    confirmed all of it. Meanwhile the mailbox fills, and drops by its policy.

    Args:
        means: makes the writer and the transport.
        wanting_json: what those want who have asked for `payload="json"`.
        pause_after: returns the seconds to wait after so many failures in a row.
    """

    def __init__(
        self,
        means: Means,
        wanting_json: AnyOf,
        pause_after: Callable[[int], float] | None = None,
    ) -> None:
        self._means = means
        self._wanting_json = wanting_json
        self._pause_after = pause_after or seconds_after
        self._writer: Writer | None = None
        self._transport: Transport | None = None
        self._failures = 0
        self._away_since = 0.0
        self._dropped_before = 0

    def setup(self) -> None:
        """Make the writer and the transport; the first event connects."""
        self._transport = self._means.new_transport()
        self._writer = self._means.new_writer()

    def handle(self, events: list[JobEvent], /) -> None:
        """Send a batch; return once it is confirmed, or counted as dropped."""
        assert self._transport is not None  # noqa: S101  # setup comes first
        parcels = self._parcels(events)
        while parcels and not self.situation.is_over.is_set():
            try:
                self._transport.publish(parcels)
            except RelayError as error:
                self._note_failure(error)
            else:
                self._note_success()
                return
            self._pause()

    def teardown(self) -> None:
        """Close the connection: what isn't closed may lose with the process what it has sent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _parcels(self, events: Sequence[JobEvent]) -> list[Parcel]:
        assert self._writer is not None  # noqa: S101  # setup comes first
        if not self._wanting_json.selections:
            return self._writer.parcels(events, "text")
        as_text: list[JobEvent] = []
        as_json: list[JobEvent] = []
        for event in events:
            (as_json if self._wanting_json.wants(kind_of(event)) else as_text).append(event)
        parcels = self._writer.parcels(as_text, "text") if as_text else []
        return parcels + (self._writer.parcels(as_json, "json") if as_json else [])

    def _pause(self) -> None:
        situation = self.situation
        if not situation.stop_requested.is_set():
            situation.stop_requested.wait(self._pause_after(self._failures))
        else:  # until the drain's deadline, when what is in hand is counted as dropped
            situation.is_over.wait(_PAUSE_IN_DRAIN_SECONDS)

    def _note_failure(self, error: RelayError) -> None:
        self._failures += 1
        if self._failures > 1:
            return
        self._away_since = time.monotonic()
        self._dropped_before = self.situation.dropped()
        logger.error(
            "relay can't send to remote consumers (%s). Jobs go on, and their events wait here, as "
            "many as its mailbox holds. It tries again, and says when it has sent them",
            str(error).rstrip("."),
        )

    def _note_success(self) -> None:
        if not self._failures:
            return
        tries, self._failures = self._failures, 0
        logger.warning(
            "relay sends to remote consumers again, after %.1f s and %d failed tries; %d events "
            "were dropped meanwhile",
            time.monotonic() - self._away_since,
            tries,
            self.situation.dropped() - self._dropped_before,
        )


def subscription_of(means: Means, remote: Sequence[Subscription]) -> Subscription:
    """Return the relay's subscription: what any of the remote consumers wants, and no more.

    Args:
        means: what the relay needs.
        remote: the subscriptions of remote consumers, one or more.
    """
    json = any_of(each.selection for each in remote if each.payload == "json")
    return Subscription(
        name=RELAY,
        make_consumer=partial(Outgoing, means, json),
        selection=any_of(each.selection for each in remote),
        batch=BATCH,
        restart=_RESTART,
        declared_at=__name__,
    )
