"""Dataclasses as JSON documents and back, checked against their annotations.

The annotations may be: bool, int, float, str, None, Any, Literal, dict[str, X], tuple[X, ...], another dataclass, and
unions of a type and None.
"""

from __future__ import annotations

import hashlib
import types
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from anthesis.errors import RequestError
from anthesis.json_text import parse_object, type_name
from anthesis.regular_file import read_regular

_T = TypeVar("_T")

MAX_RESULT_BYTES = 64 << 20
MAX_RESULT_VALUES = 4 << 20
"""More than other documents may have: a result keeps every sample."""

_hints = cache(get_type_hints)  # a document may hold hundreds of records of one class


def to_document(record: Any) -> Any:
    """A dataclass as plain JSON values; tuples become lists."""
    return _plain(asdict(record))


def from_document(cls: type[_T], value: Any, where: str) -> _T:
    """A dataclass from plain JSON values.

    Args:
        cls: the dataclass.
        value: what `to_document` gave; keys that the class does not have are let be, those it lacks and has no
            default for are missing.
        where: what messages call the document.

    Raises:
        ValueError: something is missing, or of another type; the message names it.
    """
    found: _T = _build(cls, value, where)
    return found


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a result file.

    Raises:
        RequestError: it can't be read, or is none.
    """
    return read_with_sha256(path)[0]


def read_with_sha256(path: Path) -> tuple[dict[str, Any], str]:
    """The JSON object in a result file, and the SHA-256 of all its bytes.

    Raises:
        RequestError: it can't be read, or is none.
    """
    try:
        data = read_regular(path, MAX_RESULT_BYTES)
        found = parse_object(data, max_bytes=MAX_RESULT_BYTES, max_values=MAX_RESULT_VALUES)
        return found, hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise RequestError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RequestError(f"{path} is no result: {error}") from error


def from_result(cls: type[_T], document: Any, *, kind: str, version: int, what: str, otherwise: str) -> _T:
    """A dataclass from the document of a result file, if it is of the right kind and version.

    Args:
        cls: the dataclass.
        document: what `to_document` gave, or anything else.
        kind: the command that wrote it, which stands in it under "kind".
        version: that is read; it stands in it under "schema_version".
        what: "result" or "summary".
        otherwise: what to do about another version.

    Raises:
        RequestError: of another kind or version, or incomplete; the message names it.
    """
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise RequestError(f'not a {what} of `anthesis {kind}`: it has no "kind": "{kind}"')
    if document.get("schema_version") != version:
        raise RequestError(
            f"the {what} has schema_version {document.get('schema_version')!r:.60}, and this version reads {version}; "
            f"{otherwise} with the version that wrote it"
        )
    try:
        return from_document(cls, document, f"the {what}")
    except ValueError as error:
        raise RequestError(f"{error}; it is damaged") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(cls: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(cls), get_args(cls)
    if cls is Any:
        return value
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(inner, value, where)
    if origin is Literal:
        return _checked(value in arguments, value, where, " | ".join(map(repr, arguments)))
    if origin is tuple:
        items = _checked(isinstance(value, list), value, where, "an array")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict or cls is dict:
        entries = _checked(isinstance(value, dict), value, where, "an object")
        inner = arguments[1] if arguments else Any
        return {key: _build(inner, item, f"{where}[{key!r:.60}]") for key, item in entries.items()}
    if is_dataclass(cls):
        return _build_dataclass(cls, _checked(isinstance(value, dict), value, where, "an object"), where)
    if cls is float:
        return float(_checked(_is_number(value, int | float), value, where, "a number"))
    if cls is int:
        return _checked(_is_number(value, int), value, where, "a whole number")
    assert cls in (bool, str), f"{where} is annotated {cls}, which documents don't know"
    return _checked(isinstance(value, cls), value, where, "true or false" if cls is bool else "a string")


def _build_dataclass(cls: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(cls)
    probe = {field.name: field for field in fields(cls)}
    missing = [name for name, field in probe.items() if name not in value and not _has_default(field)]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in probe if name in value})


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _is_number(value: Any, kind: Any) -> bool:
    """Whether it is of this kind, and not an integer beyond 64 bits, which nothing counts to and no float may hold."""
    fits = isinstance(value, kind) and not isinstance(value, bool)
    return fits and (isinstance(value, float) or abs(value) < 1 << 64)


def _checked(fine: bool, value: Any, where: str, needed: str) -> Any:
    if not fine:
        seen = repr(value) if isinstance(value, bool | int | float | str) else type_name(value)
        raise ValueError(f"{where} is {seen[:60]}; {needed} is needed")
    return value
