"""The process of `celery broadcast consume`: remote consumers, each with what reads for it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from celery_broadcast import installation, notices
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.greenlets import check_runs_here
from celery_broadcast.producer import Producer
from celery_broadcast.relay.incoming import Incoming
from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.transport import Group, Limits, Transport
from celery_broadcast.relay.wire import names_on_the_wire
from celery_broadcast.selection import Selection
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry, Subscription

logger: logging.Logger = logging.getLogger(__name__)

# A signal handler may not take a lock that what it interrupts holds, so it only
# counts, and the main thread looks how often.
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_SAMPLES = 1.0  # of how many events wait

# How long the broker may take to get back what wasn't handled, besides the
# timeout of one exchange with it.
_SECONDS_TO_GIVE_BACK = 1.0


def group_of(subscription: Subscription) -> Group:
    """Return the group that a remote consumer is on the broker."""
    selection = subscription.selection
    return Group(
        name=subscription.name,
        event_types=names_on_the_wire(selection.events),
        tasks=selection.tasks or None,
    )


class Consuming:
    """Remote consumers at work in this process.

    Args:
        subscriptions: of the remote consumers, one or more.
        settings: the broadcast's.
        new_transport: makes a transport, one for each of them.
        limits: what bounds the relay.

    Raises:
        ConfigurationError: one of the consumers can't run here.
    """

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        settings: Settings,
        new_transport: Callable[[], Transport],
        limits: Limits,
    ) -> None:
        for subscription in subscriptions:
            check_runs_here(subscription)
        self._settings = settings
        self._limits = limits
        registry = Registry()
        registry.subscriptions = tuple(map(_fed_by_hand, subscriptions))
        #: The consumers, and nobody else; no event of this process comes here.
        self.producer: Producer = Producer(settings, registry)
        self.incoming: list[Incoming] = [
            self._incoming_of(subscription, new_transport()) for subscription in subscriptions
        ]
        self._given_up: set[str] = set()

    def _incoming_of(self, subscription: Subscription, transport: Transport) -> Incoming:
        name, key = subscription.name, self._settings.relay_key
        return Incoming(
            subscription=subscription,
            group=group_of(subscription),
            transport=transport,
            accept=lambda deliveries: self.producer.accept(name, deliveries),
            has_given_up=lambda: self.producer.consumers.has_given_up(name),
            limits=self._limits,
            max_deliveries=self._settings.relay_max_deliveries,
            verifier=None if key is None else Verifier(key, max_age=self._limits.ttl),
            signer=None if key is None else Signer(key),
        )

    @property
    def is_ready(self) -> bool:
        """Whether all groups are declared and read."""
        return all(each.is_reading.is_set() or each.has_ended for each in self.incoming)

    @property
    def has_ended(self) -> bool:
        """Whether nobody is left to read for."""
        return all(each.has_ended for each in self.incoming)

    @property
    def failed(self) -> list[str]:
        """The names of consumers that have given up, or that nobody reads for any more."""
        crashed = {each.name for each in self.incoming if each.has_crashed}
        return sorted(self._given_up | crashed)

    def start(self) -> None:
        """Start the consumers, and what reads for them; return at once."""
        notices.consumer_gave_up.connect(self._note_given_up)
        for incoming in self.incoming:
            self.producer.accept(incoming.name)  # so that its setup doesn't wait for an event
            incoming.start()

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Have what is in hand handled; give back what isn't in time.

        Args:
            timeout_seconds: how long to wait; None is `broadcast_drain_timeout`.

        Raises:
            BaseException: what struck the thread that waits, such as Ctrl-C. What
                isn't handled by then is given back all the same.
        """
        for incoming in self.incoming:
            incoming.stop()
        try:
            self.producer.drain(timeout_seconds, last=True)
        finally:
            for incoming in self.incoming:
                incoming.let_go()
            deadline = time.monotonic() + self._limits.timeout + _SECONDS_TO_GIVE_BACK
            for incoming in self.incoming:
                incoming.wait_for_end(deadline)
            notices.consumer_gave_up.disconnect(self._note_given_up)

    def _note_given_up(self, sender: str, **_: Any) -> None:
        if any(each.name == sender for each in self.incoming):
            self._given_up.add(sender)


def _fed_by_hand(subscription: Subscription) -> Subscription:
    """Return it without a will of its own: it gets what comes from the broker, and nothing else.

    Its mailbox has no bound, since what reads for it hands over only so much.
    """
    plain: Subscription = msgspec.structs.replace(
        subscription, selection=Selection(events=()), mailbox_size=None
    )
    return plain


class Signals:
    """Counts how often this process was asked to end, by SIGTERM or Ctrl-C.

    The second time raises `KeyboardInterrupt` in the main thread.
    """

    def __init__(self) -> None:
        self.count: int = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them in the block. On any thread but the main one, nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


def run(consuming: Consuming, ready_file: Path | None = None) -> int:
    """Consume until asked to end, or until a consumer gives up.

    Args:
        consuming: not started yet.
        ready_file: written as soon as all groups are read, removed at the end.

    Returns:
        The exit code: 0 as asked, 1 if a consumer has given up, 130 if what was
        in hand was not waited for.

    Raises:
        ConfigurationError: the file can't be written.
    """
    ready = _ReadyFile(ready_file)
    signals = Signals()
    try:
        with installation.counting(consuming.producer), signals.caught():
            names = ", ".join(each.name for each in consuming.incoming)
            logger.info("broadcast consumes for %s in pid %d", names, os.getpid())
            consuming.start()
            try:
                _wait_for_end(consuming, ready, signals)
            finally:
                ready.remove()
                logger.info("broadcast ends, and handles what is in hand")
                consuming.stop()
    except KeyboardInterrupt:
        logger.warning("broadcast didn't wait for what was in hand; it comes again")
        return 130
    if consuming.failed:
        logger.critical(
            "broadcast has ended since %s gave up; whatever restarts this process may try again",
            ", ".join(consuming.failed),
        )
        return 1
    return 0


def _wait_for_end(consuming: Consuming, ready: _ReadyFile, signals: Signals) -> None:
    sample_due_at = 0.0
    while not (signals.count or consuming.failed or consuming.has_ended):
        if consuming.is_ready:
            ready.write()
        now = time.monotonic()
        if now >= sample_due_at:
            sample_due_at = now + _SECONDS_BETWEEN_SAMPLES
            consuming.producer.sample()
        time.sleep(_SECONDS_BETWEEN_LOOKS)


class _ReadyFile:
    """Is there while the process is ready.

    Raises:
        ConfigurationError: it can't be there.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_written = False
        if path is None:
            return
        try:
            path.unlink(missing_ok=True)  # of a process that was killed
        except OSError as error:
            raise _cannot_write(path, error) from error
        if not path.parent.is_dir():
            raise _cannot_write(path, FileNotFoundError(f"there is no folder {path.parent}"))

    def write(self) -> None:
        """Write it, if one is asked for; say so in any case. Twice is harmless."""
        if self._is_written:
            return
        if self._path is not None:
            try:
                self._path.write_text(f"{os.getpid()}\n")
            except OSError as error:
                raise _cannot_write(self._path, error) from error
        self._is_written = True
        logger.info("broadcast is ready: every group is declared and read")

    def remove(self) -> None:
        if self._path is not None and self._is_written:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"--ready-file={str(path)!r} can't be written ({error}). Name a file in a folder that is "
        "there and that this process may write to."
    )
