from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.relay import signing
from celery_broadcast.relay.signing import Signer, Verifier
from celery_broadcast.relay.transport import Parcel

KEY = "a key of 16 bytes"
OTHER = b"another of 16 bytes"
PARCEL = Parcel(event_type="JobFailed", task_name="shop.charge", body=b"[{}]")
NOW = 1_763_842_052.5
WEEK = 7 * 86_400.0


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(KEY, clock)


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    return Verifier(KEY, WEEK, clock)


def test_a_signed_parcel_is_opened(signer: Signer, verifier: Verifier) -> None:
    signed = signer.sign(PARCEL)

    assert msgspec.structs.replace(signed, signature="") == PARCEL
    assert verifier.refusal(signed) == ""


def test_a_signature_says_its_version_and_when_it_was_made(signer: Signer) -> None:
    version, time, nonce, mac = signer.sign(PARCEL).signature.split(";")

    assert (version, time) == ("v1", "t=1763842052")
    assert (len(nonce), len(mac)) == (2 + 32, 64)


def test_no_two_signatures_are_the_same(signer: Signer) -> None:
    assert len({signer.sign(PARCEL).signature for _ in range(100)}) == 100


def test_an_unsigned_parcel_is_refused(verifier: Verifier) -> None:
    assert "not signed" in verifier.refusal(PARCEL)


@pytest.mark.parametrize(
    "change",
    [
        {"event_type": "JobFinished"},
        {"task_name": "shop.refund"},
        {"body": b"[{} ]"},
        {"body": b""},
        {"event_type": "JobFailedshop", "task_name": ".charge"},
        {"event_type": "JobFailed11:shop.charge", "task_name": ""},
    ],
    ids=str,
)
def test_a_parcel_that_was_changed_is_refused(
    change: dict[str, Any], signer: Signer, verifier: Verifier
) -> None:
    changed = msgspec.structs.replace(signer.sign(PARCEL), **change)

    assert "not by broadcast_relay_key" in verifier.refusal(changed)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_signature_in_which_anything_was_changed_is_refused(
    part: int, signer: Signer, verifier: Verifier
) -> None:
    signed = signer.sign(PARCEL)
    parts = signed.signature.split(";")
    digit = "1" if parts[part][-1] == "0" else "0"
    parts[part] = parts[part][:-1] + digit

    forged = msgspec.structs.replace(signed, signature=";".join(parts))

    assert "not by broadcast_relay_key" in verifier.refusal(forged)


def test_a_parcel_signed_with_another_key_is_refused(verifier: Verifier) -> None:
    assert "has another key" in verifier.refusal(Signer(OTHER).sign(PARCEL))


@pytest.mark.parametrize(
    "signature",
    [
        *("x", ";;;", "v1;t=1;n=2;3", "v1;t=x;n=2;3", "v1", "é" * 64, "v1;" * 1000, "\ud800"),
        "v2;t=1763842052;n=" + "0" * 32 + ";" + "0" * 64,
        "v1;t=²;n=" + "0" * 32 + ";" + "0" * 64,
        "v1;t=1;n=" + "0" * 31 + "x;" + "0" * 64,
        "v1;t=1;n=" + "0" * 32 + ";" + "0" * 62,
        "v1;t=;n=" + "0" * 32 + ";" + "0" * 64,
        "v1;t=" + "1" * 13 + ";n=" + "0" * 32 + ";" + "0" * 64,
    ],
    ids=ascii,
)
def test_what_is_no_signature_is_refused(signature: str, verifier: Verifier) -> None:
    parcel = msgspec.structs.replace(PARCEL, signature=signature)

    assert "no form that is known" in verifier.refusal(parcel)
    verifier.acknowledged(parcel)


@given(st.text(), st.text(), st.binary(), st.text())
def test_whatever_comes_is_refused_in_words(
    event_type: str, task_name: str, body: bytes, signature: str
) -> None:
    parcel = Parcel(event_type=event_type, task_name=task_name, body=body, signature=signature)

    assert Verifier(KEY, WEEK).refusal(parcel)


