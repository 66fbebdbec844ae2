"""The relay through RabbitMQ: a topic exchange, and a quorum queue for each group."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import amqp
import msgspec
from amqp import spec
from celery import Celery

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.amqp_link import AT_ONCE, SCHEMES, AmqpLink, BlockedError
from celery_broadcast.relay.routing import binding_patterns, routing_key, wants
from celery_broadcast.relay.transport import (
    LATEST_TIME,
    MEDIA_TYPE,
    DeadLetter,
    Group,
    Limits,
    Parcel,
    Received,
)

__all__ = ["SCHEMES", "RabbitMQ"]

logger: logging.Logger = logging.getLogger(__name__)

#: Where workers publish, and where the broker itself puts what it has handed out too often.
EXCHANGE = "celery-broadcast"
DEAD_LETTER_EXCHANGE = "celery-broadcast.dead-letters"

FOREIGN_MEDIA_TYPE = "application/octet-stream"

#: How many parcels are on their way at once before the first is confirmed.
WINDOW = 64

#: How often RabbitMQ itself hands a parcel out before it puts it aside. The reader decides
#: long before, so this only ends what no reader survives. A constant, because the arguments
#: of a queue can't be changed.
DELIVERY_LIMIT = 100

#: A dead letter may be looked at as often as anybody likes; each time counts as a delivery.
#: RabbitMQ 4 has a limit of 20 for those who don't ask for another.
NO_DELIVERY_LIMIT = 2**31 - 1

#: The most that RabbitMQ takes for a time to live, in milliseconds: 49 days.
MAX_TTL = 2**32 - 1

#: What isn't seen yet of what is watched, in bytes; beyond that the oldest is passed over.
WATCHED_BYTES = 64 * 1024 * 1024

#: Of what can't be opened so much is kept, in bytes.
REFUSED_BODY_BYTES = 64 * 1024

#: Of an error, and of a task's name or a signature, in characters of up to four bytes. AMQP
#: has all headers of a message in one frame of 128 kB, and one that is too long would cost
#: the connection, with every try.
ERROR_CHARACTERS = 16 * 1024
LABEL_CHARACTERS = 4 * 1024

_TASK = "celery-broadcast-task"
_SIGNATURE = "celery-broadcast-signature"
_REASON = "celery-broadcast-reason"
_ERROR = "celery-broadcast-error"
_DELIVERIES = "celery-broadcast-deliveries"
_PUT_ASIDE_AT = "celery-broadcast-put-aside-at"


def queue_name(group: Group) -> str:
    """Return the name of the queue in which a group's parcels wait."""
    return f"celery-broadcast.{group.name}"


def dead_letter_queue_name(group: Group) -> str:
    """Return the name of the queue that has what the group has put aside."""
    return f"{queue_name(group)}.dead-letters"


class _Handed(msgspec.Struct, frozen=True):
    """By which the broker knows a parcel: a number that only the channel understands."""

    channel: Any
    delivery_tag: int


