"""What whoever gave an event away is told of it, wherever its fate is decided."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from crews import new_crew, run_out, working
from nodes.deadline import wait_until
from recorder import HeldRecorder, StuckConsumer, numbered

from celery_broadcast import Batch, Event, Restart, Retry
from celery_broadcast.counts import DRAIN_TIMEOUT
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery
from celery_broadcast.events import JobEvent
from celery_broadcast.receipt import Receipt


class Fates:
    """Makes deliveries, and keeps what their receipts were told."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[str, BaseException | None]]] = {}

    def deliveries(self, events: Iterable[JobEvent]) -> list[Delivery]:
        return [Delivery(event, receipt=self._receipt(event.task_id)) for event in events]

    def _receipt(self, task_id: str) -> Receipt:
        told = self.told.setdefault(task_id, [])
        return Receipt(lambda outcome, error: told.append((outcome, error)))

    @property
    def outcomes(self) -> dict[str, list[str]]:
        return {task_id: [outcome for outcome, _ in told] for task_id, told in self.told.items()}


def fates_of(consumer: Any, count: int, **options: Any) -> Fates:
    """Have a consumer handle so many events, and return what their receipts were told."""
    fates = Fates()
    with working(consumer, **options) as crew:
        crew.accept(fates.deliveries(numbered(count)))
        run_out(crew)
    return fates


def ignore(event: Any) -> None:
    """Handle an event, or several."""


async def ignore_later(event: Any) -> None:
    await asyncio.sleep(0)


def raise_on_1(event: JobEvent) -> None:
    if event.task_id == "1":
        raise ValueError("theirs")


async def raise_on_1_later(event: JobEvent) -> None:
    raise_on_1(event)


def exit_on_1(event: JobEvent) -> None:
    if event.task_id == "1":
        raise SystemExit(3)


def test_a_receipt_is_told_once_only() -> None:
    told: list[str] = []
    receipt = Receipt(lambda outcome, _error: told.append(outcome))

    assert not receipt.is_settled
    receipt.settle("dropped")
    receipt.settle("handled")

    assert told == ["dropped"]
    assert receipt.is_settled


@pytest.mark.parametrize("consumer", [ignore, ignore_later])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": Batch(max_events=2, max_wait=0.0)},
        {"concurrency": 2},
        {"partition_by": lambda event: int(event.task_id) % 2, "concurrency": 2},
        {"retry": Retry(attempts=2, wait=0.0)},
        {"rate_limit": 10_000.0},
        {"stuck_after": 60.0},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_what_was_handled_is_said_to_be(consumer: Any, options: dict[str, Any]) -> None:
    fates = fates_of(consumer, 5, **options)

    assert fates.outcomes == {str(number): ["handled"] for number in range(5)}


@pytest.mark.parametrize("consumer", [raise_on_1, raise_on_1_later])
@pytest.mark.parametrize("options", [{}, {"retry": Retry(attempts=2, wait=0.0)}])
def test_what_the_consumer_raised_on_is_told_with_the_error(
    consumer: Any, options: dict[str, Any]
) -> None:
    fates = fates_of(consumer, 3, **options)

    assert fates.outcomes == {"0": ["handled"], "1": ["failed"], "2": ["handled"]}
    assert repr(fates.told["1"][0][1]) == "ValueError('theirs')"


def test_all_of_a_batch_fail_together() -> None:
    def raises(events: list[Event]) -> None:
        raise ValueError(len(events))

    fates = fates_of(raises, 3, batch=Batch(max_events=3, max_wait=60.0))

    assert fates.outcomes == {"0": ["failed"], "1": ["failed"], "2": ["failed"]}


@pytest.mark.parametrize("options", [{}, {"batch": Batch(max_events=2, max_wait=0.0)}])
def test_what_the_selector_turns_away_is_declined(options: dict[str, Any]) -> None:
    fates = fates_of(ignore, 3, selector=lambda event: event.task_id != "1", **options)

    assert fates.outcomes == {"0": ["handled"], "1": ["declined"], "2": ["handled"]}


