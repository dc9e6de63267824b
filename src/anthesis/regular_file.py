"""Reading files that somebody else brought: regular ones only, without waiting, and no more of them than allowed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path) -> IO[bytes]:
    """A file opened for reading, unbuffered; a directory, pipe or device is none, and opening one never waits.

    Raises:
        OSError: the file can't be read, or is no regular file.
    """
    # A pipe without a writer would be waited for, so the file is opened without waiting and then looked at.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "a directory, pipe or device, not a regular file", str(path))
    return os.fdopen(number, "rb", buffering=0)


def read_up_to(file: IO[bytes], size: int) -> bytes:
    """The first bytes of a file: all, if it has fewer than `size`.

    Raises:
        OSError: it can't be read.
    """
    parts = [b""]
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file.

    Args:
        path: of the file.
        most: bytes it may have.

    Raises:
        OSError: the file can't be read, or is no regular file.
        ValueError: it has more bytes; the message is a reason to put behind the file's name.
    """
    with open_regular(path) as file:
        # a byte more than is allowed tells that it is too long, whatever its size was said to be
        data = read_up_to(file, most + 1)
    if len(data) > most:
        raise ValueError(f"too long: more than {most:,} bytes")
    return data
