"""What a user can set: read from Celery's configuration, checked, frozen."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeGuard

import msgspec

from celery_broadcast.errors import ConfigurationError

#: What a full mailbox can do, and what each choice keeps.
OVERFLOW_POLICIES = ("drop_oldest", "drop_newest")

ENABLED_VARIABLE = "CELERY_BROADCAST_ENABLED"

_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f", ""})
_LONGEST_DRAIN_SECONDS = 86_400.0
_SHORTEST_LEASE_SECONDS = 1.0
_LEAST_BYTES = 1024**2
_MOST_BYTES = 1024**4
_LONGEST_TTL_SECONDS = 49 * 86_400  # what RabbitMQ takes, in milliseconds of 32 bits
_MOST_DELIVERIES = 1_000
_SHORTEST_KEY_BYTES = 16
_LAST_PORT = 65_535
_BROKER_URLS = r"[a-zA-Z][a-zA-Z0-9+.-]*://\S*"


def shown(value: object) -> str:
    """Return a wrong value as text: its own `repr` may be wrong too."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # whatever it raises, the setting is what is wrong
        return f"a {type(value).__name__} that can't be shown"


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Tell whether it is a whole number of `least` or more; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_flag(setting: str, value: object) -> bool:
    """Return the flag that `value` means: a bool, 0, 1, or a word for one.

    Raises:
        ConfigurationError: it means neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in {0, 1}:
        return value == 1
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    msg = f"{setting} must be True or False (or 1, 0, yes, no, on, off), got {shown(value)}."
    raise ConfigurationError(msg)


def check_mailbox_size(setting: str, value: object) -> int | None:
    """Return the number of events a mailbox holds; None is without a bound.

    Raises:
        ConfigurationError: it is neither None nor a whole number of 1 or more.
    """
    if value is None:
        return None
    if is_whole(value, 1):
        return value
    msg = (
        f"{setting} must be a number of events of 1 or more, or None for no bound, "
        f"got {shown(value)}."
    )
    raise ConfigurationError(msg)


def check_overflow(setting: str, value: object) -> str:
    """Return the overflow policy.

    Raises:
        ConfigurationError: it is no policy.
    """
    if isinstance(value, str) and value in OVERFLOW_POLICIES:
        return value
    msg = (
        f"{setting}={shown(value)} is not a policy. "
        "Use 'drop_oldest' (keep the newest events) or 'drop_newest' (keep the oldest)."
    )
    raise ConfigurationError(msg)


def check_seconds(setting: str, value: object) -> float:
    """Return a time in seconds, of 0 or more and at most a day.

    Raises:
        ConfigurationError: it is no such number.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= _LONGEST_DRAIN_SECONDS
    ):
        return float(value)
    msg = f"{setting} must be a number of seconds of 0 or more (at most a day), got {shown(value)}."
    raise ConfigurationError(msg)


def _check_characters(setting: str, value: object) -> int:
    if is_whole(value, 0):
        return value
    msg = f"{setting} must be a number of characters of 0 or more, got {shown(value)}."
    raise ConfigurationError(msg)


def _check_event_names(setting: str, value: object) -> tuple[str, ...] | None:
    """Return the names of event types; which names exist is known to events.py alone."""
    if value is None:
        return None
    if isinstance(value, str | type) or not isinstance(value, list | tuple | set | frozenset):
        msg = f"{setting} must be a list of event types or of their names, got {shown(value)}."
        raise ConfigurationError(msg)
    for item in value:
        if not isinstance(item, str | type):
            msg = f"{setting} must hold event types or their names, got {shown(item)} in it."
            raise ConfigurationError(msg)
    return tuple(sorted({item if isinstance(item, str) else item.__name__ for item in value}))


def _kind(value: object) -> str:
    """Return what a wrong value is, without showing it: it may be a secret."""
    return "None" if value is None else f"a {type(value).__name__}"


