"""The command `celery broadcast tail`: events as they happen."""

from __future__ import annotations

import bisect
import itertools
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from celery_broadcast.commands import errors_as_exit_codes, remote_consumers

if TYPE_CHECKING:
    from celery_broadcast.relay.wire import Arrived
    from celery_broadcast.subscription import Subscription

# Of a job's id and of an error, in a terminal, in characters.
_OF_ID = 8
_OF_ERROR = 200

# What stands where a line was cut.
_CUT = "..."


@click.command()
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="TYPE",
    help="Only events of this type, such as JobFailed, or of one of several; else all.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="GLOB",
    help="Only of tasks with such names, such as 'shop.*'; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="A CloudEvent a line, for scripts.")
@click.pass_context
def tail(
    ctx: click.Context,
    events: tuple[str, ...],
    tasks: tuple[str, ...],
    as_json: bool,  # noqa: FBT001  # click's
) -> None:
    """Show events as they happen, a line each, from now on until Ctrl-C.

    Only what remote consumers want is sent, so only that can be shown; none of
    them misses an event for it, or gets it later. Times are in UTC. The exit
    code is 0 after Ctrl-C or SIGTERM, 1 if the broker can't be reached, and 2 if
    nothing of what is asked for is ever sent.

    \b
    Example:
        celery -A shop broadcast tail --event JobFailed --task 'shop.*'
    """  # noqa: D301  # click knows it as a mark
    with errors_as_exit_codes():
        settings, choice, remote = remote_consumers(ctx)
        from celery_broadcast.relay.consuming import Signals  # noqa: PLC0415  # as of all of these
        from celery_broadcast.relay.signing import Verifier  # noqa: PLC0415
        from celery_broadcast.relay.tail import Tail  # noqa: PLC0415
        from celery_broadcast.relay.transport import Group  # noqa: PLC0415

        types = _types_shown(events, remote)
        limits, key = choice.limits(), settings.relay_key
        reader = Tail(
            transport=choice.new_transport(),
            watched=Group(name="tail", event_types=types, tasks=tasks or None),
            limits=limits,
            verifier=None if key is None else Verifier(key, max_age=limits.ttl),
            show=_show_as_json if as_json else _show_as_text,
            say=_say,
        )
        signals = Signals()
        with signals.caught():
            reader.start()
            _say(
                f"Shows {', '.join(types)} of {' and '.join(tasks) or 'every task'}, as far as a "
                f"remote consumer wants it ({', '.join(each.name for each in remote)}). "
                "Ctrl-C ends it."
            )
            reader.run(lambda: signals.count > 0)


def _types_shown(asked: Sequence[str], remote: Sequence[Subscription]) -> tuple[str, ...]:
    """Return the names of the event types that are asked for, and sent.

    Raises:
        ConfigurationError: there is no such type, or none of them is ever sent.
    """
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415
    from celery_broadcast.events import EVENT_TYPES, JobEnded, JobEvent  # noqa: PLC0415
    from celery_broadcast.relay.wire import names_on_the_wire  # noqa: PLC0415

    known: dict[str, type[JobEvent]] = {"JobEvent": JobEvent, "JobEnded": JobEnded}
    known.update(EVENT_TYPES)
    for name in asked:
        if name not in known:
            msg = f"--event {name!r} is no event type. There are: {', '.join(known)}."
            raise ConfigurationError(msg)
    wanted = names_on_the_wire(known[name] for name in asked or ["JobEvent"])
    sent = {name for each in remote for name in names_on_the_wire(each.selection.events)}
    unsent = [name for name in wanted if name not in sent]
    if len(unsent) == len(wanted):
        msg = (
            f"{', '.join(unsent)}: no remote consumer wants that, so it isn't sent. Sent are: "
            f"{', '.join(name for name in EVENT_TYPES if name in sent)}."
        )
        raise ConfigurationError(msg)
    for name in unsent:
        if asked:
            _say(f"{name} isn't sent: no remote consumer wants it.")
    return tuple(name for name in wanted if name in sent)


def _say(text: str) -> None:
    from celery_broadcast.relay.dead_letters import printable  # noqa: PLC0415

    click.echo(printable(text), err=True)


def _show_as_json(_: Arrived, sent: str) -> None:
    click.echo(sent)


def _show_as_text(arrived: Arrived, _: str) -> None:
    line = " ".join(line_of(arrived, is_short=sys.stdout.isatty()).split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in line)
    if sys.stdout.isatty():
        printable = cut(printable, shutil.get_terminal_size().columns)
    click.echo(printable)


def cut(text: str, columns: int) -> str:
    """Return a text, or as much of it as fits into so many columns of a terminal.

    A letter of Chinese, Japanese or Korean, or an emoji, takes two of them, and a
    mark that is drawn over the letter before it takes none.
    """
    ends = list(itertools.accumulate(map(_columns_of, text)))
    if not ends or ends[-1] <= columns:
        return text
    return text[: bisect.bisect_right(ends, columns - len(_CUT))] + _CUT


def _columns_of(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def line_of(arrived: Arrived, *, is_short: bool) -> str:
    """Return when, what, of which task and job, where, how long it ran, and what was raised.

    Args:
        arrived: the event.
        is_short: whether there are some 80 columns: then without the date, with the
            beginning of the job's id.
    """
    event: Any = arrived.event
    ended_at = getattr(event, "ended_at", None)
    happened_at = event.started_at if ended_at is None else ended_at
    words = [
        _time_of(happened_at, "%H:%M:%S" if is_short else "%Y-%m-%dT%H:%M:%S.%fZ"),
        type(event).__name__,
        event.task_name,
        event.task_id[:_OF_ID] if is_short else event.task_id,
        event.worker,
    ]
    if ended_at is not None:
        words.append(f"{event.runtime:.3g} s")
    error = getattr(event, "exception_type", "")
    if error:
        words.append(f"{error}: {event.exception_message[:_OF_ERROR]}")
    return " ".join(words)


def _time_of(seconds: float | None, form: str) -> str:
    """Return a time as text; one that a stranger has made up may be none."""
    try:
        return datetime.fromtimestamp(seconds or 0.0, timezone.utc).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "-"
