"""The lines of a file, one after the other, none of which can take more memory than a bound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from anthesis.errors import DataSetError
from anthesis.json_text import MAX_BYTES

MAX_LINE_BYTES = MAX_BYTES
_BUFFER_BYTES = 1 << 20


class LineFile:
    """Reads a file line by line and counts what it has read.

    Args:
        path: a regular file.

    Attributes:
        size: bytes of the file when it was opened.
        position: bytes read so far.
        number: of the line that was read last, from 1.

    Raises:
        DataSetError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("rb", _BUFFER_BYTES)
            self._before = os.fstat(self._file.fileno())
        except OSError as error:
            raise DataSetError(f"{path}: {error.strerror or error}") from error
        self.size = self._before.st_size
        self.position = 0
        self.number = 0

    def __iter__(self) -> Iterator[bytes | None]:
        return self

    def __next__(self) -> bytes | None:
        """The next line without its end; None for one that is too long, which is left out.

        Raises:
            DataSetError: the file can't be read, or was changed meanwhile.
        """
        try:
            line = self._file.readline(MAX_LINE_BYTES + 1)
            self._count(line)
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = self._file.readline(_BUFFER_BYTES)
                    self._count(line)
                self.number += 1
                return None
            if not line:
                self._check_unchanged()
                raise StopIteration
        except OSError as error:
            raise DataSetError(f"{self._path} can't be read any more: {error.strerror or error}") from error
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        return line.removesuffix(b"\n").removesuffix(b"\r")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self, piece: bytes) -> None:
        self.position += len(piece)

    def _check_unchanged(self) -> None:
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise DataSetError(
                f"{self._path} was changed while it was read, so its rows are not those that were asked for; "
                "take a copy that nobody writes to"
            )
