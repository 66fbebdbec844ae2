"""The relay's transport through RabbitMQ, on a real one."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import amqp
import pytest
from celery import Celery
from kombu import Connection
from nodes.deadline import wait_until
from nodes.rabbit_process import RabbitProcess, hanging

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.dead_letters import shown
from celery_broadcast.relay.rabbitmq import (
    DELIVERY_LIMIT,
    EXCHANGE,
    REFUSED_BODY_BYTES,
    RabbitMQ,
)
from celery_broadcast.relay.transport import (
    MEDIA_TYPE,
    DeadLetter,
    Group,
    Limits,
    Parcel,
    Received,
    Transport,
)

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("rabbitmq")]

MakeTransport: TypeAlias = Callable[..., RabbitMQ]

HOLDER = """
import sys
from celery import Celery
from celery_broadcast.relay.rabbitmq import RabbitMQ
from celery_broadcast.relay.transport import Group

transport = RabbitMQ(Celery("holder", set_as_current=False), sys.argv[1])
received = transport.receive(Group(name=sys.argv[2], event_types=("JobFailed",)), 30.0)
print(received.parcel.task_name, received.deliveries, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def app() -> Celery:
    return Celery("shop", broker="memory://", set_as_current=False)


@pytest.fixture
def transport(app: Celery, rabbitmq_server: RabbitProcess) -> Iterator[MakeTransport]:
    made: list[RabbitMQ] = []

    def make(url: str = rabbitmq_server.url, **limits: Any) -> RabbitMQ:
        made.append(RabbitMQ(app, url, Limits(**{"timeout": 10.0, **limits})))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def group(request: pytest.FixtureRequest, transport: MakeTransport) -> Iterator[Group]:
    """A group of the test's own, which wants every failure; its queues are deleted after it."""
    group = Group(name=request.node.name[:60], event_types=("JobFailed",))
    yield group
    delete(transport(), group)


def delete(transport: RabbitMQ, group: Group) -> None:
    with transport._reading.exchange("delete") as link:
        channel = link.channel()
        channel.queue_delete(f"celery-broadcast.{group.name}")
        channel.queue_delete(f"celery-broadcast.{group.name}.dead-letters")


def parcel(task_name: str = "shop.charge", body: bytes = b"[]", **fields: str) -> Parcel:
    return Parcel(**{"event_type": "JobFailed", **fields}, task_name=task_name, body=body)


def letter(task_name: str = "shop.charge", **fields: Any) -> DeadLetter:
    fields = {"reason": "raised", "error": "ValueError: no", "deliveries": 5, **fields}
    return DeadLetter(**{"parcel": parcel(task_name), "put_aside_at": 1.5, **fields})


def receive(transport: Transport, group: Group) -> Received:
    received = transport.receive(group, 10.0)
    assert received is not None
    return received


def take_all(transport: Transport, group: Group, at_least: int = 0) -> list[str]:
    """Return the names of the tasks of all that waits for the group, acknowledged.

    Args:
        transport: through which.
        group: for which.
        at_least: so many are there; for more than these it waits a moment only.
    """
    names: list[str] = []
    while received := transport.receive(group, 30.0 if len(names) < at_least else 0.3):
        names.append(received.parcel.task_name)
        transport.acknowledge(group, received)
    return names


@pytest.fixture
def foreign(rabbitmq_server: RabbitProcess) -> Iterator[Any]:
    """A channel of somebody who isn't us."""
    with Connection(rabbitmq_server.url) as connection:
        yield connection.connection.channel()


# The plain case.


def test_a_parcel_arrives_as_it_was_sent(transport: MakeTransport, group: Group) -> None:
    sender, reader = transport(), transport()
    reader.declare(group)
    sent = parcel("shop.charge", '[{"id": "é"}]'.encode(), signature="v1:abc")

    sender.publish([sent])
    received = receive(reader, group)

    assert received.parcel == sent
    assert (received.deliveries, received.refusal) == (0, "")


def test_what_is_acknowledged_does_not_come_again(transport: MakeTransport, group: Group) -> None:
    reader = transport()
    reader.declare(group)
    reader.publish([parcel("shop.a"), parcel("shop.b")])

    assert take_all(reader, group, 2) == ["shop.a", "shop.b"]
    reader.close()
    assert reader.receive(group, 0.2) is None


def test_more_parcels_than_are_on_their_way_at_once_are_all_confirmed(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    names = [f"shop.task{number}" for number in range(300)]

    reader.publish([parcel(name) for name in names])

    assert take_all(reader, group, 300) == names


def test_a_publish_may_take_longer_than_the_timeout_as_long_as_confirms_arrive(
    transport: MakeTransport,
) -> None:
    class Slow(list[Parcel]):
        def __iter__(self) -> Iterator[Parcel]:
            for each in super().__iter__():
                yield each
                until = time.monotonic() + 1.0
                wait_until(lambda until=until: time.monotonic() > until)  # type: ignore[misc]

    transport(timeout=3.0).publish(Slow([parcel()] * 5))


def test_asking_without_waiting_gets_what_is_there(transport: MakeTransport, group: Group) -> None:
    reader = transport()
    assert reader.receive(group, 0.0) is None
    reader.publish([parcel("shop.a")])
    got: list[Received | None] = []

    def has_it() -> bool:
        got.append(reader.receive(group, 0.0))
        return got[-1] is not None

    wait_until(has_it)


def test_every_group_gets_every_event_and_its_replicas_share_them(
    transport: MakeTransport, group: Group
) -> None:
    other = Group(name=f"{group.name}-other", event_types=("JobFailed",))
    sender = transport()
    replicas = {each.name: (each, [transport(), transport()]) for each in (group, other)}
    for each, readers in replicas.values():
        for reader in readers:
            assert reader.receive(each, 0.0) is None  # it consumes from now on
    names = [f"shop.task{number}" for number in range(20)]

    sender.publish([parcel(name) for name in names])
    got: dict[str, list[list[str]]] = {name: [[], []] for name in replicas}
    for _ in range(len(names) // 2):
        for name, (each, readers) in replicas.items():
            for reader, its in zip(readers, got[name], strict=True):
                received = receive(reader, each)
                its.append(received.parcel.task_name)
                reader.acknowledge(each, received)

    for shares in got.values():
        assert sorted(shares[0] + shares[1]) == sorted(names)
    delete(sender, other)


def test_a_group_gets_only_what_it_wants(transport: MakeTransport, group: Group) -> None:
    picky = Group(name=group.name, event_types=("JobFailed",), tasks=("shop.ch*", "*.refund"))
    reader = transport()
    reader.declare(picky)
    names = ["shop.charge", "shop.other", "bank.refund", "refund", "x", "shop.ch.x", ""]

    reader.publish([parcel(name) for name in names])
    reader.publish([parcel("shop.charge", event_type="JobFinished")])

    assert take_all(reader, picky, 3) == ["shop.charge", "bank.refund", "shop.ch.x"]


def test_what_a_group_wanted_once_is_dropped_unopened(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    now = Group(name=group.name, event_types=("JobFailed",), tasks=("shop.*",))

    reader.publish([parcel("bank.x"), parcel("shop.x")])

    assert take_all(reader, now, 1) == ["shop.x"]


@pytest.mark.parametrize("name", ["", ".", "a..b", "a b\n", "*", "#", "é" * 300, "x" * 999, "\0"])
def test_an_odd_task_name_arrives(transport: MakeTransport, group: Group, name: str) -> None:
    reader = transport()
    reader.declare(group)

    reader.publish([parcel(name)])

    assert receive(reader, group).parcel.task_name == name


def test_what_nobody_wants_is_published_all_the_same(transport: MakeTransport) -> None:
    transport().publish([parcel(event_type="JobOfNobody")])


def test_a_parcel_for_one_group_is_seen_by_it_alone(transport: MakeTransport, group: Group) -> None:
    other = Group(name=f"{group.name}-other", event_types=("JobFailed",))
    reader = transport()
    reader.declare(group)
    reader.declare(other)

    reader.send_to(group, [parcel("shop.a"), parcel("shop.b")])

    assert take_all(reader, other) == []
    assert take_all(reader, group, 2) == ["shop.a", "shop.b"]
    delete(reader, other)


def test_a_parcel_is_handed_out_only_when_the_one_before_is_done(
    transport: MakeTransport, group: Group
) -> None:
    reader, replica = transport(lease=0.2), transport()
    reader.declare(group)
    reader.publish([parcel("shop.a"), parcel("shop.b")])

    first = receive(reader, group)

    for _ in range(2):
        assert reader.receive(group, 0.3) is None
    assert receive(replica, group).parcel.task_name == "shop.b"
    reader.acknowledge(group, first)  # it is its own still, longer than a lease


# Given back, lost, taken over.


def test_a_parcel_that_is_given_back_goes_to_another_replica(
    transport: MakeTransport, group: Group
) -> None:
    reader, replica = transport(), transport()
    reader.declare(group)
    reader.publish([parcel("shop.a")])
    reader.give_back(group, receive(reader, group))
    reader.close()

    again = receive(replica, group)

    assert (again.parcel.task_name, again.deliveries) == ("shop.a", 1)


def test_closing_gives_back_what_was_in_hand(transport: MakeTransport, group: Group) -> None:
    reader, replica = transport(), transport()
    reader.declare(group)
    reader.publish([parcel("shop.a")])
    receive(reader, group)

    reader.close()
    reader.close()

    assert receive(replica, group).deliveries == 1


def test_what_was_lost_with_its_connection_cannot_be_acknowledged(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    reader.publish([parcel("shop.a")])
    lost = receive(reader, group)
    reader.close()
    again = receive(reader, group)

    calls: list[Callable[[], object]] = [
        lambda: reader.acknowledge(group, lost),
        lambda: reader.give_back(group, lost),
    ]
    for refused in calls:
        with pytest.raises(RelayError, match="is lost, and it goes to another replica"):
            refused()
    reader.renew(group, [again, lost])
    assert (reader.is_lost(again), reader.is_lost(lost)) == (False, True)
    reader.acknowledge(group, again)
    assert reader.receive(group, 0.2) is None


def test_what_a_killed_process_had_goes_to_another_replica_at_once(
    transport: MakeTransport, group: Group, rabbitmq_server: RabbitProcess
) -> None:
    sender, replica = transport(), transport()
    sender.declare(group)
    sender.publish([parcel("shop.kills")])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, rabbitmq_server.url, group.name],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "shop.kills 0\n"
        assert replica.receive(group, 0.2) is None
        holder.kill()

        received = receive(replica, group)

    assert (received.parcel.task_name, received.deliveries) == ("shop.kills", 1)


def test_a_message_cannot_say_itself_how_often_it_was_handed_out(
    transport: MakeTransport, group: Group, foreign: Any
) -> None:
    reader = transport()
    reader.declare(group)
    forged = message(headers={"x-delivery-count": 99})

    foreign.basic_publish(forged, "", f"celery-broadcast.{group.name}")

    assert receive(reader, group).deliveries == 0


def test_what_no_reader_survives_is_put_aside_by_rabbitmq(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    reader.publish([parcel("shop.kills")])

    for _ in range(DELIVERY_LIMIT + 1):
        reader.give_back(group, receive(reader, group))

    assert reader.receive(group, 0.2) is None
    wait_until(lambda: reader.dead_letters(group, 10))
    [dead] = reader.dead_letters(group, 10)
    assert (dead.parcel.task_name, dead.reason) == ("shop.kills", "killed")
    assert "more than 100 times" in dead.error
    assert abs(dead.put_aside_at - time.time()) < 60
    assert reader.remove_dead_letters(group, [dead]) == 1


# Bounds.


def test_a_full_queue_drops_the_oldest_and_spares_the_dead_letters(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport(max_bytes=50_000)
    reader.declare(group)
    names = [f"shop.task{number}" for number in range(100)]

    reader.publish([parcel(name, b" " * 1000) for name in names])

    left = take_all(reader, group, 31)
    assert 30 < len(left) < 60
    assert left == names[-len(left) :]
    assert reader.dead_letters(group, 10) == []


def test_what_waits_too_long_is_dropped(transport: MakeTransport, group: Group) -> None:
    reader = transport(ttl=0.001)
    reader.declare(group)

    reader.publish([parcel()])

    assert reader.receive(group, 0.5) is None
    assert reader.dead_letters(group, 10) == []


# Dead letters.


def test_dead_letters_are_listed_oldest_first_and_stay(
    transport: MakeTransport, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    letters = [letter(f"shop.task{number}", put_aside_at=float(number)) for number in range(5)]

    reader.put_aside(group, letters)

    for _ in range(3):
        listed = reader.dead_letters(group, 3)
        assert [each.parcel for each in listed] == [each.parcel for each in letters[:3]]
    first = listed[0]
    assert first.letter_id
    assert (first.reason, first.error, first.deliveries) == ("raised", "ValueError: no", 5)
    assert first.put_aside_at == 0.0
    assert len(reader.dead_letters(group, 100)) == 5


def test_chosen_dead_letters_are_removed(transport: MakeTransport, group: Group) -> None:
    reader = transport()
    reader.declare(group)
    reader.put_aside(group, [letter(f"shop.task{number}") for number in range(5)])
    listed = reader.dead_letters(group, 10)

    assert reader.remove_dead_letters(group, [listed[1], listed[3]]) == 2
    assert reader.remove_dead_letters(group, [listed[1], listed[4]]) == 1

    left = [each.parcel.task_name for each in reader.dead_letters(group, 10)]
    assert left == ["shop.task0", "shop.task2"]


def test_a_group_that_was_never_declared_has_no_dead_letters(
    transport: MakeTransport, group: Group
) -> None:
    assert transport().dead_letters(group, 10) == []


def test_an_error_of_any_length_is_put_aside(transport: MakeTransport, group: Group) -> None:
    reader = transport()
    reader.declare(group)

    reader.put_aside(group, [letter("é" * 100_000, error="\ud800€" * 100_000)])

    [dead] = reader.dead_letters(group, 10)
    assert dead.error.startswith("?€?€")


# Rubbish on our queue.


def message(body: bytes = b"[]", **properties: Any) -> amqp.Message:
    ours: dict[str, Any] = {"content_type": MEDIA_TYPE, "type": "JobFailed"}
    headers = {"celery-broadcast-task": "shop.charge", **properties.pop("headers", {})}
    return amqp.Message(body, application_headers=headers, **{**ours, **properties})


RUBBISH = {
    "no content type": (message(content_type=None), "its content type is None"),
    "pickle": (message(b"cos\n", content_type="application/x-python-serialize"), "content type"),
    "plain JSON": (message(content_type="application/json"), "its content type is"),
    "other codec": (message(content_encoding="punycode"), "its content encoding is 'punycode'"),
    "compressed": (message(headers={"compression": "application/x-gzip"}), "it is compressed"),
    "unknown compression": (message(headers={"compression": "x"}), "it is compressed ('x')"),
    "too big": (message(b" " * 200_001), "it has 200001 bytes, and 200000 are allowed"),
    "no type": (message(type=None), "doesn't say of which event type"),
    "no task": (message(headers={"celery-broadcast-task": 7}), "doesn't say of which"),
    "no properties": (amqp.Message(b"x"), "its content type is None"),
    "empty": (amqp.Message(b""), "its content type is None"),
    "not UTF-8": (message(content_type=b"\xff\xfe"), "its content type is None"),
    "a time beyond time": (message(headers={"a": {"b": [1, 2.0, None]}}, timestamp=2**63), ""),
}


@pytest.mark.parametrize("kind", RUBBISH)
@pytest.mark.parametrize("exchange", [EXCHANGE, ""])
def test_a_foreign_message_is_handed_out_with_why_it_is_not_opened(
    transport: MakeTransport, foreign: Any, kind: str, exchange: str
) -> None:
    group = Group(name=f"rubbish {kind}", event_types=("JobFailed",), tasks=("shop.*",))
    reader = transport(max_parcel_bytes=200_000)
    reader.declare(group)
    rubbish, refusal = RUBBISH[kind]
    key = "JobFailed.shop.charge" if exchange else f"celery-broadcast.{group.name}"

    foreign.basic_publish(rubbish, exchange, key)
    reader.send_to(group, [parcel("shop.next")])
    received = receive(reader, group)

    assert refusal in received.refusal
    assert bool(received.refusal) == bool(refusal)
    assert received.parcel.body == rubbish.body[:REFUSED_BODY_BYTES]
    dead = DeadLetter(
        parcel=received.parcel,
        reason="refused",
        error=received.refusal,
        deliveries=0,
        put_aside_at=time.time(),
    )
    reader.put_aside(group, [dead])
    reader.acknowledge(group, received)
    assert receive(reader, group).parcel.task_name == "shop.next"
    assert [each.parcel for each in reader.dead_letters(group, 5)] == [received.parcel]
    delete(reader, group)


def test_a_foreign_message_among_the_dead_letters_can_be_removed(
    transport: MakeTransport, group: Group, foreign: Any
) -> None:
    reader = transport()
    reader.declare(group)
    rubbish = amqp.Message(b"\xff", application_headers={"x-death": "?", "x-delivery-count": "a"})
    foreign.basic_publish(rubbish, "", f"celery-broadcast.{group.name}.dead-letters")

    wait_until(lambda: reader.dead_letters(group, 10))  # it was published without a confirm
    dead = reader.dead_letters(group, 10)

    assert dead[0].parcel.body == b"\xff"
    assert reader.remove_dead_letters(group, dead) == 1


def test_a_dead_letter_of_a_stranger_can_be_shown_whenever_it_says_it_was_put_aside(
    transport: MakeTransport, group: Group, foreign: Any
) -> None:
    reader = transport()
    reader.declare(group)
    for seconds in (1e300, -1e300):
        headers = {"celery-broadcast-reason": "raised", "celery-broadcast-put-aside-at": seconds}
        queue = f"celery-broadcast.{group.name}.dead-letters"
        foreign.basic_publish(amqp.Message(b"x", application_headers=headers), "", queue)

    wait_until(lambda: len(reader.dead_letters(group, 10)) == 2)

    for each in reader.dead_letters(group, 10):
        assert shown(each)["put_aside_at"].startswith("1970")


# Forks.


def test_a_forked_child_has_a_connection_of_its_own(transport: MakeTransport, group: Group) -> None:
    both = transport()
    both.declare(group)
    both.publish([parcel("shop.a"), parcel("shop.b")])
    in_parent = receive(both, group)

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer = "nothing"
        try:
            with contextlib.suppress(RelayError):
                both.acknowledge(group, in_parent)  # which isn't the child's
                answer = "acknowledged"
            both.publish([parcel("shop.c")])
            answer = receive(both, group).parcel.task_name
            both.close()
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)

    assert answer == "shop.b"
    both.acknowledge(group, in_parent)
    assert sorted(take_all(both, group, 2)) == ["shop.b", "shop.c"]


def test_a_child_that_closes_what_it_inherited_leaves_the_parent_alone(
    transport: MakeTransport, group: Group
) -> None:
    both = transport()
    both.publish([parcel()])
    both.declare(group)

    child = os.fork()
    if not child:
        both.close()
        os._exit(0)
    os.waitpid(child, 0)

    both.publish([parcel("shop.a")])
    assert take_all(both, group, 1) == ["shop.a"]


# What is there already, or isn't any more.


def test_a_queue_with_other_limits_is_an_error_that_says_what_to_do(
    transport: MakeTransport, group: Group
) -> None:
    transport().declare(group)
    reader = transport(max_bytes=1_000_000)

    calls: list[Callable[[], object]] = [
        lambda: reader.declare(group),
        lambda: reader.receive(group, 0.1),
    ]
    for refused in calls:
        with pytest.raises(RelayError) as caught:
            refused()
        told = str(caught.value)
        assert "and it is another" in told
        assert "inequivalent arg 'x-max-length-bytes'" in told
        assert "broadcast_relay_max_bytes" in told
        assert f"rabbitmqctl delete_queue celery-broadcast.{group.name}" in told


def test_an_exchange_of_another_type_is_an_error_that_says_what_to_do(
    transport: MakeTransport, rabbitmq_server: RabbitProcess, group: Group
) -> None:
    rabbitmq_server.control("add_vhost", "other")
    rabbitmq_server.control("set_permissions", "-p", "other", "guest", ".*", ".*", ".*")
    url = rabbitmq_server.url.removesuffix("//") + "/other"
    with Connection(url) as connection:
        connection.connection.channel().exchange_declare(EXCHANGE, "fanout", durable=True)
    here = transport(url)

    calls: list[Callable[[], object]] = [
        lambda: here.publish([parcel()]),
        lambda: here.declare(group),
    ]
    for refused in calls:
        with pytest.raises(RelayError, match=r"inequivalent arg 'type'.*Delete it, or let"):
            refused()


def test_a_deleted_queue_is_declared_anew_and_said_once(
    transport: MakeTransport, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    reader, other = transport(), transport()
    assert reader.receive(group, 0.0) is None
    delete(other, group)

    def is_said() -> bool:
        assert reader.receive(group, 0.1) is None
        return bool(caplog.records)

    with caplog.at_level(logging.WARNING, "celery_broadcast"):
        wait_until(is_said)
        other.publish([parcel("shop.a")])
        assert receive(reader, group).parcel.task_name == "shop.a"

    assert [record.message for record in caplog.records if "somebody has deleted" in record.message]
    assert len(caplog.records) == 1


def test_what_replaces_a_parcel_is_never_sent_nowhere(
    transport: MakeTransport, group: Group
) -> None:
    sender, reader = transport(), transport()
    sender.send_to(group, [parcel("shop.a")])
    delete(reader, group)

    sender.send_to(group, [parcel("shop.b"), parcel("shop.c")])
    delete(reader, group)
    sender.put_aside(group, [letter("shop.d")])
    sender.send_to(group, [parcel("shop.e")])

    assert take_all(reader, group, 1) == ["shop.e"]
    assert [each.parcel.task_name for each in reader.dead_letters(group, 5)] == ["shop.d"]


def test_a_queue_that_is_deleted_and_declared_by_another_is_consumed_again(
    transport: MakeTransport, group: Group
) -> None:
    reader, other = transport(lease=0.5), transport()
    assert reader.receive(group, 0.0) is None
    delete(other, group)
    other.send_to(group, [parcel("shop.a"), parcel("shop.b")])
    got: list[str] = []

    def has_both() -> bool:
        got.extend(take_all(reader, group))
        return len(got) == 2

    wait_until(has_both)
    assert sorted(got) == ["shop.a", "shop.b"]


def test_deleted_bindings_are_bound_again(transport: MakeTransport, group: Group) -> None:
    reader, other = transport(lease=0.5), transport()
    assert reader.receive(group, 0.0) is None
    with other._reading.exchange("unbind") as link:
        link.channel().queue_unbind(f"celery-broadcast.{group.name}", EXCHANGE, "JobFailed.#")
    other.publish([parcel("shop.lost")])

    def arrives() -> bool:
        other.publish([parcel("shop.a")])
        return "shop.a" in take_all(reader, group)

    wait_until(arrives)


def test_a_deleted_exchange_is_declared_anew_with_the_second_try(
    transport: MakeTransport, rabbitmq_server: RabbitProcess
) -> None:
    rabbitmq_server.control("add_vhost", "deleted")
    rabbitmq_server.control("set_permissions", "-p", "deleted", "guest", ".*", ".*", ".*")
    url = rabbitmq_server.url.removesuffix("//") + "/deleted"
    sender = transport(url)
    sender.publish([parcel()])
    with Connection(url) as connection:
        connection.connection.channel().exchange_delete(EXCHANGE)

    with pytest.raises(RelayError, match=r"no exchange 'celery-broadcast'.*anew with the next try"):
        sender.publish([parcel()])
    sender.publish([parcel()])


def test_a_queue_that_rejects_by_a_policy_is_an_error(
    transport: MakeTransport, rabbitmq_server: RabbitProcess, group: Group
) -> None:
    reader = transport()
    reader.declare(group)
    policy = '{"overflow": "reject-publish", "max-length": 1}'
    rabbitmq_server.control(
        "set_policy", "full", f"^celery-broadcast.{group.name}$", policy, "--apply-to", "queues"
    )

    with pytest.raises(RelayError, match=r"refused a message \(basic.nack\)"):
        # Many, because a quorum queue looks only now and then whether it is full.
        reader.publish([parcel()] * 1000)
    rabbitmq_server.control("clear_policy", "full")


def test_a_user_without_rights_is_told_which_are_missing(
    transport: MakeTransport, rabbitmq_server: RabbitProcess
) -> None:
    rabbitmq_server.control("add_user", "poor", "secret")
    rabbitmq_server.control("set_permissions", "poor", "^$", "^$", "^$")
    sender = transport(rabbitmq_server.url.replace("guest:guest", "poor:secret"))

    with pytest.raises(RelayError) as caught:
        sender.publish([parcel()])

    assert "Give the user the rights to configure, write and read" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_wrong_password_is_an_error_without_the_password(
    transport: MakeTransport, rabbitmq_server: RabbitProcess
) -> None:
    sender = transport(rabbitmq_server.url.replace("guest:guest", "guest:wrong"))

    with pytest.raises(RelayError, match="check the password") as caught:
        sender.publish([parcel()])

    assert "wrong" not in str(caught.value)


def test_a_virtual_host_that_is_not_there_is_an_error(
    transport: MakeTransport, rabbitmq_server: RabbitProcess
) -> None:
    sender = transport(rabbitmq_server.url.removesuffix("//") + "/nowhere")

    with pytest.raises(RelayError, match="Create the virtual host, or correct the URL"):
        sender.publish([parcel()])


# Where the broker is.


def test_the_apps_own_broker_is_taken_with_its_own_settings(
    rabbitmq_server: RabbitProcess, group: Group
) -> None:
    app = Celery("shop", broker=rabbitmq_server.url, set_as_current=False)
    app.conf.broker_heartbeat = 30
    app.conf.broker_login_method = "AMQPLAIN"
    app.conf.broker_transport_options = {"confirm_publish": True, "client_properties": {"a": "b"}}
    reader = RabbitMQ(app)
    reader.declare(group)

    reader.publish([parcel("shop.a")])

    assert take_all(reader, group, 1) == ["shop.a"]
    clients = rabbitmq_server.control("list_connections", "auth_mechanism", "client_properties")
    assert "AMQPLAIN" in clients
    assert "celery-broadcast shop pid" in clients
    reader.close()


@pytest.mark.parametrize(
    "url",
    ["amqp://guest:guest@127.0.0.1:1//;{url}", "pyamqp://{rest}", "librabbitmq://{rest}"],
)
def test_a_failover_list_and_every_name_of_the_transport_will_do(
    transport: MakeTransport, rabbitmq_server: RabbitProcess, group: Group, url: str
) -> None:
    whole = rabbitmq_server.url
    reader = transport(url.format(url=whole, rest=whole.removeprefix("amqp://")))
    reader.declare(group)

    reader.publish([parcel("shop.a")])

    assert take_all(reader, group, 1) == ["shop.a"]


def test_nobody_there_is_an_error_at_once(transport: MakeTransport, group: Group) -> None:
    nowhere = transport("amqp://guest:secret@127.0.0.1:1//")
    began = time.monotonic()

    calls: list[Callable[[], object]] = [
        lambda: nowhere.publish([parcel()]),
        lambda: nowhere.receive(group, 60.0),
    ]
    for refused in calls:
        with pytest.raises(RelayError, match=r"127\.0\.0\.1:1.*refused"):
            refused()

    assert time.monotonic() - began < 30.0


class TlsRabbitProcess(RabbitProcess):
    """A server that listens with TLS alone."""

    def __init__(self) -> None:
        super().__init__()
        self.certificate = self.folder / "certificate.pem"
        self.key = self.folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(self.key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        (self.folder / "rabbitmq.conf").write_text(
            "listeners.tcp = none\n"
            f"listeners.ssl.default = 127.0.0.1:{self._port}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {self.key}\n"
        )


def test_the_apps_tls_is_spoken_and_hangs_are_noticed_there_too(group: Group) -> None:
    with TlsRabbitProcess() as server:
        app = Celery("shop", broker=server.url, set_as_current=False)
        app.conf.broker_use_ssl = {
            "ca_certs": str(server.certificate),
            "cert_reqs": ssl.CERT_REQUIRED,
        }
        both = RabbitMQ(app, limits=Limits(timeout=5.0))
        both.declare(group)
        both.publish([parcel(f"shop.task{number}", b" " * 200_000) for number in range(10)])
        assert len(take_all(both, group, 10)) == 10

        calls: list[Callable[[], object]] = [
            lambda: both.publish([parcel()]),
            lambda: both.declare(group),
            lambda: both.publish([parcel()]),
        ]
        with hanging(server):
            for refused in calls:
                began = time.monotonic()
                with pytest.raises(RelayError, match="did not answer within 5 s"):
                    refused()
                assert time.monotonic() - began < 30.0
        both.close()
