from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parcels import Endless, Unshowable, json_values, odd_values

from celery_broadcast.relay.payload import (
    MOST_CHARACTERS,
    MOST_JSON,
    MOST_VALUES,
    converter,
    cut,
    encodable,
    items_of,
    pairs_of,
    text_of,
)


class Money:
    """What JSON doesn't know."""

    def __repr__(self) -> str:
        return "Money(7)"


class Counting:
    """Counts how many of it are shown."""

    shown = 0

    def __repr__(self) -> str:
        Counting.shown += 1
        return "x"


class Word(str):
    """A text that isn't one of Python's own."""

    __slots__ = ()


# Text.


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 7, 1.5, "text", b"bytes", (), (1,), [], {}, {"a": [1, {"b": (2, "c")}]}),
        *({1}, frozenset(), Money(), object, collections.OrderedDict(a=1), [Money(), "x"]),
        *({1: 2}, [[[[1]]]], "it's", "\udc80", -(2**70), list(range(50))),
    ],
    ids=repr,
)
def test_a_short_value_is_shown_as_it_shows_itself(value: object) -> None:
    assert text_of(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    ["x" * 2000, b"x" * 2000, "\x00" * 1000, ["x" * 500] * 5, {"k" * 2000: 1}, list(range(5000))],
    ids=lambda value: type(value).__name__,
)
def test_a_long_value_is_cut(value: object) -> None:
    assert len(text_of(value)) <= MOST_CHARACTERS
    assert "..." in text_of(value)
    assert text_of(value)[:20] == repr(value)[:20]


def test_a_whole_number_of_too_many_digits_is_not_written_out() -> None:
    assert text_of(10**5000) == "<int of 16610 bits>"
    assert text_of([10**5000]) == "[<int of 16610 bits>]"


def test_a_value_that_can_not_be_shown_is_named() -> None:
    assert text_of(Unshowable()) == "<Unshowable: its repr() raised LookupError>"
    assert text_of([1, Unshowable()]) == "<list: its repr() raised LookupError>"
    assert text_of(Endless()) == "<Endless: its repr() raised RecursionError>"


def test_a_value_within_itself_is_shown() -> None:
    value: list[Any] = [1]
    value.append(value)

    assert text_of(value).startswith("[1, [1, [1, ")


def test_no_more_is_shown_of_a_value_than_there_is_room_for() -> None:
    Counting.shown = 0

    text_of([[[[Counting()] * 60] * 60] * 60] * 60)

    assert Counting.shown <= MOST_CHARACTERS


@given(odd_values)
def test_anything_can_be_shown_in_a_bounded_length(value: object) -> None:
    assert len(text_of(value)) <= MOST_CHARACTERS


def test_a_text_is_cut_to_a_length_with_what_says_so() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc..."


@given(st.text())
def test_any_text_can_be_made_one_that_utf_8_can_say(text: str) -> None:
    assert encodable(text).encode().decode() == encodable(text)


def test_a_lone_surrogate_is_shown_by_its_number() -> None:
    assert encodable("a\udc80é") == "a\\udc80é"


# The containers.


def test_arguments_stay_one_by_one() -> None:
    assert items_of((1, "two", Money()), text_of) == ("1", "'two'", "Money(7)")
    assert items_of([1], text_of) == ("1",)
    assert pairs_of({"a": 1, "b": "two"}, text_of) == {"a": "1", "b": "'two'"}


def test_of_many_arguments_the_last_says_how_many_more_there_were() -> None:
    many = range(MOST_VALUES + 5)

    items = items_of(list(many), text_of)
    pairs = pairs_of({str(number): number for number in many}, text_of)

    assert (len(items), items[-1]) == (MOST_VALUES + 1, "... 5 more")
    assert (len(pairs), pairs["..."]) == (MOST_VALUES + 1, "5 more")
    assert len(items_of(range(MOST_VALUES), text_of)) == MOST_VALUES
    assert len(pairs_of(dict.fromkeys(range(MOST_VALUES)), text_of)) == MOST_VALUES


@pytest.mark.parametrize("value", [7, "***", b"***", Unshowable(), object], ids=type)
def test_arguments_that_are_none_are_shown_as_one(value: object) -> None:
    assert items_of(value, text_of) == (text_of(value),)
    assert pairs_of(value, text_of) == {"...": text_of(value)}


def test_a_key_is_a_text_of_bounded_length() -> None:
    assert pairs_of({7: 1, "k" * 2000: 2}, text_of) == {"7": "1", f"{'k' * 1021}...": "2"}


# JSON.


@given(st.lists(json_values))
def test_values_that_are_json_travel_as_they_are(values: list[Any]) -> None:
    assert list(items_of(values, converter("json"))) == values


def test_what_travels_is_a_copy() -> None:
    value: list[Any] = [{"a": [1]}]

    (copy,) = items_of((value,), converter("json"))
    value[0]["a"].append(2)

    assert copy == [{"a": [1]}]


@pytest.mark.parametrize(
    "value",
    [
        *(Money(), b"bytes", {1}, {1: 2}, 2**63, -(2**63) - 1, float("nan"), float("inf")),
        *([1, [Money()]], {"a": Money()}, Word("x"), collections.OrderedDict()),
    ],
    ids=repr,
)
def test_a_value_that_is_no_json_travels_as_text_and_its_neighbours_as_they_are(
    value: object,
) -> None:
    assert items_of((1, value, "x"), converter("json")) == (1, text_of(value), "x")


def test_a_tuple_travels_as_an_array() -> None:
    assert converter("json")((1, (2,))) == [1, [2]]


def test_what_is_too_deep_for_json_travels_as_text() -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value]

    assert converter("json")(value) == text_of(value)


def test_what_is_too_long_for_json_travels_as_text_and_what_fits_does_not() -> None:
    long, short = "x" * MOST_JSON, ["x" * 1000]

    shown = items_of((short, long, short), converter("json"))

    assert shown == (short, text_of(long), short)


def test_all_values_of_a_field_share_what_it_may_be_long() -> None:
    half = "x" * (MOST_JSON // 2)

    shown = items_of((half, half, "short"), converter("json"))

    assert shown == (half, text_of(half), "short")
