"""How the command line talks to people: text in UTF-8, messages on stderr, one line each, and what is aside dimmed."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import TextIO


def use_utf8() -> None:
    """Makes the standard streams UTF-8 whatever the locale."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # replaced, where what a file name or an argument holds is no text
            stream.reconfigure(encoding="utf-8", errors="replace")


def show_messages() -> None:
    """Sends the log of anthesis, and Python's warnings, to stderr: each message once, in one line."""
    logger = logging.getLogger("anthesis")
    logger.addHandler(_Messages())
    logger.propagate = False
    warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if message not in self._shown:
            self._shown.add(message)
            tell(f"anthesis: {message}")


def tell(text: str) -> None:
    """A line on stderr, as something aside; that nobody reads them any more is no reason to end."""
    try:
        print(dim(text, sys.stderr), file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def is_styled(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can show colours and the like, and nobody has said not to.

    Source:
        https://no-color.org.
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str, stream: TextIO) -> str:
    """The text as something that stands out, as `dim`.

    Source:
        ECMA-48, SGR 1 (bold) and 0.
    """
    return f"\x1b[1m{text}\x1b[0m" if is_styled(stream) else text


def dim(text: str, stream: TextIO) -> str:
    """The text as something aside, where the stream can show that.

    Source:
        ECMA-48, SGR 2 (faint) and 0.
    """
    return f"\x1b[2m{text}\x1b[0m" if is_styled(stream) else text
