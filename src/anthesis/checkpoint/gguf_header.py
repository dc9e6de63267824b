"""The header of a GGUF file: its metadata, and where its tensors are.

Written for start-up time (an array of 100,000 strings takes some 20 ms) and for files that lie: every length is checked
against the bytes that are there, and what is read of all keys together is bounded, before anything is allocated for it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint.store import MAX_NAME_CHARACTERS, check_count, check_name
from anthesis.errors import CheckpointError, UnsupportedError

MAX_KEYS = 1 << 16
MAX_STRINGS, MAX_NUMBERS = 1 << 20, 1 << 21
"""In the arrays of all keys together: the largest vocabulary in use (Gemma's) has 262,144 tokens and 514,906 merges, a
score and a type for each token. Eight bytes in the file can become a string of fifty."""
MAX_TEXT_BYTES = 1 << 25
"""Of all strings together, which may take four times as many: three times Gemma's."""

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""By number: name, elements of a block, bytes of a block. Source: ggml's type table, as in the gguf package."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor stands in a GGUF file.

    Attributes:
        name: as stored.
        shape: the last dimension is contiguous (GGUF writes it first).
        type_name: "Q4_1", ...
        block_size: elements of a block.
        block_bytes: bytes of a block.
        start: first byte in the file.
        nbytes: length.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    block_size: int
    block_bytes: int
    start: int
    nbytes: int


def read_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Metadata and tensors of a GGUF file.

    Args:
        path: for messages.
        data: (N,) uint8, the whole file, mapped.

    Returns:
        Metadata by key: int, float, bool, str, for arrays of strings a list of str, for other arrays (N,) of their
        own dtype, int32 and the like.
        Tensors by name.

    Raises:
        CheckpointError: the file is damaged, truncated, or no GGUF file.
        UnsupportedError: a version, byte order, type or splitting that we do not read.
    """
    cursor = _Cursor(path, data.data)
    if data.size < 24 or bytes(data[:4]) != b"GGUF":
        raise CheckpointError(f"{path}: not a GGUF file")
    cursor.at = 4
    version = cursor.integer(4, "the version")
    if version not in (2, 3):
        order = " (a big-endian file?)" if version >= 1 << 16 else ""
        raise UnsupportedError(
            f"{path}: GGUF version {version}{order} is not read; versions 2 and 3, little-endian, are"
        )
    tensor_count = cursor.integer(8, "the number of tensors")
    key_count = cursor.integer(8, "the number of keys")
    cursor.allow(key_count, MAX_KEYS, "keys")
    check_count(path, tensor_count)
    cursor.expect(key_count * 13 + tensor_count * 32, f"{key_count} keys and {tensor_count} tensors")

    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.name("key")
        if key in metadata:
            raise CheckpointError(f"{path}: damaged: the key {key} occurs twice")
        metadata[key] = cursor.value(cursor.integer(4, f"the type of {key}"), key)
    parts = metadata.get("split.count", 0)
    if not isinstance(parts, int) or parts not in (0, 1):
        raise UnsupportedError(
            f"{path}: one of {parts!r:.60} parts; split GGUF files are not read: "
            "join them with `llama-gguf-split --merge`"
        )
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise CheckpointError(f"{path}: damaged: general.alignment is {alignment!r:.60}")

    found = [_tensor_info(cursor) for _ in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_number, offset in found:
        if name in tensors:
            raise CheckpointError(f"{path}: damaged: the tensor {name} occurs twice")
        if type_number not in BLOCKS:
            raise UnsupportedError(f"{path}: the tensor {name} is of GGUF type {type_number}, which is not known here")
        type_name, block_size, block_bytes = BLOCKS[type_number]
        if shape[-1] % block_size:
            raise CheckpointError(
                f"{path}: damaged: {name} is {shape[-1]} wide, no multiple of {type_name}'s {block_size}"
            )
        nbytes = prod(shape) // block_size * block_bytes
        if offset % alignment or start + offset + nbytes > data.size:
            raise CheckpointError(
                f"{path}: damaged or truncated: {name} ({type_name}, shape {list(shape)}) is said to be at bytes "
                f"{start + offset} to {start + offset + nbytes}, the file has {data.size}"
            )
        tensors[name] = GgufTensor(name, shape, type_name, block_size, block_bytes, start + offset, nbytes)
    return metadata, tensors


class _Cursor:
    """Reads forward through the file, and never past its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self._strings = self._numbers = self._text_bytes = 0  # read so far

    def expect(self, count: int, what: str) -> None:
        if count > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path}: damaged or truncated: {what} can't fit into the {len(self.data) - self.at} bytes "
                f"after byte {self.at}"
            )

    def allow(self, count: int, most: int, what: str) -> None:
        if count > most:
            raise CheckpointError(
                f"{self.path}: damaged, or made to exhaust memory: {count:,} {what}, at most {most:,} are read"
            )

    def integer(self, size: int, what: str) -> int:
        self.expect(size, what)
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def name(self, what: str) -> str:
        """Of a key or a tensor; its length is checked first, so that no error has to hold a long one."""
        self.expect(8, f"a {what}'s name")
        size = int.from_bytes(self.data[self.at : self.at + 8], "little")
        self.allow(size, 4 * MAX_NAME_CHARACTERS, f"bytes in a {what}'s name")
        name = self.string(f"a {what}'s name")
        check_name(self.path, name, what)
        return name

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        self.expect(count * 8, f"{what} ({count} strings)")
        data, at, size = self.data, self.at, len(self.data)
        last = at + 8 * count + MAX_TEXT_BYTES - self._text_bytes
        result: list[str] = []
        append, length_at = result.append, Struct("<Q").unpack_from
        try:
            for _ in range(count):
                end = at + 8 + length_at(data, at)[0]
                if end > size:
                    raise CheckpointError(
                        f"{self.path}: damaged or truncated: {what}, at byte {at}, ends after the file"
                    )
                if end > last:
                    self.allow(MAX_TEXT_BYTES + end - last, MAX_TEXT_BYTES, f"bytes of text up to {what}")
                append(str(data[at + 8 : end], "utf-8"))
                at = end
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: damaged: {what}, at byte {at}, is not UTF-8") from error
        except StructError as error:
            raise CheckpointError(f"{self.path}: truncated: {what}, at byte {at}, ends after the file") from error
        self._text_bytes += at - self.at - 8 * count
        self.at = at
        return result

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(f"the value of {key}")
        if kind == _ARRAY:
            kind, count = self.integer(4, f"the type of {key}"), self.integer(8, f"the length of {key}")
            if kind == _STRING:
                self._strings += count
                self.allow(self._strings, MAX_STRINGS, f"strings up to {key}")
                return self.strings(count, key)
            self._numbers += count
            self.allow(self._numbers, MAX_NUMBERS, f"values up to {key}")
            return self.numbers(kind, count, key)
        return self.numbers(kind, 1, key)[0].item()

    def numbers(self, kind: int, count: int, key: str) -> NDArray[Any]:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: damaged: the key {key} has a value of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        self.expect(count * dtype.itemsize, f"the {count} values of {key}")
        result = np.frombuffer(self.data, dtype, count, self.at).copy()
        self.at += count * dtype.itemsize
        return result.astype(np.bool_) if kind == _BOOL else result


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name("tensor")
    rank = cursor.integer(4, f"the number of dimensions of {name}")
    if not 1 <= rank <= 4:
        raise CheckpointError(f"{cursor.path}: damaged: the tensor {name} has {rank} dimensions")
    shape = tuple(cursor.integer(8, f"the shape of {name}") for _ in range(rank))[::-1]
    if not all(0 < dim < 2**48 for dim in shape):
        raise CheckpointError(f"{cursor.path}: damaged: the tensor {name} has the shape {list(shape)}")
    return name, shape, cursor.integer(4, f"the type of {name}"), cursor.integer(8, f"the place of {name}")
