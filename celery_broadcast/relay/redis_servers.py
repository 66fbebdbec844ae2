"""Where the Redis of a URL is and how to log in there, as Celery's own settings tell it."""

from __future__ import annotations

import importlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlparse

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from celery_broadcast.errors import ConfigurationError

logger: logging.Logger = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
_PORTS = {"sentinel": 26379}
#: What kombu's own `Connection` would take from a URL besides, and has no meaning here.
_IGNORED = {"heartbeat", "insist", "connect_timeout", "login_method"}


class UnfitServerError(RedisError):
    """It answers, and can't be used; the text tells why."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One URL, taken apart.

    Attributes:
        shown: the URL without name and password.
        scheme: its scheme.
        place: `host` and `port`, or `path`, as redis-py calls them.
        login: `db`, `username`, `password` or `credential_provider`.
        tls: the options of TLS; None is without it.
    """

    shown: str
    scheme: str
    place: dict[str, Any]
    login: dict[str, Any]
    tls: dict[str, Any] | None


class RedisServers:
    """The server that the relay goes through, and those that stand in for it.

    Holds no connection; each call of `connect` makes one. Belongs to one thread.
    """

    def __init__(
        self, url: str | Sequence[str], transport_options: Mapping[str, Any], use_ssl: object
    ) -> None:
        """Take what the app has as broker_url, broker_transport_options and broker_use_ssl.

        Raises:
            ConfigurationError: one of them can't be meant so.
        """
        urls = url.split(";") if isinstance(url, str) else [*url]
        self._addresses = deque(_address_of(each, use_ssl) for each in urls if each)
        if not self._addresses:
            msg = f"broadcast_relay_url={url!r} is empty. Write 'redis://HOST:PORT/DB'."
            raise ConfigurationError(msg)
        self._options = transport_options
        self._socket_options = {
            option: transport_options[option]
            for option in ("socket_keepalive", "socket_keepalive_options", "client_name")
            if transport_options.get(option) is not None
        }
        self.key_prefix: str = transport_options.get("global_keyprefix") or ""
        self.shown: str = ";".join(address.shown for address in self._addresses)
        schemes = {address.scheme == "sentinel" for address in self._addresses}
        if len(schemes) > 1:
            msg = f"broadcast_relay_url={self.shown!r} mixes sentinel:// with others. Use one kind."
            raise ConfigurationError(msg)
        self._is_sentinel = schemes == {True}
        if self._is_sentinel and not transport_options.get("master_name"):
            msg = (
                "sentinel:// needs the name of the master. "
                "Write broker_transport_options={'master_name': 'mymaster'}."
            )
            raise ConfigurationError(msg)
        self._has_warned = False
        self._check()

    def connect(self, timeout: float) -> redis.Redis:
        """Return a client with a connection, to a server that can be used.

        Each server is tried once, as long as there is time; the next call
        begins with the one after those that failed.

        Args:
            timeout: seconds that any wait for a server may take.

        Raises:
            RedisError: there is none.
        """
        if self._is_sentinel:
            return self._opened(self._master(timeout), timeout)
        deadline = time.monotonic() + timeout
        for untried in reversed(range(len(self._addresses))):
            try:
                return self._opened(self._addresses[0], timeout)
            except (RedisError, OSError):
                self._addresses.rotate(-1)
                if not untried or time.monotonic() > deadline:
                    raise
        raise AssertionError  # there is at least one

    def avoid_last(self) -> None:
        """Have the next `connect` begin with another server than the last one that it reached."""
        if not self._is_sentinel:
            self._addresses.rotate(-1)

    def _master(self, timeout: float) -> Address:
        own = self._options.get("sentinel_kwargs") or {}
        each = timeout / len(self._addresses)
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(address.place["host"], address.place["port"]) for address in self._addresses],
            min_other_sentinels=self._options.get("min_other_sentinels", 0),
            sentinel_kwargs={
                **own,
                "socket_timeout": each,
                "socket_connect_timeout": each,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        try:
            host, port = sentinel.discover_master(  # type: ignore[no-untyped-call]
                self._options["master_name"]
            )
        finally:
            for client in sentinel.sentinels:
                client.close()
        first = self._addresses[0]
        return msgspec.structs.replace(first, scheme="redis", place={"host": host, "port": port})

    def _check(self) -> None:
        """Have redis-py look at the options now, rather than at the first event."""
        for address in self._addresses:
            try:
                connection_class, options = self._connection(address, 1.0)
                connection_class(**options)
            except (TypeError, ValueError, RedisError) as error:
                msg = (
                    f"{address.shown} can't be used with these options: {error}. "
                    "Look at broadcast_relay_url, broker_use_ssl and broker_transport_options."
                )
                raise ConfigurationError(msg) from error

    def _connection(self, address: Address, timeout: float) -> tuple[type[Any], dict[str, Any]]:
        """Return redis-py's class of connection, and what to call it with."""
        options: dict[str, Any] = {
            **address.place,
            **address.login,
            "socket_timeout": timeout,
            # None of redis-py's own: what was sent twice is there twice.
            "retry": Retry(NoBackoff(), 0),
        }
        if redis.VERSION >= (5,):
            options["protocol"] = 2  # its replies are the same in every version
        if "path" in address.place:
            if name := self._socket_options.get("client_name"):
                options["client_name"] = name
            return redis.UnixDomainSocketConnection, options
        options.update(self._socket_options, socket_connect_timeout=timeout)
        if address.tls is None:
            return redis.Connection, options
        return redis.SSLConnection, {**options, **address.tls}

    def _opened(self, address: Address, timeout: float) -> redis.Redis:
        connection_class, options = self._connection(address, timeout)
        pool = redis.ConnectionPool(connection_class=connection_class, **options)
        client = redis.Redis(connection_pool=pool)
        # Replies as the server sends them: what redis-py makes of them differs by version.
        client.response_callbacks.clear()
        try:
            self._check_server(client)
        except BaseException:
            pool.disconnect()
            raise
        return client

    def _check_server(self, client: redis.Redis) -> None:
        try:
            info = client.execute_command("INFO")  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if "no permissions" in str(error):
                return  # then it is for the server to say what it can't do
            raise
        facts = facts_of(info)
        if why := unfitness(facts):
            raise UnfitServerError(why)
        policy = facts.get("maxmemory_policy", "")
        if facts.get("maxmemory", "0") == "0" or not policy.startswith("allkeys"):
            return
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Redis at %s has the maxmemory-policy %s: when it is full it deletes what waits "
                "there, jobs and events, without a word. Set it to noeviction",
                *(self.shown, policy),
            )


