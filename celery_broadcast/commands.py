"""`celery broadcast`: run remote consumers, and look after what they have on the broker.

Celery loads this as it starts, before gevent patches anything: nothing of the
broadcast is imported here before a command runs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import LOG_LEVEL

if TYPE_CHECKING:
    from celery_broadcast.relay.choice import Choice
    from celery_broadcast.relay.dead_letters import DeadLetters
    from celery_broadcast.settings import Settings
    from celery_broadcast.subscription import Subscription

# What a script can tell from the exit code: 0 is done, and
_FAILED = 1  # the broker or a consumer failed, or something isn't there
_MISUSED = 2  # the command line or the configuration is wrong, as in all of click's


# Those with a module of their own, which is loaded when one of them is asked for.
_ELSEWHERE = {
    "tail": "celery_broadcast.command_tail",
    "top": "celery_broadcast.command_top",
    **dict.fromkeys(("stats", "on", "off"), "celery_broadcast.command_workers"),
    "consumers": "celery_broadcast.command_consumers",
    "check": "celery_broadcast.command_check",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(importlib.import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return found


@click.group(name="broadcast", cls=_LazyGroup)
def broadcast() -> None:
    """See what the consumers of job events do, and run the remote ones."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every name


@broadcast.command()
@click.argument("names", nargs=-1)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written once every group is declared and read; removed at the end.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    help="Serves metrics there; by default at broadcast_metrics_port.",
)
@click.option("-l", "--loglevel", default="INFO", type=LOG_LEVEL, help="Logging level.")
@click.option("-f", "--logfile", help="Log destination; by default stderr.")
@click.pass_context
def consume(  # noqa: PLR0913, PLR0917  # an option each
    ctx: click.Context,
    names: tuple[str, ...],
    ready_file: Path | None,
    metrics_port: int | None,
    loglevel: int,
    logfile: str | None,
) -> None:
    """Run remote consumers, all of the app or the NAMES, until Ctrl-C or SIGTERM.

    Start as many as you like: those of one name share its events. The first
    Ctrl-C has what is in hand handled, within broadcast_drain_timeout; what
    isn't goes to another. The second doesn't wait. The exit code is 0 after
    that, 1 if a consumer gave up, 2 if something is wrong with the arguments
    or the configuration.

    \b
    Example:
        celery -A shop broadcast consume pager audit --ready-file /tmp/ready
    """  # noqa: D301  # click knows it as a mark
    with errors_as_exit_codes():
        settings, choice, chosen = remote_consumers(ctx, names)
        app = ctx.obj.app
        # What consumers print stays as it is, where a worker would make log lines of it.
        app.log.setup(loglevel, logfile, colorize=False if ctx.obj.no_color else None)
        from celery_broadcast.otel_switch import observe_if_set  # noqa: PLC0415
        from celery_broadcast.relay.consuming import Consuming, run  # noqa: PLC0415

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # into a pipe too
        consuming = Consuming(chosen, settings, choice.new_transport, choice.limits())
        observe_if_set(settings)
        with _serving_metrics(settings, metrics_port):
            code = run(consuming, ready_file)
    ctx.exit(code)


@contextlib.contextmanager
def _serving_metrics(settings: Settings, port: int | None) -> Iterator[None]:
    """Serve metrics in the block, at the port or at that of the settings, if one is given."""
    port = settings.metrics_port if port is None else port
    if port is None:
        yield
        return
    from celery_broadcast.metrics_endpoint import MetricsEndpoint  # noqa: PLC0415

    endpoint = MetricsEndpoint(settings.metrics_host, port)
    endpoint.open()
    try:
        yield
    finally:
        endpoint.close()