def _check_relay_url(setting: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(_BROKER_URLS, value):
        return value
    msg = (
        f"{setting} must be the URL of a Redis or RabbitMQ, such as 'redis://localhost:6379/1' or "
        "'amqp://localhost//', several with ';' between them, or None for the app's broker_url. "
        f"Got {_kind(value)}, not shown here, as it may hold a password."
    )
    raise ConfigurationError(msg)


def _check_lease(setting: str, value: object) -> float:
    with contextlib.suppress(ConfigurationError):
        seconds = check_seconds(setting, value)
        if seconds >= _SHORTEST_LEASE_SECONDS:
            return seconds
    msg = f"{setting} must be a number of seconds of 1 or more (at most a day), got {shown(value)}."
    raise ConfigurationError(msg)


def _check_bytes(setting: str, value: object) -> int:
    if is_whole(value, _LEAST_BYTES) and value <= _MOST_BYTES:
        return value
    msg = (
        f"{setting} must be a number of bytes, from {_LEAST_BYTES:,} (1 MiB) to {_MOST_BYTES:,} "
        f"(1 TiB), got {shown(value)}."
    )
    raise ConfigurationError(msg)


def _check_ttl(setting: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 1 <= value <= _LONGEST_TTL_SECONDS:  # type: ignore[operator]  # as just seen
        return float(value)  # type: ignore[arg-type]  # as above
    msg = (
        f"{setting} must be a number of seconds of 1 or more (at most 49 days, "
        f"{_LONGEST_TTL_SECONDS:,}), got {shown(value)}."
    )
    raise ConfigurationError(msg)


def _check_deliveries(setting: str, value: object) -> int:
    if is_whole(value, 1) and value <= _MOST_DELIVERIES:
        return value
    msg = (
        f"{setting} must be a number of deliveries from 1 to {_MOST_DELIVERIES:,}, "
        f"got {shown(value)}."
    )
    raise ConfigurationError(msg)


def _check_relay_key(setting: str, value: object) -> tuple[bytes, ...] | None:
    return None if value is None else check_key(setting, value)


def check_key(setting: str, value: object) -> tuple[bytes, ...]:
    """Return the keys that parcels are signed with: the first signs, all are accepted.

    Raises:
        ConfigurationError: there is none, or one is no text or too short. It shows none.
    """
    keys: list[Any] = [
        key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        for key in (value if isinstance(value, list | tuple) else [value])
    ]
    got = "" if keys else "an empty list"
    for key in keys:
        if not isinstance(key, bytes):
            got = _kind(key)
        elif len(key) < _SHORTEST_KEY_BYTES:
            got = f"one of {len(key)} bytes, which can be guessed"
    if not got:
        return tuple(keys)
    msg = (
        f"{setting} must be a secret of {_SHORTEST_KEY_BYTES} bytes or more, such as what "
        'python -c "import secrets; print(secrets.token_hex(32))" prints, a list of such, of which '
        f"the first signs, or None for unsigned events. Got {got}."
    )
    raise ConfigurationError(msg)


def _check_redact(setting: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and "." in value and all(map(str.isidentifier, value.split("."))):
        return value
    msg = (
        f"{setting} must be the dotted path of a function, such as 'shop.privacy.redact', or None, "
        f"got {shown(value)}."
    )
    raise ConfigurationError(msg)


def _check_port(setting: str, value: object) -> int | None:
    if value is None or (is_whole(value, 1) and value <= _LAST_PORT):
        return value
    msg = f"{setting} must be a port from 1 to {_LAST_PORT}, or None, got {shown(value)}."
    raise ConfigurationError(msg)


def _check_host(setting: str, value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value
    msg = (
        f"{setting} must be an address of this machine, such as '127.0.0.1', or '0.0.0.0' for all "
        f"of them, got {shown(value)}."
    )
    raise ConfigurationError(msg)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked settings of one process.

    Attributes:
        enabled: whether the broadcast is on.
        mailbox_size: events per consumer and process; None is without a bound.
        overflow: what a full mailbox drops, "drop_oldest" or "drop_newest".
        drain_timeout: seconds that a stopping process gives its consumers.
        payload: whether events carry `args`, `kwargs` and `result`.
        traceback_limit: characters of a traceback that are kept.
        events: names of the event types that are produced; None is all.
        relay_url: of the broker that events go through to remote consumers, or of
            several, with ";" between them; None is the app's own.
        relay_lease: seconds after which what a silent replica has goes to another.
        relay_max_bytes: of waiting events, of each group or event type.
        relay_ttl: seconds after which a waiting event is dropped.
        relay_max_deliveries: after how many an event goes to the dead letters.
        relay_key: what events are signed with, the first of them, and accepted
            with, any of them; None signs nothing, and accepts what isn't signed.
        redact: dotted path of the function that sees each event before it leaves.
        metrics_port: where the main process of a worker serves metrics; None is nowhere.
        metrics_host: of which address.
        opentelemetry: whether consumers run in the trace context of the job, and
            the numbers are instruments.
    """

    enabled: bool = False
    mailbox_size: int | None = 10_000
    overflow: str = "drop_oldest"
    drain_timeout: float = 5.0
    payload: bool = True
    traceback_limit: int = 10_000
    events: tuple[str, ...] | None = None
    relay_url: str | None = None
    relay_lease: float = 60.0
    relay_max_bytes: int = 256 * 1024 * 1024
    relay_ttl: float = 7 * 86_400.0
    relay_max_deliveries: int = 5
    relay_key: tuple[bytes, ...] | None = None
    redact: str | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    opentelemetry: bool = False

    def __repr__(self) -> str:
        """Show the settings, but no secret."""
        fields = (f"{name}={shown(value)}" for name, value in self.__rich_repr__())
        return f"Settings({', '.join(fields)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the same for rich, which doesn't ask for the `repr`."""
        fields = msgspec.structs.asdict(self)
        return [(name, without_secret(name, value)) for name, value in fields.items()]


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "enabled": check_flag,
    "mailbox_size": check_mailbox_size,
    "overflow": check_overflow,
    "drain_timeout": check_seconds,
    "payload": check_flag,
    "traceback_limit": _check_characters,
    "events": _check_event_names,
    "relay_url": _check_relay_url,
    "relay_lease": _check_lease,
    "relay_max_bytes": _check_bytes,
    "relay_ttl": _check_ttl,
    "relay_max_deliveries": _check_deliveries,
    "relay_key": _check_relay_key,
    "redact": _check_redact,
    "metrics_port": _check_port,
    "metrics_host": _check_host,
    "opentelemetry": check_flag,
}

#: Those that no message, log line or `repr` shows.
_SECRETS = frozenset({"relay_url", "relay_key"})


def without_secret(name: str, value: object) -> object:
    """Return what may be shown of a setting's value, or "..." in place of a secret."""
    return "..." if name in _SECRETS and value is not None else value


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that is given somewhere, right or wrong.

    Attributes:
        name: the setting, "enabled" say; not one of ours if it doesn't exist.
        origin: the key of the configuration, or the environment variable, as text.
        value: as it was checked; None if it is wrong. It may be a secret.
        error: what is wrong with it; None if nothing is.
    """

    name: str
    origin: str
    value: Any = None
    error: ConfigurationError | None = None

    def __repr__(self) -> str:
        """Show where it is from, but no value: it may be a secret."""
        return f"Found(name={self.name!r}, origin={self.origin!r}, error={self.error!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the same for rich, which doesn't ask for the `repr`."""
        return [("name", self.name), ("origin", self.origin), ("error", self.error)]


def find(
    configuration: Mapping[str, Any],
    environment: Mapping[str, str],
    namespace: str | None = None,
) -> Iterator[Found]:
    """Find each setting that is given, in the order in which later ones beat earlier ones.

    Args and rules are those of `load`. Raises nothing: what is wrong is in `error`.
    """
    given: dict[str, Found] = {}
    for key in configuration:
        name = _name_within(key, namespace)
        # A configuration that is a module holds what it imports, celery_broadcast too.
        if name is None or isinstance(configuration[key], ModuleType):
            continue
        found = _checked(name, key, configuration[key])
        before = given.setdefault(name, found) if found.error is None else found
        if before.value != found.value:
            msg = (
                f"{before.origin} and {key} are the same setting with different values, "
                f"{shown(without_secret(name, configuration[before.origin]))} and "
                f"{shown(without_secret(name, configuration[key]))}. Remove one."
            )
            found = Found(name=name, origin=key, error=ConfigurationError(msg))
        yield found
    if environment.get(ENABLED_VARIABLE, "").strip():  # empty is as good as not set
        variable = f"the environment variable {ENABLED_VARIABLE}"
        yield _checked("enabled", variable, environment[ENABLED_VARIABLE])


def _checked(name: str, origin: str, value: object) -> Found:
    if name not in _CHECKS:
        return Found(name=name, origin=origin, error=ConfigurationError(_unknown(origin, name)))
    try:
        return Found(name=name, origin=origin, value=_CHECKS[name](origin, value))
    except ConfigurationError as error:
        return Found(name=name, origin=origin, error=error)


def load(
    configuration: Mapping[str, Any],
    environment: Mapping[str, str],
    namespace: str | None = None,
) -> Settings:
    """Read the settings from Celery's configuration and from the environment.

    Both spellings count, `broadcast_enabled` and `CELERY_BROADCAST_ENABLED`,
    and with `app.config_from_object(..., namespace="SHOP")` also
    `SHOP_BROADCAST_ENABLED`. In the environment only `CELERY_BROADCAST_ENABLED`
    is read, and it beats the configuration.

    Raises:
        ConfigurationError: a setting doesn't exist, has a wrong value, or is
            given twice with different values. It is the first mistake of `find`.
    """
    given: dict[str, Any] = {}
    for found in find(configuration, environment, namespace):
        if found.error is not None:
            raise found.error
        given[found.name] = found.value
    return Settings(**given)


def _name_within(key: object, namespace: str | None) -> str | None:
    """Return the name in a key of the configuration, "enabled" say; None if it isn't ours.

    Ours are `broadcast_*`, `CELERY_BROADCAST_*` and the namespace's own. Others
    have a right to `BROADCAST_URL`, and a module to `Broadcast` of kombu.
    """
    if not isinstance(key, str) or "broadcast" not in key.lower():
        return None  # at once: there are hundreds of keys
    if not (key.islower() or key.isupper()):
        return None
    prefixes = ["celery_", f"{(namespace or 'celery').lower().rstrip('_')}_"]
    if key.islower():
        prefixes.append("")
    for prefix in prefixes:
        before, found, name = key.lower().partition(f"{prefix}broadcast")
        if found and not before and (name.startswith("_") or (prefix and not name)):
            return name[1:]
    return None


def _unknown(key: str, name: str) -> str:
    """Say that a key is spelled as ours, and that there is no such setting."""
    import difflib  # noqa: PLC0415  # misspelling is rare, and this slow to load

    start = key[: len(key) - len(name)] if name else f"{key}_"
    close = difflib.get_close_matches(name, _CHECKS, n=1)
    spelled = [f"{start}{known.upper() if key.isupper() else known}" for known in close or _CHECKS]
    remedy = f"Did you mean {spelled[0]}?" if close else f"There are: {', '.join(spelled)}."
    return f"{key} is not a setting of celery-broadcast. {remedy}"
