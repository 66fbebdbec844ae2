"""A parcel that a replica has, and what became of each event in it."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from celery_broadcast.dispatcher import Delivery
from celery_broadcast.events import Event
from celery_broadcast.receipt import Outcome, Receipt
from celery_broadcast.relay.transport import Received
from celery_broadcast.relay.wire import Arrived

# Of the text of an error, characters at most; the last ones are kept.
_ERROR_CHARACTERS = 10_000


class ParcelInHand:
    """Waits for the receipts of its events; those may come on any thread.

    Args:
        received: the parcel.
        arrived: what was in it.
        wants: tells whether the consumer wants an event; what it doesn't is declined.
        changed: notified when the last receipt is there.
    """

    def __init__(
        self,
        received: Received,
        arrived: Sequence[Arrived],
        wants: Callable[[Event], bool],
        changed: threading.Condition,
    ) -> None:
        self.received = received
        self.arrived = arrived
        #: What is to be handed to the consumer.
        self.deliveries: list[Delivery] = []
        #: Whether it was.
        self.is_handed_over: bool = False
        #: Whether what failed in it is put aside, and sent again, as it should be.
        self.is_put_aside: bool = False
        self.is_sent_again: bool = False
        #: How often the broker could not be told that it is done.
        self.vain_tries: int = 0
        #: Whether an event in it may be what has killed a process, or was raised on.
        self.is_suspect: bool = received.deliveries > 0 or any(each.failures for each in arrived)
        self._changed = changed
        self._outcomes: list[Outcome] = ["declined"] * len(arrived)
        self._errors = [""] * len(arrived)
        for index, each in enumerate(arrived):
            if wants(each.event):
                receipt = Receipt(partial(self._settle, index))
                self.deliveries.append(Delivery(each.event, receipt=receipt))
        self._pending = len(self.deliveries)

    @property
    def pending(self) -> int:
        """Of how many events it isn't known yet what became of them."""
        return self._pending

    def let_go(self) -> None:
        """Take what isn't settled as dropped: nobody waits for it any more."""
        for delivery in self.deliveries:
            if delivery.receipt is not None:
                delivery.receipt.settle("dropped")

    def is_dropped(self) -> bool:
        """Tell whether the consumer is done with nothing of what was in it."""
        return (
            bool(self.deliveries)
            and set(self._outcomes) <= {"dropped", "declined"}
            and ("dropped" in self._outcomes)
        )

    def with_outcome(self, outcome: Outcome) -> list[tuple[Arrived, str]]:
        """Return the events of which this became, each with the text of its error."""
        every = zip(self.arrived, self._outcomes, self._errors, strict=True)
        return [(each, error) for each, its, error in every if its == outcome]

    def _settle(self, index: int, outcome: Outcome, error: BaseException | None) -> None:
        text = "" if error is None else text_of(error)
        with self._changed:
            self._outcomes[index], self._errors[index] = outcome, text
            self._pending -= 1
            if not self._pending:
                self._changed.notify_all()


def text_of(error: BaseException) -> str:
    """Return the traceback of an error as text; never raise, as its own text may."""
    try:
        return "".join(traceback.format_exception(error))[-_ERROR_CHARACTERS:]
    except Exception:  # noqa: BLE001  # theirs
        return type(error).__qualname__
