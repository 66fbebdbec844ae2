"""The database connections of a consumer's thread, where Django is configured.

Django keeps connections per thread, and closes what is old or broken around
each request. A consumer's thread has no requests: these do it around each of
its calls. Nothing here imports Django before Django is in use.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

logger: logging.Logger = logging.getLogger(__name__)

# Whether the present thread is a consumer's own. On any other, such as that of
# a test inside of a transaction, the connections are somebody else's.
_is_own: ContextVar[bool] = ContextVar("celery_broadcast_own_connections", default=False)


def is_used() -> bool:
    """Tell whether this process has Django, and it is configured; never import it."""
    configuration = sys.modules.get("django.conf")
    # Another thread may be half through importing it.
    settings = getattr(configuration, "settings", None)
    return settings is not None and bool(settings.configured)


@contextlib.contextmanager
def of_this_thread() -> Iterator[None]:
    """Take the connections of the present thread for the consumer's own; close all in the end.

    What can't be closed is logged, here and around a call: no event is lost for it.
    """
    before = _is_own.set(True)
    try:
        yield
    finally:
        _is_own.reset(before)
        if is_used():
            close_all()


@contextlib.contextmanager
def around_call() -> Iterator[None]:
    """Call a consumer, or what belongs to it, as Django does a request.

    Before and after, its connections are closed that are broken or past their
    `CONN_MAX_AGE`. Does nothing without Django, and on a thread that isn't the
    consumer's own.
    """
    if not (_is_own.get() and is_used()):
        yield
        return
    close_old()
    try:
        yield
    finally:
        close_old()


@contextlib.asynccontextmanager
async def around_async_call() -> AsyncIterator[None]:
    """Call a coroutine as Django does an asynchronous request.

    The asynchronous ORM has a thread of its own in this call, which ends with it,
    and so do its connections, whatever their `CONN_MAX_AGE`: else those of calls
    in flight at once would be the same, and the end of one the end of all. The
    thread that asgiref shares in a process wouldn't do either: a process that is
    forked later has its queue without it, and waits for ever.
    """
    if not (_is_own.get() and is_used()):
        yield
        return
    from asgiref.sync import (  # noqa: PLC0415  # see above
        SyncToAsync,
        ThreadSensitiveContext,
        sync_to_async,
    )

    async with ThreadSensitiveContext() as context:
        try:
            yield
        finally:
            # It has a thread only if it has used one.
            if context in SyncToAsync.context_to_thread_executor:
                await sync_to_async(close_all, thread_sensitive=True)()


def close_old() -> None:
    """Close this thread's connections that are broken or past their `CONN_MAX_AGE`.

    To be called where Django `is_used`. What can't be closed is logged.
    """
    _close(lambda connection: connection.close_if_unusable_or_obsolete())


def close_all() -> None:
    """Close this thread's connections, however young.

    To be called where Django `is_used`. What can't be closed is logged.
    """
    _close(lambda connection: connection.close())


def _close(close: Callable[[Any], object]) -> None:
    from django.db import connections  # noqa: PLC0415  # see above

    # As django.db.close_old_connections and connections.close_all do, but the
    # error of one database doesn't keep the others open.
    for connection in connections.all(initialized_only=True):
        try:
            close(connection)
        except Exception:
            logger.exception(
                "could not close the connection to database %r; the consumer goes on",
                connection.alias,
            )
