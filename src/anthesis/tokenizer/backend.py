"""The library `tokenizers`, written in Rust, whose errors are made ours here."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from anthesis.errors import TokenizerError, printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_WHOLE_TOKENS = 1 << 16
"""Ten times as many as Gemma has; each takes 20 microseconds and a kilobyte."""


def add_whole_tokens(backend: Backend, texts: Sequence[str], *, special: bool) -> None:
    """Makes tokens be found in a text before anything splits it.

    Args:
        backend: to change.
        texts: of the tokens.
        special: decoding leaves them out.

    Raises:
        TokenizerError: more tokens than any model has of this kind.
    """
    from tokenizers import AddedToken

    if len(texts) > MAX_WHOLE_TOKENS:
        kind = "special" if special else "user-defined"
        raise TokenizerError(f"the tokenizer has {len(texts):,} {kind} tokens; at most {MAX_WHOLE_TOKENS:,} are read")
    tokens = [AddedToken(text, normalized=False, special=special) for text in texts]
    if special:
        backend.add_special_tokens(tokens)
    else:
        backend.add_tokens(tokens)


class library_errors:  # noqa: N801 - it is used as a function
    """Makes a TokenizerError of whatever the library raises.

    Args:
        message: what is wrong; the library's reason follows it.

    Raises:
        TokenizerError: the library raised something.
    """

    def __init__(self, message: str) -> None:
        self._message = message

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # For files it can't read the library raises a plain Exception. Where it does not expect what it finds, Rust
        # panics: an exception of a class that can't be imported, and that no `except Exception` catches.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{self._message}: {printable(str(error))}") from error
