"""The library `tokenizers`, written in Rust, whose errors are made ours here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anthesis.errors import TokenizerError, printable


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Makes a TokenizerError of whatever the library raises.

    Args:
        message: what is wrong; the library's reason follows it.

    Raises:
        TokenizerError: the library raised something.
    """
    try:
        yield
    except BaseException as error:
        # For files it can't read the library raises a plain Exception. Where it does not expect what it finds, Rust
        # panics: an exception of a class that can't be imported, and that no `except Exception` catches.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{message}: {printable(str(error))}") from error
