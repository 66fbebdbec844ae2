from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from parcels import as_json, events, make_writer, odd_values, only

from celery_broadcast.events import EVENT_TYPES, JobEvent
from celery_broadcast.relay import schemas
from celery_broadcast.relay.wire import SCHEMA_VERSION

PUBLISHED = Path(__file__).parent.parent / "docs" / "schemas"
NAMES = pytest.mark.parametrize("name", EVENT_TYPES)


def schema_of(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(schemas.schemas()[f"{name}-{SCHEMA_VERSION}.json"])
    return schema


def test_the_published_schemas_are_what_the_command_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery_broadcast.relay.schemas", str(tmp_path)]

    subprocess.run(command, check=True, capture_output=True)

    written = {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    published = {file.name: json.loads(file.read_text()) for file in PUBLISHED.iterdir()}
    assert set(written) == {f"{name}-{SCHEMA_VERSION}.json" for name in EVENT_TYPES}
    assert {name: published.get(name) for name in written} == written, (
        "Write them anew: python -m celery_broadcast.relay.schemas docs/schemas"
    )


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main([]) == 2
    assert "python -m celery_broadcast.relay.schemas docs/schemas" in capsys.readouterr().err


def test_the_command_says_what_it_has_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schemas.main([str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new" / f"JobFailed-{SCHEMA_VERSION}.json") in capsys.readouterr().out


def test_schemas_of_other_versions_stay(tmp_path: Path) -> None:
    older = tmp_path / "JobFailed-0.9.json"
    older.write_text("{}")

    schemas.write(tmp_path)

    assert older.read_text() == "{}"


@NAMES
def test_a_schema_tells_what_each_field_is(name: str) -> None:
    fields = schema_of(name)["$defs"][f"{name}Data"]["properties"]

    assert [field for field, described in fields.items() if not described.get("description")] == []


@NAMES
def test_a_schema_allows_what_it_does_not_know(name: str) -> None:
    assert "additionalProperties" not in json.dumps(schema_of(name))


@given(events(odd_values))
def test_what_is_written_is_as_the_schema_says(event: JobEvent) -> None:
    (written,) = as_json(only(make_writer().parcels([event])))
    schema = schema_of(type(event).__name__)

    assert is_valid(written, schema, schema)
    assert not is_valid({**written, "id": 7}, schema, schema)


def is_valid(  # noqa: PLR0911  # a case for each word of a schema
    value: Any, schema: dict[str, Any], root: dict[str, Any]
) -> bool:
    """Tell whether a value is as a schema says, as far as ours say anything."""
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return any(is_valid(value, each, root) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "type" not in schema:
        return True
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None)}
    kinds |= {"integer": int, "number": (int, float), "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if schema["type"] == "array":
        return all(is_valid(item, schema.get("items", {}), root) for item in value)
    if schema["type"] != "object":
        return True
    properties = schema.get("properties", {})
    return set(schema.get("required", ())) <= set(value) and all(
        is_valid(item, properties.get(key, {}), root) for key, item in value.items()
    )
