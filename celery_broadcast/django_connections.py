"""The database connections of a consumer's thread, where Django is configured.

Django keeps connections per thread, and closes what is old or broken around
each request. A consumer's thread has no requests: these do it around each of
its deliveries. Nothing here imports Django before Django is in use.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

logger: logging.Logger = logging.getLogger(__name__)


def is_used() -> bool:
    """Tell whether this process has Django, and it is configured; never import it."""
    configuration = sys.modules.get("django.conf")
    # Another thread may be half through importing it.
    settings = getattr(configuration, "settings", None)
    return settings is not None and bool(settings.configured)


def close_old() -> None:
    """Close this thread's connections that are broken or past their `CONN_MAX_AGE`.

    Called on the consumer's thread before and after each delivery, where
    `is_used`. What can't be closed is logged: no delivery fails for it.
    """
    _close(_connections(), lambda connection: connection.close_if_unusable_or_obsolete())


def close_all() -> None:
    """Close this thread's connections, however young.

    Called on the consumer's thread after its teardown, where `is_used`. What
    can't be closed is logged.
    """
    _close(_connections(), lambda connection: connection.close())


def give_own_async_thread() -> None:
    """Give what this thread's event loop runs a thread of its own for Django's asynchronous ORM.

    Called on the consumer's thread, where `is_used`, before its event loop runs
    anything; it counts for every coroutine that is started from this thread
    later, and the thread ends with this one.

    Without it they share the one thread that asgiref keeps for the process, and
    its connections, with every other asynchronous consumer: one that is torn
    down would close those of the others. And a process that is forked while that
    thread is there inherits its queue without it, and waits for ever.
    """
    from asgiref.sync import SyncToAsync, ThreadSensitiveContext  # noqa: PLC0415  # see above

    # What `async with ThreadSensitiveContext()` does, as Django around each
    # asynchronous request; but that holds within one coroutine only, and
    # connections live longer. asgiref holds it weakly: it ends with this context.
    SyncToAsync.thread_sensitive_context.set(ThreadSensitiveContext())


async def close_old_async() -> None:
    """Do what `close_old` does on the thread where Django's asynchronous ORM has its connections.

    Called in the event loop before and after each delivery to a coroutine,
    where `is_used`.
    """
    from asgiref.sync import sync_to_async  # noqa: PLC0415  # see above

    await sync_to_async(close_old, thread_sensitive=True)()


async def close_all_async() -> None:
    """Do what `close_all` does on the thread where Django's asynchronous ORM has its connections.

    Called in the event loop after the teardown, where `is_used`.
    """
    from asgiref.sync import sync_to_async  # noqa: PLC0415  # see above

    await sync_to_async(close_all, thread_sensitive=True)()


def _connections() -> Iterable[Any]:
    """Return the connections that this thread has opened, one for each database."""
    from django.db import connections  # noqa: PLC0415  # see above

    opened: list[Any] = connections.all(initialized_only=True)
    return opened


def _close(connections: Iterable[Any], close: Callable[[Any], object]) -> None:
    # As django.db.close_old_connections and connections.close_all do, but the
    # error of one database doesn't keep the others open.
    for connection in connections:
        try:
            close(connection)
        except Exception:
            logger.exception(
                "could not close the connection to database %r; the consumer goes on",
                connection.alias,
            )
