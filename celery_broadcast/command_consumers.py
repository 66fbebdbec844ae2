"""The command `celery broadcast consumers`: what the app has registered."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from celery_broadcast.settings import Settings
    from celery_broadcast.subscription import Subscription

_MISUSED = 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for scripts.")
@click.pass_context
def consumers(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001  # click's
    """Show the consumers that the app declares, whether the broadcast is on or off.

    The exit code is 2 if something is wrong with the configuration.

    \b
    Example:
        celery -A shop broadcast consumers
    """  # noqa: D301  # click knows it as a mark
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415  # as of all of these

    app: Any = ctx.obj.app
    try:
        app.loader.import_default_modules()
        app.finalize()
        from celery_broadcast.settings import load  # noqa: PLC0415

        settings = load(app.conf, os.environ, app.namespace)
    except ConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        ctx.exit(_MISUSED)
    from celery_broadcast.subscription import registry  # noqa: PLC0415

    found = [facts_of(each, settings) for each in registry.subscriptions]
    if as_json:
        click.echo(json.dumps(found))
        return
    for each in found:
        click.echo(each.pop("name"))
        for fact, value in each.items():
            if value not in (None, [], ""):
                text = ", ".join(map(str, value)) if isinstance(value, list) else value
                line = f"{fact.replace('_', ' ')}: {text}"
                click.echo(click.wrap_text(line, 80, "  ", "    "))
    click.echo(f"{len(found)} consumer{'s' * (len(found) != 1)}", err=True)


def facts_of(subscription: Subscription, settings: Settings) -> dict[str, Any]:
    """Return what there is to say of one, as JSON can have it; None and [] say nothing."""
    from celery_broadcast.subscription import FROM_SETTINGS  # noqa: PLC0415

    selection = subscription.selection
    batch, size = subscription.batch, subscription.mailbox_size
    selector: Any = subscription.selector
    overflow: str | None = subscription.overflow or settings.overflow
    if size == FROM_SETTINGS:
        size = settings.mailbox_size
    if subscription.remote:  # what waits, waits on the broker
        size = overflow = None
    return {
        "name": subscription.name,
        "declared_at": subscription.declared_at,
        "runs": _where(subscription),
        "events": [event.__name__ for event in selection.events],
        "tasks": list(selection.tasks),
        "queues": list(selection.queues),
        "states": list(selection.states),
        "exceptions": [
            each if isinstance(each, str) else each.__qualname__ for each in selection.exceptions
        ],
        "selector": None
        if selector is None
        else getattr(selector, "__qualname__", type(selector).__name__),
        "batch": None if batch is None else str(batch),
        "concurrency": subscription.concurrency,
        "mailbox": "without a bound" if size is None else size,
        "overflow": overflow,
        "payload": subscription.payload if subscription.remote else None,
    }


def _where(subscription: Subscription) -> str:
    if subscription.remote:
        return "remote, in celery broadcast consume"
    kind = "coroutines" if subscription.is_async else "threads or greenlets"
    return f"here, in each process of a worker, as {kind}"