@given(st.text(), st.text(), st.binary())
def test_whatever_is_signed_is_opened(event_type: str, task_name: str, body: bytes) -> None:
    parcel = Parcel(event_type=event_type, task_name=task_name, body=body)

    assert Verifier(KEY, WEEK).refusal(Signer(KEY).sign(parcel)) == ""


# Sent again.


def test_a_parcel_that_was_acknowledged_is_refused_when_it_comes_again(
    signer: Signer, verifier: Verifier
) -> None:
    signed = signer.sign(PARCEL)
    assert verifier.refusal(signed) == ""
    verifier.acknowledged(signed)

    assert "acknowledged here before" in verifier.refusal(signed)
    assert verifier.refusal(signer.sign(PARCEL)) == ""


def test_a_parcel_that_was_not_acknowledged_passes_however_often_it_comes(
    signer: Signer, verifier: Verifier
) -> None:
    signed = signer.sign(PARCEL)

    assert [verifier.refusal(signed) for _ in range(10)] == [""] * 10


def test_a_parcel_that_was_acknowledged_is_known_whatever_the_case_of_its_letters(
    signer: Signer, verifier: Verifier
) -> None:
    signed = signer.sign(PARCEL)
    verifier.acknowledged(signed)
    version, signed_at, nonce, mac = signed.signature.split(";")

    respelled = f"{version};{signed_at};n={nonce[2:].upper()};{mac}"

    assert verifier.refusal(msgspec.structs.replace(signed, signature=respelled))


def test_a_signature_that_is_too_old_is_refused(
    signer: Signer, verifier: Verifier, clock: Clock
) -> None:
    signed = signer.sign(PARCEL)

    clock.now = NOW + WEEK + 299.0  # so far the clocks may be apart
    assert verifier.refusal(signed) == ""
    clock.now = NOW + WEEK + 301.0
    assert "was signed 605102 s ago, and at most 604800 s" in verifier.refusal(signed)


def test_a_clock_may_be_ahead_a_little(signer: Signer, verifier: Verifier, clock: Clock) -> None:
    signed = signer.sign(PARCEL)

    clock.now = NOW - 299.0
    assert verifier.refusal(signed) == ""
    clock.now = NOW - 302.0
    assert "ahead of now: the clocks differ" in verifier.refusal(signed)


def test_what_is_remembered_is_bounded(
    signer: Signer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "MOST_REMEMBERED", 2)
    parcels = [signer.sign(PARCEL) for _ in range(3)]

    for parcel in parcels:
        verifier.acknowledged(parcel)

    assert [bool(verifier.refusal(parcel)) for parcel in parcels] == [False, True, True]


# Keys.


def test_one_key_can_take_over_from_another() -> None:
    old, both, new = Signer(KEY), Signer([OTHER, KEY]), Signer(OTHER)
    verifier = Verifier([OTHER, KEY], WEEK)

    assert [verifier.refusal(each.sign(PARCEL)) for each in (old, both, new)] == ["", "", ""]
    assert Verifier(OTHER, WEEK).refusal(both.sign(PARCEL)) == ""
    assert Verifier(KEY, WEEK).refusal(both.sign(PARCEL)) != ""


def test_a_key_is_the_same_as_text_and_as_bytes() -> None:
    assert Verifier(KEY.encode(), WEEK).refusal(Signer(KEY).sign(PARCEL)) == ""


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "one of 0 bytes, which can be guessed"),
        ("hunter2", "one of 7 bytes, which can be guessed"),
        (b"x" * 15, "one of 15 bytes"),
        (None, "Got None"),
        (16, "Got a int"),
        ([], "an empty list"),
        ([KEY, "hunter2"], "one of 7 bytes"),
        ([KEY, None], "Got None"),
        ({KEY: 1}, "Got a dict"),
    ],
    ids=str,
)
def test_what_is_no_key_is_refused_and_not_shown(key: Any, words: str) -> None:
    for make in (Signer, lambda key: Verifier(key, WEEK)):
        with pytest.raises(ConfigurationError, match=words) as refused:
            make(key)
        assert "broadcast_relay_key" in str(refused.value)
        assert "hunter2" not in str(refused.value)
