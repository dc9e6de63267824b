"""The lines of a file, one after the other, none of which can take more memory than a bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from anthesis.dataset.read import MAX_TEXT_BYTES
from anthesis.dataset.source import SourceFile

TOO_LONG = f"longer than {MAX_TEXT_BYTES:,} bytes"
_BUFFER_BYTES = 1 << 20


class LineFile:
    """Reads a file line by line and counts what it has read.

    Args:
        source: the file.

    Attributes:
        position: bytes read so far.
        number: of the line that was read last, from 1.

    Raises:
        DataSetError: it can't be opened.
    """

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        try:
            self._file: BinaryIO = source.path.open("rb", _BUFFER_BYTES)
        except OSError as error:
            raise source.unreadable(error) from error
        self.position = 0
        self.number = 0
        self._checked = -_BUFFER_BYTES  # the first piece is checked

    def __iter__(self) -> Iterator[bytes | None]:
        return self

    def __next__(self) -> bytes | None:
        """The next line without its end; None for one that is too long, which is left out.

        Raises:
            DataSetError: the file can't be read, or was changed since its fingerprint was taken.
        """
        line = self._read(MAX_TEXT_BYTES + 1)
        if not line:
            self._source.check_unchanged()
            raise StopIteration
        self.number += 1
        if len(line) > MAX_TEXT_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = self._read(_BUFFER_BYTES)
            return None
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

    def _read(self, most: int) -> bytes:
        """What is left of a line, or of that `most` bytes."""
        try:
            piece = self._file.readline(most)
        except OSError as error:
            raise self._source.unreadable(error) from error
        self.position += len(piece)
        if self.position - self._checked >= _BUFFER_BYTES:
            self._source.check_unchanged()
            self._checked = self.position
        return piece
