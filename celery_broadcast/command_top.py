"""The command `celery broadcast top`: the numbers of the running workers, live."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from celery_broadcast.command_workers import ask, state_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from celery_broadcast.rates import Answers, Row

_MISUSED = 2

# So long a key may have to wait, in seconds.
_SECONDS_OF_A_LOOK = 0.1

# What of a screen isn't for rows: the workers, the head, the keys.
_LINES_AROUND = 3

_NAME = 18  # columns
_HEAD = f"{'consumer':<{_NAME}} handled/s failed/s  dropped pending     lag"

# The bar of the lag: one block for each of these seconds that it exceeds.
_LAGS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

_RED = "bold red"


@click.command()
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds."
)
@click.option(
    "-t", "--timeout", default=1.0, show_default=True, help="Seconds to wait for answers."
)
@click.option("-d", "--destination", help="Only these nodes, with commas between them; else all.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, in a pipe too.")
@click.pass_context
def top(
    ctx: click.Context,
    interval: float,
    timeout: float,
    destination: str | None,
    as_json: bool,  # noqa: FBT001  # click's
) -> None:
    """Show what the consumers of the running workers do, live, over all workers.

    The keys: s sorts by something else, p pauses, q quits. Needs a terminal, and
    rich: pip install 'celery-broadcast[top]'. With --json it needs neither.

    \b
    Example:
        celery -A shop broadcast top
    """  # noqa: D301  # click knows it as a mark
    if as_json:
        with contextlib.suppress(KeyboardInterrupt):
            _print(ctx, interval, timeout, destination)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _refuse(ctx, "top needs a terminal. Elsewhere use: top --json, or stats --watch")
    try:
        import termios  # noqa: F401, PLC0415

        import rich  # noqa: F401, PLC0415  # the command alone needs it
    except ModuleNotFoundError as error:
        what = "pip install 'celery-broadcast[top]'" if error.name == "rich" else "stats --watch"
        _refuse(ctx, f"top needs {error.name}, which isn't there. Use: {what}")
    asking = _Asking(ctx, interval, timeout, destination)
    with contextlib.suppress(KeyboardInterrupt):
        _show(asking)


def _print(ctx: click.Context, interval: float, timeout: float, destination: str | None) -> None:
    """Print what each worker says, and the rates of each consumer since the line before."""
    import msgspec  # noqa: PLC0415  # the command alone needs it

    from celery_broadcast.rates import rows_of  # noqa: PLC0415

    before: Answers = {}
    asked_at = 0.0
    while True:
        answers = ask(ctx, "broadcast_stats", {}, timeout, destination)
        (now, workers), moment = _read(answers), time.monotonic()
        line = {
            "workers": workers,
            "consumers": msgspec.to_builtins(rows_of(before, now, moment - asked_at)),
        }
        click.echo(json.dumps(line))
        before, asked_at = now, moment
        time.sleep(interval)


def _refuse(ctx: click.Context, why: str) -> None:
    click.echo(f"Error: {why}", err=True)
    ctx.exit(_MISUSED)


class _Asking:
    """Asks the workers again and again, on a thread of its own."""

    def __init__(
        self, ctx: click.Context, interval: float, timeout: float, destination: str | None
    ) -> None:
        self._ctx = ctx
        self._interval = interval
        self._timeout = timeout
        self._destination = destination
        #: What came, with the time by the monotonic clock: answers by node, or an error.
        self.came: queue.SimpleQueue[tuple[float, Mapping[str, Any] | Exception]] = (
            queue.SimpleQueue()
        )

    def start(self) -> None:
        threading.Thread(target=self._run, name="broadcast-top", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                came = ask(self._ctx, "broadcast_stats", {}, self._timeout, self._destination)
                self.came.put((time.monotonic(), came))
            except Exception as error:  # noqa: BLE001  # of whichever broker; it is shown
                self.came.put((time.monotonic(), error))
            time.sleep(self._interval)


def _show(asking: _Asking) -> None:
    """Show the screen until it is quit."""
    from rich.live import Live  # noqa: PLC0415  # as of all of rich

    screen = Screen()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves the terminal as it was
    asking.start()
    with _keys() as next_key, Live(screen.shown(), screen=True, auto_refresh=False) as live:
        while not screen.is_quit:
            key = next_key()
            if key:
                screen.press(key)
            while not asking.came.empty():
                screen.take(*asking.came.get())
            live.update(screen.shown(live.console.height), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Have keys come one by one, unseen; what is called waits a moment for the next, "" if none."""
    import termios  # noqa: PLC0415  # not on every system
    import tty  # noqa: PLC0415

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def next_key() -> str:
        ready, _, _ = select.select([stdin], [], [], _SECONDS_OF_A_LOOK)
        if not ready:
            return ""
        return os.read(stdin, 1).decode(errors="replace") or "q"  # the terminal is gone

    try:
        tty.setcbreak(stdin)
        yield next_key
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


