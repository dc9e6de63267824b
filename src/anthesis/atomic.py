"""Files that hold either their old content or all of their new one, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Writes a text to a file, which keeps what it holds until the new content is complete and on the disk.

    Args:
        path: where a symbolic link leads, is written.
        text: as UTF-8.

    Raises:
        OSError: it can't be written; nothing has changed.
    """
    target = path.resolve()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
        sync_directory(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Brings the names in a directory to the disk.

    Raises:
        OSError: it can't be opened.
    """
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
