from __future__ import annotations

import math
from typing import Any

import pytest

from celery_broadcast.batch import Batch
from celery_broadcast.errors import ConfigurationError


def test_a_batch_holds_a_hundred_events_and_waits_a_second_unless_told_otherwise() -> None:
    assert (Batch().max_events, Batch().max_wait) == (100, 1.0)


@pytest.mark.parametrize("max_events", [1, 10_000])
@pytest.mark.parametrize("max_wait", [0, 0.25, 86_400])
def test_a_batch_is_what_was_asked_for(max_events: int, max_wait: float) -> None:
    batch = Batch(max_events=max_events, max_wait=max_wait)

    assert (batch.max_events, batch.max_wait) == (max_events, max_wait)


def test_a_batch_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Batch().max_events = 5  # type: ignore[misc]


@pytest.mark.parametrize("max_events", [0, -1, True, 2.0, "5", None])
def test_a_call_gets_a_whole_number_of_events(max_events: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Batch(max_events=max_events)

    assert str(caught.value).startswith(f"Batch(max_events={max_events!r}) can't be")
    assert "such as Batch(max_events=100)" in str(caught.value)


@pytest.mark.parametrize("max_wait", [-0.1, math.nan, math.inf, 86_401, True, "1s", None])
def test_the_wait_is_a_time_of_at_most_a_day(max_wait: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Batch(max_wait=max_wait)

    assert str(caught.value).startswith("The max_wait of a Batch must be a number of seconds")
    assert repr(max_wait) in str(caught.value)
