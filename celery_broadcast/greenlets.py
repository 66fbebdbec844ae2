"""What can't run where threads are greenlets: an event loop of asyncio."""

from __future__ import annotations

import sys

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.subscription import Subscription


def check_runs_here(subscription: Subscription) -> None:
    """Refuse a consumer of coroutines in a process that gevent or eventlet has patched.

    asyncio keeps one running loop for each thread of the system, and there
    all consumers, and all jobs, share one.

    Raises:
        ConfigurationError: it can't run here.
    """
    patched_by = _patched_by()
    if subscription.is_async and patched_by is not None:
        msg = (
            f"The consumer {subscription.name!r} ({subscription.declared_at}) is a coroutine "
            f"function, but {patched_by} has patched this process, where asyncio can't run. Write "
            "it as a plain function: there, one that waits lets the others go on. With "
            "concurrency= several run at once."
        )
        raise ConfigurationError(msg)


def _patched_by() -> str | None:
    """Return what has made greenlets of this process's threads; None if they are threads."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None
