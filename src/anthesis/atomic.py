"""Files that hold either their old content or all of their new one, also after a power cut."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from anthesis.errors import RequestError


def replace_file(path: Path, text: str, *, alone: bool = True) -> None:
    """Writes a text to a file, which keeps what it holds until the new content is complete and on the disk.

    Args:
        path: where a symbolic link leads, is written.
        text: as UTF-8.
        alone: no other process can be writing it: the caller holds a lock. What a killed one left of its unfinished
            file then goes with the next. Else that file has a name of this process's own, so that two don't mix, and
            a kill just as it is written leaves it.

    Raises:
        OSError: it can't be written; nothing has changed.
    """
    target = path.resolve()
    unfinished = target.with_name(f".{target.name}.{'unfinished' if alone else os.getpid()}")
    try:
        _write(unfinished, "w", text)
        unfinished.replace(target)
        sync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def create_file(path: Path, text: str) -> None:
    """Makes a file that is whole as soon as it is there, by one process of all on all machines that share the storage.

    Args:
        path: to make.
        text: as UTF-8.

    Raises:
        FileExistsError: it is there; nothing has changed.
        OSError: it can't be written, or the file system has no hard links.

    Source:
        open(2), on O_EXCL: a file with a name of its own and link(2) to it; its number of links tells of success where
        the answer was lost on the way.
    """
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(own, "x", text)
        try:
            os.link(own, path)
        except OSError:
            with own.open("rb") as file:  # opened, since NFS shows what it remembers otherwise
                if os.fstat(file.fileno()).st_nlink != 2:
                    raise
        sync(path.parent)
    finally:
        own.unlink(missing_ok=True)


def _write(path: Path, mode: str, text: str) -> None:
    """A file with this text, which is on the disk then."""
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Brings what a file holds, or the names in a directory, to the disk.

    Raises:
        OSError: it can't be opened, or the disk failed.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def check_place(path: Path) -> None:
    """Refuses a place for `-o` that can't hold a file.

    Raises:
        RequestError: a directory, or a place in a directory that is missing.
    """
    if path.is_dir():
        raise RequestError(f"-o {path} is a directory; name a file")
    if not path.parent.is_dir():
        raise RequestError(f"-o {path}: there is no directory {path.parent}; make it first")
