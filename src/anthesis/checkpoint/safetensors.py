"""Safetensors checkpoints: one file, or shards with an index, mapped into memory.

Format: https://huggingface.co/docs/safetensors: eight bytes with the header's length (little-endian), the header as
JSON ({name: {"dtype", "shape", "data_offsets"}}), then the data, to which the offsets are relative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint.store import Rows, StoredTensor, check_count, check_name, forget_pages, map_file
from anthesis.errors import CheckpointError, few, printable
from anthesis.json_text import MAX_BYTES, parse_object
from anthesis.quantize import WeightTensor, weight_kind
from anthesis.regular_file import read_regular

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_KINDS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_DTYPE_NAME = re.compile("[A-Z][A-Z0-9_]{0,15}")  # BF16, F8_E4M3, ...
_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file can't be read, is too long, or does not hold a JSON object.
    """
    try:
        return parse_object(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def shards(directory: Path, single: str, index: str, suffix: str) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The files that make up the checkpoint in a directory.

    Args:
        directory: where they are.
        single: name of the file that holds everything, where there is one.
        index: name of the JSON file that says which tensor is in which file, where there are several.
        suffix: of all files with tensors.

    Returns:
        The files, and by tensor the name of its file; the latter empty where there is one file only.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    if (directory / single).is_file():
        return (directory / single,), {}
    if not (directory / index).is_file():
        raise CheckpointError(
            f"{directory} holds no weights: expected {SINGLE_NAME}, {INDEX_NAME}, pytorch_model.bin, "
            f"pytorch_model.bin.index.json or a .gguf file{_misnamed(directory)}"
        )
    weight_map = _weight_map(directory / index, suffix)
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(files)} shards are missing: {few(missing)}; download the model anew"
        )
    return tuple(directory / name for name in files), weight_map


def check_promises(directory: Path, weight_map: Mapping[str, str], held: Mapping[str, frozenset[str]]) -> None:
    """Checks that each file holds what the index says.

    Args:
        directory: for messages.
        weight_map: by tensor the name of its file.
        held: by file the names of its tensors.

    Raises:
        CheckpointError: a file lacks a tensor.
    """
    for name, file in weight_map.items():
        if name not in held[file]:
            raise CheckpointError(f"{directory / file}: lacks the tensor {name}, which the index promises")


def take(array: NDArray[Any], kind: str, rows: Rows, columns: slice, transpose: bool) -> WeightTensor:
    """Part of a plain array, without a copy where it is a view; see `TensorStore.read`.

    Args:
        array: (N, K) or (N,) of the kind's dtype, with any strides.
        kind: fp32, fp16 or bf16.
        rows: to take, after `transpose`.
        columns: to take, after `transpose`.
        transpose: the array is the transpose of the wanted matrix.
    """
    index = (columns, rows) if transpose else (rows, columns)
    part = array[rows] if array.ndim == 1 else array[index]
    part = part.T if transpose else part
    if not part.flags.aligned or not part.flags.c_contiguous:
        part = np.array(part, order="C")
    return WeightTensor(weight_kind(kind), part.shape, part)


def safetensors_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the checkpoint in a directory.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    return shards(directory, SINGLE_NAME, INDEX_NAME, ".safetensors")[0]


def has_safetensors(directory: Path) -> bool:
    """Whether a directory holds safetensors by their usual names."""
    return (directory / SINGLE_NAME).is_file() or (directory / INDEX_NAME).is_file()


