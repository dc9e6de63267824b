"""A file with rows, which must stay the same from its fingerprint to its last row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anthesis.errors import DataSetError
from anthesis.fingerprint import sampled_sha256

WHOLE_BYTES = 256 << 20
"""Up to this size a fingerprint covers the whole file, which takes a second at most."""

BEGINNING_BYTES = 1 << 16


class SourceFile:
    """A file as it was when the data set was opened.

    Args:
        path: a regular file.

    Attributes:
        path: of the file.
        size: in bytes.
        beginning: its first 64 KiB, without a byte order mark of UTF-8.

    Raises:
        DataSetError: it can't be read, or was changed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = self._state_now()
        _, _, self.size, _ = self._state
        try:
            self._fingerprint = sampled_sha256(path, WHOLE_BYTES)
            with path.open("rb") as file:
                self.beginning = file.read(BEGINNING_BYTES).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise self.unreadable(error) from error
        self.check_unchanged()

    def identity(self, column: str | None) -> dict[str, Any]:
        """See `DataSet.identity`."""
        return {"name": self.path.name, "column": column, "sampled_sha256": self._fingerprint}

    def check_unchanged(self) -> None:
        """See `DataSet.check_unchanged`.

        Raises:
            DataSetError: the file vanished, was replaced, or was written to.
        """
        if self._state_now() != self._state:
            raise DataSetError(
                f"{self.path} was changed while it was read, so its rows are not those that were asked for; "
                "take a copy that nobody writes to"
            )

    def unreadable(self, error: OSError) -> DataSetError:
        """The error of a file that can't be read, or not any more."""
        return DataSetError(f"{self.path} can't be read: {error.strerror or error}")

    def _state_now(self) -> tuple[int, ...]:
        try:
            now = self.path.stat()
        except OSError as error:
            raise self.unreadable(error) from error
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns
