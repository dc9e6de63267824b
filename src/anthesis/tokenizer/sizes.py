"""How large the values of a template are, and what a rendering pays for them.

Two rules keep it simple. Lists and dictionaries hold plain data, and no more text than MAX_NESTED_CHARACTERS, counting
what is in them as often as it would be written; so to compare, hash or write them takes no longer than that. And whole
numbers have 64 bits.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sized
from itertools import chain
from types import MethodType
from typing import Any

from jinja2 import TemplateRuntimeError, Undefined
from markupsafe import Markup

from anthesis.tokenizer.chat import budget

MAX_NESTED_CHARACTERS = 1 << 23
MAX_NESTED_LEVELS = 32

# The most that these take: an item of a new list, a reference to one that exists, and a call.
ITEM_BYTES, REFERENCE_BYTES, CALL_BYTES = 96, 8, 512
# A character; one that is quoted, as in "\U000e0001", among wide ones; and the longest escape for HTML, "&#34;".
CHARACTER_BYTES, QUOTED_BYTES, HTML_CHARACTERS = 4, 40, 5

CONTAINERS: tuple[type[Collection[Any]], ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
PLAIN: tuple[type, ...] = (str, int, float, complex, bytes, range, Undefined, type(None), *CONTAINERS)


def nested_characters(value: object, level: int = 0) -> int:
    """How long plain data would be, written out; with 8 for each thing in it."""
    if isinstance(value, str):
        return len(value)
    if level and not isinstance(value, PLAIN):
        raise TemplateRuntimeError(f"it puts a {type(value).__name__} into a list, where only plain data may be")
    if not isinstance(value, CONTAINERS):
        return 8
    if level == MAX_NESTED_LEVELS:
        raise TemplateRuntimeError(f"it nests lists more than {MAX_NESTED_LEVELS} levels deep")
    total = 8
    for item in chain(value, value.values()) if isinstance(value, dict) else value:
        total += 8 + (len(item) if isinstance(item, str) else nested_characters(item, level + 1))
        if total > MAX_NESTED_CHARACTERS:
            raise TemplateRuntimeError(f"it makes a list that is too large: over {MAX_NESTED_CHARACTERS} characters")
    return total


def text_bytes(value: object) -> int:
    """The most that a value takes as text."""
    if isinstance(value, str):
        return CHARACTER_BYTES * len(value)
    if isinstance(value, MethodType) and isinstance(value.__self__, str):  # it is written with that text
        value = [value.__self__]
    return QUOTED_BYTES * nested_characters(value)


def keep(value: Any, what: str, item_bytes: int = ITEM_BYTES) -> Any:
    """Pays for what an operation made, and refuses what is against the two rules."""
    if isinstance(value, str):
        budget.get().spend(sys.getsizeof(value), what)
    elif isinstance(value, int):
        check_bits(value.bit_length())
    elif isinstance(value, CONTAINERS):
        nested_characters(value)
        budget.get().spend(item_bytes * (len(value) + 8), what)
    return value


def check_bits(bits: int) -> None:
    """Refuses a number that is too large."""
    if bits > 64:
        raise TemplateRuntimeError("it makes a number that is too large: it has more than 64 bits")


def written(value: object) -> str:
    """A value as text."""
    if not isinstance(value, str):
        budget.get().allow(text_bytes(value), "string")
        return str(keep(str(value), "string"))
    return value


def listed(items: Iterable[Any], what: str) -> list[Any]:
    """All items as a list, once it is known that there is room for it."""
    budget.get().allow(items_bytes(items), what)
    return list(items)


def html_factor(*values: object) -> int:
    """How many times longer a text gets at most, by what is escaped to go with Markup."""
    return HTML_CHARACTERS if Markup in map(type, values) else 1


def items_bytes(items: object, *_: object, **__: object) -> int:
    """Of a list of all items, which of a text are its characters. What an iterator yields was paid for before."""
    return ITEM_BYTES * (len(items) + 1) if isinstance(items, Sized) else ITEM_BYTES
