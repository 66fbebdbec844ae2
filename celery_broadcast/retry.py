"""Trying a consumer's call again after an exception, as tenacity's strategies say."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.settings import check_seconds, is_whole, shown

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_USUAL_WAIT_SECONDS = 30.0
_JITTER_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 86_400.0  # more than that, and some clocks refuse to wait at all


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and after which exceptions a consumer's call is tried again.

    Attributes:
        attempts: tries in all, the first included; 2 or more.
        wait: seconds between two tries, from 0 to a day, or one of tenacity's
            wait strategies. None doubles from 0.5 s on, at most 30 s, with
            jitter.
        on: the exceptions after which it is tried again, those below them
            too; a tuple once the object is made.

    Raises:
        ConfigurationError: one of them is wrong.
    """

    attempts: int = 3
    wait: float | Callable[[tenacity.RetryCallState], float] | None = None
    on: type[Exception] | tuple[type[Exception], ...] = Exception
    _wait_is_broken: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Where it is missing, the declaration should say so, not the first failure.
        import tenacity  # noqa: F401, PLC0415  # a process that retries nothing needs none

        _check_attempts(self.attempts)
        _check_wait(self.wait)
        object.__setattr__(self, "on", _check_on(self.on))

    def call(
        self,
        function: Callable[[], T],
        *,
        pause: Callable[[float], object],
        say: Callable[[BaseException, float, int], None],
    ) -> T:
        """Call a function until it returns, and return what it does.

        Args:
            function: what to try.
            pause: waits so many seconds. What it raises ends the tries.
            say: is told the exception, the seconds until the next try and the
                number of this one, from 1 on, before each pause.

        Raises:
            BaseException: what the last try raised, itself. What `on` doesn't
                name comes through at once.
        """
        state: tenacity.RetryCallState | None = None
        started = time.monotonic()
        for number in range(1, self.attempts):
            try:
                return function()
            except self._exceptions as error:
                state = state or self._new_state(function, started)
                seconds = self._seconds_until_next(state, error)
                if seconds is None:
                    raise
                say(error, seconds, number)
            pause(seconds)  # outside, so that nothing keeps the exception meanwhile
        return function()

    async def call_async(
        self,
        function: Callable[[], Awaitable[T]],
        *,
        pause: Callable[[float], Awaitable[object]],
        say: Callable[[BaseException, float, int], None],
    ) -> T:
        """Await what a function returns until one comes to a result; else as `call`."""
        state: tenacity.RetryCallState | None = None
        started = time.monotonic()
        for number in range(1, self.attempts):
            try:
                return await function()
            except self._exceptions as error:
                state = state or self._new_state(function, started)
                seconds = self._seconds_until_next(state, error)
                if seconds is None:
                    raise
                say(error, seconds, number)
            await pause(seconds)
        return await function()

    @property
    def _exceptions(self) -> tuple[type[Exception], ...]:
        return self.on if isinstance(self.on, tuple) else (self.on,)

    def _new_state(self, function: Callable[[], object], started: float) -> tenacity.RetryCallState:
        """Return what a wait strategy is told, for the tries of one call."""
        import tenacity  # noqa: PLC0415  # as above

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=self._strategy(),
            retry=tenacity.retry_if_exception_type(self._exceptions),
            reraise=True,
        )
        state = tenacity.RetryCallState(tries, function, (), {})
        state.start_time = started
        return state

    def _strategy(self) -> Callable[[tenacity.RetryCallState], float]:
        import tenacity  # noqa: PLC0415  # as above

        if self.wait is None:
            doubling = tenacity.wait_exponential(
                multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_USUAL_WAIT_SECONDS - _JITTER_SECONDS
            )
            return doubling + tenacity.wait_random(0, _JITTER_SECONDS)
        return self.wait if callable(self.wait) else tenacity.wait_fixed(self.wait)

    def _seconds_until_next(self, state: tenacity.RetryCallState, error: Exception) -> float | None:
        """Return the seconds to wait after a failed try; None if the strategy has none."""
        state.set_exception((type(error), error, error.__traceback__))
        try:
            seconds = _check_seconds_to_wait(state.retry_object.wait(state))
        except Exception as wrong:  # noqa: BLE001  # theirs, and must not hide the first one
            self._say_wait_is_broken(wrong)
            return None
        finally:
            # Also forgets the exception, whose frames hold this state: a circle.
            state.prepare_for_next_attempt()
        state.upcoming_sleep = seconds
        state.idle_for += seconds
        return seconds

    def _say_wait_is_broken(self, wrong: Exception) -> None:
        if self._wait_is_broken:
            return
        object.__setattr__(self, "_wait_is_broken", True)  # a note, not a value: it stays frozen
        logger.error(
            "Retry(wait=%s) gave no seconds to wait; what failed is not tried again, now and "
            "whenever it does so. This is said once\n%s",
            shown(self.wait),
            # Text: a log that keeps its records would keep what failed with it.
            "".join(traceback.format_exception(wrong, chain=False)).rstrip(),
        )


def _check_seconds_to_wait(answer: object) -> float:
    """Return what a strategy answered, as seconds; what is longer than a day is a day.

    Raises:
        ValueError: it is negative, infinite or not a number.
        TypeError: it is something else.
    """
    seconds = float(answer)  # type: ignore[arg-type]  # whatever it is
    if not 0.0 <= seconds < math.inf:
        msg = f"a wait can't be {seconds} seconds"
        raise ValueError(msg)
    return min(seconds, _LONGEST_WAIT_SECONDS)


def _check_attempts(attempts: object) -> None:
    if is_whole(attempts, 1):
        if attempts > 1:
            return
        if attempts == 1:
            msg = (
                "Retry(attempts=1) would try nothing again, since the first try counts. "
                "Write 2 or more, or leave the Retry out."
            )
            raise ConfigurationError(msg)
    msg = (
        f"Retry(attempts={shown(attempts)}) can't be. Write how many tries there are in all, "
        "a whole number of 2 or more, such as Retry(attempts=3)."
    )
    raise ConfigurationError(msg)


def _check_wait(wait: object) -> None:
    if isinstance(wait, type):
        msg = (
            f"Retry(wait={wait.__name__}) is a class. Write one of its strategies: "
            f"wait={wait.__name__}(...)."
        )
        raise ConfigurationError(msg)
    if wait is None or callable(wait):
        return
    try:
        check_seconds("wait", wait)
    except ConfigurationError:
        msg = (
            f"Retry(wait={shown(wait)}) is no time to wait. Write seconds of 0 or more (at most a "
            "day), one of tenacity's wait strategies, or None for growing waits."
        )
        raise ConfigurationError(msg) from None


def _check_on(on: object) -> tuple[type[Exception], ...]:
    exceptions = on if isinstance(on, tuple) else (on,)
    for exception in exceptions:
        if not (isinstance(exception, type) and issubclass(exception, Exception)):
            msg = (
                f"Retry(on={shown(on)}) must be an exception class below Exception or a tuple of "
                "such, such as Retry(on=ConnectionError) or on=(ConnectionError, TimeoutError)."
            )
            raise ConfigurationError(msg)
    if not exceptions:
        msg = "Retry(on=()) would try nothing again. Name an exception, or leave the Retry out."
        raise ConfigurationError(msg)
    return exceptions
