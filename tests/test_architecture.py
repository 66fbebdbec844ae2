"""The table of which file may import which, as data; a file that isn't in it fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "celery_broadcast"

MAY_IMPORT = {
    "django_connections": set(),
    "errors": set(),
    "fork": {"quiet_logs"},
    "muting": set(),
    "notices": set(),
    "quiet_logs": set(),
    "stacks": set(),
    "throttle": set(),
    "waiting": set(),
    "partitions": set(),
    "durations": set(),
    "counts": {"durations"},
    "metrics": {"counts", "durations", "jobs"},
    "metrics_endpoint": {"fork", "installation"},
    "otel_tracing": {"consumer", "events"},
    "otel": {"counts", "durations", "installation", "jobs", "otel_tracing"},
    "otel_switch": set(),
    "settings": {"errors"},
    "events": {"errors"},
    "consumer": set(),
    # What a consumer can ask for, and how it is declared.
    "batch": {"errors", "settings"},
    "rate_limit": {"errors", "settings"},
    "restarts": {"errors", "settings"},
    "retry": {"errors", "settings"},
    "selection": {"errors", "events", "settings"},
    "switch": {"fork"},
    "options": {
        *("batch", "errors", "events", "rate_limit", "restarts", "selection", "settings"),
    },
    "subscription": {
        *("batch", "consumer", "errors", "events", "fork", "restarts", "selection", "settings"),
        "switch",
    },
    "declaration": {
        *("batch", "consumer", "errors", "events", "options", "restarts", "selection"),
        "subscription",
    },
    "greenlets": {"errors", "subscription"},
    # From the producer to the consumers.
    "bell": set(),
    "naps": set(),
    "inbox": {"bell", "naps"},
    "mailbox": {"bell", "counts", "switch"},
    "receipt": set(),
    "dispatcher": {"events", "mailbox", "selection"},
    "losses": {"counts", "notices", "throttle"},
    "failures": {"notices", "throttle"},
    "calls": {"failures", "notices"},
    "intake": {"batch", "dispatcher", "mailbox", "partitions"},
    "station": {
        *("counts", "dispatcher", "django_connections", "errors", "failures", "inbox", "intake"),
        *("mailbox", "restarts", "subscription"),
    },
    "life": {
        *("counts", "consumer", "dispatcher", "django_connections", "durations", "intake"),
        *("notices", "station"),
    },
    "async_life": {
        *(
            "consumer",
            "counts",
            "django_connections",
            "intake",
            "life",
            "notices",
            "stacks",
            "station",
        ),
        "waiting",
    },
    "consumer_thread": {
        *("counts", "django_connections", "life", "notices", "restarts", "station", "waiting"),
    },
    "crew": {
        *("consumer_thread", "counts", "dispatcher", "inbox", "mailbox"),
        *("restarts", "station", "subscription"),
    },
    "reader": {
        *("counts", "dispatcher", "fork", "mailbox", "station", "subscription", "waiting"),
    },
    "consumers": {
        *("counts", "crew", "dispatcher", "inbox", "ledger", "losses", "mailbox", "reader"),
        *("selection", "settings", "subscription"),
    },
    "producer": {
        *("consumers", "counts", "crew", "dispatcher", "errors", "events", "fork", "inbox"),
        *("ledger", "losses", "notices", "quiet_logs", "reader", "selection", "settings", "slots"),
        *("station", "subscription", "throttle", "waiting"),
    },
    # What has started and not ended, whatever dies.
    "slots": {"fork"},
    "lags": set(),
    "ledger": {"counts", "fork", "lags", "slots"},
    "due": {"facts"},
    "jobs": {"events", "fork", "slots"},
    "attempts": {"dispatcher", "events", "fork", "slots"},
    "survivor": {"attempts", "events", "fork", "ledger", "slots"},
    # Celery.
    "facts": {"events", "settings"},
    "bridge": {
        *("attempts", "errors", "events", "facts", "muting", "producer", "settings"),
        *("slots", "survivor", "waiting"),
    },
    "installation": {"errors", "settings"},
    "streams": {
        *("consumer", "declaration", "errors", "events", "installation", "options", "reader"),
        *("subscription", "waiting"),
    },
    "plugin": {"errors", "installation"},
    "remote_control": {"installation"},
    "bootstep": set(),
    "command_check": set(),
    "command_consumers": set(),
    "command_tail": {"commands"},
    "command_workers": set(),
    "command_top": {"command_workers"},
    "rates": {"counts"},
    "testing": {
        *("bridge", "counts", "dispatcher", "errors", "events", "installation", "notices"),
        *("producer", "settings", "subscription"),
    },
    "pytest_plugin": set(),
    # Beyond this process.
    "relay.transport": set(),
    "relay.pauses": set(),
    "relay.payload": set(),
    "relay.redaction": {"events", "throttle"},
    "relay.trace_context": set(),
    "relay.wire": {
        *("errors", "events", "relay.payload", "relay.redaction", "relay.trace_context"),
        *("relay.transport", "settings"),
    },
    "relay.schemas": {"events", "relay.wire"},
    "relay.signing": {"relay.transport", "settings"},
    "relay.redis_servers": {"errors"},
    "relay.redis_errors": {"relay.redis_servers"},
    "relay.redis_scripts": set(),
    "relay.redis_entries": {"relay.transport"},
    "relay.redis_streams": {
        *("errors", "relay.redis_entries", "relay.redis_errors", "relay.redis_scripts"),
        *("relay.redis_servers", "relay.transport"),
    },
    "relay.gaps": set(),
    "relay.in_hand": {"dispatcher", "events", "receipt", "relay.transport", "relay.wire"},
    "relay.incoming": {
        *("dispatcher", "errors", "events", "relay.gaps", "relay.in_hand", "relay.pauses"),
        *("relay.payload", "relay.signing", "relay.transport", "relay.wire", "selection"),
        *("subscription", "throttle", "waiting"),
    },
    "relay.dead_letters": {"relay.signing", "relay.transport"},
    "relay.consuming": {
        *("errors", "greenlets", "installation", "notices", "producer", "relay.incoming"),
        *("relay.signing", "relay.transport", "relay.wire", "selection", "settings"),
        "subscription",
    },
    "relay.tail": {
        *("errors", "relay.gaps", "relay.pauses", "relay.signing", "relay.transport"),
        *("relay.wire", "throttle"),
    },
    "commands": set(),
    "relay.routing": {"relay.transport"},
    "relay.amqp_link": {"errors"},
    "relay.rabbitmq": {"errors", "relay.amqp_link", "relay.routing", "relay.transport"},
    "relay.outgoing": {
        *("batch", "consumer", "errors", "events", "relay.pauses", "relay.transport"),
        *("restarts", "selection", "subscription"),
    },
    "relay.choice": {
        *("errors", "events", "relay.signing", "relay.transport", "relay.wire", "settings"),
    },
}

#: Loaded only by who needs them, or once the flag is known to be on: imported in functions.
LOADED_LATER = {
    "ledger": {"jobs"},
    "bridge": {"due", "jobs"},
    "options": {"retry"},
    "subscription": {"retry", "switch"},
    "inbox": {"mailbox"},
    "declaration": {"retry"},
    "streams": {"declaration", "producer"},
    "dispatcher": {"receipt"},
    "station": {"calls", "consumer", "rate_limit", "receipt", "stacks"},
    "consumer_thread": {"async_life"},
    "installation": {
        *("bridge", "events", "greenlets", "muting", "producer", "relay.choice", "relay.outgoing"),
        *("bootstep", "jobs", "remote_control", "subscription"),
    },
    "crew": {"consumer", "rate_limit"},
    "consumers": {"consumer", "otel_tracing"},
    "bootstep": {"installation", "metrics_endpoint", "otel_switch", "remote_control"},
    "otel_switch": {"otel", "settings"},
    "metrics_endpoint": {"metrics"},
    "command_workers": {"counts"},
    "command_top": {"rates"},
    "command_tail": {
        *("errors", "events", "relay.consuming", "relay.dead_letters", "relay.signing"),
        *("relay.tail", "relay.transport", "relay.wire", "subscription"),
    },
    "command_consumers": {"errors", "settings", "subscription"},
    "command_check": {
        *("bridge", "command_consumers", "errors", "greenlets", "installation", "relay.choice"),
        *("relay.consuming", "settings", "subscription"),
    },
    "relay.choice": {"relay.rabbitmq", "relay.redis_streams"},
    "commands": {
        *(
            "errors",
            "metrics_endpoint",
            "otel_switch",
            "relay.choice",
            "relay.consuming",
            "relay.dead_letters",
            "relay.signing",
        ),
        *("settings", "subscription"),
    },
    "pytest_plugin": {"testing"},
}

#: The files that know Celery; the core does not.
KNOW_CELERY = {
    *("bootstep", "command_check", "command_workers", "remote_control"),
    *("bridge", "commands", "facts", "plugin", "installation", "rate_limit"),
    *("relay.amqp_link", "relay.choice", "relay.rabbitmq"),
}

#: What django_connections.py alone imports, in functions.
DJANGO = {"asgiref", "django"}


def imports_of(file: Path) -> tuple[set[str], set[str]]:
    """Return what a file imports when it is loaded, and what later or for types only."""
    tree = ast.parse(file.read_text())
    now: set[str] = set()
    later: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = {node.module or ""}
            if node.module == "celery_broadcast":
                modules = {f"celery_broadcast.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules = {alias.name for alias in node.names}
        else:
            continue
        (now if node in tree.body else later).update(modules)
    return now, later


def own(modules: set[str]) -> set[str]:
    prefix = "celery_broadcast."
    return {module.removeprefix(prefix) for module in modules if module.startswith(prefix)}


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.stem != "__init__")


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def test_the_table_names_every_file() -> None:
    assert {name_of(file) for file in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_only_what_the_table_allows(file: Path) -> None:
    now, later = imports_of(file)

    assert own(now) <= MAY_IMPORT[name_of(file)]
    assert own(later) <= LOADED_LATER.get(name_of(file), set()) | {"counts"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_core_does_not_import_celery(file: Path) -> None:
    now, later = imports_of(file)
    knows = any(module.split(".")[0] in {"celery", "kombu", "billiard"} for module in now | later)

    assert knows == (name_of(file) in KNOW_CELERY)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_django_is_imported_by_one_file_and_only_when_it_is_used(file: Path) -> None:
    of_django = [{module.split(".")[0] for module in when} & DJANGO for when in imports_of(file)]

    assert of_django == [set(), DJANGO if name_of(file) == "django_connections" else set()]


def test_no_import_in_the_table_goes_round_in_a_circle() -> None:
    resolved: set[str] = set()
    while len(resolved) < len(MAY_IMPORT):
        ready = {file for file, needs in MAY_IMPORT.items() if needs <= resolved} - resolved
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - resolved)}"
        resolved |= ready


def test_importing_the_package_loads_none_of_its_files() -> None:
    program = (
        "import sys, celery_broadcast;"
        "print([name for name in sys.modules if name.startswith('celery_broadcast.')])"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"
