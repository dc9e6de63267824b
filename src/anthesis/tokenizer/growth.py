"""How much longer a tokenizer.json may make a text: a few lines of it can ask for terabytes.

Twenty-four replacements of `a` by `aa`, one after the other, make sixteen million characters of one. The library does
what it is told, so what it is told is looked at first.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anthesis.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_STEPS = 64
MAX_FACTOR = 64
"""Three times what the compiled NFKC of SentencePiece can do, the largest in use: one Arabic ligature is 18 letters."""
MAX_CHARSMAP_CHARACTERS = 4 << 20
"""Of a compiled normalisation; SentencePiece's NFKC has some 300 thousand."""
MAX_ADDED = 1024
"""Characters, or tokens, put around a text."""


def check_growth(backend: Backend, path: Path) -> None:
    """Refuses a tokenizer that makes texts, or lists of tokens, many times longer.

    Args:
        backend: as read.
        path: of its tokenizer.json, for the message.

    Raises:
        TokenizerError: it does.
    """
    for name in ("normalizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        steps = [] if part is None else list(_steps(json.loads(part.__getstate__())))
        factor = math.prod(max(1.0, _factor(step)) for step in steps)
        added = sum(_added(step) for step in steps)
        if len(steps) > MAX_STEPS:
            raise TokenizerError(f"{path}: the {name} has {len(steps):,} steps; no tokenizer has more than {MAX_STEPS}")
        if factor > MAX_FACTOR:
            raise TokenizerError(
                f"{path}: the {name} makes texts up to {factor:.2g} times longer; {MAX_FACTOR} are allowed"
            )
        if added > MAX_ADDED:
            raise TokenizerError(f"{path}: the {name} adds {added:,} pieces to each text; {MAX_ADDED:,} are allowed")


def _steps(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What the part does, one thing after the other."""
    if part["type"] != "Sequence":
        yield part
        return
    (parts,) = (value for key, value in part.items() if key != "type")
    for inner in parts:
        yield from _steps(inner)


def _factor(step: Mapping[str, Any]) -> float:
    """How many times longer a text can become by a step."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        # a regular expression may match nothing, and so at every place
        return len(step["content"]) / len(pattern) if pattern else 1 + len(step["content"])
    if step["type"] == "Precompiled":
        if len(step["precompiled_charsmap"] or "") > MAX_CHARSMAP_CHARACTERS:
            return math.inf  # nobody has looked what it does
        blob = base64.b64decode(step["precompiled_charsmap"] or "")
        # u32 size of a trie, the trie, and what it maps to: texts that end in a zero byte
        texts = blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")
        return max(map(len, texts)) / 2  # what is mapped and is no letter of ASCII has two bytes or more
    if step["type"] == "TemplateProcessing":
        return sum("Sequence" in piece for piece in step["single"])
    return 1


def _added(step: Mapping[str, Any]) -> int:
    """How many characters, or tokens, a step puts around a text."""
    if step["type"] == "Prepend":
        return len(step["prepend"])
    if step["type"] == "TemplateProcessing":
        lengths = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
        return sum(lengths.get(piece["SpecialToken"]["id"], 0) for piece in step["single"] if "SpecialToken" in piece)
    return 0
