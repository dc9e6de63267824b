"""JSON that somebody else wrote: parsed within bounds, so that a hostile file costs neither memory nor time.

A value of a few bytes can become an object of a hundred, so besides the length the number of values is bounded: at most
one for each comma and each opening bracket.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 16 << 20
"""Several times the largest configuration or header in use."""

MAX_VALUES = 1 << 20
"""At most some 100 bytes each."""


_NUMBERS = re.compile(r"\[\n\s+([-+.\de]+(?:,\n\s+[-+.\de]+)*)\n\s+\]")
"""An array of numbers, one on each line; there is no line break within a string of JSON."""


def parse_json(
    data: bytes, *, unique_keys: bool = False, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES
) -> Any:
    """The value that a JSON text stands for.

    Args:
        data: UTF-8, with or without a byte order mark.
        unique_keys: refuse an object that names a key twice, instead of keeping the last.
        max_bytes, max_values: longer texts, and those that may have more values, are refused.

    Raises:
        ValueError: not JSON, not UTF-8, too long, too many values, nested too deeply, or a key twice; the message is a
            reason to put behind the file's name.
    """
    if len(data) > max_bytes:
        raise ValueError(f"too long: {len(data):,} bytes of JSON, at most {max_bytes:,} are read")
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > max_values:
        raise ValueError(f"too many values: up to {values:,} of them, at most {max_values:,} are read")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        # what has one line may be one line of many
        place = f"line {error.lineno}, column {error.colno}" if b"\n" in data else f"character {error.pos + 1}"
        raise ValueError(f"not valid JSON: {error.msg} at {place}") from None
    except ValueError as error:
        if "digits" not in str(error):
            raise  # ours, which has a reason already
        # Python's, with advice for programmers
        raise ValueError("not valid JSON: a number has thousands of digits") from None


def parse_object(data: bytes, **options: Any) -> dict[str, Any]:
    """Like `parse_json`, with the same options, for a JSON object.

    Raises:
        ValueError: as `parse_json`; also another value than an object.
    """
    found = parse_json(data, **options)
    if not isinstance(found, Mapping):
        raise ValueError(f"a JSON object is needed, not {type_name(found)}")
    return dict(found)


def format_json(document: Mapping[str, Any]) -> str:
    """A document of ours as text for people and programs, with a line break at its end; numbers share a line."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def number_or_text(number: float) -> float | str:
    """The number, or "inf", "-inf" or "nan" as text, which JSON has no number for."""
    return number if math.isfinite(number) else str(number)


def type_name(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:100]!r} occurs twice")
        result[key] = value
    return result
