from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import tenacity

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.retry import Retry


class Failing:
    """A function that raises what it is given, one after the other, and then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


class Heard:
    """What a retry said and for how long it paused, without any pause."""

    def __init__(self) -> None:
        self.said: list[tuple[str, float, int]] = []
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def say(self, error: BaseException, seconds: float, number: int) -> None:
        self.said.append((repr(error), seconds, number))


def call_plainly(retry: Retry, function: Callable[[], str], heard: Heard) -> str:
    return retry.call(function, pause=heard.pause, say=heard.say)


def call_in_a_loop(retry: Retry, function: Callable[[], str], heard: Heard) -> str:
    async def try_it() -> str:
        return function()

    async def pause(seconds: float) -> None:
        heard.pause(seconds)

    return asyncio.run(retry.call_async(try_it, pause=pause, say=heard.say))


Call = Callable[[Retry, Callable[[], str], Heard], str]


@pytest.fixture(params=[call_plainly, call_in_a_loop], ids=["call", "call_async"])
def call(request: pytest.FixtureRequest) -> Call:
    chosen: Call = request.param
    return chosen


def test_a_call_that_succeeds_is_made_once(call: Call) -> None:
    function, heard = Failing(), Heard()

    assert call(Retry(), function, heard) == "done"

    assert function.tries == 1
    assert heard.said == []
    assert heard.pauses == []


def test_a_call_that_fails_is_tried_again_after_a_line_and_a_pause(call: Call) -> None:
    function, heard = Failing(ValueError("one"), ValueError("two")), Heard()

    assert call(Retry(wait=1.5), function, heard) == "done"

    assert heard.said == [("ValueError('one')", 1.5, 1), ("ValueError('two')", 1.5, 2)]
    assert heard.pauses == [1.5, 1.5]


def test_after_the_last_try_its_exception_comes_through_as_it_is(call: Call) -> None:
    last = ValueError("two")
    function, heard = Failing(ValueError("one"), last), Heard()

    with pytest.raises(ValueError, match="two") as caught:
        call(Retry(attempts=2, wait=0), function, heard)

    assert caught.value is last
    assert last.__context__ is None
    assert last.__cause__ is None
    assert [number for _, _, number in heard.said] == [1]
    files = {frame.filename for frame in traceback.extract_tb(last.__traceback__)}
    assert not any("tenacity" in file for file in files)


@pytest.mark.parametrize("on", [ConnectionError, (TimeoutError, ConnectionError)])
def test_only_what_is_named_is_tried_again(call: Call, on: Any) -> None:
    retry = Retry(on=on, wait=0)
    assert call(retry, Failing(ConnectionResetError()), Heard()) == "done"
    function, heard = Failing(ValueError("no")), Heard()

    with pytest.raises(ValueError, match="no"):
        call(retry, function, heard)

    assert function.tries == 1
    assert heard.said == []


@pytest.mark.parametrize("end", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_what_is_no_exception_but_an_end_comes_through_at_once(end: BaseException) -> None:
    function, heard = Failing(end), Heard()

    with pytest.raises(type(end)):
        call_plainly(Retry(wait=0), function, heard)

    assert function.tries == 1
    assert heard.said == []


def test_a_cancelled_call_is_cancelled_at_once() -> None:
    tries = 0

    async def cancelled() -> None:
        nonlocal tries
        tries += 1
        raise asyncio.CancelledError

    async def pause(seconds: float) -> None: ...

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Retry(wait=0).call_async(cancelled, pause=pause, say=Heard().say)

    asyncio.run(main())

    assert tries == 1


def test_a_pause_that_raises_ends_the_tries() -> None:
    class StoppedError(Exception): ...

    def pause(seconds: float) -> None:
        raise StoppedError

    function = Failing(ValueError())

    with pytest.raises(StoppedError) as caught:
        Retry().call(function, pause=pause, say=Heard().say)

    assert function.tries == 1
    assert caught.value.__context__ is None


def test_a_pause_keeps_nothing_of_the_exception(call: Call) -> None:
    class Held: ...

    alive: list[bool] = []
    held: list[weakref.ref[Held]] = []

    def fail_once() -> str:
        local = Held()
        if not held:
            held.append(weakref.ref(local))
            raise ValueError
        return "done"

    class Watching(Heard):
        def pause(self, seconds: float) -> None:
            alive.append(held[0]() is not None)

    gc.disable()
    try:
        call(Retry(wait=0), fail_once, Watching())
    finally:
        gc.enable()

    assert alive == [False]


def waits_badly(state: tenacity.RetryCallState) -> float:
    return -1.0


@pytest.mark.parametrize("wait", [0, waits_badly, tenacity.wait_fixed(0)])
def test_the_consumers_locals_go_with_the_last_exception(wait: Any) -> None:
    class Held: ...

    held: list[weakref.ref[Held]] = []

    def fail() -> None:
        local = Held()
        held.append(weakref.ref(local))
        raise ValueError

    gc.disable()
    try:
        try:
            Retry(wait=wait).call(fail, pause=Heard().pause, say=lambda *_: None)
        except ValueError:
            assert held[-1]() is not None
        assert [reference() for reference in held] == [None] * len(held)
    finally:
        gc.enable()


def test_the_usual_wait_doubles_up_to_half_a_minute_with_jitter() -> None:
    heard = Heard()

    call_plainly(Retry(attempts=12), Failing(*[ValueError()] * 11), heard)

    for number, pause in enumerate(heard.pauses):
        at_least = min(0.5 * 2**number, 29.5)
        assert at_least <= pause <= at_least + 0.5
    assert len(set(heard.pauses)) > 1


def test_a_strategy_is_told_of_the_tries(call: Call) -> None:
    told: list[tuple[int, str, float, bool]] = []

    def strategy(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        assert state.seconds_since_start is not None
        told.append(
            (
                state.attempt_number,
                repr(state.outcome.exception()),
                state.idle_for,
                state.seconds_since_start >= 0.0,
            )
        )
        return 2.0

    call(Retry(wait=strategy), Failing(ValueError("one"), ValueError("two")), Heard())

    assert told == [(1, "ValueError('one')", 0.0, True), (2, "ValueError('two')", 2.0, True)]


def test_the_strategies_of_tenacity_add_up() -> None:
    heard = Heard()
    wait = tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2)) + (
        tenacity.wait_incrementing(10, 10)
    )

    call_plainly(Retry(wait=wait), Failing(ValueError(), ValueError()), heard)

    assert heard.pauses == [11.0, 22.0]


def test_no_wait_is_longer_than_a_day() -> None:
    heard = Heard()

    call_plainly(Retry(wait=tenacity.wait_fixed(1e18)), Failing(ValueError()), heard)

    assert heard.pauses == [86_400.0]


@pytest.mark.parametrize("answer", [-1.0, math.nan, math.inf, "soon", None, 10**400])
def test_a_strategy_without_an_answer_is_said_once_and_the_exception_comes_through(
    call: Call, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    retry, heard = Retry(wait=lambda state: answer), Heard()

    for text in ("one", "two"):
        function = Failing(ValueError(text))
        with pytest.raises(ValueError, match=text) as caught:
            call(retry, function, heard)
        assert function.tries == 1
        assert caught.value.__context__ is None

    assert heard.said == []
    assert heard.pauses == []
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "gave no seconds to wait" in caplog.text


def test_a_strategy_that_raises_is_shown_with_its_traceback(
    call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(state: tenacity.RetryCallState) -> float:
        raise LookupError("no such wait")

    with pytest.raises(ValueError, match="theirs"):
        call(Retry(wait=broken), Failing(ValueError("theirs")), Heard())

    assert "LookupError: no such wait" in caplog.text


def test_a_retry_does_not_change_and_equals_its_like() -> None:
    assert Retry(on=ValueError) == Retry(on=(ValueError,))
    assert hash(Retry()) == hash(Retry())
    assert Retry(on=ValueError).on == (ValueError,)
    with pytest.raises(FrozenInstanceError):
        Retry().attempts = 5  # type: ignore[misc]


@pytest.mark.parametrize("attempts", [0, -1, True, 3.0, "3", None])
def test_attempts_are_a_whole_number(attempts: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(attempts=attempts)

    assert str(caught.value).startswith(f"Retry(attempts={attempts!r}) can't be")
    assert "2 or more" in str(caught.value)


def test_with_one_attempt_there_would_be_no_retry() -> None:
    with pytest.raises(ConfigurationError, match="would try nothing again"):
        Retry(attempts=1)


@pytest.mark.parametrize("wait", [-1, math.nan, math.inf, 86_401, True, "5s", [1]])
def test_the_wait_is_a_time_or_a_strategy(wait: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(wait=wait)

    assert str(caught.value).startswith(f"Retry(wait={wait!r}) is no time to wait")
    assert caught.value.__cause__ is None


def test_the_class_of_a_strategy_is_none() -> None:
    with pytest.raises(ConfigurationError, match=r"Write .* wait=wait_random\(\.\.\.\)"):
        Retry(wait=tenacity.wait_random)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "on", [KeyboardInterrupt, BaseException, "ValueError", None, ValueError(), [ValueError], (int,)]
)
def test_it_is_tried_again_after_exceptions_only(on: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(on=on)

    assert str(caught.value).startswith(f"Retry(on={on!r}) must be an exception class")


def test_a_retry_on_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="would try nothing again"):
        Retry(on=())


def test_tenacity_is_loaded_once_a_retry_is_made() -> None:
    program = (
        "import sys, celery_broadcast, celery_broadcast.retry as retry;"
        "print('tenacity' in sys.modules); retry.Retry(); print('tenacity' in sys.modules)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.split() == ["False", "True"]
