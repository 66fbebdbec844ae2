"""Parcels through a real Redis, to groups of replicas that share them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from nodes.deadline import wait_until
from nodes.local_process import free_port
from nodes.redis_process import RedisProcess

from celery_broadcast.errors import RelayError
from celery_broadcast.relay.redis_streams import NOBODY, TURNS, RedisStreams
from celery_broadcast.relay.transport import DeadLetter, Group, Limits, Parcel, Received

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

LIMITS = Limits(lease=0.5, timeout=2.0)
LONG_LEASE = Limits(lease=60.0, timeout=2.0)
PAGER = Group(name="pager", event_types=("JobFailed",))
AUDIT = Group(name="audit", event_types=("JobFailed", "JobFinished"))
FAILED = "celery-broadcast:events:JobFailed"

Connect = Callable[..., RedisStreams]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as server:
        yield server


@pytest.fixture
def raw(server: RedisProcess) -> Iterator[redis.Redis]:
    """What anybody can do to the server; empties it first."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def connect(server: RedisProcess, raw: redis.Redis) -> Iterator[Connect]:
    """Gives transports, each a replica or a publisher of its own."""
    with ExitStack() as stack:

        def transport(limits: Limits = LIMITS, **options: Any) -> RedisStreams:
            streams = RedisStreams.from_app_settings(server.url, options, None, limits)
            stack.callback(streams.close)
            return streams

        yield transport


def parcel(number: int = 1, event_type: str = "JobFailed", task: str = "shop.charge") -> Parcel:
    body = json.dumps([{"id": number}]).encode()
    return Parcel(event_type=event_type, task_name=task, body=body)


def take(transport: RedisStreams, group: Group, wait_seconds: float = 5.0) -> Received:
    received = transport.receive(group, wait_seconds)
    assert received is not None
    return received


def drained(transport: RedisStreams, group: Group) -> list[Parcel]:
    """Return all that is there for a group, acknowledged."""
    parcels = []
    while received := transport.receive(group, 0):
        parcels.append(received.parcel)
        transport.acknowledge(group, received)
    return parcels


def pending(raw: redis.Redis, key: str = FAILED, group: str = "pager") -> Any:
    return raw.xpending(key, group)


def bytes_of(raw: redis.Redis, key: str = FAILED) -> int:
    return raw.memory_usage(key, samples=0) or 0


# Groups.


def test_every_group_gets_a_parcel_and_its_replicas_share_them(connect: Connect) -> None:
    replicas = {group: [connect(LONG_LEASE), connect(LONG_LEASE)] for group in (PAGER, AUDIT)}
    for group, (one, _) in replicas.items():
        one.declare(group)
    sent = [parcel(number) for number in range(6)]

    connect().publish(sent)

    for group, (one, other) in replicas.items():
        got = [take(replica, group) for _ in range(3) for replica in (one, other)]
        assert [each.parcel for each in got] == sent
        assert {each.deliveries for each in got} == {0}
        assert one.receive(group, 0) is other.receive(group, 0) is None


def test_a_group_gets_what_is_published_from_its_declaration_on(connect: Connect) -> None:
    streams = connect()
    streams.declare(AUDIT)
    streams.publish([parcel(1)])

    streams.declare(PAGER)
    streams.declare(PAGER)
    streams.publish([parcel(2)])

    assert drained(streams, PAGER) == [parcel(2)]
    assert drained(streams, AUDIT) == [parcel(1), parcel(2)]


def test_a_type_that_no_group_was_declared_for_takes_no_room(
    connect: Connect, raw: redis.Redis
) -> None:
    connect().publish([parcel()])

    assert raw.keys() == []


def test_each_of_several_event_types_has_its_turn(connect: Connect) -> None:
    streams = connect(LONG_LEASE)
    streams.declare(AUDIT)
    streams.publish([parcel(number) for number in range(50)])
    streams.publish([parcel(50, "JobFinished")])
    first = take(streams, AUDIT)
    streams.send_to(AUDIT, [parcel(51)])

    got = [take(streams, AUDIT).parcel for _ in range(2 * TURNS + 2)]

    assert parcel(50, "JobFinished") in (*got, first.parcel)
    assert parcel(51) in got
    assert len(drained(streams, AUDIT)) == 51 - 2 * TURNS - 2