@broadcast.command()
@click.argument("names", nargs=-1)
@click.pass_context
def declare(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Have the broker keep events for remote consumers from now on, before the first one runs.

    For all remote consumers of the app, or the NAMES. Twice is harmless.

    \b
    Example:
        celery -A shop broadcast declare
    """  # noqa: D301  # click knows it as a mark
    with errors_as_exit_codes():
        _, choice, chosen = remote_consumers(ctx, names)
        from celery_broadcast.relay.consuming import group_of  # noqa: PLC0415

        transport = choice.new_transport()
        try:
            for subscription in chosen:
                group = group_of(subscription)
                transport.declare(group)
                tasks = "every task" if group.tasks is None else ", ".join(group.tasks)
                click.echo(f"{group.name}: {', '.join(group.event_types)} of {tasks}")
        finally:
            transport.close()


@broadcast.group(name="dead-letters")
def dead_letters() -> None:
    """Look after what a remote consumer raised on too often, or what killed its process."""


@dead_letters.command(name="list")
@click.argument("group")
@click.option("--limit", default=100, type=click.IntRange(min=1), help="How many, oldest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for scripts.")
@click.pass_context
def list_(ctx: click.Context, group: str, limit: int, as_json: bool) -> None:  # noqa: FBT001
    """List the dead letters of a GROUP, a line each.

    \b
    Example:
        celery -A shop broadcast dead-letters list pager
    """  # noqa: D301  # click knows it as a mark
    from celery_broadcast.relay.dead_letters import printable, shown  # noqa: PLC0415

    with _letters_of(ctx, group) as letters:
        found = [shown(letter) for letter in letters.oldest(limit)]
        if as_json:
            click.echo(json.dumps(found))
            return
        for each in found:
            name = f"{each['event_type'] or '?'} {each['task_name'] or '?'}"
            error = (each["error"].strip().splitlines() or [""])[-1]
            times = f"{each['deliveries']}x"
            line = (
                f"{each['id']}  {each['put_aside_at']}  {each['reason']} {times}  {name}  {error}"
            )
            click.echo(printable(line).replace("\n", "\\n"))
        click.echo(f"{len(found)} dead letters", err=True)


@dead_letters.command()
@click.argument("group")
@click.argument("ids", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for scripts.")
@click.pass_context
def show(ctx: click.Context, group: str, ids: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Show dead letters of a GROUP in full: the events, and what was raised.

    Those of the IDS that `list` gives, or the 100 oldest.

    \b
    Example:
        celery -A shop broadcast dead-letters show pager 1763842052511-0
    """  # noqa: D301  # click knows it as a mark
    from celery_broadcast.relay.dead_letters import printable, shown  # noqa: PLC0415

    with _letters_of(ctx, group) as letters:
        chosen = _with_ids(letters, ids) if ids else letters.oldest(100)
        found = [shown(letter) for letter in chosen]
        if as_json:
            click.echo(json.dumps(found))
            return
        for each in found:
            error, events, body = each.pop("error"), each.pop("events"), each.pop("body")
            for name, value in each.items():
                click.echo(printable(f"{name}: {value}").replace("\n", "\\n"))
            click.echo(printable(f"error:\n{error.rstrip()}"))
            as_text = f"body:\n{body}" if events is None else json.dumps(events, indent=2)
            click.echo(printable(as_text))
            click.echo()


@dead_letters.command()
@click.argument("group")
@click.argument("ids", nargs=-1)
@click.pass_context
def replay(ctx: click.Context, group: str, ids: tuple[str, ...]) -> None:
    """Send dead letters to their GROUP again, and to it alone, as if they had never failed.

    Those of the IDS that `list` gives, or all that are there now.

    \b
    Example:
        celery -A shop broadcast dead-letters replay pager
    """  # noqa: D301  # click knows it as a mark
    with _letters_of(ctx, group) as letters:
        if ids:
            count = letters.replay(_with_ids(letters, ids))
        else:
            count = sum(letters.replay(some) for some in letters.all_so_far())
        click.echo(f"{_letters(count)} sent to {group} again")


@dead_letters.command()
@click.argument("group")
@click.argument("ids", nargs=-1)
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_context
def purge(ctx: click.Context, group: str, ids: tuple[str, ...], force: bool) -> None:  # noqa: FBT001
    """Throw dead letters of a GROUP away for good.

    Those of the IDS that `list` gives, or all that are there now.

    \b
    Example:
        celery -A shop broadcast dead-letters purge pager --force
    """  # noqa: D301  # click knows it as a mark
    with _letters_of(ctx, group) as letters:
        if not force:
            which = f"{len(ids)} dead letter{'s' * (len(ids) > 1)}" if ids else "all dead letters"
            click.confirm(f"Throw {which} of {group} away?", abort=True)
        if ids:
            count = letters.purge(_with_ids(letters, ids))
        else:
            count = sum(letters.purge(some) for some in letters.all_so_far())
        click.echo(f"{_letters(count)} thrown away")


# What they have in common.


def _letters(count: int) -> str:
    return "1 dead letter was" if count == 1 else f"{count} dead letters were"


@contextlib.contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """End the command with an error of ours as a message, and with its exit code."""
    from celery_broadcast.errors import ConfigurationError, RelayError  # noqa: PLC0415

    try:
        yield
    except ConfigurationError as error:
        raise _Refusal(str(error), _MISUSED) from error
    except RelayError as error:
        raise _Refusal(str(error), _FAILED) from error


class _Refusal(click.ClickException):
    """Ends the command with a message on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click's is one for the class


def remote_consumers(
    ctx: click.Context, names: Sequence[str] = ()
) -> tuple[Settings, Choice, list[Subscription]]:
    """Load the app as a worker does, and return what it says of its remote consumers.

    Args:
        ctx: of the command.
        names: those that are asked for; none is all.

    Raises:
        ConfigurationError: the broadcast is off, or one of the names isn't a remote
            consumer's, or there is none.
    """
    app: Any = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()

    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415
    from celery_broadcast.relay.choice import Choice  # noqa: PLC0415
    from celery_broadcast.settings import load  # noqa: PLC0415

    settings = load(app.conf, os.environ, app.namespace)
    chosen = _chosen(names)
    if not settings.enabled:
        msg = "The broadcast is off. Set broadcast_enabled = True in the app's configuration."
        raise ConfigurationError(msg)
    return settings, Choice(lambda: app, settings), chosen


def _chosen(names: Sequence[str]) -> list[Subscription]:
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415
    from celery_broadcast.subscription import registry  # noqa: PLC0415

    known = {subscription.name: subscription for subscription in registry.subscriptions}
    remote = {name: each for name, each in known.items() if each.remote}
    if not remote:
        msg = (
            "The app has no remote consumer. Declare one with @on_job_event(..., remote=True), in "
            "a module that is among the imports of the app's configuration."
        )
        raise ConfigurationError(msg)
    for name in names:
        if name not in known:
            msg = f"There is no consumer named {name!r}. Remote ones are: {', '.join(remote)}."
            raise ConfigurationError(msg)
        if name not in remote:
            msg = (
                f"The consumer {name!r} ({known[name].declared_at}) isn't remote: it runs in the "
                f"workers. Declare it with remote=True, or choose from: {', '.join(remote)}."
            )
            raise ConfigurationError(msg)
    return [remote[name] for name in dict.fromkeys(names or remote)]


@contextlib.contextmanager
def _letters_of(ctx: click.Context, group: str) -> Iterator[DeadLetters]:
    with errors_as_exit_codes():
        settings, choice, (subscription,) = remote_consumers(ctx, (group,))
        from celery_broadcast.relay.consuming import group_of  # noqa: PLC0415
        from celery_broadcast.relay.dead_letters import DeadLetters  # noqa: PLC0415
        from celery_broadcast.relay.signing import Signer, Verifier  # noqa: PLC0415

        key = settings.relay_key
        transport = choice.new_transport()
        try:
            yield DeadLetters(
                transport,
                group_of(subscription),
                None if key is None else Signer(key),
                None if key is None else Verifier(key, max_age=float("inf")),
            )
        finally:
            transport.close()


def _with_ids(letters: DeadLetters, ids: Sequence[str]) -> Any:
    found = letters.with_ids(ids)
    missing = set(ids) - {letter.letter_id for letter in found}
    if missing:
        message = f"There is no dead letter {', '.join(sorted(missing))}. `list` gives the ids."
        raise _Refusal(message, _FAILED)
    return found
