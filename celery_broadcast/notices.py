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
"""

from __future__ import annotations

import logging
from typing import Any

import blinker

logger = logging.getLogger(__name__)

_namespace = blinker.Namespace()

#: The broadcast of this process has started: `consumers` (their names), `pid`.
broadcast_started = _namespace.signal("broadcast-started")
#: The broadcast has stopped: `handled` and `left`, numbers of events, and `seconds`.
broadcast_drained = _namespace.signal("broadcast-drained")
#: A consumer is set up. Sent on the consumer's thread, after a restart too.
consumer_started = _namespace.signal("consumer-started")
#: A consumer raised: `event`, or None if it was in setup or teardown, and `error`.
consumer_failed = _namespace.signal("consumer-failed")
#: A consumer crashed and starts again in `pause` seconds, because of `error`.
consumer_restarted = _namespace.signal("consumer-restarted")
#: A consumer crashed too often: it gets no more events in this process. `error`.
consumer_gave_up = _namespace.signal("consumer-gave-up")
#: A consumer has handled its last event.
consumer_stopped = _namespace.signal("consumer-stopped")
#: Events were dropped since the last such notice: `count` and `reason`.
events_dropped = _namespace.signal("events-dropped")


def send(notice: blinker.NamedSignal, consumer: str | None = None, **facts: Any) -> None:
    """Tell every receiver, whatever the others do; never raise an Exception."""
    for receiver in notice.receivers_for(consumer):
        try:
            receiver(consumer, **facts)
        except Exception:
            logger.exception("a receiver of the notice %r raised; it hurt nothing", notice.name)
