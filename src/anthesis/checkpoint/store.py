"""What a file format must provide to be read as a checkpoint."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anthesis.errors import CheckpointError
from anthesis.quantize import WeightTensor
from anthesis.regular_file import open_regular

Rows = slice | NDArray[np.int64]

MAX_TENSORS = 1 << 15
"""Of a checkpoint: ten times what the largest models of the known families have; a second of looking at them."""

MAX_NAME_CHARACTERS = 128
"""Of a tensor: several times the longest in use."""


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

    def release(self) -> None:
        """Takes what was read of mapped files out of this process's memory; it comes back when it is read again."""
        ...


def check_name(path: Path, name: str, what: str = "tensor") -> None:
    """Refuses a name that no tensor has, so that a message can show any other as it is.

    Args:
        path: of the file that holds it.
        name: as stored.
        what: is called so.

    Raises:
        CheckpointError: it is empty, too long, or not printable.
    """
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise CheckpointError(
            f"{path}: damaged: the name of a {what} has {len(name):,} characters, {name!r:.60}; from 1 to "
            f"{MAX_NAME_CHARACTERS} printable ones are read"
        )


def check_count(path: Path, count: int) -> None:
    """Refuses a checkpoint of more tensors than any has.

    Args:
        path: of the file that holds them, or that names them.
        count: of the tensors, together with those of the checkpoint's other files.

    Raises:
        CheckpointError: there are more.
    """
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: damaged, or made to exhaust memory: {count:,} tensors, at most {MAX_TENSORS:,} are read"
        )


def open_weights(path: Path) -> IO[bytes]:
    """A file of weights opened for reading, as `open_regular`.

    Raises:
        CheckpointError: the file can't be read, or is no regular file.
    """
    try:
        return open_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped read-only.

    Returns:
        (N,) uint8, N its size.

    Raises:
        CheckpointError: the file can't be read, is no regular file, or is empty.
    """
    with open_weights(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        try:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from error


def forget_pages(mapped: NDArray[np.uint8]) -> None:
    """Takes the pages of a mapped file out of this process's memory, which count as its own once they are read.

    They stay in the system's cache of files, where the other ranks of a machine find them.

    Args:
        mapped: what `map_file` gave, (N,) uint8.
    """
    base: Any = mapped.base
    mapping = base.obj if isinstance(base, memoryview) else base
    assert isinstance(mapping, mmap.mmap), "not the array of a mapped file"
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
