"""Matrices as tensors: the layout that kernels read, its bytes, packing, joining and dequantising.

| kind            | values                                    | scales, minimums     |
|-----------------|-------------------------------------------|----------------------|
| fp32 bf16 fp16  | (N, K) of that dtype                      |                      |
| fp8             | (N, K) float8_e4m3fn                      | (N, 1) fp32          |
| int8            | (N, K) int8                               | (N, 1) fp16          |
| int8-g32        | (N, K) int8                               | (N, K / 32) fp16     |
| four-bit kinds  | (N, 32 runs) int32, see below             | (N, 256 runs / G) fp16 |

Four bits stand in runs of 256 columns, the last one padded: word j of a run's 32 holds in its bits 4 i to 4 i + 3, for
i from 0 to 7, column 32 i + j. So 32 lanes that read 32 neighbouring words read, for each i, 32 neighbouring inputs,
and one group's scale serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anthesis.program.ir import Value
from anthesis.quantize import WeightKind, WeightTensor, weight_kind

RUN = 256
"""Columns whose four-bit values share words."""

WORDS = 32
"""Words of such a run."""

PLANES = 8
"""Four-bit values in a word."""

_CHUNK_ELEMENTS = 1 << 25
"""Elements repacked or dequantised at a time: bounds what that takes beside the packed weights."""

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.int32,
    "int4m": torch.int32,
}


@dataclass
class Matrix:
    """A weight matrix on a device, or several joined one below the other.

    Attributes:
        kind: how it is stored.
        shape: (N, K).
        values: as the table above says.
        scales: (N, 1) or (N, groups), or None.
        minimums: (N, groups), or None.
        whole: the matrix that it was joined into, and the first of its rows there; None: it stands alone.
    """

    kind: WeightKind
    shape: tuple[int, int]
    values: torch.Tensor
    scales: torch.Tensor | None = None
    minimums: torch.Tensor | None = None
    whole: tuple[Matrix, int] | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there are: values (N, ...) of the kind's dtype, then scales and minimums (N, ...) of theirs."""
        return tuple(t for t in (self.values, self.scales, self.minimums) if t is not None)

    @property
    def is_scaled_by_row(self) -> bool:
        """Whether a product with the values alone has only to be multiplied by (N,) scales."""
        return self.kind.scaled_by == "row"

    def rows(self, index: slice | torch.Tensor) -> Matrix:
        """Some rows: a slice, which gives a view, or (R,) integers, which give a copy."""

        def take(tensor: torch.Tensor) -> torch.Tensor:
            if isinstance(index, slice):
                return tensor[index]
            if tensor.dtype == torch.float8_e4m3fn:  # which has no index_select
                return tensor.view(torch.uint8).index_select(0, index).view(tensor.dtype)
            return tensor.index_select(0, index)

        values, *rest = (take(tensor) for tensor in self.tensors)
        return Matrix(self.kind, (values.shape[0], self.shape[1]), values, *rest)

    def numbers(self) -> torch.Tensor:
        """The elements as (N, K) float32."""
        if self.scales is None:
            return self.values.float()
        numbers = self.unscaled()
        groups = numbers.view(numbers.shape[0], self.scales.shape[1], -1)
        groups = groups * self.scales.float()[:, :, None]
        if self.minimums is not None:
            groups = groups + self.minimums.float()[:, :, None]
        return groups.view(numbers.shape)[:, : self.shape[1]]

    def unscaled(self) -> torch.Tensor:
        """The stored values as (N, K) float32, of four-bit kinds (N, 256 runs): centred, or above their minimum."""
        if self.kind.bits != 4:
            return self.values.float()
        words = self.values.view(self.shape[0], -1, 1, WORDS)
        shifts = torch.arange(0, 4 * PLANES, 4, dtype=torch.int32, device=words.device)
        values = ((words >> shifts[:, None]) & 15).view(self.shape[0], -1)
        return (values if self.kind.has_minimum else values - 8).float()

    def converted(self, dtype: torch.dtype) -> torch.Tensor:
        """The elements as (N, K) of a floating `dtype`, made in parts where they are quantised."""
        if self.scales is None:
            return self.values.to(dtype)
        result = torch.empty(self.shape, dtype=dtype, device=self.values.device)
        step = max(1, _CHUNK_ELEMENTS // self.shape[1])
        for start in range(0, self.shape[0], step):
            result[start : start + step] = self.rows(slice(start, start + step)).numbers()
        return result


def pack(weight: WeightTensor, device: torch.device) -> Matrix:
    """A matrix from the host in the device's layout.

    Args:
        weight: (N, K), of any kind.
        device: where to.
    """
    kind = weight.kind
    # through bytes, since NumPy's dtypes of other packages are unknown to PyTorch; a view of a file is read-only
    values = torch.from_numpy(np.array(weight.values, order="C").view(np.uint8))
    dtype = _DTYPES[kind.name.partition("-")[0]]
    values = _repacked(values.to(device), weight.shape[1]) if kind.bits == 4 else values.view(dtype).to(device)
    scales, minimums = (
        None if array is None else torch.from_numpy(array.reshape(weight.shape[0], -1).copy()).to(device)
        for array in (weight.scales, weight.minimums)
    )
    return Matrix(kind, _two(weight.shape), values, _padded(scales, weight), _padded(minimums, weight))


def from_nibbles(
    kind: WeightKind, shape: tuple[int, int], packed: Callable[[int, int], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The words of a four-bit matrix whose packed rows are made in parts.

    Args:
        kind: of the matrix.
        shape: (N, K).
        packed: (first row, row after the last) -> (R, K / 2) uint8, R rows, in the order of `quantize`, on the device.
        device: where they are.

    Returns:
        (N, 32 * runs) int32, that is (N, ...).
    """
    assert kind.bits == 4
    words = torch.empty((shape[0], _runs(shape[1]) * WORDS), dtype=torch.int32, device=device)
    step = max(1, _CHUNK_ELEMENTS // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        words[start:stop] = _words(packed(start, stop), shape[1])
    return words


def matrix_bytes(value: Value) -> int:
    """Bytes that a weight takes here."""
    kind, shape = weight_kind(value.dtype), value.static_shape
    if len(shape) == 1:
        return 4 * shape[0]
    if kind.bits != 4:
        return kind.nbytes(shape)
    columns = _runs(shape[1]) * RUN
    kind.check_shape(shape)
    return kind.nbytes((shape[0], columns))


def matrix_shapes(value: Value) -> list[tuple[tuple[int, int], torch.dtype]]:
    """Shape and dtype of each tensor of a matrix: values, then scales and minimums where its kind has them."""
    kind, (rows, columns) = weight_kind(value.dtype), _two(value.static_shape)
    four = kind.bits == 4
    shapes = [((rows, _runs(columns) * WORDS if four else columns), _DTYPES[kind.name.partition("-")[0]])]
    if kind.scaled_by == "none":
        return shapes
    groups = 1 if kind.scaled_by == "row" else (_runs(columns) * RUN if four else columns) // (kind.group_size or 1)
    scales = (rows, groups), torch.float32 if kind.name == "fp8" else torch.float16
    return [*shapes, scales, scales] if kind.has_minimum else [*shapes, scales]


def join(matrices: Sequence[Matrix]) -> Matrix:
    """Matrices of one kind and width as one, each becoming a view of it: no byte is held twice.

    Those that another program has joined already give what they were joined into.
    """
    first = matrices[0]
    if len(matrices) == 1:
        return first
    if first.whole is not None and _is_joined(first.whole[0], matrices):
        return first.whole[0]
    tensors = [_below_each_other(parts) for parts in zip(*(m.tensors for m in matrices), strict=True)]
    joined = Matrix(first.kind, (sum(m.shape[0] for m in matrices), first.shape[1]), *tensors)
    at = 0
    for matrix in matrices:
        view = joined.rows(slice(at, at + matrix.shape[0]))
        matrix.values, matrix.scales, matrix.minimums = view.values, view.scales, view.minimums
        matrix.whole = joined, at
        at += matrix.shape[0]
    return joined


def can_join(matrices: Sequence[Matrix]) -> bool:
    """Whether they have one kind and one width."""
    return len({(matrix.kind.name, matrix.shape[1]) for matrix in matrices}) == 1


def _is_joined(whole: Matrix, matrices: Sequence[Matrix]) -> bool:
    """Whether these are all that was joined, in this order."""
    at = 0
    for matrix in matrices:
        if matrix.whole is None or matrix.whole[0] is not whole or matrix.whole[1] != at:
            return False
        at += matrix.shape[0]
    return at == whole.shape[0]


def _below_each_other(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    dtype = parts[0].dtype
    if dtype != torch.float8_e4m3fn:
        return torch.cat([*parts])
    return torch.cat([part.view(torch.uint8) for part in parts]).view(dtype)  # float8 has no concatenation


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _runs(columns: int) -> int:
    return -(-columns // RUN)


def _padded(scales: torch.Tensor | None, weight: WeightTensor) -> torch.Tensor | None:
    """Scales or minimums with zeros for the groups that fill the last run."""
    if scales is None or weight.kind.bits != 4:
        return scales
    groups = _runs(weight.shape[1]) * RUN // (weight.kind.group_size or 1)
    return torch.nn.functional.pad(scales, (0, groups - scales.shape[1]))


def _repacked(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """(N, K / 2) uint8 in the order of `quantize` -> (N, 32 runs) int32."""
    return from_nibbles(
        weight_kind("int4"), (packed.shape[0], columns), lambda start, stop: packed[start:stop], packed.device
    )


def _words(packed: torch.Tensor, columns: int) -> torch.Tensor:
    rows = packed.shape[0]
    bytes_of_run = packed.view(rows, -1, 16)  # column j in the low, column j + 16 in the high half of byte j
    values = torch.stack((bytes_of_run & 15, bytes_of_run >> 4), dim=2).view(rows, columns)
    values = torch.nn.functional.pad(values, (0, _runs(columns) * RUN - columns))
    planes = values.view(rows, -1, PLANES, WORDS).int()
    words = planes[:, :, 0].clone()
    for plane in range(1, PLANES):  # the highest wraps into the sign bit, as it should
        words |= planes[:, :, plane] << (4 * plane)
    return words.view(rows, -1)
