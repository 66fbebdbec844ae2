"""Celery's job events, broadcast to consumers that each run on a thread of their own.

Everything public is here. A name is loaded when it is first used, so that a
process in which the broadcast is off doesn't load what it doesn't need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_broadcast.batch import Batch
    from celery_broadcast.consumer import Consumer
    from celery_broadcast.counts import ConsumerStats
    from celery_broadcast.declaration import on_job_event, subscribe
    from celery_broadcast.errors import BroadcastError, ConfigurationError
    from celery_broadcast.events import (
        Event,
        JobEnded,
        JobEvent,
        JobFailed,
        JobFinished,
        JobIgnored,
        JobLost,
        JobRejected,
        JobRetried,
        JobRevoked,
        JobStarted,
    )
    from celery_broadcast.installation import broadcasting, drain, install, notify, stats, uninstall
    from celery_broadcast.muting import muted
    from celery_broadcast.producer import Drained
    from celery_broadcast.restarts import Restart
    from celery_broadcast.retry import Retry
    from celery_broadcast.streams import Stream, stream
    from celery_broadcast.subscription import Subscription

__version__ = "0.1.0.dev0"

_HOME = {
    "Batch": "batch",
    "BroadcastError": "errors",
    "ConfigurationError": "errors",
    "Consumer": "consumer",
    "ConsumerStats": "counts",
    "Drained": "producer",
    "Event": "events",
    "JobEnded": "events",
    "JobEvent": "events",
    "JobFailed": "events",
    "JobFinished": "events",
    "JobIgnored": "events",
    "JobLost": "events",
    "JobRejected": "events",
    "JobRetried": "events",
    "JobRevoked": "events",
    "JobStarted": "events",
    "Restart": "restarts",
    "Retry": "retry",
    "Stream": "streams",
    "Subscription": "subscription",
    "broadcasting": "installation",
    "drain": "installation",
    "install": "installation",
    "notify": "installation",
    "on_job_event": "declaration",
    "muted": "muting",
    "stats": "installation",
    "stream": "streams",
    "subscribe": "declaration",
    "uninstall": "installation",
}

__all__ = [
    "Batch",
    "BroadcastError",
    "ConfigurationError",
    "Consumer",
    "ConsumerStats",
    "Drained",
    "Event",
    "JobEnded",
    "JobEvent",
    "JobFailed",
    "JobFinished",
    "JobIgnored",
    "JobLost",
    "JobRejected",
    "JobRetried",
    "JobRevoked",
    "JobStarted",
    "Restart",
    "Retry",
    "Stream",
    "Subscription",
    "broadcasting",
    "drain",
    "install",
    "muted",
    "notify",
    "on_job_event",
    "stats",
    "stream",
    "subscribe",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
