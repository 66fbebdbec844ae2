"""What is shown of what workers send, with a broker in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from memory_transport import MemoryBroker, MemoryTransport
from parcels import as_json, make_writer, only, parcel_of, with_body
from recorder import make_event, numbered

from celery_broadcast import JobEvent, JobFailed, JobFinished
from celery_broadcast.errors import RelayError
from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.tail import Tail
from celery_broadcast.relay.transport import Group, Limits, Parcel
from celery_broadcast.relay.wire import Arrived

WATCHED = Group(name="tail", event_types=("JobFinished", "JobFailed"), tasks=("shop.*",))
KEY = b"a key of at least sixteen bytes"


class Screen:
    """Keeps what a tail shows and says, and ends it after so many looks."""

    def __init__(
        self, broker: MemoryBroker, *, lease: float = 60.0, verifier: Verifier | None = None
    ) -> None:
        self.shown: list[JobEvent] = []
        self.sent: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.transport = MemoryTransport(broker)
        self.tail = Tail(
            transport=self.transport,
            watched=WATCHED,
            limits=Limits(lease=lease),
            verifier=verifier,
            show=self._show,
            say=self.said.append,
        )

    def _show(self, arrived: Arrived, sent: str) -> None:
        self.shown.append(arrived.event)
        self.sent.append(json.loads(sent))

    def look(self, times: int) -> None:
        left = iter(range(times))
        self.tail.run(lambda: next(left, None) is None)

    @property
    def ids(self) -> list[str]:
        return [event.task_id for event in self.shown]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def publish(broker: MemoryBroker, *parcels: Parcel) -> None:
    MemoryTransport(broker).publish(parcels)


def parcel(task_id: str, task_name: str = "shop.charge") -> Parcel:
    return parcel_of([make_event(JobFinished, task_id=task_id, task_name=task_name)])


def test_what_is_published_after_the_start_is_shown_as_it_was_sent(broker: MemoryBroker) -> None:
    screen = Screen(broker)
    publish(broker, parcel("before"))
    screen.tail.start()
    after = parcel("after")
    publish(broker, after)

    screen.look(2)

    assert screen.ids == ["after"]
    assert screen.sent == as_json(after)
    assert screen.said == []
    assert screen.transport.is_closed


def test_only_tasks_and_types_that_are_watched_are_shown(broker: MemoryBroker) -> None:
    screen = Screen(broker)
    screen.tail.start()
    failed = make_event(JobFailed, task_id="failed", task_name="shop.refund")
    publish(broker, parcel("other", "billing.charge"), parcel_of([failed]), parcel("one"))

    screen.look(3)

    assert screen.ids == ["failed", "one"]


def test_no_group_misses_what_is_watched(broker: MemoryBroker) -> None:
    pager = Group(name="pager", event_types=("JobFinished",))
    MemoryTransport(broker).declare(pager)
    screen = Screen(broker)
    screen.tail.start()
    publish(broker, parcel("one"))

    screen.look(1)

    assert screen.ids == ["one"]
    assert len(broker.waiting["pager"]) == 1


@pytest.mark.parametrize(
    "body", [b"no JSON", b"[" * 100_000, b'[{"id": "1"}]'], ids=["text", "depth", "nothing"]
)
def test_what_cannot_be_read_is_said_and_the_next_is_shown(
    broker: MemoryBroker, body: bytes
) -> None:
    screen = Screen(broker)
    screen.tail.start()
    publish(broker, with_body(parcel("one"), body), parcel("two"))

    screen.look(2)

    assert screen.ids == ["two"]
    assert screen.said[0].startswith("1 parcels have something in them that isn't shown, the last")


@pytest.mark.parametrize("depth", range(940, 1000, 5))
def test_nothing_that_is_nested_too_deeply_ends_it(broker: MemoryBroker, depth: int) -> None:
    screen = Screen(broker)
    screen.tail.start()
    nested = b'[{"x": ' + b"[" * depth + b"]" * depth + b","
    odd = parcel("one")
    publish(broker, with_body(odd, odd.body.replace(b"[{", nested, 1)), parcel("two"))

    screen.look(2)

    assert screen.ids[-1] == "two"
    assert len(screen.shown) + len(screen.said) == 2


def test_what_a_stranger_floods_is_said_once_in_a_while(broker: MemoryBroker) -> None:
    screen = Screen(broker)
    screen.tail.start()
    publish(broker, *[with_body(parcel("one"), b"{}") for _ in range(20)])

    screen.look(20)

    assert len(screen.said) == 1


def test_what_the_transport_refuses_is_not_opened(broker: MemoryBroker) -> None:
    screen = Screen(broker)
    screen.tail.start()
    broker.show(parcel("one"), refusal="it is compressed")

    screen.look(1)

    assert screen.ids == []
    assert screen.said[0].endswith("it is compressed")


def test_with_a_key_only_what_is_signed_with_it_is_shown(broker: MemoryBroker) -> None:
    screen = Screen(broker, verifier=Verifier(KEY, max_age=60.0))
    screen.tail.start()
    forged = Signer(b"another key of sixteen bytes").sign(parcel("forged"))
    publish(broker, parcel("unsigned"), forged, Signer(KEY).sign(parcel("signed")))

    screen.look(3)

    assert screen.ids == ["signed"]
    assert "is not signed" in screen.said[0]


def test_a_broker_that_cannot_be_reached_at_the_start_is_an_error(broker: MemoryBroker) -> None:
    broker.is_away = True
    screen = Screen(broker)

    with pytest.raises(RelayError, match="It is away"):
        screen.tail.start()
    assert screen.transport.is_closed


def test_a_broker_that_goes_away_is_said_once_and_read_when_it_is_back(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_broadcast.relay.tail.seconds_after", lambda _: 0.0)
    screen = Screen(broker)
    screen.tail.start()
    outcomes = iter([True, True, False])

    def fail(_what: str) -> None:
        broker.is_away = next(outcomes, False)

    screen.transport.before = fail
    publish(broker, parcel("one"))

    screen.look(7)  # each pause asks, too

    assert screen.ids == ["one"]
    assert [line[:22] for line in screen.said] == [
        "Can't read from the br",
        "Reads from the broker ",
    ]


def test_a_pause_ends_as_soon_as_it_is_asked_to(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_broadcast.relay.tail.seconds_after", lambda _: 3600.0)
    broker.is_away = True

    screen = Screen(broker)
    screen.look(1)

    assert len(screen.said) == 1


def test_what_was_passed_over_is_said(broker: MemoryBroker) -> None:
    screen = Screen(broker, lease=0.0)
    screen.tail.start()
    writer = make_writer()

    first, _, _, last = (only(writer.parcels([event])) for event in numbered(4))
    publish(broker, first, last)

    screen.look(3)

    assert len(screen.shown) == 2
    assert "2 events, the last of them JobFinished of" in screen.said[0]
