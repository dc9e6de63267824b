"""What a file format must provide to be read as a checkpoint."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from anthesis.errors import CheckpointError
from anthesis.quantize import WeightTensor

Rows = slice | NDArray[np.int64]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: as stored, with any prefix.
        shape: as stored; the last dimension is contiguous.
        stored_as: the type as the format calls it ("BF16", "Q4_K"), for messages.
        kind: the weight kind in which `TensorStore.read` gives it, or None for a type we do not read.
        exact: that kind holds just what is stored.
        column_step: columns can be read from and up to multiples of this.
    """

    name: str
    shape: tuple[int, ...]
    stored_as: str
    kind: str | None
    exact: bool = True
    column_step: int = 1


class TensorStore(Protocol):
    """The tensors of a checkpoint: listed at once, read by the slice."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by their stored names."""
        ...

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """Part of a tensor, without reading the rest of it.

        Args:
            name: as stored.
            rows: rows of the matrix (elements of a vector) to read, after `transpose`: a range, or their numbers (N,).
            columns: range of columns to read, after `transpose`; without meaning for a vector.
            transpose: the stored matrix is the transpose of the wanted one.
            exact: give fp32 where the tensor's own kind is not exactly what is stored.

        Returns:
            In the tensor's `kind`, or fp32 if asked to be exact; possibly a read-only view of the file.

        Raises:
            RequestError: columns that cut a group of the stored kind.
        """
        ...


def open_regular(path: Path) -> IO[bytes]:
    """A file opened for reading, unbuffered; a directory, pipe or device is none, and opening one never waits.

    Raises:
        CheckpointError: the file can't be read, or is no regular file.
    """
    try:
        # A pipe without a writer would be waited for, so the file is opened without waiting and then looked at.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise CheckpointError(f"{path}: a directory, pipe or device, not a regular file")
    return os.fdopen(number, "rb", buffering=0)


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped read-only.

    Returns:
        (N,) uint8, N its size.

    Raises:
        CheckpointError: the file can't be read, is no regular file, or is empty.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        try:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from error
