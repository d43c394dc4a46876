"""The file's JSON schema, for editors and pipelines that check files without this program."""

from __future__ import annotations

import msgspec

from epp.configuration.annotations import record_of_struct
from epp.configuration.catalogue import BUILT_IN
from epp.configuration.file import File
from epp.configuration.shapes import Schema

_THIRD_PARTY = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def json_schema() -> Schema:
    """Draft 2020-12. A type that a third party names by an entry point is not in it; `module:Class` is allowed."""
    schema = record_of_struct(File).schema()
    properties = schema["properties"]
    assert isinstance(properties, dict)
    properties["plugins"] = {"type": "array", "items": _plugin()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "EndpointPickerConfig",
        "description": "How an endpoint picker chooses among model servers.",
        **schema,
        "$defs": {name: _parameters(name) for name in sorted(BUILT_IN)},
    }


def render_schema() -> str:
    """The text of `config/schema.json`."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


def _plugin() -> Schema:
    cases = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"parameters": {"$ref": f"#/$defs/{name}"}}},
        }
        for name in sorted(BUILT_IN)
    ]
    return {
        "type": "object",
        "properties": {
            "type": {"anyOf": [{"enum": sorted(BUILT_IN)}, {"type": "string", "pattern": _THIRD_PARTY}]},
            "name": {"type": "string", "minLength": 1},
            "parameters": {"type": ["object", "null"]},
        },
        "required": ["type"],
        "additionalProperties": False,
        "allOf": cases,
    }


def _parameters(name: str) -> Schema:
    entry = BUILT_IN[name]
    if name == "single-profile-handler":
        return {"description": entry.purpose}
    return {"description": entry.purpose, **entry.record.schema()}