class RabbitMQ:
    """A `Transport` through RabbitMQ 3.10 or later.

    Two connections: one that publishes, and one that consumes and declares. A
    broker that is short of memory or disk stops reading from whoever has
    published, and a group must go on acknowledging.

    The names, all durable: the topic exchange "celery-broadcast", for each group
    a quorum queue "celery-broadcast.GROUP" and another for its dead letters,
    "celery-broadcast.GROUP.dead-letters", and the headers exchange
    "celery-broadcast.dead-letters" for what the broker itself puts aside: only
    what it has handed out too often. What it drops because a queue is full (the
    oldest first) or because it has waited too long is gone, so that neither can
    push the poison out of the dead letters; the events' sequence numbers show it.
    """

    def __init__(self, app: Celery, url: str | None = None, limits: Limits | None = None) -> None:
        """Prepare a transport; it connects with the first call.

        Args:
            app: whose settings of its broker count: TLS, login method, heartbeat,
                transport options.
            url: of the broker, or several, with semicolons between; None is the app's.
            limits: what bounds it.
        """
        self._limits = limits or Limits()
        name = f"celery-broadcast {app.main or ''} pid {os.getpid()}".replace("  ", " ")
        timeout = self._limits.timeout
        # No heartbeat: nobody would send it between two publishes. Confirms show
        # what is wrong as soon as it matters.
        self._writing = AmqpLink(app, url, name=f"{name}, out", timeout=timeout, heartbeat=0)
        self._reading = AmqpLink(
            *(app, url),
            name=f"{name}, in",
            timeout=timeout,
            heartbeat=_heartbeat(app, self._limits.lease),
        )
        self._outbox: _Outbox | None = None
        self._inboxes: dict[str, _Inbox] = {}
        self._watching: _Inbox | None = None

    def publish(self, parcels: Sequence[Parcel]) -> None:
        """Send parcels to every group that wants them; return once all are confirmed.

        Several are on their way at once. What no group wants is confirmed, too.

        Raises:
            RelayError: nothing was confirmed for as long as the timeout, or the
                broker has blocked this connection, or it refuses one of them;
                some may have arrived all the same.
        """
        with self._sending(f"publish {_counted(parcels)}") as outbox:
            outbox.send(
                (EXCHANGE, routing_key(parcel.event_type, parcel.task_name), _message(parcel))
                for parcel in parcels
            )

    def send_to(self, group: Group, parcels: Sequence[Parcel]) -> None:
        """Send parcels to this group alone; return once the broker has confirmed all."""
        queue = queue_name(group)
        what = f"send {_counted(parcels)} to {queue!r}"
        self._send_to_queue(what, group, queue, [_message(parcel) for parcel in parcels])

    def put_aside(self, group: Group, letters: Sequence[DeadLetter]) -> None:
        """Add to the group's dead letters; return once the broker has confirmed all."""
        queue = dead_letter_queue_name(group)
        what = f"put {_counted(letters)} aside in {queue!r}"
        self._send_to_queue(what, group, queue, [_letter_message(letter) for letter in letters])

    def declare(self, group: Group) -> None:
        """Have the broker keep from now on what the group wants. Twice is harmless.

        Bindings are only added. Of what the group wanted once and doesn't any
        more RabbitMQ still sends it a copy, which `receive` drops unopened; to
        be rid of it, remove the binding in RabbitMQ's management, or delete the
        queue once it is empty and declare the group again.

        Raises:
            RelayError: also if it exists with other limits; the text says what to do.
        """
        with self._reading.exchange(f"declare the group {group.name!r}") as link:
            channel = link.channel()
            self._declare(channel, group)
            channel.close()

    def receive(self, group: Group, wait_seconds: float) -> Received | None:
        """Return the next parcel for the group, None if there is none for so long.

        The broker hands out one parcel at a time to each transport, the next
        when that one is acknowledged or given back. What a replica had that died
        comes at once; there is no lease.
        """
        what = f"receive for the group {group.name!r}"
        with self._reading.exchange(what, wait_seconds + self._limits.timeout) as link:
            self._inbox_of(group)  # whatever that takes, the wait begins after it
            deadline = time.monotonic() + wait_seconds
            while True:
                inbox = self._inbox_of(group)
                message = inbox.take()
                if message is None:
                    left = max(0.0, deadline - time.monotonic())
                    has_come = link.read(min(left, 1.0))
                    link.beat()
                    if not has_come:
                        self._look_after(inbox)
                        if not left:
                            return None
                elif _is_for(group, message):
                    inbox.has_handed_out = True
                    return _received(message, self._limits)
                else:
                    inbox.channel.basic_ack(message.delivery_tag)
                    if time.monotonic() >= deadline:  # there may be a million of them
                        return None

    def renew(self, group: Group, received: Sequence[Received]) -> None:
        """Keep the connection alive that has handed these out; there is no lease.

        RabbitMQ hears nothing of a replica that only handles, and gives it up
        after two heartbeats (of `broker_heartbeat` and the server's own, 60 s,
        the shorter): call this at least once in each. However alive it is, what
        isn't acknowledged within RabbitMQ's `consumer_timeout`, 30 minutes, goes
        to another replica.
        """
        what = f"keep {_counted(received)} of the group {group.name!r}"
        with self._reading.exchange(what) as link:
            while link.read(AT_ONCE):
                pass
            link.beat()

    def is_lost(self, received: Received) -> bool:
        """See `Transport`."""
        return not self._reading.has(received.token.channel)

    def acknowledge(self, group: Group, received: Received) -> None:
        """Have the broker forget a parcel.

        Raises:
            RelayError: it can't be told any more; it hands the parcel out again.
        """
        what = f"acknowledge a parcel of the group {group.name!r}"
        self._check_that_it_is_ours(received, what)
        with self._reading.exchange(what):
            received.token.channel.basic_ack(received.token.delivery_tag)
            self._inboxes[group.name].has_handed_out = False

    def give_back(self, group: Group, received: Received) -> None:
        """Let another replica have it at once; RabbitMQ counts it as a delivery.

        Raises:
            RelayError: it can't be told any more; it has it back already.
        """
        what = f"give back a parcel of the group {group.name!r}"
        self._check_that_it_is_ours(received, what)
        with self._reading.exchange(what):
            # Not basic.reject: it would be handed to this replica again, if it is its turn.
            received.token.channel.close()

    def dead_letters(self, group: Group, limit: int) -> list[DeadLetter]:
        """Return the oldest dead letters of the group; they stay where they are.

        While they are looked at, nobody else sees them.
        """
        letters: list[DeadLetter] = []
        with self._letters_of(group, "list") as (_, messages):
            for message in messages:
                letters.append(_letter(message))
                if len(letters) >= limit:
                    break
        return letters

    def remove_dead_letters(self, group: Group, letters: Sequence[DeadLetter]) -> int:
        """Remove dead letters; return how many were still there."""
        unwanted = {letter.letter_id for letter in letters}
        removed = 0
        with self._letters_of(group, "remove") as (channel, messages):
            for message in messages:
                letter_id = _letter_id(message)
                if letter_id in unwanted:
                    channel.basic_ack(message.delivery_tag)
                    unwanted.remove(letter_id)
                    removed += 1
                if not unwanted:
                    break
        return removed

    def replicas(self, group: Group) -> int:
        """See `Transport`."""
        with self._reading.exchange(f"count the replicas of the group {group.name!r}") as link:
            channel = link.channel()
            count: int = channel.queue_declare(queue_name(group), passive=True).consumer_count
            channel.close()
            return count

    def watch(self, watched: Group, wait_seconds: float) -> Received | None:
        """See `Transport`. What is published while there is no connection isn't watched."""
        deadline = time.monotonic() + wait_seconds
        with self._reading.exchange("read what is published", wait_seconds + self._limits.timeout):
            while True:
                inbox = self._watching_inbox(watched)
                message = inbox.take()
                if message is None:
                    left = max(0.0, deadline - time.monotonic())
                    has_come = self._reading.read(min(left, 1.0))
                    self._reading.beat()
                    if not has_come and not left:
                        return None
                else:
                    inbox.channel.basic_ack(message.delivery_tag)
                    if _is_for(watched, message):
                        return _received(message, self._limits)
                    if time.monotonic() >= deadline:
                        return None

    def _watching_inbox(self, watched: Group) -> _Inbox:
        """Return where parcels arrive in a queue that is gone with this connection."""
        inbox = self._watching
        if inbox is not None and self._reading.has(inbox.channel) and not inbox.is_cancelled:
            return inbox
        channel = self._reading.channel()
        self._declare_exchange(channel)
        queue = f"celery-broadcast.watch.{uuid.uuid4().hex}"
        arguments = {"x-max-length-bytes": min(WATCHED_BYTES, self._limits.max_bytes)}
        channel.queue_declare(
            queue, durable=False, exclusive=True, auto_delete=True, arguments=arguments
        )
        for pattern in binding_patterns(watched):
            channel.queue_bind(queue, EXCHANGE, pattern)
        self._watching = _Inbox(channel, watched, queue)
        return self._watching

    def close(self) -> None:
        """Close both connections; what was handed out goes to other replicas at once."""
        self._inboxes.clear()
        self._watching = None
        self._outbox = None
        self._reading.close()
        self._writing.close()

    @contextmanager
    def _sending(self, what: str) -> Iterator[_Outbox]:
        with self._writing.exchange(what) as link:
            if self._outbox is None or not link.has(self._outbox.channel):
                channel = link.channel()
                self._declare_exchange(channel)
                self._outbox = _Outbox(link, channel)
            yield self._outbox

    def _send_to_queue(
        self, what: str, group: Group, queue: str, messages: list[amqp.Message]
    ) -> None:
        """Send to a queue of the group; declare the group if it isn't there.

        What it replaces is acknowledged next, so it must not go nowhere.
        """
        for _ in range(2):
            with self._sending(what) as outbox:
                outbox.send(("", queue, message) for message in messages)
            if not outbox.returned:
                return
            messages = [each for each in messages if each.message_id in outbox.returned]
            self.declare(group)
        message = f"RabbitMQ at {self._writing.address}: could not {what}. The queue isn't there."
        raise RelayError(message)

    def _inbox_of(self, group: Group) -> _Inbox:
        """Return where the group's parcels arrive; declare and consume if that is news."""
        inbox = self._inboxes.get(group.name)
        if inbox is not None and self._reading.has(inbox.channel):
            if inbox.group == group and not inbox.is_cancelled:
                return inbox
            if inbox.is_cancelled:
                logger.warning(
                    "RabbitMQ has cancelled the consumer of %r: somebody has deleted the queue, "
                    "and what waited in it. It is declared anew",
                    queue_name(group),
                )
            inbox.channel.close()
        channel = self._reading.channel()
        self._declare(channel, group)
        inbox = self._inboxes[group.name] = _Inbox(channel, group, queue_name(group))
        return inbox

    def _look_after(self, inbox: _Inbox) -> None:
        """Begin anew, with the next look, once in a lease in which nothing has come.

        RabbitMQ doesn't tell when bindings are deleted, and where a queue is
        deleted and declared anew at once it may leave a consumer behind that
        gets one parcel and never delivers it.
        """
        if inbox.has_handed_out:
            return  # it waits in vain, but holds something
        now = time.monotonic()
        inbox.idle_since = inbox.idle_since or now
        if now - inbox.idle_since > self._limits.lease:
            inbox.channel.close()

    @contextmanager
    def _letters_of(self, group: Group, verb: str) -> Iterator[tuple[Any, Iterator[Any]]]:
        """Give the dead letters one after another; those not acknowledged go back."""
        what = f"{verb} the dead letters of the group {group.name!r}"
        with self._reading.exchange(what) as link:
            channel = link.channel()
            self._declare_dead_letters(channel, group)

            def messages() -> Iterator[Any]:
                while (message := channel.basic_get(dead_letter_queue_name(group))) is not None:
                    link.extend()
                    yield message

            yield channel, messages()
            channel.close()

    def _declare(self, channel: Any, group: Group) -> None:
        self._declare_exchange(channel)
        self._declare_dead_letters(channel, group)
        queue = queue_name(group)
        arguments = {
            "x-queue-type": "quorum",
            "x-max-length-bytes": self._limits.max_bytes,
            "x-message-ttl": max(1, min(MAX_TTL, int(self._limits.ttl * 1000))),
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        }
        with _asking_for("queue", queue):
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        for pattern in binding_patterns(group):
            channel.queue_bind(queue, EXCHANGE, pattern)

    @staticmethod
    def _declare_exchange(channel: Any) -> None:
        with _asking_for("exchange", EXCHANGE):
            channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=False)

    def _declare_dead_letters(self, channel: Any, group: Group) -> None:
        queue = dead_letter_queue_name(group)
        arguments = {
            "x-queue-type": "quorum",
            "x-max-length-bytes": self._limits.max_bytes,
            "x-delivery-limit": NO_DELIVERY_LIMIT,
        }
        with _asking_for("exchange", DEAD_LETTER_EXCHANGE):
            channel.exchange_declare(
                DEAD_LETTER_EXCHANGE, "headers", durable=True, auto_delete=False
            )
        with _asking_for("queue", queue):
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        # By headers, because RabbitMQ sends all that leaves a queue this way, also
        # what was too old or too much.
        handed_out_too_often = {
            "x-match": "all-with-x",
            "x-first-death-reason": "delivery_limit",
            "x-first-death-queue": queue_name(group),
        }
        channel.queue_bind(queue, DEAD_LETTER_EXCHANGE, "", arguments=handed_out_too_often)

    def _check_that_it_is_ours(self, received: Received, what: str) -> None:
        if self.is_lost(received):
            message = (
                f"RabbitMQ at {self._reading.address}: could not {what}. The connection over "
                "which it came is lost, and it goes to another replica."
            )
            raise RelayError(message)


