"""Safetensors checkpoints: one file, or shards with an index, mapped into memory.

Format: https://huggingface.co/docs/safetensors: eight bytes with the header's length (little-endian), the header as
JSON ({name: {"dtype", "shape", "data_offsets"}}), then the data, to which the offsets are relative.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint.store import Rows, StoredTensor, map_file
from anthesis.errors import CheckpointError, UnsupportedError
from anthesis.quantize import WeightTensor, weight_kind

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

MAX_HEADER_BYTES = 100_000_000
"""As the format's own library allows."""

_KINDS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file can't be read, or does not hold a JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested beyond reason
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, not {type(found).__name__}")
    return found


def safetensors_files(directory: Path) -> tuple[Path, ...]:
    """The files that make up the checkpoint in a directory.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
        UnsupportedError: there are only weights of a format that we do not read.
    """
    if (directory / SINGLE_NAME).is_file():
        return (directory / SINGLE_NAME,)
    if (directory / INDEX_NAME).is_file():
        files = sorted(set(_weight_map(directory).values()))
        missing = [name for name in files if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(f"{directory}: {len(missing)} of {len(files)} shards are missing: {_few(missing)}")
        return tuple(directory / name for name in files)
    legacy = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if legacy:
        raise UnsupportedError(
            f"{directory} holds only legacy PyTorch weights ({_few(legacy)}); .bin files are not read yet: convert "
            "them to safetensors, for instance with transformers' save_pretrained"
        )
    raise CheckpointError(f"{directory} holds no weights: expected {SINGLE_NAME}, {INDEX_NAME} or a .gguf file")


class SafetensorsStore:
    """The tensors of a directory with safetensors files.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and the shards it names.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedError: the directory holds weights of another format.
    """

    def __init__(self, directory: Path) -> None:
        self._arrays: dict[str, tuple[NDArray[np.uint8], str]] = {}
        self.tensors: dict[str, StoredTensor] = {}
        files = safetensors_files(directory)
        held = {path.name: self._map(path) for path in files}
        if files[0].name != SINGLE_NAME:
            for name, file in _weight_map(directory).items():
                if name not in held[file]:
                    raise CheckpointError(f"{directory / file}: lacks the tensor {name}, which {INDEX_NAME} promises")

    def _map(self, path: Path) -> frozenset[str]:
        """Adds the tensors of a file; gives their names."""
        data = map_file(path)
        header, start = _read_header(path, data)
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
        index = (columns, rows) if transpose else (rows, columns)
        part = array[rows] if array.ndim == 1 else array[index]
        part = part.T if transpose else part
        if not part.flags.aligned or not part.flags.c_contiguous:
            part = np.array(part, order="C")
        return WeightTensor(weight_kind(_KINDS[dtype]), part.shape, part)


def _weight_map(directory: Path) -> Mapping[str, str]:
    path = directory / INDEX_NAME
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{path}: lacks a weight_map from tensor names to file names")
    for name, file in found.items():
        if not file.endswith(".safetensors") or Path(file).name != file:
            raise CheckpointError(
                f"{path}: the tensor {name} is said to be in {file!r}, not a safetensors file beside it"
            )
    return found


def _read_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    if data.size < 8:
        raise CheckpointError(f"{path}: truncated: {data.size} bytes are no safetensors file")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(data.size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path}: truncated, or no safetensors file: the header is said to have {length} bytes, "
            f"the file has {data.size}"
        )
    try:
        header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged: the header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError(f"{path}: damaged: a name occurs twice in the header")
    return result


def _read_entry(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[StoredTensor, int, int]:
    """Checks one tensor of the header; gives it with its first and last byte within the data."""

    def is_size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62

    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: damaged: the header's entry for {name} is {entry!r}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise CheckpointError(f"{path}: damaged: {name} has the dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(is_size, shape)):
        raise CheckpointError(f"{path}: damaged: {name} has the shape {shape!r:.100}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise CheckpointError(f"{path}: damaged: {name} has the data_offsets {offsets!r:.100}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise CheckpointError(f"{path}: truncated: {name} is at {begin} to {end} of {data_bytes} bytes of data")
    if dtype in _DTYPES and end - begin != prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise CheckpointError(f"{path}: damaged: {name} of shape {shape} and dtype {dtype} has {end - begin} bytes")
    return StoredTensor(name, tuple(shape), dtype, _KINDS.get(dtype)), begin, end


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
