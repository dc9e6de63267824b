"""The text that is predicted: read, tokenised, and cut into windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from anthesis.errors import RequestError
from anthesis.llm import LLM
from anthesis.regular_file import read_regular

MAX_TEXT_BYTES = 256 << 20
"""Tens of millions of tokens, of which nobody waits for the end."""


@dataclass(frozen=True)
class TextFile:
    """A text and where it comes from.

    Attributes:
        name: of the file, without its directory.
        sha256: of its bytes.
        content: that they stand for.
    """

    name: str
    sha256: str
    content: str


def read_text(path: Path) -> TextFile:
    """Reads a UTF-8 file, with or without a byte order mark.

    Args:
        path: of the file.

    Raises:
        RequestError: it can't be read, is longer than 256 MiB, not UTF-8, or has nothing but space in it.
    """
    try:
        data = read_regular(path, MAX_TEXT_BYTES)
    except OSError as error:
        raise RequestError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RequestError(f"{path} is {error}; take a part of it") from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    if not content.strip():
        raise RequestError(f"{path} has no text in it; name another file")
    return TextFile(path.name, hashlib.sha256(data).hexdigest(), content)


@dataclass(frozen=True)
class Windows:
    """The tokens of a text in pieces that are predicted by themselves.

    Attributes:
        pieces: token ids, of which the first of each is given and not predicted; two at least in each.
        size: tokens of each; the last may have fewer.
        left_out: tokens at the end of the text that are in none.
    """

    pieces: tuple[list[int], ...]
    size: int
    left_out: int

    @property
    def scored(self) -> int:
        """Tokens that are predicted."""
        return sum(len(piece) - 1 for piece in self.pieces)


def cut(ids: list[int], size: int, most: int | None = None) -> Windows:
    """Cuts a text's tokens into windows; a last one of a single token, which nothing predicts, is left out.

    Args:
        ids: of the whole text.
        size: tokens of a window, two at least.
        most: tokens of the beginning to use; None: all.
    """
    used = ids[:most]
    pieces = [used[first : first + size] for first in range(0, len(used), size)]
    whole = tuple(piece for piece in pieces if len(piece) > 1)
    return Windows(whole, size, len(ids) - sum(map(len, whole)))


def windows_of(llm: LLM, text: TextFile, window: int, most: int | None = None) -> Windows:
    """The windows of a text, as a model's tokenizer reads it: whole, with the tokens that begin a prompt.

    Args:
        llm: the model; its weights need not be loaded.
        text: read.
        window: tokens of each.
        most: tokens of the beginning to use; None: all.

    Raises:
        RequestError: the model has no tokenizer, a window does not fit its context, or the text has a single token.
    """
    if llm.tokenizer is None:
        raise RequestError(f"{llm.description} has no tokenizer, so it can't read a text; name a model that has one")
    if llm.max_context is not None and window > llm.max_context:
        raise RequestError(
            f"a window of {window} tokens does not fit the context of {llm.max_context}; take a shorter one"
        )
    windows = cut(llm.encode(text.content), window, most)
    if not windows.pieces:
        raise RequestError(f"{text.name} has a single token, and the first is predicted by none; name a longer text")
    return windows