class _Outbox:
    """A channel on which all that is sent gets confirmed.

    Attributes:
        returned: the ids of those messages of the last call that went to no
            queue, though their queue was named.
    """

    def __init__(self, link: AmqpLink, channel: Any) -> None:
        self._link = link
        self.channel = channel
        self.returned: set[str] = set()
        self._sent = 0
        self._waiting: set[int] = set()  # numbers of messages that aren't confirmed yet
        self._nacked = False
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        channel.confirm_select()

    def send(self, messages: Iterable[tuple[str, str, amqp.Message]]) -> None:
        """Send messages, each with its exchange and routing key; return when all are confirmed.

        Raises:
            BlockedError: the broker takes nothing for now; of what was sent before that,
                it may take all once it takes something again.
            RelayError: the broker doesn't take them.
        """
        self.returned = set()
        while self._link.blocked and self._link.read(AT_ONCE):
            pass  # until it says that it isn't any more
        for exchange, key, message in messages:
            self._wait_for(WINDOW - 1)
            self._sent += 1
            self._waiting.add(self._sent)
            self._publish(exchange, key, message)
        self._wait_for(0)

    def _publish(self, exchange: str, key: str, message: amqp.Message) -> None:
        # Not by basic_publish, which looks first, in no time, whether the broker has said
        # anything, and goes round in a circle for ever if that is the first half of a frame.
        is_queue = not exchange  # then the key is its name, and it must be there
        self.channel.send_method(
            spec.Basic.Publish, "Bssbb", (0, exchange, key, is_queue, False), message
        )

    def _wait_for(self, still_waiting: int) -> None:
        """Return when no more than so many aren't confirmed."""
        self._check()
        while len(self._waiting) > still_waiting:
            self._link.read()
            self._check()

    def _check(self) -> None:
        if self._nacked:
            message = (
                f"RabbitMQ at {self._link.address} has refused a message (basic.nack). A queue "
                "is full and has x-overflow=reject-publish, by a policy of yours, or the broker "
                "has lost it: look at its log."
            )
            raise RelayError(message)
        if self._link.blocked:
            message = (
                f"RabbitMQ at {self._link.address} is short of memory or disk and takes nothing "
                "(connection.blocked). See `rabbitmq-diagnostics alarms`."
            )
            raise BlockedError(message)

    def _on_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001  # py-amqp's
        self._link.extend()  # slow perhaps, but not stuck
        if multiple:
            self._waiting = {each for each in self._waiting if each > number}
        else:
            self._waiting.discard(number)

    def _on_nack(self, _number: int, _multiple: bool) -> None:  # noqa: FBT001  # as above
        self._nacked = True

    def _on_return(
        self, _error: Exception, _exchange: str, _key: str, message: amqp.Message
    ) -> None:
        self.returned.add(message.properties.get("message_id", ""))


