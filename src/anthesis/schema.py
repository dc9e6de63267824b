"""The JSON Schema of result documents: python -m anthesis.schema > docs/result.schema.json

It is made from the dataclasses that the documents are read by: their annotations, their defaults and what their
docstrings say of each attribute. More keys than it names are allowed, so that results of later versions stay valid.

Source:
    JSON Schema, draft 2020-12, https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from anthesis.bench.result import Report
from anthesis.dataset.summary import Summary
from anthesis.evaluate.result import Evaluation
from anthesis.json_text import format_json

VERSION = 1
DOCUMENTS: tuple[type, ...] = (Report, Summary, Evaluation)
"""What `bench`, `complete` and `evaluate` write."""

_IDENTITY = ("schema_version", "kind")
"""By which a document is known: every one has them, though the dataclasses have defaults."""

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.MULTILINE)


def schema() -> dict[str, Any]:
    """The schema of all kinds of documents."""
    definitions: dict[str, Any] = {}
    for document in DOCUMENTS:
        _define(document, definitions)
    for document in DOCUMENTS:
        definition = definitions[document.__name__]
        defaults = {field.name: field.default for field in fields(document) if field.name in _IDENTITY}
        definition["required"] = [*_IDENTITY, *definition["required"]]
        for name in _IDENTITY:
            definition["properties"][name]["const"] = defaults[name]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:anthesis:result:{VERSION}",
        "title": "Results of anthesis",
        "description": "What bench -o, complete and evaluate -o write: one JSON object, told apart by its kind.",
        "oneOf": [{"$ref": f"#/$defs/{document.__name__}"} for document in DOCUMENTS],
        "$defs": dict(sorted(definitions.items())),
    }


def _define(record: type, definitions: dict[str, Any]) -> None:
    """Adds what a dataclass is, and those that it holds."""
    name = record.__name__
    if name in definitions:
        return
    definitions[name] = {}  # in progress
    hints, described = get_type_hints(record), _attributes(record)
    properties = {}
    for field in fields(record):
        assert field.name in described, f"{name} does not say what its {field.name} is"
        properties[field.name] = {"description": described[field.name], **_type(hints[field.name], definitions)}
    definitions[name] = {
        "description": inspect.getdoc(record).partition("\n")[0],  # type: ignore[union-attr]
        "type": "object",
        "properties": properties,
        "required": [
            field.name for field in fields(record) if field.default is MISSING and field.default_factory is MISSING
        ],
        "additionalProperties": True,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of an annotation, of those that `anthesis.records` knows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin in (Union, types.UnionType):
        parts = [_type(argument, definitions) for argument in arguments]
        if all(part.keys() == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions) or True}
    assert is_dataclass(hint), f"{hint} is no annotation that documents know"
    _define(hint, definitions)  # type: ignore[arg-type]
    return {"$ref": f"#/$defs/{hint.__name__}"}  # type: ignore[union-attr]


def _attributes(record: type) -> dict[str, str]:
    """What a class says of each attribute, in JSON's words; "a, b: text" is said of both."""
    text = inspect.getdoc(record) or ""
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    _, *pieces = _ATTRIBUTE.split(section)
    return {
        name: re.sub(r"\bNone\b", "null", " ".join(said.split()))
        for names, said in zip(pieces[::2], pieces[1::2], strict=True)
        for name in names.split(", ")
    }


if __name__ == "__main__":
    sys.stdout.write(format_json(schema()))