def test_a_replica_that_waits_is_told_at_once_and_takes_only_one(
    connect: Connect, raw: redis.Redis
) -> None:
    waiting, other = connect(LONG_LEASE), connect(LONG_LEASE)
    other.declare(AUDIT)
    program = f"""
import sys, time
from celery_broadcast.relay.redis_streams import RedisStreams
from celery_broadcast.relay.transport import Group, Limits
streams = RedisStreams.from_app_settings({waiting._servers.shown!r}, {{}}, None, Limits())
group = Group(name="audit", event_types=("JobFailed", "JobFinished"))
print(streams.receive(group, 30.0).parcel.body.decode(), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        wait_until(lambda: int(raw.info("clients")["blocked_clients"]) == 1)
        # Both streams are written to before Redis tells the one that waits.
        with raw.pipeline(transaction=True) as pipeline:
            for each in (parcel(1), parcel(2, "JobFinished")):
                key = f"celery-broadcast:events:{each.event_type}"
                fields = {"type": each.event_type, "task": each.task_name, "body": each.body}
                pipeline.xadd(key, fields)  # type: ignore[arg-type]
            pipeline.execute()
        output, _ = process.communicate(timeout=30)

    assert output.strip() in {parcel(1).body, parcel(2).body}
    assert take(other, AUDIT).deliveries == 0


def test_of_several_that_come_at_once_the_others_are_given_back(connect: Connect) -> None:
    one, other = connect(LONG_LEASE), connect(LONG_LEASE)
    one.declare(AUDIT)
    one.publish([parcel(1), parcel(2, "JobFinished")])

    entry = one._wait_for(AUDIT, 1.0)  # as newer servers answer, one entry of each stream

    assert entry is not None
    left = take(other, AUDIT)
    assert left.deliveries == 0
    assert {left.parcel.body, entry.fields[5]} == {parcel(1).body, parcel(2).body}
    assert other.receive(AUDIT, 0) is None


def test_what_is_sent_to_a_group_is_for_it_alone_and_comes_first(
    connect: Connect, raw: redis.Redis
) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.declare(AUDIT)
    streams.publish([parcel(1)])

    streams.send_to(PAGER, [parcel(2), parcel(3)])

    assert drained(streams, PAGER) == [parcel(2), parcel(3), parcel(1)]
    assert drained(streams, AUDIT) == [parcel(1)]
    assert raw.xlen("celery-broadcast:group:pager") == 0


def test_what_was_sent_to_the_group_alone_says_so(connect: Connect) -> None:
    streams = connect(LONG_LEASE)
    streams.declare(PAGER)
    streams.publish([parcel(1)])
    streams.send_to(PAGER, [parcel(2)])

    assert [take(streams, PAGER).is_sent_alone for _ in range(2)] == [True, False]


def test_what_is_sent_to_a_group_before_it_is_declared_waits_for_it(connect: Connect) -> None:
    streams = connect()

    streams.send_to(PAGER, [parcel(1)])
    streams.declare(PAGER)

    assert drained(streams, PAGER) == [parcel(1)]


def test_tasks_that_a_group_does_not_want_are_acknowledged_unopened(
    connect: Connect, raw: redis.Redis
) -> None:
    streams = connect()
    some = Group(name="pager", event_types=("JobFailed",), tasks=("shop.*", "b[!x]nk.pay"))
    streams.declare(some)
    tasks = ["mail.send", "shop.charge", "bxnk.pay", "Shop.charge", "bank.pay", "mail.send"]

    streams.publish([parcel(number, task=task) for number, task in enumerate(tasks)])

    assert [each.task_name for each in drained(streams, some)] == ["shop.charge", "bank.pay"]
    assert pending(raw)["pending"] == 0


# Leases.

HOLDER = """
import sys, threading
from celery_broadcast.relay.redis_streams import RedisStreams
from celery_broadcast.relay.transport import Group, Limits
limits = Limits(lease=0.5)
streams = RedisStreams.from_app_settings(sys.argv[1], {}, None, limits)
received = streams.receive(Group(name="pager", event_types=("JobFailed",)), 30.0)
print(received.deliveries, flush=True)
threading.Event().wait()
"""


def killed_while_it_holds_one(server: RedisProcess) -> int:
    """Have a process receive a parcel, kill it, and return how often the parcel was out before."""
    command = [sys.executable, "-c", HOLDER, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        deliveries = int(process.stdout.readline())
        process.kill()
    return deliveries


def test_what_a_killed_replica_had_goes_to_another_after_the_lease(
    connect: Connect, server: RedisProcess
) -> None:
    streams = connect()
    for group in (PAGER, AUDIT):
        streams.declare(group)
    streams.publish([parcel(1)])

    assert [killed_while_it_holds_one(server) for _ in range(2)] == [0, 1]

    received = take(streams, PAGER)
    assert (received.parcel, received.deliveries) == (parcel(1), 2)
    assert drained(streams, AUDIT) == [parcel(1)]


def test_what_was_sent_to_the_group_alone_is_taken_over_too(
    connect: Connect, server: RedisProcess
) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.send_to(PAGER, [parcel(1)])

    killed_while_it_holds_one(server)

    assert take(streams, PAGER).deliveries == 1


def test_a_renewed_parcel_stays_with_its_replica(connect: Connect) -> None:
    limits = Limits(lease=3.0, timeout=2.0)
    slow, quick = connect(limits), connect(limits)
    slow.declare(PAGER)
    slow.publish([parcel(1)])
    received = take(slow, PAGER)

    until = time.monotonic() + 1.5 * limits.lease
    while time.monotonic() < until:
        slow.renew(PAGER, [received])
        assert quick.receive(PAGER, limits.lease / 8) is None

    assert take(quick, PAGER, 30.0).deliveries == 1  # once it isn't renewed any more


def test_renewing_what_another_has_taken_over_leaves_it_there_and_says_so(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    slow, quick = connect(), connect()
    slow.declare(PAGER)
    slow.publish([parcel(1)])
    received = take(slow, PAGER)
    taken_over = take(quick, PAGER)

    slow.renew(PAGER, [received])
    slow.give_back(PAGER, received)

    assert "aren't its own any more" in caplog.text
    quick.renew(PAGER, [taken_over])
    assert caplog.text.count("aren't its own any more") == 1


def test_what_is_given_back_goes_to_another_at_once_and_does_not_count(connect: Connect) -> None:
    one, other = connect(LONG_LEASE), connect(LONG_LEASE)
    one.declare(PAGER)
    one.publish([parcel(1)])

    one.give_back(PAGER, take(one, PAGER))

    received = take(other, PAGER)
    assert (received.parcel, received.deliveries) == (parcel(1), 0)
    other.acknowledge(PAGER, received)
    assert one.receive(PAGER, 0) is None


def test_what_is_given_back_and_comes_here_again_comes_before_later_ones(
    connect: Connect,
) -> None:
    only = connect(LONG_LEASE)
    only.declare(PAGER)
    only.publish([parcel(number) for number in (1, 2, 3)])
    only.acknowledge(PAGER, take(only, PAGER))

    only.give_back(PAGER, take(only, PAGER))

    assert drained(only, PAGER) == [parcel(2), parcel(3)]


def test_what_is_acknowledged_does_not_come_again(connect: Connect, raw: redis.Redis) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.publish([parcel(1)])

    streams.acknowledge(PAGER, take(streams, PAGER))

    assert streams.receive(PAGER, 2 * LIMITS.lease) is None
    assert pending(raw)["pending"] == 0


def test_replicas_that_are_gone_are_removed_unless_they_hold_something(
    connect: Connect, server: RedisProcess, raw: redis.Redis
) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.publish([parcel(1)])
    killed_while_it_holds_one(server)
    raw.xgroup_createconsumer(FAILED, "pager", "gone")

    def names() -> list[bytes]:
        consumers: Any = raw.xinfo_consumers(FAILED, "pager")
        return [consumer["name"] for consumer in consumers]

    assert len(names()) == 2
    received = take(streams, PAGER)
    streams.acknowledge(PAGER, received)

    def others_are_gone() -> bool:
        streams.receive(PAGER, 0.05)
        return names() == [streams._consumer.encode()]

    wait_until(others_are_gone)
    streams.close()
    assert names() == []


def test_closing_with_a_parcel_in_hand_leaves_it_to_others(connect: Connect) -> None:
    one, other = connect(), connect()
    one.declare(PAGER)
    one.publish([parcel(1)])
    take(one, PAGER)

    one.close()
    one.close()

    assert take(other, PAGER).deliveries == 1


# Bounds.


def test_a_stream_keeps_to_its_bytes_and_drops_the_oldest(
    connect: Connect, raw: redis.Redis
) -> None:
    bound = 512 * 1024
    streams = connect(Limits(lease=60.0, max_bytes=bound))
    streams.declare(PAGER)
    small, big = (
        Parcel(event_type="JobFailed", task_name="shop.charge", body=bytes(size))
        for size in (50, 20_000)
    )
    used = []

    # The small ones are the oldest, and tell nothing of what the big ones take.
    for each in [small] * 2000 + [big] * 100:
        streams.publish([each])
        used.append(bytes_of(raw))

    assert max(used) <= bound * (1 + 1 / 64) + 2 * 20_000
    assert used[-1] > bound / 2
    assert {each.body for each in drained(streams, PAGER)} == {big.body}


def test_what_is_sent_to_a_group_and_its_dead_letters_are_bounded_too(
    connect: Connect, raw: redis.Redis
) -> None:
    bound = 100_000
    streams = connect(Limits(max_bytes=bound))
    big = Parcel(event_type="JobFailed", task_name="shop.charge", body=bytes(10_000))
    letter = DeadLetter(parcel=big, reason="raised", error="", deliveries=1, put_aside_at=0.0)

    for _ in range(30):
        streams.send_to(PAGER, [big])
        streams.put_aside(PAGER, [letter])

    for key in ("celery-broadcast:group:pager", "celery-broadcast:dead-letters:pager"):
        assert bytes_of(raw, key) <= bound + 20_000


def test_what_waits_longer_than_its_ttl_is_dropped(connect: Connect, raw: redis.Redis) -> None:
    streams = connect(Limits(lease=0.5, ttl=0.2))
    streams.declare(PAGER)
    streams.publish([parcel(1)])

    def is_gone() -> bool:
        streams.receive(AUDIT, 0)  # whoever reads the stream
        return raw.xlen(FAILED) == 0

    wait_until(is_gone)
    assert streams.receive(PAGER, 0) is None


def test_what_is_dropped_while_a_replica_has_it_is_counted_and_said(
    connect: Connect, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = connect(LONG_LEASE), connect()
    one.declare(PAGER)
    one.publish([parcel(1), parcel(2)])
    take(one, PAGER)
    take(one, PAGER)

    raw.xtrim(FAILED, maxlen=0, approximate=False)

    def dropped() -> int:
        assert other.receive(PAGER, 0.05) is None
        said = r"(\d+) parcels were dropped from Redis while a replica had them"
        return sum(map(int, re.findall(said, caplog.text)))

    wait_until(lambda: dropped() == 2)
    assert pending(raw)["pending"] == 0


# Dead letters.


def test_dead_letters_stay_until_they_are_removed(connect: Connect) -> None:
    streams = connect()
    signed = msgspec.structs.replace(parcel(1), signature="abc")
    letters = [
        DeadLetter(parcel=signed, reason="raised", error="Ä: no", deliveries=5, put_aside_at=1.5),
        DeadLetter(parcel=parcel(2), reason="killed", error="", deliveries=0, put_aside_at=2.5),
    ]
    assert streams.dead_letters(PAGER, 10) == []

    streams.put_aside(PAGER, letters)

    for _ in range(2):
        kept = streams.dead_letters(PAGER, 10)
        assert [msgspec.structs.replace(letter, letter_id="") for letter in kept] == letters
    assert streams.dead_letters(PAGER, 1) == kept[:1]
    assert streams.dead_letters(AUDIT, 10) == []
    assert streams.remove_dead_letters(PAGER, kept[:1]) == 1
    assert streams.remove_dead_letters(PAGER, kept) == 1
    assert streams.remove_dead_letters(PAGER, []) == 0


# What others write.


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"hello": "world"}, "no field 'type'"),
        ({"type": "JobFailed", "task": "t", "body": "x" * 2001}, "2001 bytes"),
        ({"type": "JobFailed", "task": "t", "body": "[]", "encoding": "gzip"}, "'encoding'"),
        ({"type": "JobFinished", "task": "t", "body": "[]"}, "it says it is a JobFinished"),
        ({"type": "JobFailed", "task": b"\xff", "body": "[]"}, "isn't UTF-8"),
    ],
)
def test_an_entry_that_is_no_parcel_is_refused_and_the_next_one_comes(
    connect: Connect, raw: redis.Redis, fields: dict[Any, Any], refusal: str
) -> None:
    streams = connect(msgspec.structs.replace(LIMITS, max_parcel_bytes=2000))
    all_tasks = msgspec.structs.replace(PAGER, tasks=("*",))
    streams.declare(all_tasks)
    raw.xadd(FAILED, fields)
    streams.publish([parcel(1)])

    received = take(streams, all_tasks)

    assert refusal in received.refusal
    streams.acknowledge(all_tasks, received)
    assert drained(streams, all_tasks) == [parcel(1)]


def test_a_key_of_another_type_is_named(connect: Connect, raw: redis.Redis) -> None:
    streams = connect()
    streams.declare(PAGER)
    raw.delete(FAILED)
    raw.set(FAILED, "mine")

    calls: list[Callable[[], object]] = [
        lambda: streams.publish([parcel(1)]),
        lambda: streams.receive(PAGER, 0),
        lambda: streams.declare(PAGER),
    ]
    for call in calls:
        with pytest.raises(RelayError, match=f"'{FAILED}' is there, and is no stream"):
            call()


def test_one_refused_entry_does_not_hide_that_the_others_arrived(
    connect: Connect, raw: redis.Redis
) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.publish([parcel(0, "JobFinished")])
    raw.set("celery-broadcast:events:JobFinished", "mine")
    parcels = [parcel(1), parcel(2, "JobFinished"), parcel(3)]

    with pytest.raises(RelayError, match=r"JobFinished' is there.* 2 of 3 arrived"):
        streams.publish(parcels)
    for _ in range(3):  # and isn't sent again in vain
        with pytest.raises(RelayError, match=r"JobFinished' is there, and is no stream"):
            streams.publish(parcels)

    assert drained(streams, PAGER) == [parcel(1), parcel(3)]


# Outages.


def test_a_server_that_hangs_is_an_error_within_the_timeout(
    connect: Connect, server: RedisProcess
) -> None:
    streams, never_connected = (connect(Limits(timeout=2.0)) for _ in range(2))
    streams.declare(PAGER)
    server.kill("SIGSTOP")
    try:
        calls: list[Callable[[], object]] = [
            lambda: streams.publish([parcel(1)]),
            lambda: streams.receive(PAGER, 30.0),
            lambda: never_connected.declare(PAGER),
        ]
        for call in calls:
            started_at = time.monotonic()
            with pytest.raises(RelayError, match="didn't answer within 2 s"):
                call()
            assert time.monotonic() - started_at < 30.0
        streams.close()
    finally:
        server.kill("SIGCONT")

    streams.publish([parcel(2)])
    assert parcel(2) in drained(streams, PAGER)


def test_a_server_that_is_not_there_is_an_error_that_names_it(connect: Connect) -> None:
    url = "redis://user:secret@127.0.0.1:1/3"
    streams = RedisStreams.from_app_settings(url, {}, None, LIMITS)

    with pytest.raises(RelayError) as caught:
        streams.publish([parcel(1)])

    assert "redis://127.0.0.1:1/3: could not publish 1 parcel" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_comes_back_empty_is_used_as_before(
    connect: Connect, server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, one, other = connect(), connect(), connect(LONG_LEASE)
    one.declare(PAGER)
    publisher.publish([parcel(1)])
    held = take(one, PAGER)

    server.kill()
    for transport in (publisher, one):
        with pytest.raises(RelayError):
            transport.receive(PAGER, 0)
    server.restart()

    publisher.publish([parcel(2)])  # before any replica is back
    assert take(one, PAGER).parcel == parcel(2)
    one.renew(PAGER, [held])
    one.acknowledge(PAGER, held)
    one.publish([parcel(3)])
    assert drained(other, PAGER) == [parcel(3)]
    assert caplog.text.count("Redis has forgotten the consumer 'pager'") == 1


def test_a_stream_that_is_deleted_under_a_waiting_replica_is_declared_anew(
    connect: Connect, raw: redis.Redis
) -> None:
    streams = connect(LONG_LEASE)
    streams.declare(PAGER)

    assert streams.receive(PAGER, 0.05) is None
    raw.flushall()

    assert streams.receive(PAGER, 0.05) is None
    streams.publish([parcel(1)])
    assert drained(streams, PAGER) == [parcel(1)]


def test_a_full_server_refuses_what_is_published_and_what_is_there_can_be_read(
    connect: Connect, raw: redis.Redis
) -> None:
    publisher, reader = connect(), connect(LONG_LEASE)
    publisher.declare(PAGER)
    publisher.publish([parcel(1), parcel(2)])
    raw.config_set("maxmemory", 1)
    try:
        calls: list[Callable[[], object]] = [
            lambda: publisher.publish([parcel(3)]),
            lambda: publisher.send_to(PAGER, [parcel(3)]),
        ]
        for call in calls:
            with pytest.raises(RelayError, match="it is full"):
                call()
        first = take(reader, PAGER)
        reader.renew(PAGER, [first])
        reader.give_back(PAGER, first)
        got = [take(reader, PAGER) for _ in range(2)]
        assert {each.parcel.body for each in got} == {parcel(1).body, parcel(2).body}
        for each in got:
            reader.acknowledge(PAGER, each)
    finally:
        raw.config_set("maxmemory", 0)

    publisher.publish([parcel(4)])
    assert drained(reader, PAGER) == [parcel(4)]


def test_a_group_that_is_there_can_be_read_by_who_comes_while_the_server_is_full(
    connect: Connect, raw: redis.Redis
) -> None:
    connect().declare(PAGER)
    connect().publish([parcel(1)])
    raw.config_set("maxmemory", 1)
    try:
        newcomer = connect()
        newcomer.declare(PAGER)
        assert drained(newcomer, PAGER) == [parcel(1)]
        with pytest.raises(RelayError, match="it is full"):
            newcomer.declare(AUDIT)
    finally:
        raw.config_set("maxmemory", 0)


def test_of_a_list_of_servers_one_that_is_a_replica_is_passed_over(
    server: RedisProcess, raw: redis.Redis
) -> None:
    with RedisProcess() as former:
        streams = RedisStreams.from_app_settings(f"{former.url};{server.url}", {}, None, LIMITS)
        streams.declare(PAGER)
        with redis.Redis.from_url(former.url) as client:
            client.replicaof("127.0.0.1", "1")

        with pytest.raises(RelayError, match="it is a replica"):
            streams.publish([parcel(1)])
        streams.declare(PAGER)
        streams.publish([parcel(1)])

        assert drained(streams, PAGER) == [parcel(1)]
        assert raw.xlen(FAILED) == 1
        streams.close()


def test_a_replica_cannot_be_written_to(connect: Connect, raw: redis.Redis) -> None:
    streams = connect()
    streams.declare(PAGER)
    raw.replicaof("127.0.0.1", "1")  # which makes it read-only
    try:
        with pytest.raises(RelayError, match="it is a replica"):
            streams.publish([parcel(1)])
    finally:
        raw.replicaof("NO", "ONE")

    streams.publish([parcel(1)])
    assert drained(streams, PAGER) == [parcel(1)]


# Forks.


def test_a_forked_child_is_another_replica_with_a_connection_of_its_own(
    connect: Connect, raw: redis.Redis
) -> None:
    streams = connect(LONG_LEASE)
    streams.declare(PAGER)
    streams.publish([parcel(1), parcel(2)])
    in_parent = take(streams, PAGER)

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer = b"nothing"
        try:
            answer = take(streams, PAGER).parcel.body + streams._consumer.encode()
            streams.close()
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)

    assert answer.startswith(parcel(2).body)
    assert streams._consumer.encode() not in answer
    streams.acknowledge(PAGER, in_parent)
    assert pending(raw)["pending"] == 1  # the child's


def test_a_child_that_closes_what_it_inherited_leaves_the_parent_alone(connect: Connect) -> None:
    streams = connect()
    streams.declare(PAGER)
    streams.receive(PAGER, 0)

    child = os.fork()
    if not child:
        streams.close()
        os._exit(0)
    os.waitpid(child, 0)

    streams.publish([parcel(1)])
    assert drained(streams, PAGER) == [parcel(1)]


# How one logs in.


def test_keys_have_the_prefix_of_the_app(connect: Connect, raw: redis.Redis) -> None:
    streams = connect(global_keyprefix="shop:")
    streams.declare(PAGER)
    streams.publish([parcel(1)])

    assert drained(streams, PAGER) == [parcel(1)]
    keys: Any = raw.keys()
    assert {key.split(b":")[0] for key in keys} == {b"shop"}


def test_the_next_server_of_a_list_stands_in(connect: Connect, server: RedisProcess) -> None:
    url = f"redis://127.0.0.1:1/0;{server.url}"
    streams = RedisStreams.from_app_settings(url, {}, None, LIMITS)

    streams.declare(PAGER)
    streams.publish([parcel(1)])

    assert drained(streams, PAGER) == [parcel(1)]
    streams.close()


def test_a_password_is_needed_where_there_is_one(tmp_path: Path) -> None:
    with RedisProcess("--requirepass", "se:cr@t") as server:
        right = RedisStreams.from_app_settings(
            server.url.replace("//", "//:se%3Acr%40t@"), {}, None, LIMITS
        )
        wrong = RedisStreams.from_app_settings(
            server.url.replace("//", "//:wrong@"), {}, None, LIMITS
        )
        without = RedisStreams.from_app_settings(server.url, {}, None, LIMITS)

        right.declare(PAGER)
        for transport in (wrong, without):
            with pytest.raises(RelayError, match="it wants another password"):
                transport.declare(PAGER)
        right.close()


class BrokenVault(redis.CredentialProvider):
    """Has no key today."""

    def get_credentials(self) -> tuple[str]:
        raise LookupError("the vault is sealed")


def test_a_credential_provider_that_raises_is_an_error_of_the_relay(server: RedisProcess) -> None:
    url = f"{server.url}?credential_provider={__name__}.BrokenVault"
    streams = RedisStreams.from_app_settings(url, {}, None, LIMITS)

    with pytest.raises(RelayError, match="the vault is sealed"):
        streams.declare(PAGER)


def test_a_unix_socket_and_a_database(tmp_path: Path) -> None:
    with RedisProcess("--unixsocket", "redis.sock") as server:
        url = f"redis+socket://{server.folder}/redis.sock?virtual_host=2"
        streams = RedisStreams.from_app_settings(url, {}, None, LIMITS)

        streams.declare(PAGER)
        streams.publish([parcel(1)])

        assert drained(streams, PAGER) == [parcel(1)]
        with redis.Redis(port=server.port, db=2) as raw:
            assert raw.exists(FAILED)
        streams.close()


def test_tls_with_a_certificate_that_is_looked_at(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with TlsRedisProcess(certificate, key) as server:
        url = f"rediss://127.0.0.1:{server.port}/0"
        required = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(certificate)}
        for each_url, use_ssl in (
            (url, required),
            (f"{url}?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={certificate}", None),
            (url, None),  # as Celery does it: encrypted, whoever it is
            (url.replace("rediss", "redis"), required),
        ):
            streams = RedisStreams.from_app_settings(each_url, {}, use_ssl, LIMITS)
            streams.declare(PAGER)
            streams.close()
        unknown = RedisStreams.from_app_settings(url, {}, {"ssl_cert_reqs": "required"}, LIMITS)
        with pytest.raises(RelayError, match="certificate"):
            unknown.declare(PAGER)


class TlsRedisProcess(RedisProcess):
    """Speaks TLS, and nothing else."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__("--port", "0")
        self._options += (
            *("--tls-port", str(self.port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        )


class SentinelProcess(RedisProcess):
    """Knows one master by the name "shop"."""

    def __init__(self, master: RedisProcess) -> None:
        super().__init__()
        self.file = self.folder / "sentinel.conf"
        self.file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {master.port} 1\n"
        )

    ready_line = "+monitor master shop"

    @property
    def command(self) -> list[str]:
        return [super().command[0], str(self.file), "--sentinel"]


def test_a_sentinel_tells_where_the_master_is(server: RedisProcess, raw: redis.Redis) -> None:
    with SentinelProcess(server) as sentinel:
        url = f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{sentinel.port}/0"
        named = RedisStreams.from_app_settings(url, {"master_name": "shop"}, None, LIMITS)
        unknown = RedisStreams.from_app_settings(url, {"master_name": "bank"}, None, LIMITS)

        named.declare(PAGER)

        assert raw.exists(FAILED)
        with pytest.raises(RelayError, match="bank"):
            unknown.declare(PAGER)
        named.close()


def test_a_server_that_would_delete_what_waits_is_warned_of_once(
    connect: Connect, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    raw.config_set("maxmemory", "100mb")
    raw.config_set("maxmemory-policy", "allkeys-lru")
    try:
        streams = connect()
        for _ in range(2):
            streams.declare(PAGER)
            streams.close()
    finally:
        raw.config_set("maxmemory", 0)
        raw.config_set("maxmemory-policy", "noeviction")

    assert caplog.text.count("maxmemory-policy allkeys-lru") == 1


def test_a_user_who_may_not_do_it_is_told_what_is_needed(
    server: RedisProcess, raw: redis.Redis
) -> None:
    everything = "+@all -eval -info"
    raw.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~*", *everything.split())  # type: ignore[no-untyped-call]
    streams = RedisStreams.from_app_settings(
        server.url.replace("//", "//some:pw@"), {}, None, LIMITS
    )

    streams.declare(PAGER)
    with pytest.raises(RelayError, match=r"its user may not do that.* EVAL"):
        streams.receive(PAGER, 0)

    streams.close()


def test_who_may_not_measure_a_stream_sends_nothing_there(
    server: RedisProcess, raw: redis.Redis, connect: Connect
) -> None:
    connect().declare(PAGER)
    raw.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "-memory")  # type: ignore[no-untyped-call]
    streams = RedisStreams.from_app_settings(
        server.url.replace("//", "//some:pw@"), {}, None, LIMITS
    )

    for _ in range(2):
        with pytest.raises(RelayError, match="its user may not do that"):
            streams.publish([parcel(1)])

    assert raw.xlen(FAILED) == 0
    streams.close()


def test_a_cluster_is_told_apart() -> None:
    # Its own choice, 10,000 above the other port, may be somebody's connection.
    with RedisProcess("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        streams = RedisStreams.from_app_settings(server.url, {}, None, LIMITS)

        with pytest.raises(RelayError, match="it is a Redis Cluster"):
            streams.declare(PAGER)


def test_nobody_is_no_replica(connect: Connect, raw: redis.Redis) -> None:
    one, other = connect(), connect()
    one.declare(PAGER)
    one.publish([parcel(1)])
    one.give_back(PAGER, take(one, PAGER))
    assert [each["name"] for each in pending(raw)["consumers"]] == [NOBODY.encode()]

    other.acknowledge(PAGER, take(other, PAGER))

    def is_removed() -> bool:
        other.receive(PAGER, 0.05)
        consumers: Any = raw.xinfo_consumers(FAILED, "pager")
        return NOBODY.encode() not in [each["name"] for each in consumers]

    wait_until(is_removed)
