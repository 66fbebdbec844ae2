"""What the relay's transport does while RabbitMQ is away, full, or hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from nodes.deadline import wait_until
from nodes.rabbit_process import RabbitProcess, hanging
from parcels import parcel_of
from recorder import HeldRecorder, numbered, subscribe

from celery_broadcast.errors import RelayError
from celery_broadcast.producer import Producer
from celery_broadcast.relay.incoming import Incoming
from celery_broadcast.relay.rabbitmq import RabbitMQ
from celery_broadcast.relay.transport import Group, Limits, Parcel

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("rabbitmq")]

TIMEOUT = 2.0

GROUP = Group(name="pager", event_types=("JobFailed",))


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitProcess]:
    """A server of these tests' own; the others' is left in peace."""
    with RabbitProcess() as server:
        prepare(server)
        yield server


def prepare(server: RabbitProcess) -> None:
    """Make the queues; the first ones of a server may take longer than these tests allow."""
    app = Celery("shop", broker=server.url, set_as_current=False)
    first = RabbitMQ(app, limits=Limits(timeout=60.0))
    first.declare(GROUP)
    first.close()


@pytest.fixture
def transport(server: RabbitProcess) -> Iterator[Callable[..., RabbitMQ]]:
    made: list[RabbitMQ] = []

    def make(heartbeat: float = 120, lease: float = 60.0) -> RabbitMQ:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.broker_heartbeat = heartbeat
        made.append(RabbitMQ(app, server.url, Limits(timeout=TIMEOUT, lease=lease)))
        return made[-1]

    yield make
    for each in made:  # what they have in hand waits again then
        each.close()
    cleaner = make()
    wait_until(lambda: succeeds(lambda: cleaner.receive(GROUP, 0.0)))
    cleaner.close()
    take_all(cleaner)
    cleaner.close()


def parcels(*names: str) -> list[Parcel]:
    return [Parcel(event_type="JobFailed", task_name=name, body=b"[]") for name in names]


def take_all(reader: RabbitMQ, at_least: int = 0, names: list[str] | None = None) -> list[str]:
    """Acknowledge all that waits; return the names of its tasks, added to those given.

    Args:
        reader: through which.
        at_least: so many are there; for more than these it waits a moment only.
        names: what it has taken before.
    """
    names = [] if names is None else names
    while received := reader.receive(GROUP, 30.0 if len(names) < at_least else 0.3):
        names.append(received.parcel.task_name)
        reader.acknowledge(GROUP, received)
    return names


def succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except RelayError:
        return False
    return True


@contextmanager
def short_of_memory(server: RabbitProcess) -> Iterator[None]:
    server.control("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")


def test_a_broker_short_of_memory_takes_nothing_but_hands_out(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    both = transport()
    both.declare(GROUP)
    both.publish(parcels("shop.a", "shop.b"))

    with short_of_memory(server):
        calls: list[Callable[[], object]] = [
            lambda: both.publish(parcels("shop.late")),
            lambda: both.publish(parcels(*["shop.late"] * 500)),
            lambda: both.send_to(GROUP, parcels("shop.late")),
        ]
        for refused in calls:
            began = time.monotonic()
            with pytest.raises(RelayError, match=r"short of memory or disk|did not answer"):
                refused()
            assert time.monotonic() - began < 10 * TIMEOUT
        assert take_all(both, 2) == ["shop.a", "shop.b"]

    wait_until(lambda: succeeds(lambda: both.publish(parcels("shop.last"))))
    got: list[str] = []
    wait_until(lambda: succeeds(lambda: take_all(both, names=got)) and "shop.last" in got)


def test_a_broker_short_of_memory_is_not_given_more_with_every_try(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    sender, reader = transport(), transport()
    reader.declare(GROUP)
    sender.publish(parcels("shop.a"))
    assert take_all(reader, 1) == ["shop.a"]

    with short_of_memory(server):
        for _ in range(5):
            with pytest.raises(RelayError, match="short of memory or disk"):
                sender.publish(parcels("shop.b", "shop.c"))
        assert server.control("list_connections", "state").split().count("blocked") == 1

    wait_until(lambda: succeeds(lambda: sender.publish(parcels("shop.b", "shop.c"))))
    got: list[str] = []
    wait_until(lambda: succeeds(lambda: take_all(reader, names=got)) and len(got) >= 4)
    assert set(got) == {"shop.b", "shop.c"}
    assert len(got) < 8  # of six tries, of which none before the last one was to arrive


def test_a_broker_that_hangs_in_the_middle_of_a_frame_is_an_error_within_the_timeout(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    sender = transport()
    sender.publish(parcels("shop.a"))
    connection = sender._writing._connection
    with hanging(server):
        # As if it had come: a method of 13 bytes, of which two are there.
        connection.transport._read_buffer = b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c"
        told: list[str] = []

        def publish() -> None:
            try:
                sender.publish(parcels("shop.b"))
            except RelayError as error:
                told.append(str(error))

        threading.Thread(target=publish, daemon=True).start()
        wait_until(lambda: told)

    assert "did not answer within 2 s" in told[0]


def test_a_broker_that_hangs_is_an_error_within_the_timeout(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    both, late = transport(), transport()
    both.publish(parcels("shop.a"))
    both.declare(GROUP)

    with hanging(server):
        calls: list[Callable[[], object]] = [
            lambda: both.publish(parcels("shop.b")),
            lambda: both.declare(GROUP),
            lambda: late.publish(parcels("shop.c")),
            lambda: late.receive(GROUP, 0.5),
            lambda: late.dead_letters(GROUP, 10),
        ]
        for refused in calls:
            began = time.monotonic()
            with pytest.raises(RelayError, match="did not answer within 2 s"):
                refused()
            assert time.monotonic() - began < 10 * TIMEOUT

    wait_until(lambda: succeeds(lambda: both.publish(parcels("shop.last"))))
    got: list[str] = []
    wait_until(lambda: succeeds(lambda: take_all(both, names=got)) and "shop.last" in got)


def test_a_hanging_broker_does_not_hold_up_a_close(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    both = transport()
    both.publish(parcels("shop.a"))
    both.declare(GROUP)

    with hanging(server):
        began = time.monotonic()
        both.close()

        assert time.monotonic() - began < 10 * TIMEOUT


def test_a_reader_notices_that_its_broker_hangs(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    reader = transport(heartbeat=1, lease=1.0)
    assert reader.receive(GROUP, 0.0) is None

    with (
        hanging(server),
        pytest.raises(RelayError, match=r"missed|did not answer|closed|reset|Broken"),
    ):
        reader.receive(GROUP, 30.0)

    wait_until(lambda: succeeds(lambda: reader.publish(parcels("shop.a"))))
    got: list[str] = []
    wait_until(lambda: succeeds(lambda: take_all(reader, names=got)) and "shop.a" in got)


def test_a_reader_that_handles_notices_by_the_heartbeat_that_its_broker_hangs(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    reader = transport(heartbeat=1, lease=1.0)
    transport().publish(parcels("shop.slow"))
    received = reader.receive(GROUP, 10.0)
    assert received is not None
    told: list[str] = []

    def is_lost() -> bool:
        try:
            reader.renew(GROUP, [received])
        except RelayError as error:
            told.append(str(error))
        return bool(told)

    with hanging(server):
        wait_until(is_lost)

    assert "heartbeats missed" in told[0]


def test_renewing_keeps_a_connection_alive_that_only_handles(
    transport: Callable[..., RabbitMQ],
) -> None:
    reader = transport(heartbeat=3, lease=3.0)
    transport().publish(parcels("shop.slow"))
    received = reader.receive(GROUP, 10.0)
    assert received is not None
    until = time.monotonic() + 10.0  # several heartbeats

    def has_lasted() -> bool:
        reader.renew(GROUP, [received])
        return time.monotonic() > until

    wait_until(has_lasted)
    reader.acknowledge(GROUP, received)

    assert reader.receive(GROUP, 0.3) is None
    assert transport().receive(GROUP, 0.3) is None


def test_a_stopped_broker_is_an_error_and_forgets_nothing_it_confirmed(
    transport: Callable[..., RabbitMQ], server: RabbitProcess
) -> None:
    sender, reader = transport(), transport()
    reader.declare(GROUP)
    sender.publish(parcels("shop.a", "shop.b"))
    in_hand = reader.receive(GROUP, 10.0)
    assert in_hand is not None

    server.control("stop_app")
    calls: list[Callable[[], object]] = [
        lambda: sender.publish(parcels("shop.c")),
        lambda: reader.renew(GROUP, [in_hand]),
        lambda: reader.acknowledge(GROUP, in_hand),
        lambda: reader.receive(GROUP, 0.5),
    ]
    for refused in calls:
        with pytest.raises(RelayError):
            refused()
    server.control("start_app")

    wait_until(lambda: succeeds(lambda: sender.publish(parcels("shop.d"))))
    got: list[str] = []
    everything = {"shop.a", "shop.b", "shop.d"}
    wait_until(lambda: succeeds(lambda: take_all(reader, names=got)) and everything <= set(got))
    assert set(got) == everything  # one may be there twice: its first try wasn't confirmed in time


def test_a_replica_reads_on_when_its_connection_was_lost_while_it_handled(
    transport: Callable[..., RabbitMQ],
    server: RabbitProcess,
    make_producer: Callable[..., Producer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "celery_broadcast")
    # Longer than a third of the lease, as after some failures: it renews with every try.
    monkeypatch.setattr("celery_broadcast.relay.incoming.seconds_after", lambda _: 0.5)
    group = Group(name="pager", event_types=("JobFailed", "JobFinished"))
    held = HeldRecorder()
    subscription = subscribe(held, "pager", mailbox_size=None)
    producer = make_producer(subscription)
    incoming = Incoming(
        subscription=subscription,
        group=group,
        transport=transport(lease=0.6),
        accept=lambda deliveries: producer.accept("pager", deliveries),
        limits=Limits(timeout=TIMEOUT, lease=0.6),
    )
    incoming.start()
    assert incoming.is_reading.wait(30.0)
    sender = transport()
    sender.publish([parcel_of(numbered(1))])
    assert held.held.wait(10.0)

    before = caplog.text.count("reads from the broker again")
    server.control("close_all_connections", "of a test")

    wait_until(lambda: caplog.text.count("reads from the broker again") > before)
    held.freed.set()
    held.wait_for(2)  # what was in hand comes again
    wait_until(lambda: succeeds(lambda: sender.publish([parcel_of(numbered(1))])))
    held.wait_for(3)
    incoming.stop()
    assert incoming.wait_for_end(time.monotonic() + 10.0)


@pytest.fixture
def mortal_server() -> Iterator[RabbitProcess]:
    """A server that one test may kill; if it doesn't come back no other test has to suffer."""
    with RabbitProcess() as server:
        yield server


