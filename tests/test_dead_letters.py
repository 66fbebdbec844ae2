"""What a group has put aside, and how it gets it again."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from memory_transport import MemoryBroker, MemoryTransport
from parcels import parcel_of
from recorder import numbered

from celery_broadcast.relay.dead_letters import DeadLetters, shown, without_failures
from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.transport import DeadLetter, Group, Limits, Parcel
from celery_broadcast.relay.wire import failed_again, read

GROUP = Group(name="pager", event_types=("JobFinished",))
KEY = "a key of thirty-two characters.."


def failed_parcel(task_id: int = 0) -> Parcel:
    parcel = parcel_of(numbered(task_id + 1)[task_id:])
    (arrived,) = read(parcel, Limits()).arrived
    return failed_again(parcel, arrived, "ValueError: theirs")


def letter_of(parcel: Parcel, reason: str = "raised", put_aside_at: float = 0.0) -> DeadLetter:
    return DeadLetter(
        parcel=parcel,
        reason=reason,
        error="ValueError: theirs",
        deliveries=5,
        put_aside_at=put_aside_at,
    )


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def with_letters(broker: MemoryBroker, *letters: DeadLetter, key: str = "") -> DeadLetters:
    transport = MemoryTransport(broker)
    transport.put_aside(GROUP, letters)
    if not key:
        return DeadLetters(transport, GROUP)
    return DeadLetters(transport, GROUP, Signer(key), Verifier(key, max_age=float("inf")))


def test_what_is_replayed_has_never_failed_and_is_gone_from_the_dead_letters(
    broker: MemoryBroker,
) -> None:
    letters = with_letters(broker, letter_of(failed_parcel()))

    assert letters.replay(letters.oldest(10)) == 1

    (entry,) = broker.waiting["pager"]
    (arrived,) = read(entry.parcel, Limits()).arrived
    assert (arrived.failures, arrived.error) == (0, "")
    assert arrived.event_id == "producer:1"
    assert letters.oldest(10) == []


def test_what_is_replayed_is_signed_anew(broker: MemoryBroker) -> None:
    letters = with_letters(broker, letter_of(Signer(KEY).sign(failed_parcel())), key=KEY)

    letters.replay(letters.oldest(10))

    (entry,) = broker.waiting["pager"]
    (arrived,) = read(entry.parcel, Limits()).arrived
    assert arrived.failures == 0
    assert Verifier(KEY, max_age=60.0).refusal(entry.parcel) == ""


@pytest.mark.parametrize("reason", ["refused", "raised", "killed"])
@pytest.mark.parametrize("key", ["", "another key of many characters"])
def test_nobody_gets_a_forged_parcel_signed_by_way_of_a_dead_letter(
    broker: MemoryBroker, reason: str, key: str
) -> None:
    forged = Signer(key).sign(failed_parcel()) if key else failed_parcel()
    letters = with_letters(broker, letter_of(forged, reason), key=KEY)

    letters.replay(letters.oldest(10))

    (entry,) = broker.waiting["pager"]
    assert Verifier(KEY, max_age=60.0).refusal(entry.parcel)


def test_what_was_signed_and_refused_for_another_reason_is_signed_anew(
    broker: MemoryBroker,
) -> None:
    long_ago = Signer(KEY, clock=lambda: time.time() - 1e6).sign(failed_parcel())
    letters = with_letters(broker, letter_of(long_ago, "refused"), key=KEY)

    letters.replay(letters.oldest(10))

    (entry,) = broker.waiting["pager"]
    assert Verifier(KEY, max_age=60.0).refusal(entry.parcel) == ""


def test_what_cannot_be_read_is_replayed_as_it_is() -> None:
    rubbish = Parcel(event_type="JobFailed", task_name="a", body=b"\x80rubbish")

    assert without_failures(rubbish) == rubbish


def test_all_that_are_there_now_are_given_and_none_that_come_meanwhile(
    broker: MemoryBroker,
) -> None:
    letters = with_letters(broker, *[letter_of(failed_parcel(number)) for number in range(3)])
    given = []

    for some in letters.all_so_far():
        given += some
        letters.purge(some)
        later = letter_of(failed_parcel(), put_aside_at=time.time() + 60.0)
        letters._transport.put_aside(GROUP, [later])

    assert len(given) == 3
    assert len(letters.oldest(10)) == 1


def test_letters_that_cannot_be_removed_are_not_given_for_ever(broker: MemoryBroker) -> None:
    letters = with_letters(broker, letter_of(failed_parcel()))

    assert len(list(letters.all_so_far())) == 1


def test_letters_are_found_by_their_ids(broker: MemoryBroker) -> None:
    letters = with_letters(broker, *[letter_of(failed_parcel(number)) for number in range(120)])
    last = broker.letters["pager"][-1]

    assert letters.with_ids([last.letter_id, "none"]) == [last]


def test_a_letter_is_shown_as_json_whatever_is_in_it() -> None:
    readable = shown(letter_of(failed_parcel()))
    rubbish = shown(letter_of(Parcel(event_type="", task_name="", body=b"\x80rubbish")))

    assert readable["events"][0]["taskid"] == "0"
    assert readable["put_aside_at"] == "1970-01-01T00:00:00+00:00"
    assert (rubbish["events"], rubbish["body"]) == (None, "\\x80rubbish")
    assert msgspec.json.encode([readable, rubbish])


@pytest.mark.parametrize("put_aside_at", [1e14, float("nan"), float("inf"), -1.0])
def test_a_letter_with_a_time_that_is_none_is_shown_and_purged(
    broker: MemoryBroker, put_aside_at: float
) -> None:
    letters = with_letters(broker, letter_of(failed_parcel(), put_aside_at=put_aside_at))

    assert shown(*letters.oldest(10))["put_aside_at"] == "unknown"
    assert sum(letters.purge(some) for some in letters.all_so_far()) == 1


@pytest.mark.parametrize("depth", [100, 300, 900, 5000])
def test_a_letter_that_is_nested_deeply_is_shown(depth: int) -> None:
    body = b'[{"id":' + b"[" * depth + b"]" * depth + b"}]"
    parcel = Parcel(event_type="JobFailed", task_name="a", body=body)

    assert json.loads(json.dumps(shown(letter_of(parcel)), indent=2))["body"] == body.decode()
