"""The command `celery broadcast check`: whether all that a worker will be told is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import click

_FAILED = 1


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001  # click's
    """Check the settings, the consumers and the relay's broker, and show every mistake.

    Asks no worker. The exit code is 1 if something is wrong.

    \b
    Example:
        celery -A shop broadcast check
    """  # noqa: D301  # click knows it as a mark
    app: Any = ctx.obj.app
    mistakes = list(_mistakes_of_imports(app))
    settings, more = _settings(app)
    mistakes += more
    if not mistakes:
        mistakes += _not_installed(app)
    consumers, more = _consumers(app, is_readable=not more)
    mistakes += more
    mistakes += _missing_packages(settings)
    relay, more = _relay(app, is_readable=all("error" not in each for each in settings))
    mistakes += more
    report = {
        "settings": settings,
        "consumers": consumers,
        "relay": relay,
        "mistakes": list(dict.fromkeys(mistakes)),  # an import may have told of a setting
    }
    click.echo(json.dumps(report) if as_json else "\n".join(_shown(report)))
    ctx.exit(_FAILED if report["mistakes"] else 0)


def _mistakes_of_imports(app: Any) -> Iterator[str]:
    """Import what a worker imports, each module though another one can't be."""
    from celery import signals  # noqa: PLC0415  # when it runs

    steps: list[tuple[str, Callable[[], object]]] = []
    try:
        steps += [
            (name, lambda name=name: app.loader.import_task_module(name))  # type: ignore[misc]
            for name in app.loader.default_modules
        ]
    except Exception as error:  # noqa: BLE001  # whatever a module raises
        yield _told(error, "the app's configuration")
        return
    for _, response in signals.import_modules.send(sender=app):
        if isinstance(response, Exception):
            yield _told(response, "an import")
    for name, step in (*steps, ("the app's tasks", app.finalize)):
        try:
            step()
        except Exception as error:  # noqa: BLE001  # as above
            yield _told(error, name)


def _told(error: Exception, name: str) -> str:
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415  # as of all of these

    if isinstance(error, ConfigurationError):
        return str(error)  # it says all
    return f"{name} can't be imported: {type(error).__name__}: {error}"