def test_whatever_was_confirmed_survives_a_crash_in_the_middle(
    mortal_server: RabbitProcess,
) -> None:
    server = mortal_server
    prepare(server)
    app = Celery("shop", broker=server.url, set_as_current=False)
    sender, reader = (RabbitMQ(app, limits=Limits(timeout=TIMEOUT)) for _ in range(2))
    reader.declare(GROUP)
    confirmed: list[str] = []
    enough = threading.Event()

    def publish() -> None:
        for number in range(100_000):
            name = f"shop.task{number}"
            wait_until(lambda name=name: succeeds(lambda: sender.publish(parcels(name))), 60.0)  # type: ignore[misc]
            confirmed.append(name)
            if enough.is_set():
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        # RabbitMQ 3.10 keeps in memory for a moment that there is a quorum queue. One that it
        # forgets when it is killed is declared all the same, and never confirms anything.
        is_on_disk_at = time.monotonic() + 6.0
        wait_until(lambda: len(confirmed) > 50 and time.monotonic() > is_on_disk_at)
        server.kill("SIGKILL")
        before = len(confirmed)
        server.restart()
        wait_until(lambda: len(confirmed) > before + 50, 60.0)
    finally:
        enough.set()
        thread.join()

    got: list[str] = []
    wait_until(lambda: succeeds(lambda: take_all(reader, names=got)) and set(confirmed) <= set(got))
    assert len(got) - len(set(got)) < 5
    sender.close()
    reader.close()