class _Inbox:
    """A channel over which the broker hands out a group's parcels, one at a time.

    Attributes:
        is_cancelled: whether the broker hands out no more: the queue is gone.
        idle_since: when somebody first looked in vain after the last parcel, by
            the monotonic clock; 0 is not yet.
        has_handed_out: whether a parcel is being handled.
    """

    def __init__(self, channel: Any, group: Group, queue: str) -> None:
        self.channel = channel
        self.group = group
        self.is_cancelled: bool = False
        self.has_handed_out: bool = False
        self.idle_since: float = 0.0
        self._messages: deque[amqp.Message] = deque()
        channel.basic_qos(0, 1, False)  # noqa: FBT003  # of each consumer
        channel.basic_consume(queue, callback=self._messages.append, on_cancel=self._on_cancel)

    def take(self) -> amqp.Message | None:
        if not self._messages:
            return None
        self.idle_since = 0.0
        return self._messages.popleft()

    def _on_cancel(self, _consumer_tag: str) -> None:
        self.is_cancelled = True


def _heartbeat(app: Celery, lease: float) -> float:
    """Return the app's own, but no shorter than the lease: so long a replica may be silent."""
    heartbeat = float(app.conf.broker_heartbeat or 0)
    return max(heartbeat, lease) if heartbeat else 0.0