def test_what_selector_and_key_raise_on_has_failed() -> None:
    def raises(event: Event) -> bool:
        raise ValueError

    assert fates_of(ignore, 1, selector=raises).outcomes == {"0": ["failed"]}
    assert fates_of(ignore, 1, partition_by=raises, concurrency=2).outcomes == {"0": ["failed"]}


def test_a_crash_fails_one_event_and_the_next_life_has_the_others() -> None:
    fates = fates_of(exit_on_1, 3)

    assert fates.outcomes == {"0": ["handled"], "1": ["failed"], "2": ["handled"]}


def test_an_exit_on_purpose_has_handled_its_event_and_drops_the_others() -> None:
    def leave(event: Event) -> None:
        raise SystemExit

    fates = fates_of(leave, 2, restart=Restart("transient"))

    assert fates.outcomes == {"0": ["handled"], "1": ["dropped"]}


def test_who_gives_up_drops_what_waits() -> None:
    fates = fates_of(exit_on_1, 4, restart=Restart("temporary"))

    assert fates.outcomes == {
        "0": ["handled"],
        "1": ["failed"],
        "2": ["dropped"],
        "3": ["dropped"],
    }


def test_what_comes_after_the_end_is_dropped() -> None:
    fates = Fates()
    crew = new_crew(ignore)
    crew.stop()

    crew.accept(fates.deliveries(numbered(2)))

    assert fates.outcomes == {"0": ["dropped"], "1": ["dropped"]}


def test_a_cancel_drops_what_waits_and_not_what_is_in_hand() -> None:
    held, fates = HeldRecorder(), Fates()
    with working(held.handle) as crew:
        crew.accept(fates.deliveries(numbered(3)))
        held.held.wait(10.0)
        crew.cancel()
        assert fates.outcomes == {"0": [], "1": ["dropped"], "2": ["dropped"]}
        held.freed.set()
        crew.finish(time.monotonic() + 10.0)

    assert fates.outcomes["0"] == ["handled"]


def test_a_cancel_drops_what_waits_behind_a_key() -> None:
    held, fates = HeldRecorder(), Fates()
    with working(held.handle, partition_by=lambda _: "one", concurrency=2) as crew:
        crew.accept(fates.deliveries(numbered(2)))
        held.held.wait(10.0)
        wait_until(lambda: not crew.mailbox._waiting)  # the other thread puts it aside
        crew.cancel()
        assert fates.outcomes == {"0": [], "1": ["dropped"]}
        held.freed.set()


def test_who_is_stuck_at_the_drain_drops_what_is_in_hand_too_and_once() -> None:
    stuck, fates = StuckConsumer(), Fates()
    with working(stuck.handle) as crew:
        crew.accept(fates.deliveries(numbered(2)))
        stuck.stuck.wait(10.0)
        crew.stop()
        assert crew.abandon(DRAIN_TIMEOUT) == 2
        assert fates.outcomes == {"0": ["dropped"], "1": ["dropped"]}
        stuck.freed.set()
        crew.finish(time.monotonic() + 10.0)

    assert fates.outcomes == {"0": ["dropped"], "1": ["dropped"]}


def test_coroutines_cut_off_drop_what_is_in_flight() -> None:
    began = threading.Event()

    async def hang(_event: Event) -> None:
        began.set()
        await asyncio.sleep(60.0)

    fates = Fates()
    with working(hang, concurrency=2) as crew:
        crew.accept(fates.deliveries(numbered(3)))
        began.wait(10.0)
        crew.abandon(DRAIN_TIMEOUT)
        crew.finish(time.monotonic() + 10.0)

    assert set(fates.outcomes) == {"0", "1", "2"}
    assert all(outcomes == ["dropped"] for outcomes in fates.outcomes.values())


def test_what_waits_for_the_rate_limit_at_the_end_is_dropped_not_handled() -> None:
    fates = Fates()
    crew: Crew
    with working(ignore, rate_limit=0.01) as crew:
        crew.accept(fates.deliveries(numbered(2)))
        wait_until(lambda: fates.outcomes["0"] == ["handled"])
        crew.cancel()
        crew.finish(time.monotonic() + 10.0)

    assert fates.outcomes == {"0": ["handled"], "1": ["dropped"]}