def facts_of(info: bytes) -> dict[str, str]:
    """Return what a server tells of itself, as names and values."""
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def unfitness(facts: Mapping[str, str]) -> str:
    """Return why a server that tells this of itself can't be used, "" if it can."""
    version = facts.get("redis_version", "")
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if numbers and numbers < OLDEST_VERSION:
        return f"it is Redis {version}, and the relay needs 6.2 or newer"
    if "cluster" in {facts.get("redis_mode"), facts.get("server_mode")}:  # of Redis, of Valkey
        return "it is a Redis Cluster, which the relay can't use; name a Redis that is none"
    return ""


def _address_of(url: str, use_ssl: object) -> Address:
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in _SCHEMES:
        msg = (
            f"broadcast_relay_url has a part that begins with {scheme[:20]!r}. "
            f"Begin each with one of {', '.join(each + '://' for each in _SCHEMES)}."
        )
        raise ConfigurationError(msg)
    try:
        parts = urlparse("http://" + rest)
        host, port = unquote(parts.hostname or "") or "127.0.0.1", parts.port
    except ValueError as error:
        msg = f"broadcast_relay_url has a {scheme}:// that can't be read: {error}."
        raise ConfigurationError(msg) from error
    query = dict(parse_qsl(parts.query))
    path = unquote(parts.path)
    is_socket = scheme == "redis+socket"
    place: dict[str, Any] = (
        {"path": path} if is_socket else {"host": host, "port": port or _PORTS.get(scheme, 6379)}
    )
    where = path if is_socket else f"{host}:{place['port']}"
    database = query.pop("virtual_host", "") if is_socket else path
    shown = f"{scheme}://{where}" + ("" if is_socket else path)
    login: dict[str, Any] = {
        "db": _database(database, shown),
        "username": unquote(parts.username or "") or query.pop("username", "") or None,
        "password": unquote(parts.password or "") or query.pop("password", "") or None,
    }
    provider = query.pop("credential_provider", None)
    if provider:
        login = {"db": login["db"], "credential_provider": _provider(provider)}
    of_tls = {name: query.pop(name) for name in [*query] if name.startswith("ssl_")}
    if unknown := sorted(set(query) - _IGNORED):
        msg = f"{shown} has the option {unknown[0]!r}, which is none of Redis. Leave it out."
        raise ConfigurationError(msg)
    tls = None if is_socket else _tls(scheme, of_tls, use_ssl, shown)
    return Address(shown=shown, scheme=scheme, place=place, login=login, tls=tls)


def _database(text: str, shown: str) -> int:
    digits = text.strip("/")
    if digits.isdigit() or not digits:
        return int(digits or 0)
    msg = f"{shown} has {digits!r} where the number of a database belongs. Write .../0."
    raise ConfigurationError(msg)


def _provider(path: str) -> object:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"credential_provider={path!r} can't be loaded: {error}. Write 'module.Class'."
        raise ConfigurationError(msg) from error


def _tls(scheme: str, of_url: dict[str, Any], use_ssl: object, shown: str) -> dict[str, Any] | None:
    """Return the options of TLS; what the URL says goes before broker_use_ssl, as in kombu."""
    of_app = dict(use_ssl) if isinstance(use_ssl, Mapping) else {}
    if not (scheme == "rediss" or of_url or use_ssl):
        return None
    options = of_url or of_app
    if "ssl_check_hostname" in of_url:
        options["ssl_check_hostname"] = of_url["ssl_check_hostname"].lower() != "false"
    requirement = options.get("ssl_cert_reqs")
    if isinstance(requirement, str):
        # Both of kombu's spellings; redis-py knows the short one.
        options["ssl_cert_reqs"] = requirement.removeprefix("CERT_").lower()
    if options or use_ssl:
        return options
    logger.warning(
        "%s doesn't say how to know the server, so its certificate isn't looked at, as Celery "
        "does it. Write %s?ssl_cert_reqs=required",
        *(shown, shown),
    )
    return {"ssl_cert_reqs": "none"}