@contextmanager
def _asking_for(kind: str, name: str) -> Iterator[None]:
    """Say what to do about a queue or an exchange that is there, but another one."""
    try:
        yield
    except amqp.PreconditionFailed as error:
        command = f"rabbitmqctl delete_queue {name}" if kind == "queue" else "the management page"
        message = (
            f"RabbitMQ has a {kind} {name!r} already, and it is another: {error.reply_text}. "
            "Broker arguments can't be changed afterwards. "
            + (
                "Set broadcast_relay_max_bytes and broadcast_relay_ttl back to what they were "
                "(a policy can make a limit smaller without that), or let consumers empty the "
                f"queue and delete it ({command}): it is declared anew, with the new limits. Or "
                "give the consumer another name."
                if kind == "queue"
                else "Delete it, or let the relay have a virtual host of its own "
                "(broadcast_relay_url)."
            )
        )
        raise RelayError(message) from error


def _counted(things: Sequence[Any]) -> str:
    return "a parcel" if len(things) == 1 else f"{len(things)} parcels"


def _message(parcel: Parcel, **properties: Any) -> amqp.Message:
    task_name = _header(parcel.task_name, LABEL_CHARACTERS)
    headers = {_TASK: task_name, **properties.pop("headers", {})}
    if parcel.signature:
        headers[_SIGNATURE] = _header(parcel.signature, LABEL_CHARACTERS)
    return amqp.Message(
        parcel.body,
        **{
            "content_type": MEDIA_TYPE,
            "content_encoding": "utf-8",
            "delivery_mode": 2,  # on disk
            "message_id": uuid.uuid4().hex,
            "type": parcel.event_type,
            "app_id": "celery-broadcast",
            "application_headers": headers,
            **properties,
        },
    )


