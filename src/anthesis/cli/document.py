"""JSON documents, on stdout or in a file that is either whole or not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from anthesis.atomic import check_place, replace_file
from anthesis.errors import AnthesisError, RequestError
from anthesis.json_text import format_json


def check_output(path: Path) -> None:
    """Finds out before the work is done whether its result can be written.

    Raises:
        RequestError: a directory, or a place in a directory that is missing or can't be written to.
    """
    check_place(path)
    if not os.access(path.resolve().parent if is_replaceable(path) else path, os.W_OK):
        raise RequestError(f"-o {path} can't be written to; name another file")


def print_json(document: dict[str, Any]) -> None:
    """Prints a document to stdout."""
    sys.stdout.write(format_json(document))


def write_json(document: dict[str, Any], path: Path) -> None:
    """Writes a document to a file, as `write_text`.

    Raises:
        AnthesisError: the operating system can't write it.
    """
    write_text(format_json(document), path)


def write_text(text: str, path: Path) -> None:
    """Writes a text to a file, which keeps what it holds until the new content is complete.

    Raises:
        AnthesisError: the operating system can't write it.
    """
    try:
        if is_replaceable(path):
            replace_file(path, text, alone=False)
        else:
            path.write_text(text, "utf-8")
    except OSError as error:
        raise AnthesisError(f"{path} could not be written: {error.strerror}; nothing was saved there") from error


def is_replaceable(path: Path) -> bool:
    """Whether a new file may take the place; a device or a named pipe must stay and be written to."""
    return path.absolute().parts[1:2] not in (("dev",), ("proc",)) and (path.is_file() or not path.exists())