class Screen:
    """What is on the screen, and what keys do to it."""

    def __init__(self) -> None:
        from celery_broadcast.rates import ORDERS  # noqa: PLC0415  # loaded with the command

        self.is_quit: bool = False
        self._orders = list(ORDERS)
        self._is_paused = False
        self._workers: list[str] = ["Waits for the workers to answer."]
        self._answers: Answers = {}
        self._answered_at = 0.0
        self._rows: list[Row] = []

    def press(self, key: str) -> None:
        """Do what a key says; others do nothing."""
        if key == "q":
            self.is_quit = True
        elif key == "p":
            self._is_paused = not self._is_paused
        elif key == "s":
            self._orders.append(self._orders.pop(0))

    def take(self, moment: float, came: Mapping[str, Any] | Exception) -> None:
        """Take the answers of the workers, by their nodes; or why there are none."""
        from celery_broadcast.rates import rows_of  # noqa: PLC0415

        if self._is_paused:
            return
        if isinstance(came, Exception):
            is_ours = isinstance(came, click.ClickException)
            why = f"The workers can't be asked: {type(came).__name__}: {came}"
            self._workers = [str(came) if is_ours else why]
            return
        now, workers = _read(came)
        self._workers = [f"{node} {state}" for node, state in workers.items()]
        self._workers = self._workers or ["No worker answered."]
        self._rows = rows_of(self._answers, now, moment - self._answered_at)
        self._answers, self._answered_at = now, moment

    def shown(self, lines: int = 24) -> RenderableType:
        """Return what the screen shows, of so many lines."""
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        from celery_broadcast.rates import sorted_rows  # noqa: PLC0415

        order = self._orders[0]
        rows = sorted_rows(self._rows, order)
        room = max(1, lines - _LINES_AROUND)
        left_out = f"  and {len(rows) - room} more" if len(rows) > room else ""
        paused = "  paused" if self._is_paused else ""
        return Group(
            Text(_workers_line(self._workers), no_wrap=True, overflow="ellipsis"),
            Text(_HEAD, style="bold", no_wrap=True),
            *map(_line_of, rows[:room]),
            Text(f"s sorted by {order}  p pause  q quit{left_out}{paused}", style="dim"),
        )


def _read(answers: Mapping[str, Mapping[str, Any]]) -> tuple[Answers, dict[str, str]]:
    """Return what each node says of its consumers, and what is to be said of the node."""
    import msgspec  # noqa: PLC0415  # the command alone needs it

    from celery_broadcast.counts import ConsumerStats  # noqa: PLC0415

    numbers: dict[str, Mapping[str, ConsumerStats]] = {}
    states: dict[str, str] = {}
    for node, answer in answers.items():
        try:
            consumers = msgspec.convert(answer.get("consumers", {}), dict[str, ConsumerStats])
            state = state_of(answer)
        except Exception:  # noqa: BLE001  # whatever another version may answer
            states[node] = "is of another version of celery-broadcast"
        else:
            numbers[node], states[node] = consumers, state
    return numbers, states


def _workers_line(workers: Sequence[str]) -> str:
    on = [worker for worker in workers if worker.endswith(" is on")]
    others = [worker for worker in workers if worker not in on]
    count = [f"{len(on)} {'worker is' if len(on) == 1 else 'workers are'} on"] if on else []
    line = ", ".join([*count, *others])
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _line_of(row: Row) -> RenderableType:
    """Return what fits into 80 columns, but for a second kind of state."""
    from rich.text import Text  # noqa: PLC0415

    name = "".join(letter if letter.isprintable() else "?" for letter in row.name)
    lag = f"{row.lag:.1f} s" if row.lag else ""
    bar = "█" * sum(row.lag > bound for bound in _LAGS)
    states = ", ".join(f"{count} {state}" for state, count in row.states.items())
    return Text.assemble(
        f"{name[:_NAME]:<{_NAME}} {_short(row.handled_a_second):>9} ",
        (f"{_short(row.failed_a_second):>8} ", _RED if row.failed_a_second else ""),
        (f"{_short(row.dropped):>8} ", _RED if row.dropped else ""),
        f"{_short(row.pending):>7} {lag:>7} ",
        (f"{bar:<{len(_LAGS)}} ", "yellow"),
        (states, _RED),
        no_wrap=True,
        overflow="ellipsis",
    )


def _short(number: float) -> str:
    """Return a number in at most six columns, such as "0.4", "1234" and "12.3M"."""
    if 0 < number < 10:  # noqa: PLR2004  # rates so low have a figure more
        return f"{number:.1f}".removesuffix(".0")
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 100 * size:  # up to 99999 as it is
            return f"{number / size:.0f}{unit}"
    return f"{number:.0f}"