def _header(text: str, characters: int) -> str:
    """Return text that fits into a header: not too long, and UTF-8 can say it."""
    return text[:characters].encode(errors="replace").decode()


def _letter_message(letter: DeadLetter) -> amqp.Message:
    is_foreign = letter.reason == "refused"
    return _message(
        letter.parcel,
        content_type=FOREIGN_MEDIA_TYPE if is_foreign else MEDIA_TYPE,
        headers={
            _REASON: letter.reason,
            _ERROR: _header(letter.error, ERROR_CHARACTERS),
            _DELIVERIES: letter.deliveries,
            _PUT_ASIDE_AT: letter.put_aside_at,
        },
    )


def _is_for(group: Group, message: amqp.Message) -> bool:
    """Tell whether the group gets a message, by what stands outside of it.

    What was sent to it alone it has wanted; what is foreign it must see, to put
    it aside.
    """
    if message.delivery_info["exchange"] != EXCHANGE:
        return True
    event_type, task_name, _ = _labels(message)
    is_foreign = not event_type or not isinstance(_headers(message).get(_TASK), str)
    return is_foreign or wants(group, event_type, task_name)


def _received(message: amqp.Message, limits: Limits) -> Received:
    body = _body(message)
    event_type, task_name, signature = _labels(message)
    refusal = _refusal(message, len(body), limits)
    if refusal:
        body = body[:REFUSED_BODY_BYTES]
    return Received(
        parcel=Parcel(event_type=event_type, task_name=task_name, body=body, signature=signature),
        deliveries=_deliveries(message),
        token=_Handed(message.channel, message.delivery_info["delivery_tag"]),
        refusal=refusal,
        is_sent_alone=message.delivery_info["exchange"] != EXCHANGE,
    )


