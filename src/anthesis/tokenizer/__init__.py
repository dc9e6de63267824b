"""Text to token ids and back: tokenizer.json directories, and the vocabulary inside a GGUF file.

`open_tokenizer` picks the reader; everything else talks to the `Tokenizer` it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anthesis.errors import naming
from anthesis.tokenizer.detokenize import TextStream
from anthesis.tokenizer.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "open_tokenizer"]


def open_tokenizer(
    source: Path | Mapping[str, Any] | None, *, usable_vocab_size: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a model.

    Args:
        source: a directory that holds tokenizer.json, or a GGUF file's metadata (keys as in the file, arrays as
            sequences), or None for a model without one.
        usable_vocab_size: ids the model has embeddings for; a text that needs a higher id is refused when it is
            encoded, instead of reading past the table. None for no check.

    Returns:
        The tokenizer, or None where there is none to open.

    Raises:
        TokenizerError: missing, damaged, or of a kind that is not read here; the message names it.
    """
    if source is None:
        return None
    if isinstance(source, Mapping):
        from anthesis.tokenizer.from_gguf import tokenizer_from_gguf

        return tokenizer_from_gguf(source, usable_vocab_size)
    from anthesis.tokenizer.from_directory import tokenizer_from_directory

    with naming(Path(source)):
        return tokenizer_from_directory(Path(source), usable_vocab_size)
