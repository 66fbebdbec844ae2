"""Celery's job events, broadcast to consumers that each run on a thread of their own.

Everything public is here. A name is loaded when it is first used, so that a
process in which the broadcast is off doesn't load what it doesn't need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_broadcast.consumer import Consumer
    from celery_broadcast.counts import ConsumerStats
    from celery_broadcast.errors import BroadcastError, ConfigurationError
    from celery_broadcast.events import (
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
    from celery_broadcast.installation import drain, install, stats, uninstall
    from celery_broadcast.producer import Drained
    from celery_broadcast.subscription import on_job_event

__version__ = "0.1.0.dev0"

_HOME = {
    "BroadcastError": "errors",
    "ConfigurationError": "errors",
    "Consumer": "consumer",
    "ConsumerStats": "counts",
    "Drained": "producer",
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
    "drain": "installation",
    "install": "installation",
    "on_job_event": "subscription",
    "stats": "installation",
    "uninstall": "installation",
}

__all__ = [
    "BroadcastError",
    "ConfigurationError",
    "Consumer",
    "ConsumerStats",
    "Drained",
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
    "drain",
    "install",
    "on_job_event",
    "stats",
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
