"""Writes a JSON Schema for each event type as it travels.

`python -m celery_broadcast.relay.schemas docs/schemas`
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from celery_broadcast.events import EVENT_TYPES, JobEvent
from celery_broadcast.relay.wire import SCHEMA_VERSION, cloud_event_type

#: Where an event on its way is not what it was in its process.
_ON_THE_WIRE = {
    "args": "positional arguments of the task: each as text, or as it is if JSON was asked for",
    "kwargs": "keyword arguments of the task: each as text, or as it is if JSON was asked for",
    "headers": "the headers that the sender of the job added: each as text",
    "result": "what the task returned: as text, or as it is if JSON was asked for",
    "exception_bases": "the qualified names of the classes above the exception's, nearest first",
}


def schemas() -> Mapping[str, str]:
    """Return the schemas as text, by the names of their files, such as "JobFailed-1.0.json".

    Each describes one CloudEvent; a parcel is an array of them.
    """
    return {
        f"{name}-{SCHEMA_VERSION}.json": json.dumps(_schema_of(name), indent=2) + "\n"
        for name in EVENT_TYPES
    }


def _schema_of(name: str) -> dict[str, Any]:
    schema = msgspec.json.schema(cloud_event_type(name))
    told = _told_of(EVENT_TYPES[name])
    for field, described in schema["$defs"][f"{name}Data"]["properties"].items():
        described["description"] = told[field]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema}


def _told_of(event_type: type[JobEvent]) -> dict[str, str]:
    """Return what the docstrings of an event type and of its bases say of its fields."""
    told: dict[str, str] = {}
    for base in event_type.__mro__:
        _, _, attributes = (inspect.getdoc(base) or "").partition("Attributes:\n")
        for field, text in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
            told.setdefault(field, " ".join(text.split()).removesuffix("."))
    return {**told, **_ON_THE_WIRE}


def write(directory: Path) -> list[Path]:
    """Write the schemas of this version; those of others stay. Return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in schemas().items():
        file = directory / name
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def main(arguments: Sequence[str]) -> int:
    """Write them where the command line says."""
    if len(arguments) != 1:
        sys.stderr.write("Say where to: python -m celery_broadcast.relay.schemas docs/schemas\n")
        return 2
    for file in write(Path(arguments[0])):
        sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
