"""What happens to the broadcast itself, as blinker signals.

```python
from celery_broadcast.notices import events_dropped

@events_dropped.connect
def count_drops(consumer, *, count, reason, **_): ...
```

The sender of each is the name of a consumer, and None where the whole
broadcast is meant. A receiver runs on the thread that has the news, so it
should be quick; one that raises is logged and hurts nothing. blinker holds its
receivers weakly: connect a function that lives as long as its module.

A notice is made when somebody first asks this module for it: a process in
which nobody does, as nearly every worker, doesn't load blinker.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import blinker

logger: logging.Logger = logging.getLogger(__name__)

#: The broadcast of this process has started: `consumers` (their names), `pid`.
broadcast_started: blinker.NamedSignal
#: The broadcast has stopped: `handled` and `left`, numbers of events, and `seconds`.
broadcast_drained: blinker.NamedSignal
#: A consumer is set up. Sent on the consumer's thread, after a restart too.
consumer_started: blinker.NamedSignal
#: A consumer raised: `event`, which is the list for a batch, and None if it was in
#: setup or teardown, and `error`.
consumer_failed: blinker.NamedSignal
#: A call of a consumer takes longer than its `stuck_after`: `event` as above, the
#: `seconds` so far, and the `stack` as text. Once a call; it goes on.
consumer_stuck: blinker.NamedSignal
#: A consumer crashed and starts again in `pause` seconds, because of `error`.
consumer_restarted: blinker.NamedSignal
#: A consumer crashed too often: it gets no more events in this process. `error`.
consumer_gave_up: blinker.NamedSignal
#: A consumer has handled its last event.
consumer_stopped: blinker.NamedSignal
#: Events were dropped since the last such notice: `count` and `reason`. None as
#: the sender: no consumer had been offered them.
events_dropped: blinker.NamedSignal

#: The main process has ended an attempt whose pool process is gone: `event` is that end.
attempt_lost: blinker.NamedSignal

#: The name of each.
Notice = Literal[
    "broadcast_started",
    "broadcast_drained",
    "consumer_started",
    "consumer_failed",
    "consumer_stuck",
    "consumer_restarted",
    "consumer_gave_up",
    "consumer_stopped",
    "events_dropped",
    "attempt_lost",
]
NAMES: tuple[Notice, ...] = get_args(Notice)

if not TYPE_CHECKING:  # which would take every name for one of a notice

    def __getattr__(name: str) -> blinker.NamedSignal:
        """Make the notice that somebody asks for, unless another thread just has.

        Raises:
            AttributeError: there is no such notice.
        """
        if name not in NAMES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        import blinker  # noqa: PLC0415

        made: blinker.NamedSignal = globals().setdefault(
            name, blinker.NamedSignal(name.replace("_", "-"))
        )
        return made


def send(name: Notice, consumer: str | None = None, **facts: Any) -> None:
    """Tell every receiver, whatever the others do.

    What one raises is logged. Only on the main thread does an exit go on its
    way, since it may well be meant for the process: Ctrl-C, say.
    """
    notice: blinker.NamedSignal | None = globals().get(name)
    if notice is None:  # nobody has ever asked for it
        return
    for receiver in notice.receivers_for(consumer):
        try:
            receiver(consumer, **facts)
        except BaseException as error:
            logger.exception("a receiver of the notice %r raised; it hurt nothing", notice.name)
            exits = not isinstance(error, Exception)
            if exits and threading.current_thread() is threading.main_thread():
                raise
