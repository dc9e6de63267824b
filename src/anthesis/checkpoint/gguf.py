"""GGUF files, mapped into memory, read in the weight kinds that hold them as they are wherever there is one.

| stored as        | read as               |                                                                |
|------------------|-----------------------|----------------------------------------------------------------|
| F32, F16, BF16   | fp32, fp16, bf16      | exactly                                                        |
| Q8_0, Q4_0, Q4_1 | int8-g32, int4, int4m | exactly: scales and values are taken apart                     |
| Q4_K             | int4m                 | nearly: the same values; scale and minimum are rounded to fp16 |
| Q5_K, Q6_K       | int8-g32              | nearly: quantised anew, in finer steps                         |
| others           | bf16                  | nearly: dequantised by the gguf package, rounded to bf16       |

Layouts of the blocks: ggml's quantisation formats, https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint.gguf_header import GgufTensor, read_header
from anthesis.checkpoint.store import Rows, StoredTensor, forget_pages, map_file
from anthesis.errors import CheckpointError, RequestError
from anthesis.quantize import WeightKind, WeightTensor, pack_nibbles, quantize, row_chunks, weight_kind

_PLAIN: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_KINDS = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16",
    "Q8_0": "int8-g32", "Q4_0": "int4", "Q4_1": "int4m",
    "Q4_K": "int4m", "Q5_K": "int8-g32", "Q6_K": "int8-g32",
}  # fmt: skip
_EXACT = frozenset({*_PLAIN, "Q8_0", "Q4_0", "Q4_1"})
_UNREAD = frozenset({"I8", "I16", "I32", "I64", "F64"})


class GgufStore:
    """The tensors and metadata of a GGUF file.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, damaged or truncated.
        UnsupportedError: a version, type or splitting that we do not read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = map_file(path)
        self.metadata, self._infos = read_header(path, self._data)
        self.tensors = {
            name: StoredTensor(name, info.shape, info.type_name, _kind(info), info.type_name in _EXACT, info.block_size)
            for name, info in self._infos.items()
        }

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """See `TensorStore.read`."""
        assert not transpose, "GGUF files hold matrices as [out, in]"
        info, stored = self._infos[name], self.tensors[name]
        assert stored.kind is not None
        data = self._data[info.start : info.start + info.nbytes]
        if info.type_name in _PLAIN:
            array = data.view(_PLAIN[info.type_name]).reshape(info.shape)
            part = array[rows, columns] if array.ndim == 2 else array[rows]
            return WeightTensor(weight_kind(stored.kind), part.shape, np.ascontiguousarray(part))
        if len(info.shape) == 1:
            values = self._dequantize(data.reshape(1, -1), info)[0][rows]
            return WeightTensor(weight_kind("fp32"), values.shape, values)
        kind = weight_kind("fp32" if exact and not stored.exact else stored.kind)
        return self._read_blocks(data, info, kind, rows, columns)

    def release(self) -> None:
        """See `TensorStore.release`."""
        forget_pages(self._data)

    def _read_blocks(
        self, data: NDArray[np.uint8], info: GgufTensor, kind: WeightKind, rows: Rows, columns: slice
    ) -> WeightTensor:
        start, stop, _ = columns.indices(info.shape[1])
        if start % info.block_size or stop % info.block_size:
            raise RequestError(
                f"columns {start} to {stop} of {info.name} don't end at borders of {info.type_name}'s blocks of "
                f"{info.block_size}; choose another number of ranks"
            )
        blocks = data.reshape(info.shape[0], -1, info.block_bytes)[
            :, start // info.block_size : stop // info.block_size
        ]
        count = len(range(*rows.indices(info.shape[0]))) if isinstance(rows, slice) else len(rows)
        result = WeightTensor.empty(kind, (count, stop - start))
        view = blocks[rows] if isinstance(rows, slice) else blocks
        for part in row_chunks(result.shape):
            chunk = view[part] if isinstance(rows, slice) else view[rows[part]]
            self._unpack(chunk, info, result.rows(part))
        return result

    def _unpack(self, blocks: NDArray[np.uint8], info: GgufTensor, into: WeightTensor) -> None:
        """Writes blocks, (N, blocks of a row, bytes of a block) uint8, into a tensor."""
        if info.type_name in _EXACT or (info.type_name == "Q4_K" and into.kind.name == "int4m"):
            assert into.scales is not None
            if info.type_name == "Q4_K":
                _unpack_q4_k(blocks, into)
                return
            into.scales.view(np.uint16)[...] = _uint16(blocks, 0)
            at = 2
            if into.minimums is not None:
                into.minimums.view(np.uint16)[...] = _uint16(blocks, 2)
                at = 4
            values = into.values.view(np.uint8)
            values.reshape(*blocks.shape[:2], -1)[...] = blocks[:, :, at:]
            return
        numbers = self._dequantize(blocks.reshape(len(blocks), -1), info)
        into.copy_from(quantize(numbers, into.kind))

    def _dequantize(self, rows: NDArray[np.uint8], info: GgufTensor) -> NDArray[np.float32]:
        """Rows of blocks, (N, bytes of a row) uint8 -> (N, K) float32."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            return dequantize(np.ascontiguousarray(rows), GGMLQuantizationType[info.type_name])
        except (KeyError, NotImplementedError) as error:
            raise CheckpointError(
                f"{self._path}: the tensor {info.name} is of type {info.type_name}, which the installed gguf package "
                "can't dequantise; a newer one may, else choose a file with another quantisation"
            ) from error


def _kind(info: GgufTensor) -> str | None:
    if info.type_name in _UNREAD:
        return None
    if len(info.shape) == 1 and info.type_name not in _PLAIN:
        return "fp32"
    return _KINDS.get(info.type_name, "bf16")


def _uint16(blocks: NDArray[np.uint8], at: int) -> NDArray[np.uint16]:
    """The two bytes at a place of each block, (N, blocks) uint16."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.uint16)[:, :, 0]


def _unpack_q4_k(blocks: NDArray[np.uint8], into: WeightTensor) -> None:
    """Q4_K -> int4m: its groups of 32 have the scale d * s and the minimum -dmin * m; s and m are six-bit integers.

    A block of 256: d and dmin (fp16), twelve bytes with the eight s and m, then for each 64 elements 32 bytes whose low
    halves are the first 32 elements and whose high halves the others. Bytes 0-3 of the twelve hold the low six bits of
    s[0..3], 4-7 those of m[0..3], 8-11 the low four bits of s[4..7] and m[4..7], whose upper two bits top 0-7.
    """
    assert into.scales is not None
    assert into.minimums is not None
    count, per_row = blocks.shape[:2]
    packed = blocks[:, :, 4:16]
    first, second, third = packed[:, :, 0:4], packed[:, :, 4:8], packed[:, :, 8:12]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=2).astype(np.float32)
    minimums = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=2).astype(np.float32)
    with np.errstate(over="ignore"):
        scales *= _uint16(blocks, 0).view(np.float16).astype(np.float32)[:, :, None]
        minimums *= -_uint16(blocks, 2).view(np.float16).astype(np.float32)[:, :, None]
        into.scales[...] = scales.reshape(count, -1)
        into.minimums[...] = minimums.reshape(count, -1)
    nibbles = blocks[:, :, 16:].reshape(count, per_row, 4, 1, 32)
    values = np.concatenate((nibbles & 15, nibbles >> 4), axis=3)
    into.values[...] = pack_nibbles(values.reshape(count, -1))
