"""What workers send to remote consumers, read along: no consumer misses any of it for that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.gaps import Gaps
from celery_broadcast.relay.pauses import seconds_after
from celery_broadcast.relay.signing import Verifier
from celery_broadcast.relay.transport import Group, Limits, Parcel, Transport
from celery_broadcast.relay.wire import Arrived, read
from celery_broadcast.throttle import Throttle

# How long the broker is waited for at once: so long an end may have to wait.
_SECONDS_OF_A_LOOK = 0.5

_SECONDS_BETWEEN_LINES = 10.0


class Tail:
    """Reads what is sent from its start on. Belongs to one thread.

    Args:
        transport: belongs to the tail, which closes it.
        watched: the event types and tasks to show; its name means nothing.
        limits: how big a parcel may be that is opened, and the lease, after which
            what didn't come is missing.
        verifier: tells which parcels are to be opened; None is all.
        show: called with each event, and with the CloudEvent that it came in, as JSON
            in ASCII: whoever wrote it can't write over a terminal.
        say: called with a sentence on what can't be shown.
    """

    def __init__(  # noqa: PLR0913  # all by name
        self,
        *,
        transport: Transport,
        watched: Group,
        limits: Limits,
        verifier: Verifier | None,
        show: Callable[[Arrived, str], None],
        say: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._watched = watched
        self._limits = limits
        self._verifier = verifier
        self._show = show
        self._say = say
        self._gaps = Gaps(limits.lease)
        self._refusals = Throttle(first_after=0.0, then_every=_SECONDS_BETWEEN_LINES)

    def start(self) -> None:
        """Begin to watch.

        Raises:
            RelayError: the broker can't be reached, or refuses. The tail is closed then.
        """
        try:
            self._look(0.0)
        except RelayError:
            self._transport.close()
            raise

    def run(self, has_ended: Callable[[], bool]) -> None:
        """Show what comes until `has_ended` says so; a broker that goes away is waited for."""
        failures = 0
        try:
            while not has_ended():
                try:
                    self._look(_SECONDS_OF_A_LOOK)
                except RelayError as error:
                    if not failures:
                        self._say(f"Can't read from the broker, and tries on: {error}")
                    failures += 1
                    _wait(seconds_after(failures), has_ended)
                else:
                    if failures:
                        self._say("Reads from the broker again.")
                    failures = 0
        finally:
            self._transport.close()

    def _look(self, wait_seconds: float) -> None:
        received = self._transport.watch(self._watched, wait_seconds)
        if received is not None:
            refusal = received.refusal
            if not refusal and self._verifier is not None:
                refusal = self._verifier.refusal(received.parcel)
            self._open(received.parcel, refusal)
        missing = self._gaps.surely_missing(time.monotonic())
        if missing is not None:
            self._say(
                f"{missing[0]} events, the last of them {missing[1][1]} of {missing[1][2]}, were "
                "not seen: more was sent than this can show, or the broker was away."
            )

    def _open(self, parcel: Parcel, refusal: str) -> None:
        if not refusal:
            try:
                contents = read(parcel, self._limits)
                sent = {each["id"]: json.dumps(each) for each in msgspec.json.decode(parcel.body)}
            except Exception as error:  # noqa: BLE001  # whatever a stranger's bytes make of it
                refusal = str(error)
            else:
                self._note_numbers(parcel, contents.arrived)
                for arrived in contents.arrived:
                    self._show(arrived, sent[arrived.event_id])
                refusal = "; ".join(each.error for each in contents.refused[:1])
        if refusal:
            self._refuse(refusal)

    def _refuse(self, why: str) -> None:
        now = time.monotonic()
        self._refusals.add(1, now)
        if self._refusals.due_in(now) == 0.0:
            count, _ = self._refusals.say(now)
            self._say(f"{count} parcels have something in them that isn't shown, the last: {why}")

    def _note_numbers(self, parcel: Parcel, arrived: list[Arrived]) -> None:
        for each in arrived:
            if each.task_sequence:
                lane = each.producer, parcel.event_type, parcel.task_name
                self._gaps.note(lane, (each.task_sequence,), time.monotonic())


def _wait(seconds: float, has_ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not has_ended() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _SECONDS_OF_A_LOOK))
