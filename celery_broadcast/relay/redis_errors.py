"""What an error of Redis means, and what to do about it."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, BusyLoadingError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_broadcast.relay.redis_servers import UnfitServerError

#: How it begins that the server is full.
FULL = ("OOM", "command not allowed when used memory")

#: What an error says, and what it means; redis-py takes away some of the beginnings.
_MEANINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("WRONGTYPE",),
        (
            "the key {key!r} is there, and is no stream. Delete or rename it, or give "
            "broadcast_relay_url another database"
        ),
    ),
    (
        FULL,
        "it is full. Raise its maxmemory, or lower broadcast_relay_max_bytes",
    ),
    (
        ("READONLY", "You can't write against a read only"),
        "it is a replica, which can't be written to. Name the primary, or use sentinel://",
    ),
    (
        ("NOAUTH", "WRONGPASS", "Authentication required", "invalid password", "invalid username"),
        "it wants another password. Write redis://USER:PASSWORD@HOST",
    ),
    (
        ("NOPERM", "no permissions", "user executing the script can't run"),
        (
            "its user may not do that ({error}). The relay needs its streams' keys, "
            "celery-broadcast:*, and EVAL, MEMORY USAGE, XINFO and what streams have"
        ),
    ),
    (
        ("MOVED", "ASK ", "CROSSSLOT", "CLUSTERDOWN", "hash to the same slot", "Hash slot not"),
        "it is a Redis Cluster, which the relay can't use; name a Redis that is none",
    ),
    (("MISCONF",), "it can't write to its disk ({error}). Look at its log"),
    (("LOADING", "Redis is loading"), "it is still loading its data"),
    (("MASTERDOWN", "NOREPLICAS"), "it lacks the servers that belong to it ({error})"),
    (("unknown command",), "it is older than 6.2, or forbids a command ({error})"),
)


def explained(error: Exception, key: str, timeout: float) -> str:
    """Return what is wrong, and what to do, if that can be told."""
    text, _, key_of_script = str(error).partition(" KEY ")
    if isinstance(error, RedisTimeoutError):
        return f"it didn't answer within {timeout:g} s"
    if isinstance(error, BusyLoadingError):
        return "it is still loading its data"
    if isinstance(error, UnfitServerError):
        return text
    for beginnings, meaning in _MEANINGS:
        if any(beginning in text for beginning in beginnings):
            return meaning.format(key=key_of_script or key, error=text)
    if isinstance(error, AuthenticationError):
        return f"it doesn't let us in ({text})"
    return f"{type(error).__name__}: {text}"


def is_of_server(error: Exception) -> bool:
    """Tell whether an error says that this server, or this login, is the wrong one."""
    return any(
        beginning in str(error)
        for beginnings, meaning in _MEANINGS
        for beginning in beginnings
        if not meaning.startswith(("the key", "it is full"))
    )