def _settings(app: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each setting with where it is from, and what is wrong."""
    import msgspec  # noqa: PLC0415

    from celery_broadcast.bridge import produced_events  # noqa: PLC0415
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415
    from celery_broadcast.settings import Settings, find, without_secret  # noqa: PLC0415

    default = msgspec.structs.asdict(Settings())
    rows: dict[str, dict[str, Any]] = {
        name: {"setting": name, "value": value, "origin": "default"}
        for name, value in default.items()
    }
    mistakes: list[str] = []
    for found in find(app.conf, os.environ, app.namespace):
        error = found.error
        if error is None and found.name == "events":
            try:
                produced_events(found.value)
            except ConfigurationError as unknown:
                error = unknown
        row: dict[str, Any] = {"setting": found.name, "origin": found.origin}
        if error is None:
            row["value"] = without_secret(found.name, found.value)
        else:
            row["value"], row["error"] = None, str(error)
            mistakes.append(str(error))
        before = rows.get(found.name)
        if before is not None and "error" in before:
            rows[f"{found.name} ({found.origin})"] = row  # what is wrong stays to be seen
        else:
            rows[found.name] = row
    return list(rows.values()), mistakes


#: The package that a setting needs, and the extra that brings it.
_NEEDED = {
    "metrics_port": ("prometheus_client", "prometheus"),
    "opentelemetry": ("opentelemetry", "otel"),
}


def _missing_packages(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tell which settings a worker can't follow, for want of a package."""
    for row in settings:
        package, extra = _NEEDED.get(row["setting"], ("", ""))
        if package and row.get("value") and find_spec(package) is None:
            yield (
                f"broadcast_{row['setting']} is set, and {package} isn't installed here. Install "
                f'it with: pip install "celery-broadcast[{extra}]".'
            )


def _not_installed(app: Any) -> Iterator[str]:
    """Tell if nothing puts the broadcast in place, though it is to be on."""
    from celery_broadcast import installation  # noqa: PLC0415

    if _load(app).enabled and not installation.is_on_for(app):
        yield (
            "broadcast_enabled is set, and nothing installs the broadcast. Name "
            "celery_broadcast.plugin among the imports of the app's configuration, or call "
            "celery_broadcast.install(app)."
        )


def _load(app: Any) -> Any:
    from celery_broadcast.settings import load  # noqa: PLC0415

    return load(app.conf, os.environ, app.namespace)


def _consumers(app: Any, *, is_readable: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what there is to say of each consumer, and what can't run."""
    from celery_broadcast.command_consumers import facts_of  # noqa: PLC0415
    from celery_broadcast.errors import ConfigurationError  # noqa: PLC0415
    from celery_broadcast.greenlets import check_runs_here  # noqa: PLC0415
    from celery_broadcast.settings import Settings  # noqa: PLC0415
    from celery_broadcast.subscription import registry  # noqa: PLC0415

    settings = _load(app) if is_readable else Settings()
    mistakes: list[str] = []
    for subscription in registry.subscriptions:
        try:
            if not subscription.remote:
                check_runs_here(subscription)
        except ConfigurationError as error:
            mistakes.append(str(error))
    return [facts_of(each, settings) for each in registry.subscriptions], mistakes


def _relay(app: Any, *, is_readable: bool) -> tuple[str, list[str]]:
    """Return what is so of the relay's broker, in words, and what is wrong with it."""
    from celery_broadcast.errors import ConfigurationError, RelayError  # noqa: PLC0415
    from celery_broadcast.subscription import registry  # noqa: PLC0415

    remote = [each for each in registry.subscriptions if each.remote]
    if not remote:
        return "not needed, as no consumer is remote", []
    if not is_readable:
        return "not asked, as a setting is wrong", []
    from celery_broadcast.relay.choice import Choice  # noqa: PLC0415
    from celery_broadcast.relay.consuming import group_of  # noqa: PLC0415

    choice = Choice(lambda: app, _load(app))
    try:
        choice.check()
        transport = choice.new_transport()
        try:
            transport.watch(group_of(remote[0]), 0.0)  # which takes nothing from anybody
        finally:
            transport.close()
    except (ConfigurationError, RelayError) as error:
        return "not reachable" if isinstance(error, RelayError) else "not usable", [str(error)]
    return "reachable", []


def _shown(report: dict[str, Any]) -> Iterator[str]:
    yield "settings"
    for row in report["settings"]:
        value = "wrong, see below" if "error" in row else repr(row["value"])
        yield _wrapped(f"{row['setting']} = {value}  ({row['origin']})")
    yield ""
    yield "consumers"
    for each in report["consumers"]:
        yield _wrapped(f"{each['name']}: {', '.join(each['events'])}; {each['runs']}")
    if not report["consumers"]:
        yield "  none: import the module that declares them"
    yield ""
    yield f"relay's broker: {report['relay']}"
    yield ""
    mistakes = report["mistakes"]
    yield f"mistakes: {len(mistakes)}" if mistakes else _nothing_is_wrong(report)
    yield from map(_wrapped, mistakes)


def _nothing_is_wrong(report: dict[str, Any]) -> str:
    """Return a sentence that says also why nothing may happen all the same."""
    is_on = any(row["setting"] == "enabled" and row["value"] for row in report["settings"])
    why_not = [] if is_on else ["the broadcast is off"]
    if not report["consumers"]:
        why_not.append("there is no consumer")
    return f"Nothing is wrong, but {' and '.join(why_not)}." if why_not else "Nothing is wrong."


def _wrapped(text: str) -> str:
    printable = "".join(
        letter if letter.isprintable() else "?" for letter in " ".join(text.split())
    )
    return click.wrap_text(printable, 80, "  ", "    ")