class SafetensorsStore:
    """The tensors of a directory with safetensors files.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and the shards it names.
        single: what the file is called instead, where there is one.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, directory: Path, single: str = SINGLE_NAME) -> None:
        self._arrays: dict[str, tuple[NDArray[np.uint8], str]] = {}
        self._files: list[NDArray[np.uint8]] = []
        self.tensors: dict[str, StoredTensor] = {}
        files, weight_map = shards(directory, single, INDEX_NAME, ".safetensors")
        check_promises(directory, weight_map, {path.name: self._map(path) for path in files})

    def _map(self, path: Path) -> frozenset[str]:
        """Adds the tensors of a file; gives their names."""
        data = map_file(path)
        self._files.append(data)
        header, start = read_header(path, data)
        check_count(path, len(self.tensors) + len(header))
        taken: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            stored, begin, end = _read_entry(path, name, entry, data.size - start)
            if name in self.tensors:
                raise CheckpointError(f"{path}: the tensor {name} is stored in two shards")
            self.tensors[name] = stored
            self._arrays[name] = (data[start + begin : start + end], stored.stored_as)
            taken.append((begin, end, name))
        taken.sort()
        for (_, end, name), (begin, _, other) in pairwise(taken):
            if begin < end:
                raise CheckpointError(f"{path}: damaged: the tensors {name} and {other} overlap")
        return frozenset(header)

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """See `TensorStore.read`."""
        data, dtype = self._arrays[name]
        array = data.view(_DTYPES[dtype]).reshape(self.tensors[name].shape)
        return take(array, _KINDS[dtype], rows, columns, transpose)

    def release(self) -> None:
        """See `TensorStore.release`."""
        for file in self._files:
            forget_pages(file)


def _weight_map(path: Path, suffix: str) -> dict[str, str]:
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{path}: lacks a weight_map from tensor names to file names")
    check_count(path, len(found))
    for name, file in found.items():
        check_name(path, name)
        check_name(path, file, "file")
        if not file.endswith(suffix) or Path(file).name != file:
            raise CheckpointError(f"{path}: the tensor {name} is said to be in {file!r}, not a {suffix} file beside it")
    return found


def read_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, its metadata left out, and where the data begins.

    Args:
        path: for messages.
        data: (N,) uint8, the whole file, mapped.

    Raises:
        CheckpointError: the file is truncated, or its header is damaged or too long.
    """
    if data.size < 8:
        raise CheckpointError(f"{path}: truncated: {data.size} bytes are no safetensors file")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > data.size - 8:
        raise CheckpointError(
            f"{path}: truncated, or no safetensors file: the header is said to have {length} bytes, "
            f"the file has {data.size}"
        )
    if length > MAX_BYTES:
        raise CheckpointError(f"{path}: the header has {length:,} bytes, at most {MAX_BYTES:,} are read")
    text = data[8 : 8 + length].tobytes()
    check_count(path, text.count(b"{") - 2)  # of each tensor one; of the header and of its metadata too
    try:
        header = parse_object(text, unique_keys=True)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: the header: {error}") from error
    header.pop("__metadata__", None)
    for name in header:
        check_name(path, name)
    return header, 8 + length


def _read_entry(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[StoredTensor, int, int]:
    """Checks one tensor of the header; gives it with its first and last byte within the data."""

    def is_size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62

    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: damaged: the header's entry for {name} is {entry!r:.100}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _DTYPE_NAME.fullmatch(dtype):
        raise CheckpointError(f"{path}: damaged: {name} has the dtype {dtype!r:.100}")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(is_size, shape)):
        raise CheckpointError(f"{path}: damaged: {name} has the shape {shape!r:.100}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise CheckpointError(f"{path}: damaged: {name} has the data_offsets {offsets!r:.100}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise CheckpointError(f"{path}: truncated: {name} is at {begin} to {end} of {data_bytes} bytes of data")
    if dtype in _DTYPES and end - begin != prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise CheckpointError(
            f"{path}: damaged: {name} of shape {shape!r:.100} and dtype {dtype} has {end - begin} bytes"
        )
    return StoredTensor(name, tuple(shape), dtype, _KINDS.get(dtype)), begin, end


def _misnamed(directory: Path) -> str:
    """What is there instead, for a message."""
    found = sorted(path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    return f"; there are {printable(few(found))}, without an index or by other names" if found else ""
