from __future__ import annotations

import threading
import time

import pytest

from celery_broadcast.waiting import undisturbed, wait_until_set


class Struck(threading.Event):
    """Is struck by an exception when somebody waits for it, and is set meanwhile."""

    def __init__(self, strike: BaseException) -> None:
        super().__init__()
        self._strike: BaseException | None = strike

    def wait(self, timeout: float | None = None) -> bool:
        if self._strike is not None:
            strike, self._strike = self._strike, None
            raise strike
        self.set()
        return super().wait(timeout)


def soon() -> float:
    return time.monotonic() + 10.0


def test_what_is_set_already_is_not_waited_for() -> None:
    event = threading.Event()
    event.set()

    assert wait_until_set(event, deadline=time.monotonic() - 1.0)


def test_the_deadline_ends_the_waiting() -> None:
    assert not wait_until_set(threading.Event(), deadline=time.monotonic() - 1.0)


@pytest.mark.parametrize("strike", [TimeoutError, KeyboardInterrupt, SystemExit])
def test_what_strikes_ends_the_waiting(strike: type[BaseException]) -> None:
    with pytest.raises(strike):
        wait_until_set(Struck(strike()), soon())


def test_an_exception_does_not_end_the_waiting_of_a_process_that_ends() -> None:
    with undisturbed():
        assert wait_until_set(Struck(RuntimeError("a soft time limit")), soon())

    with pytest.raises(RuntimeError):
        wait_until_set(Struck(RuntimeError("a soft time limit")), soon())


@pytest.mark.parametrize("strike", [KeyboardInterrupt, SystemExit])
def test_an_exit_ends_every_waiting(strike: type[BaseException]) -> None:
    with undisturbed(), pytest.raises(strike):
        wait_until_set(Struck(strike()), soon())