def _refusal(message: amqp.Message, size: int, limits: Limits) -> str:
    """Return why a message isn't opened; "" if it can be."""
    content_type = message.properties.get("content_type")
    encoding = message.properties.get("content_encoding")
    headers = _headers(message)
    if content_type != MEDIA_TYPE:
        return f"its content type is {_shown(content_type)}, not {MEDIA_TYPE!r}"
    if encoding not in (None, "", "utf-8"):
        return f"its content encoding is {_shown(encoding)}, not 'utf-8'"
    if "compression" in headers:
        return f"it is compressed ({_shown(headers['compression'])})"
    if size > limits.max_parcel_bytes:
        return f"it has {size} bytes, and {limits.max_parcel_bytes} are allowed"
    if not message.properties.get("type") or not isinstance(headers.get(_TASK), str):
        return "it doesn't say of which event type and task it is"
    return ""


def _letter(message: amqp.Message) -> DeadLetter:
    headers = _headers(message)
    event_type, task_name, signature = _labels(message)
    broker_did_it = _REASON not in headers
    put_aside_at = headers.get(_PUT_ASIDE_AT)
    return DeadLetter(
        parcel=Parcel(
            event_type=event_type, task_name=task_name, body=_body(message), signature=signature
        ),
        reason="killed" if broker_did_it else str(headers[_REASON]),
        error=(
            f"RabbitMQ has handed it out more than {DELIVERY_LIMIT} times."
            if broker_did_it
            else str(headers.get(_ERROR, ""))
        ),
        deliveries=_number(headers.get("x-delivery-count" if broker_did_it else _DELIVERIES)),
        put_aside_at=put_aside_at if _is_time(put_aside_at) else _death_time(headers),
        letter_id=_letter_id(message),
    )


def _letter_id(message: amqp.Message) -> str:
    """Return its own id; what came without one is known by its body."""
    own = message.properties.get("message_id")
    return own or f"sha256:{hashlib.sha256(_body(message)).hexdigest()}"


def _is_time(value: Any) -> TypeGuard[float]:
    """Tell whether it is one that can be shown; it may be by anybody."""
    return isinstance(value, float) and 0.0 <= value <= LATEST_TIME


def _death_time(headers: dict[str, Any]) -> float:
    """Return when RabbitMQ put it aside, 0 if it doesn't say so."""
    try:
        naive = headers["x-death"][0]["time"]
        return float(naive.timestamp() - time.timezone)
    except (KeyError, IndexError, TypeError, AttributeError):
        return 0.0


def _labels(message: amqp.Message) -> tuple[str, str, str]:
    """Return event type, task name and signature, as far as they are there."""
    headers = _headers(message)
    values = message.properties.get("type"), headers.get(_TASK), headers.get(_SIGNATURE)
    event_type, task_name, signature = (value if isinstance(value, str) else "" for value in values)
    return event_type, task_name, signature


def _headers(message: amqp.Message) -> dict[str, Any]:
    headers = message.properties.get("application_headers")
    return headers if isinstance(headers, dict) else {}


def _body(message: amqp.Message) -> bytes:
    return message.body if isinstance(message.body, bytes) else b""  # py-amqp's empty one is str


def _deliveries(message: amqp.Message) -> int:
    """Return how often it was handed out before; its own word on that may be anybody's."""
    if not message.delivery_info["redelivered"]:  # this one is RabbitMQ's
        return 0
    return max(1, _number(_headers(message).get("x-delivery-count")))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _shown(value: object) -> str:
    return repr(value)[:80]
