"""Parcels and dead letters as an entry's fields, whoever wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.relay.redis_entries import (
    KEPT_BYTES,
    fields_of,
    fields_of_letter,
    letter_of,
    parcel_of,
    task_of,
)
from celery_broadcast.relay.transport import DeadLetter, Parcel

PARCEL = Parcel(event_type="JobFailed", task_name="shop.zahlung.ä", body=b"[]", signature="s")
LETTER = DeadLetter(parcel=PARCEL, reason="raised", error="ö", deliveries=3, put_aside_at=1.5)


def as_sent(fields: list[str | bytes]) -> list[bytes]:
    return [field.encode() if isinstance(field, str) else field for field in fields]


def test_a_parcel_comes_back_as_it_was() -> None:
    fields = as_sent(fields_of(PARCEL))

    assert parcel_of(fields, "JobFailed", 1000) == parcel_of(fields, None, 1000) == (PARCEL, "")
    assert task_of(fields) == PARCEL.task_name


def test_a_letter_comes_back_as_it_was() -> None:
    assert letter_of(as_sent(fields_of_letter(LETTER)), "", 1000) == LETTER


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ([], "no field 'type'"),
        ([b"type", b"JobFailed", b"task", b"t"], "no field 'body'"),
        ([*as_sent(fields_of(PARCEL)), b"body", b"[]"], "twice"),
        ([*as_sent(fields_of(PARCEL)), b"\xff", b""], "doesn't know"),
        ([b"type", b"JobFailed", b"task", b"t" * 5000, b"body", b"[]"], "5000 bytes"),
    ],
)
def test_what_is_no_parcel_is_refused(fields: list[bytes], refusal: str) -> None:
    assert refusal in parcel_of(fields, "JobFailed", 1000)[1]


def test_of_a_body_that_is_too_big_the_beginning_is_kept() -> None:
    fields = [b"type", b"JobFailed", b"task", b"t", b"body", b"x" * 100_000]

    parcel, refusal = parcel_of(fields, "JobFailed", 99_999)

    assert parcel == Parcel(event_type="JobFailed", task_name="", body=b"x" * KEPT_BYTES)
    assert "100000 bytes" in refusal


@given(st.lists(st.binary(max_size=20)), st.sampled_from([None, "JobFailed"]))
def test_nothing_that_anybody_can_write_raises(fields: list[bytes], event_type: str | None) -> None:
    parcel_of(fields, event_type, 10)
    letter_of(fields, "1-0", 10)
    task_of(fields)


@pytest.mark.parametrize("number", [b"nan", b"inf", b"-1", b"1e999", b"1e12", b"x", b"\xff"])
def test_a_letter_with_a_number_that_is_none_can_be_read(number: bytes) -> None:
    fields = [b"deliveries", number, b"put_aside_at", number]

    letter = letter_of(fields, "1-0", 1000)

    assert (letter.deliveries, letter.put_aside_at, letter.reason) == (0, 0.0, "refused")
