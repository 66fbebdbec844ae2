"""Which broker the relay goes through, and what is needed for that: as the app's settings say."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import JobEvent
from celery_broadcast.relay.signing import Signer
from celery_broadcast.relay.transport import Limits, Parcel, Transport
from celery_broadcast.relay.wire import Writer
from celery_broadcast.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

    from celery_broadcast.relay.redis_streams import RedisStreams

_REDIS = frozenset({"redis", "rediss", "sentinel", "redis+socket"})
_RABBITMQ = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})


class Choice:
    """What one app's settings say of the relay. May be used on any thread.

    Args:
        app: returns the one whose broker it is, unless the settings name another.
            A weak reference, so that the broadcast of a process keeps no app alive.
        settings: the broadcast's.
    """

    def __init__(self, app: Callable[[], Celery | None], settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def check(self) -> None:
        """See that the relay can work with these settings; connects to nothing.

        Raises:
            ConfigurationError: it can't.
        """
        self.new_transport().close()
        if self._settings.redact is not None:
            check_path_of_function("broadcast_redact", self._settings.redact)

    def new_transport(self) -> Transport:
        """Return a transport that has no connection yet.

        Raises:
            ConfigurationError: there is none for this broker.
        """
        app = self._living_app()
        urls = _several(self._settings.relay_url) or _urls_of(app)
        schemes = _schemes_of(urls)
        given = "broadcast_relay_url" if self._settings.relay_url else "the app's broker_url"
        if schemes <= _REDIS:
            return _redis_streams().from_app_settings(
                urls,
                app.conf.broker_transport_options or {},
                # Of another kind of broker it would say nothing here.
                app.conf.broker_use_ssl if _schemes_of(_urls_of(app)) <= _REDIS else None,
                self.limits(),
            )
        if schemes <= _RABBITMQ:
            from celery_broadcast.relay.rabbitmq import RabbitMQ  # noqa: PLC0415

            _check_can_be_read(given, urls)
            return RabbitMQ(app, ";".join(urls), self.limits())
        shown = " and ".join(sorted(f"{scheme}://" for scheme in schemes))
        msg = (
            f"The relay can't go through {shown} ({given}): events go to remote consumers through "
            "Redis (redis://, rediss://, sentinel://, redis+socket://) or RabbitMQ (amqp://, "
            "amqps://). Set broadcast_relay_url to one of those."
        )
        raise ConfigurationError(msg)

    def new_writer(self) -> Outbox:
        """Return a writer with a producer id of its own.

        Raises:
            ConfigurationError: `broadcast_redact` can't be imported.
        """
        app = self._living_app()
        path = self._settings.redact
        redact = None if path is None else function_at("broadcast_redact", path)
        source = f"/celery/{app.main or 'app'}/{socket.gethostname()}"
        key = self._settings.relay_key
        return Outbox(Writer(uuid4().hex, source, redact), None if key is None else Signer(key))

    def limits(self) -> Limits:
        """Return what bounds the relay."""
        return Limits(
            max_bytes=self._settings.relay_max_bytes,
            ttl=self._settings.relay_ttl,
            lease=self._settings.relay_lease,
        )

    def _living_app(self) -> Celery:
        app = self._app()
        if app is None:
            msg = "The app whose settings the relay has is gone. Keep it as long as its jobs run."
            raise ConfigurationError(msg)
        return app


class Outbox:
    """Writes parcels, and signs them if there is a key."""

    def __init__(self, writer: Writer, signer: Signer | None) -> None:
        self._writer = writer
        self._signer = signer

    def parcels(self, events: Sequence[JobEvent], payload: str) -> list[Parcel]:
        """Return parcels, each of one event type and one task."""
        parcels = self._writer.parcels(events, payload)
        return parcels if self._signer is None else list(map(self._signer.sign, parcels))


def _urls_of(app: Any) -> list[str]:
    """Return the URLs of the app's broker; without any, that of kombu's own default."""
    urls = _several(app.conf.broker_write_url)
    return urls or [f"{app.connection_for_write().transport_cls}://"]


def _several(url: str | Sequence[str] | None) -> list[str]:
    urls = [url] if isinstance(url, str) else url or []
    return [each for several in urls for each in several.split(";") if each]


def _schemes_of(urls: Sequence[str]) -> set[str]:
    return {url.partition("://")[0].lower() for url in urls}


def _check_can_be_read(given: str, urls: Sequence[str]) -> None:
    """Refuse here what kombu would only refuse, with every event, when it is to connect.

    Raises:
        ConfigurationError: one of them has no such port. It shows none: that is where a
            password is looked for if there is something in it that ends it.
    """
    for url in urls:
        scheme, _, rest = url.partition("://")
        try:
            urlsplit(f"http://{rest}").port  # noqa: B018  # it raises
        except ValueError:
            msg = (
                f"{given} has an {scheme}:// that can't be read: its port is no number from 0 to "
                "65535. In a password write '/' as %2F, '?' as %3F, '#' as %23 and '@' as %40."
            )
            raise ConfigurationError(msg) from None


def _redis_streams() -> type[RedisStreams]:
    """Return the transport through Redis.

    Raises:
        ConfigurationError: redis-py isn't installed.
    """
    try:
        from celery_broadcast.relay.redis_streams import RedisStreams  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        msg = (
            "The relay can't go through Redis: redis-py isn't installed here. Install it with: "
            'pip install "celery-broadcast[redis]".'
        )
        raise ConfigurationError(msg) from error
    return RedisStreams


def function_at(setting: str, path: str) -> Callable[[Any], Any]:
    """Return the function with a dotted path.

    Raises:
        ConfigurationError: there is none, or its module can't be imported.
    """
    module_name, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        msg = (
            f"{setting}={path!r} can't be loaded ({type(error).__name__}: {error}). Write the "
            "dotted path of a function, such as 'shop.privacy.redact'."
        )
        raise ConfigurationError(msg) from error
    if not callable(function):
        msg = f"{setting}={path!r} is a {type(function).__name__}, which can't be called."
        raise ConfigurationError(msg)
    return function  # type: ignore[no-any-return]  # as just seen


def check_path_of_function(setting: str, path: str) -> None:
    """See that there can be a function with a dotted path, without importing its module.

    That module may import the consumers, in whose import this is asked.

    Raises:
        ConfigurationError: there is no such module, or no such function in it.
    """
    module_name = path.rpartition(".")[0]
    module = sys.modules.get(module_name)
    if module is not None:
        if getattr(module.__spec__, "_initializing", False):
            return
        function_at(setting, path)
        return
    try:
        found = importlib.util.find_spec(module_name)
    except Exception as error:
        msg = f"{setting}={path!r}: {module_name} can't be imported ({error})."
        raise ConfigurationError(msg) from error
    if found is None:
        msg = (
            f"{setting}={path!r}: there is no module {module_name}. Write the dotted path of a "
            "function, such as 'shop.privacy.redact'."
        )
        raise ConfigurationError(msg)
