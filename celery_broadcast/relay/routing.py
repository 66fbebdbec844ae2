"""Which parcels go to which group on RabbitMQ: routing keys, patterns, and the rest here."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from celery_broadcast.relay.transport import Group

#: What AMQP allows for a routing key, in bytes.
KEY_BYTES = 255

#: Of a pattern that names a part of a task name, in bytes. A key is cut where a character
#: ends, so up to three bytes early; what such a pattern names is never cut away.
PATTERN_BYTES = KEY_BYTES - 8

_SPECIAL = re.compile(r"[*?\[]")


def routing_key(event_type: str, task_name: str) -> str:
    """Return TYPE.TASK_NAME, cut where RabbitMQ takes no more.

    Two names that differ only further on get the same key: `wants` tells them
    apart on arrival.
    """
    key = f"{event_type}.{task_name}".encode(errors="replace")
    return key[:KEY_BYTES].decode(errors="ignore")


def binding_patterns(group: Group) -> list[str]:
    """Return patterns for a topic exchange that match all that the group wants.

    They match more, too: a glob is cut at the first dot before its first
    special character, because RabbitMQ's words have no other wildcard.
    """
    globs = ("*",) if group.tasks is None else group.tasks
    patterns = [_pattern(event_type, glob) for event_type in group.event_types for glob in globs]
    return list(dict.fromkeys(patterns))


def wants(group: Group, event_type: str, task_name: str) -> bool:
    """Tell whether the group wants such events, by the rules of a consumer's `task` option."""
    if event_type not in group.event_types:
        return False
    if group.tasks is None:
        return True
    return bool(task_name) and any(fnmatchcase(task_name, glob) for glob in group.tasks)


def _pattern(event_type: str, glob: str) -> str:
    """Return what matches the keys of every task name that the glob matches.

    "shop.charge" becomes "JobFailed.shop.charge", "shop.*" and "shop.ch*"
    become "JobFailed.shop.#", and "*.charge" becomes "JobFailed.#".
    """
    literal = _SPECIAL.split(glob, maxsplit=1)[0]
    if literal == glob:
        return routing_key(event_type, glob)
    words = literal.rpartition(".")[0]
    pattern = f"{event_type}.{words}.#"
    if words and len(pattern.encode(errors="replace")) <= PATTERN_BYTES:
        return pattern.encode(errors="replace").decode()
    return f"{event_type}.#"
