"""The commands of `celery broadcast` that ask running workers: `stats`, `on` and `off`."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

_FAILED = 1


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all that ask workers."""
    options: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
        click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts."),
        click.option(
            "-t", "--timeout", default=1.0, show_default=True, help="Seconds to wait for answers."
        ),
        click.option(
            "-d", "--destination", help="Only these nodes, with commas between them; else all."
        ),
    )
    for option in options:
        command = option(command)
    return command


@click.command()
@_asking
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval", default=2.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds."
)
@click.pass_context
def stats(  # noqa: PLR0913, PLR0917  # an option each
    ctx: click.Context,
    as_json: bool,  # noqa: FBT001
    timeout: float,
    destination: str | None,
    watch: bool,  # noqa: FBT001
    interval: float,
) -> None:
    """Show what the consumers of the running workers do, per worker and summed.

    The numbers are from the start of a worker on. The exit code is 1 if a
    consumer has dropped events since or gave up, or if no worker answers, or
    not each of the destination; 0 when --watch ends by Ctrl-C.

    \b
    Example:
        celery -A shop broadcast stats --destination celery@a,celery@b
    """  # noqa: D301  # click knows it as a mark
    try:
        answers = _look(ctx, timeout, destination, interval if watch else None, as_json=as_json)
    except KeyboardInterrupt:
        if not watch:
            raise
        return  # as whoever watches has asked for
    bad = not answers or any(map(_is_bad, answers.values()))
    ctx.exit(_FAILED if _say_who_is_silent(answers, destination) or bad else 0)


def _look(
    ctx: click.Context,
    timeout: float,
    destination: str | None,
    interval: float | None,
    *,
    as_json: bool,
) -> dict[str, dict[str, Any]]:
    """Show the numbers, again after each interval in seconds; None is once. Return the last."""
    is_terminal = sys.stdout.isatty()
    while True:
        try:
            answers = ask(ctx, "broadcast_stats", {}, timeout, destination)
        except click.ClickException as error:
            if interval is None:
                raise
            error.show()
            time.sleep(interval)
            continue
        if interval is not None and is_terminal:
            click.clear()
        click.echo(json.dumps(answers) if as_json else _shown(answers))
        if interval is None:
            return answers
        _say_who_is_silent(answers, destination)
        time.sleep(interval)


@click.command()
@_asking
@click.pass_context
def on(ctx: click.Context, as_json: bool, timeout: float, destination: str | None) -> None:  # noqa: FBT001
    """Switch the running workers on again, with all their processes.

    The exit code is 1 if no worker answers, or if one is off by its
    configuration, which this doesn't change.

    \b
    Example:
        celery -A shop broadcast on
    """  # noqa: D301  # click knows it as a mark
    _switch(ctx, {"on": True}, timeout, destination, as_json=as_json)


@click.command()
@_asking
@click.pass_context
def off(ctx: click.Context, as_json: bool, timeout: float, destination: str | None) -> None:  # noqa: FBT001
    """Switch the running workers off, with all their processes, until they start anew.

    Jobs that start from now on aren't told of; those that have started still
    have their end told. The exit code is 1 if no worker answers.

    \b
    Example:
        celery -A shop broadcast off --destination celery@a
    """  # noqa: D301  # click knows it as a mark
    _switch(ctx, {"on": False}, timeout, destination, as_json=as_json)


def _switch(
    ctx: click.Context,
    arguments: dict[str, bool],
    timeout: float,
    destination: str | None,
    *,
    as_json: bool,
) -> None:
    answers = ask(ctx, "broadcast_switch", arguments, timeout, destination)
    if as_json:
        click.echo(json.dumps(answers))
    else:
        for node, answer in answers.items():
            click.echo(f"{node} {state_of(answer)}")
        if not answers:
            click.echo("No worker answered.", err=True)
    wanted = ("on",) if arguments["on"] else ("switched-off", "off-by-configuration")
    are_so = answers and all(answer.get("state") in wanted for answer in answers.values())
    ctx.exit(_FAILED if _say_who_is_silent(answers, destination) or not are_so else 0)


