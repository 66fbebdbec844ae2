"""One connection to RabbitMQ that is the relay's own, on which nothing takes for ever."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import amqp
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic
from celery import Celery
from kombu import Connection

from celery_broadcast.errors import RelayError

logger: logging.Logger = logging.getLogger(__name__)

#: The names of kombu's transports that are RabbitMQ, as URLs and settings have them.
SCHEMES = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})

# Frames of AMQP 0-9-1: what a message's properties come in, and a sign of life.
_HEADER_FRAME, _HEARTBEAT_FRAME = 2, 8
# Of a header frame: the class, a weight and the size of the body come before the properties.
_PROPERTIES_START = 12
_NO_PROPERTIES = b"\0\0"

#: How long a read waits that only takes what is there already, in seconds. Not 0: py-amqp
#: would then go round in a circle if it finds the first half of a frame.
AT_ONCE = 0.001

_REMEDIES = {
    402: "Create the virtual host, or correct the URL.",
    403: "Give the user the rights to configure, write and read 'celery-broadcast.*' on this "
    "virtual host, and check the password.",
    404: "It is declared anew with the next try.",
    406: "",  # who declares knows more
    530: "Create the virtual host, or correct the URL.",
}


class BlockedError(RelayError):
    """The broker takes nothing for now, and what it was sent may be confirmed later.

    The connection stays: a broker that is short of memory notices only afterwards
    that one was closed, and takes then what each of them still had for it.
    """


class AmqpLink:
    """A connection that is opened when it is needed and dropped when anything goes wrong.

    Belongs to one thread. It is neither of the app's pool, nor shared with
    anybody, but made from the app's own settings of its broker. A forked child
    makes its own, and leaves its parent's alone.

    Attributes:
        timeout: seconds that one exchange may take.
        blocked: whether the broker has said that it takes nothing for now, for
            want of memory or disk.
    """

    def __init__(
        self, app: Celery, url: str | None, *, name: str, timeout: float, heartbeat: float
    ) -> None:
        """Prepare the link; it connects when it is first used.

        Args:
            app: whose settings of its broker count.
            url: of the broker, or several, with semicolons between; None is the app's.
            name: how RabbitMQ shows it.
            timeout: seconds that one exchange may take.
            heartbeat: seconds after which a silent broker is given up; 0 is never.
        """
        self._app = app
        self._url = url
        self._name = name
        self.timeout = timeout
        self._heartbeat = heartbeat
        self._connection: Any = None  # an amqp.Connection
        self._pid = 0  # of the process that it belongs to
        self._client: Connection | None = None
        self._deadline = 0.0
        self.blocked: bool = False

    @property
    def address(self) -> str:
        """Where the broker is, without the password."""
        client = self._client or self._new_client()
        return str(client.as_uri(include_password=False))

    @contextmanager
    def exchange(self, what: str, seconds: float | None = None) -> Iterator[AmqpLink]:
        """Talk to the broker; connect if there is no connection.

        Whatever is raised inside, by the broker or by what py-amqp makes of what
        it sends, becomes a RelayError, and the connection is dropped: after an
        error nobody knows what else is on its way. Only after `BlockedError` it stays.

        Args:
            what: what is tried, such as "publish 3 parcels", for the message.
            seconds: how long all of it may take; None is the timeout.
        """
        try:
            self.extend(seconds)
            self._connect()
            self.extend(seconds)
            yield self
        except BlockedError:
            raise
        except RelayError:
            self.drop()
            raise
        except Exception as error:
            address = self.address
            self.drop()
            message = f"RabbitMQ at {address}: could not {what}. {_told(error, self.timeout)}"
            raise RelayError(message) from error
        except BaseException:
            self.drop()
            raise

    def extend(self, seconds: float | None = None) -> None:
        """Let the exchange take so long from now on; None is the timeout."""
        self._deadline = time.monotonic() + (self.timeout if seconds is None else seconds)

    def channel(self) -> Any:
        """Open a channel, an amqp.Channel."""
        channel = self._connection.channel()
        # Or it decodes each body by the codec that its sender names.
        channel.auto_decode = False
        return channel

    def has(self, channel: Any) -> bool:
        """Tell whether a channel is of this connection, as it is now, and open."""
        return self._is_here() and channel.connection is self._connection

    def read(self, wait_seconds: float | None = None) -> bool:
        """Handle the next frame that the broker sends.

        Args:
            wait_seconds: for it; None is until the exchange has taken too long.

        Returns:
            False if none came for so long.

        Raises:
            TimeoutError: None was given, and none came.
        """
        if wait_seconds is None:
            left = self._deadline - time.monotonic()
            self._connection.blocking_read(timeout=max(AT_ONCE, left))  # what is there isn't late
            return True
        try:
            self._connection.blocking_read(timeout=max(AT_ONCE, wait_seconds))
        except TimeoutError:
            return False
        return True

    def beat(self) -> None:
        """Send a heartbeat if it is time for one.

        Raises:
            amqp.ConnectionForced: the broker has sent nothing for two of them.
        """
        self._connection.heartbeat_tick()

    def close(self) -> None:
        """Close the connection, having the broker take all that was sent; never raises."""
        if not self._is_here():
            self.drop()
            return
        try:
            self.extend()
            if not self.blocked:  # or it would never read it
                self._connection.close()
        except Exception as error:  # noqa: BLE001  # it ends in any case
            logger.debug("RabbitMQ at %s: could not say goodbye: %r", self.address, error)
        finally:
            self.drop()

    def drop(self) -> None:
        """Let the connection go without a word; what was in hand goes to others."""
        is_here = self._is_here()
        connection, self._connection = self._connection, None
        self._client = None
        self.blocked = False
        if is_here:  # a child that closed it would have closed its parent's
            with suppress(Exception):  # half of it may be gone
                if connection.connected:
                    connection.sock.settimeout(AT_ONCE)  # TLS would wait for an answer
                connection.collect()

    def _is_here(self) -> bool:
        """Tell whether there is a connection, and of this process."""
        return self._connection is not None and self._pid == os.getpid()

    def _connect(self) -> None:
        if self._is_here() and self._connection.connected:
            return
        self.drop()
        self._pid = os.getpid()
        self._client = self._new_client()
        # One try for each address of a failover list, with no pause between.
        self._client.ensure_connection(
            max_retries=max(0, len(self._client.alt) - 1),
            interval_start=0,
            interval_step=0,
            interval_max=0,
            reraise_as_library_errors=False,
        )
        self._connection = self._client.connection
        self._connection.on_blocked = self._on_blocked
        self._connection.on_unblocked = self._on_unblocked
        # py-amqp waits for most answers without a timeout of its own.
        self._connection.sock.settimeout(self.timeout)

    def _new_client(self) -> Connection:
        """Return a connection as the app itself would make it, not yet open."""
        conf = self._app.conf
        url = self._url or conf.broker_write_url
        url = url if isinstance(url, str) else ";".join(url)
        options: dict[str, Any] = {}
        if self._url and not _is_rabbitmq(conf.broker_write_url):
            options["ssl"] = False  # the app's own is for another kind of broker
        own = conf.broker_transport_options or {}
        return self._app.connection_for_write(
            # Not librabbitmq, which kombu would take if it is installed.
            re.sub(r"(^|;)(?:amqp|librabbitmq)://", r"\1pyamqp://", url),
            heartbeat=self._heartbeat,
            connect_timeout=min(conf.broker_connection_timeout or self.timeout, self.timeout),
            transport_options={
                "read_timeout": self.timeout,
                "write_timeout": self.timeout,
                "client_properties": {
                    "connection_name": self._name,
                    **(own.get("client_properties") or {}),
                },
                "confirm_publish": False,  # confirms are awaited here, several at once
                "frame_handler": self._frame_handler,
            },
            **options,
        )

    def _frame_handler(
        self, connection: Any, callback: Callable[..., None]
    ) -> Callable[[tuple[int, int, bytes]], bool]:
        """Return what py-amqp calls with each frame."""
        handle = frame_handler(connection, callback)

        def on_frame(frame: tuple[int, int, bytes]) -> bool:
            kind, channel, payload = frame
            if kind == _HEADER_FRAME and not _are_readable(payload):
                # py-amqp would raise, again with every delivery of this message, and
                # nobody could even refuse it. Without properties it is merely foreign.
                frame = kind, channel, payload[:_PROPERTIES_START] + _NO_PROPERTIES
            elif kind == _HEARTBEAT_FRAME and time.monotonic() > self._deadline:
                # A broker that lives but doesn't answer would have us wait for ever.
                raise TimeoutError
            return bool(handle(frame))

        return on_frame

    def _on_blocked(self, _reason: str) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        self.blocked = False


def _are_readable(payload: bytes) -> bool:
    try:
        decode_properties_basic(payload, _PROPERTIES_START)
    except Exception:  # noqa: BLE001  # bytes of a stranger raise whatever they like
        return False
    return True


def _is_rabbitmq(url: Any) -> bool:
    first = url if isinstance(url, str) or not url else url[0]
    return str(first or "amqp").split(":", 1)[0] in SCHEMES


def _told(error: Exception, timeout: float) -> str:
    """Return what happened, and what can be done, for the message of a RelayError."""
    if isinstance(error, TimeoutError | BlockingIOError):
        return f"It did not answer within {timeout:g} s."
    if isinstance(error, amqp.AMQPError) and error.code:
        said = str(error.reply_text or error).rstrip(".")
        return " ".join(filter(None, (f"It says: {said}.", _REMEDIES.get(error.code, ""))))
    return f"{type(error).__name__}: {error}."