def ask(
    ctx: click.Context,
    command: str,
    arguments: Mapping[str, Any],
    timeout: float,
    destination: str | None,
) -> dict[str, dict[str, Any]]:
    """Return the answer of each node, by its name.

    Raises:
        ClickException: the broker can't be reached.
    """
    from kombu.exceptions import OperationalError  # noqa: PLC0415  # as all of Celery

    app = ctx.obj.app
    nodes = None if destination is None else _nodes_of(destination)
    try:
        replies: Sequence[dict[str, dict[str, Any]]] = app.control.broadcast(
            command, arguments=dict(arguments), destination=nodes, reply=True, timeout=timeout
        )
    except OperationalError as error:
        broker = app.connection_for_write().as_uri()  # without the password
        msg = f"The workers can't be asked: the broker at {broker} can't be reached: {error}"
        raise click.ClickException(msg) from error
    return dict(sorted(item for reply in replies or () for item in reply.items()))


def _nodes_of(destination: str) -> list[str]:
    return [name.strip() for name in destination.split(",")]


def _say_who_is_silent(answers: Mapping[str, Any], destination: str | None) -> bool:
    """Tell on stderr which of the nodes that were asked by name didn't answer, if any."""
    silent = [] if destination is None else [n for n in _nodes_of(destination) if n not in answers]
    for node in silent:
        click.echo(f"{node} didn't answer.", err=True)
    return bool(silent)


def _is_bad(answer: Mapping[str, Any]) -> bool:
    return "error" in answer or any(
        each["dropped"] or each["processes"].get("gave-up") for each in answer["consumers"].values()
    )


def state_of(answer: Mapping[str, Any]) -> str:
    """Return what is said of a node after its name, such as "is on"."""
    if "error" in answer:
        error = str(answer["error"])
        if not error.startswith("KeyError('broadcast_"):  # which is kombu's for an unknown command
            return f"answers with an error: {error}"
        return "doesn't know the broadcast: celery_broadcast.plugin isn't among its imports"
    if answer["state"] == "on":
        return "is on"
    if answer["state"] == "switched-off":
        since = dt.datetime.fromtimestamp(answer["off_since"], dt.timezone.utc)
        return f"is switched off since {since:%Y-%m-%d %H:%M:%S} UTC"
    return "is off by its configuration"


def _shown(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all answers as text, of at most 80 columns where names are short."""
    if not answers:
        return "No worker answered."
    lines: list[str] = []
    for node, answer in answers.items():
        consumers = answer.get("consumers", {})
        is_on = answer.get("state") == "on"
        lines.append(f"{node} {state_of(answer)}")
        lines += [*(_table(consumers) if consumers or is_on else []), ""]
    if len(answers) > 1:
        lines += ["all workers", *_table(_summed(answers)), ""]
    return "\n".join(lines[:-1])


_COLUMNS = ("offered", "handled", "failed", "dropped", "pending", "restarts")


def _table(consumers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line of numbers for each consumer, and below it what is wrong with it."""
    if not consumers:
        return ["  no consumer has had an event yet"]
    width = 18
    lines = [f"  {'consumer':<{width}}" + "".join(f"{name:>9}" for name in _COLUMNS)]
    for name, each in sorted(consumers.items()):
        dropped = sum(each["dropped"].values())
        numbers = [dropped if column == "dropped" else each[column] for column in _COLUMNS]
        if len(name) > width:
            lines.append(f"  {name}")
            name = ""  # noqa: PLW2901  # it has a line of its own
        lines.append(f"  {name:<{width}}" + "".join(f"{number:>9}" for number in numbers))
        if each["dropped"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in each["dropped"].items())
            lines.append(f"    dropped: {reasons}")
        states = {state: n for state, n in each["processes"].items() if state != "running"}
        if states:
            told = ", ".join(f"{state} in {n}" for state, n in states.items())
            lines.append(f"    processes: {told}")
        if each["lag"]:
            lines.append(f"    its oldest event has waited for {each['lag']:.1f} s")
        if each["last_error"]:
            text = f"    last error: {' '.join(each['last_error'].split())}"
            printable = "".join(letter if letter.isprintable() else "?" for letter in text)
            lines.append(printable if len(printable) <= 80 else f"{printable[:77]}...")  # noqa: PLR2004  # columns
    return lines


def _summed(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415  # the command alone needs it

    from celery_broadcast.counts import ConsumerStats  # noqa: PLC0415  # as above

    sums: dict[str, ConsumerStats] = {}
    for answer in answers.values():
        for name, each in answer.get("consumers", {}).items():
            stats_ = msgspec.convert(each, ConsumerStats)
            sums[name] = sums[name] + stats_ if name in sums else stats_
    return {name: msgspec.to_builtins(each) for name, each in sums.items()}
