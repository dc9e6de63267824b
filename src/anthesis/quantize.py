"""The kinds a weight can be stored in, and weights on the host in these kinds.

| kind                          | an element w is                       | scale              | minimum        |
|-------------------------------|---------------------------------------|--------------------|----------------|
| fp32, bf16, fp16              | the value itself                      |                    |                |
| fp8                           | value * scale (e4m3fn)                | fp32 per row       |                |
| int8, int8-g32                | value * scale, value in -127 .. 127   | fp16 per row/group |                |
| int4, int4-g64, int4-g128     | (value - 8) * scale, value in 0 .. 15 | fp16 per group     |                |
| int4m, int4m-g64, int4m-g128  | value * scale + minimum               | fp16 per group     | fp16 per group |

A group is a run of columns of one row: 32 of them unless the name says otherwise. Four-bit values are packed inside
each run of 32 columns, whatever the group: byte j of the run holds column j in its low and column j + 16 in its high
half. (That is GGUF's order, so that its files load by splitting arrays.) Vectors - norms and biases - are always fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from anthesis.errors import RequestError
from anthesis.fit import fit_scale, fit_scale_and_minimum, inverse

Array = NDArray[Any]

PACKED_RUN = 32
"""Columns whose four-bit values share 16 bytes."""

CHUNK_ELEMENTS = 1 << 18
"""Elements converted at a time: float32 temporaries of this size stay in a processor's second-level cache."""


@dataclass(frozen=True)
class WeightKind:
    """How the elements of a weight are stored.

    Attributes:
        name: as in `--weights`.
        bits: of one element, without its share of scales and minimums.
        group_size: columns G that share a scale, or None.
        scaled_by: what shares a scale: nothing has one, a whole row, or a group of columns.
        has_minimum: groups have a minimum besides the scale.
    """

    name: str
    bits: int
    group_size: int | None = None
    scaled_by: Literal["none", "row", "group"] = "none"
    has_minimum: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array that holds the values; two four-bit values share a byte."""
        return _VALUE_DTYPES[self.name.partition("-")[0]]

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Of the scales and minimums."""
        return np.dtype(np.float32 if self.name == "fp8" else np.float16)

    @property
    def has_quantised_inputs(self) -> bool:
        """Whether devices may multiply it as integers, with inputs that they quantise."""
        return self.dtype.kind in "iu"

    @property
    def column_step(self) -> int:
        """Columns may be cut at multiples of this: where neither a group nor a packed run is cut."""
        return max(self.group_size or 1, PACKED_RUN if self.bits == 4 else 1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses a shape that can't be stored in this kind.

        Raises:
            RequestError: the width is not a multiple of the group size.
        """
        assert len(shape) == 2 or self.name == "fp32", f"a vector is always fp32, not {self.name}"
        if shape[-1] % self.column_step:
            raise RequestError(
                f"a weight of width {shape[-1]} can't be stored as {self.name}: "
                f"the width must be a multiple of its group of {self.column_step}; choose another --weights"
            )

    def check_columns(self, start: int, stop: int, width: int) -> None:
        """Refuses a cut that would go through a group.

        Raises:
            RequestError: `start` or `stop` is not at a multiple of `column_step`.
        """
        assert 0 <= start <= stop <= width
        if start % self.column_step or stop % self.column_step:
            raise RequestError(
                f"columns {start} to {stop} of {width} don't end at borders of {self.name}'s groups of "
                f"{self.column_step}; choose another number of ranks, or --weights with smaller groups"
            )

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor in this kind, scales and minimums included.

        Args:
            shape: (N, K), or (N,) for fp32.

        Raises:
            RequestError: the width is not a multiple of the group size.
        """
        self.check_shape(shape)
        elements = math.prod(shape)
        groups = {"none": 0, "row": shape[0], "group": elements // (self.group_size or 1)}[self.scaled_by]
        return elements * self.bits // 8 + groups * self.scale_dtype.itemsize * (1 + self.has_minimum)


_VALUE_DTYPES: Mapping[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
    "int4m": np.dtype(np.uint8),
}

WEIGHT_KINDS: Mapping[str, WeightKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            WeightKind("fp32", 32),
            WeightKind("bf16", 16),
            WeightKind("fp16", 16),
            WeightKind("fp8", 8, None, "row"),
            WeightKind("int8", 8, None, "row"),
            WeightKind("int8-g32", 8, 32, "group"),
            WeightKind("int4", 4, 32, "group"),
            WeightKind("int4-g64", 4, 64, "group"),
            WeightKind("int4-g128", 4, 128, "group"),
            WeightKind("int4m", 4, 32, "group", True),
            WeightKind("int4m-g64", 4, 64, "group", True),
            WeightKind("int4m-g128", 4, 128, "group", True),
        )
    }
)


def weight_kind(name: str) -> WeightKind:
    """The weight kind of this name.

    Raises:
        RequestError: no such kind; the message lists those there are.
    """
    if name not in WEIGHT_KINDS:
        raise RequestError(f"unknown weight kind {name!r}; known are: native (as stored), {', '.join(WEIGHT_KINDS)}")
    return WEIGHT_KINDS[name]


@dataclass(frozen=True)
class WeightTensor:
    """A weight, or a rank's share of one, on the host.

    Attributes:
        kind: how it is stored.
        shape: (N, K), or (N,) for a vector.
        values: `kind.dtype`, (N, K); (N, K // 2) for four-bit kinds; (N,) for a vector.
        scales: `kind.scale_dtype`, (N,) by row or (N, K // G) by group; None for a kind without.
        minimums: like scales, for a kind that has them.
    """

    kind: WeightKind
    shape: tuple[int, ...]
    values: Array
    scales: Array | None = None
    minimums: Array | None = None

    def __post_init__(self) -> None:
        packed = self.shape if self.kind.bits != 4 else (self.shape[0], self.shape[1] // 2)
        assert self.values.shape == packed, f"{self.values.shape} does not hold {self.shape} in {self.kind.name}"
        assert self.values.dtype == self.kind.dtype, f"{self.values.dtype} is not of {self.kind.name}"
        assert (self.scales is not None) == (self.kind.scaled_by != "none")
        assert (self.minimums is not None) == self.kind.has_minimum

    @staticmethod
    def empty(kind: WeightKind, shape: tuple[int, ...]) -> WeightTensor:
        """A tensor whose contents are yet to be written."""
        kind.check_shape(shape)
        values = np.empty(shape if kind.bits != 4 else (shape[0], shape[1] // 2), kind.dtype)
        if kind.scaled_by == "none":
            return WeightTensor(kind, shape, values)
        scales_shape = (shape[0],) if kind.scaled_by == "row" else (shape[0], shape[1] // (kind.group_size or 1))
        scales = np.empty(scales_shape, kind.scale_dtype)
        return WeightTensor(kind, shape, values, scales, np.empty_like(scales) if kind.has_minimum else None)

    @property
    def nbytes(self) -> int:
        """Bytes of values, scales and minimums."""
        return sum(array.nbytes for array in (self.values, self.scales, self.minimums) if array is not None)

    def rows(self, index: slice | NDArray[np.int64]) -> WeightTensor:
        """Some rows (elements, of a vector).

        Args:
            index: a slice, which gives a view, or row numbers (N,) int64, which give a copy.
        """
        values = self.values[index]
        scales = None if self.scales is None else self.scales[index]
        minimums = None if self.minimums is None else self.minimums[index]
        return WeightTensor(self.kind, (len(values), *self.shape[1:]), values, scales, minimums)

    def columns(self, start: int, stop: int) -> WeightTensor:
        """The columns from `start` up to `stop` of a matrix, as a view.

        Raises:
            RequestError: a border is not at a multiple of the kind's `column_step`.
        """
        self.kind.check_columns(start, stop, self.shape[1])

        def cut(array: Array | None) -> Array | None:
            if array is None or array.ndim == 1:  # none, or one scale per row, which the columns share
                return array
            per_column = self.shape[1] // array.shape[1]
            return array[:, start // per_column : stop // per_column]

        values = cut(self.values)
        assert values is not None
        return WeightTensor(self.kind, (self.shape[0], stop - start), values, cut(self.scales), cut(self.minimums))

    def copy_from(self, other: WeightTensor) -> None:
        """Overwrites the elements with those of another tensor of the same kind and shape."""
        assert (self.kind, self.shape) == (other.kind, other.shape)
        self.values[...] = other.values
        if self.scales is not None:
            self.scales[...] = other.scales
        if self.minimums is not None:
            self.minimums[...] = other.minimums

    def dequantize(self, dtype: Any = np.float32) -> Array:
        """The elements as numbers.

        Args:
            dtype: np.float32, or np.float64 for the exact products.

        Returns:
            (N, K), or (N,) for a vector, of `dtype`: float32 or float64.
        """
        result = np.empty(self.shape, dtype)
        for part in row_chunks(self.shape):
            result[part] = _dequantize_rows(self.rows(part), dtype)
        return result

    def convert(self, kind: WeightKind) -> WeightTensor:
        """The same weight in another kind; itself where the kind is the same already.

        Raises:
            RequestError: a width that the kind's groups don't divide, or elements that it can't represent.
        """
        if kind is self.kind:
            return self
        result = WeightTensor.empty(kind, self.shape)
        for part in row_chunks(self.shape):
            _quantize_rows(_dequantize_rows(self.rows(part), np.float32), result.rows(part))
        return result


def quantize(array: NDArray[np.float32], kind: WeightKind) -> WeightTensor:
    """A weight in this kind.

    Every row (every group, where groups have their own scale) is quantised by itself, so that the result does not
    depend on what else is in the array.

    Args:
        array: (N, K) float32, or (N,) for fp32.
        kind: how to store it.

    Raises:
        RequestError: a width that the kind's groups don't divide, or elements that it can't represent.
    """
    return WeightTensor(WEIGHT_KINDS["fp32"], array.shape, array.astype(np.float32, copy=False)).convert(kind)


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices over the rows of a tensor, each of about `CHUNK_ELEMENTS`: bounds the temporaries of a conversion."""
    per_row = math.prod(shape[1:])
    step = max(1, CHUNK_ELEMENTS // max(1, per_row))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, K) uint8 of 0 .. 15 -> (N, K // 2) uint8, in the order the module's description gives."""
    runs = values.reshape(len(values), -1, 2, PACKED_RUN // 2)
    packed: NDArray[np.uint8] = runs[:, :, 0] | (runs[:, :, 1] << np.uint8(4))
    return packed.reshape(len(values), -1)


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, K // 2) uint8 -> (N, K) uint8 of 0 .. 15: the inverse of `pack_nibbles`."""
    runs = packed.reshape(len(packed), -1, 1, PACKED_RUN // 2)
    return np.concatenate((runs & 15, runs >> 4), axis=2).reshape(len(packed), -1)


def _dequantize_rows(tensor: WeightTensor, dtype: Any) -> Array:
    kind, values = tensor.kind, tensor.values
    if kind.bits == 4:
        values = unpack_nibbles(values)
        if not kind.has_minimum:
            values = values.view(np.int8) - np.int8(8)
    if kind.name == "bf16":  # a shift is several times as fast as ml_dtypes' cast
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
    result = values.astype(dtype)
    if tensor.scales is None:
        return result
    groups = result.reshape(tensor.shape[0], tensor.scales.size // max(1, tensor.shape[0]), -1)
    groups *= tensor.scales.reshape(*groups.shape[:2], 1).astype(dtype)
    if tensor.minimums is not None:
        groups += tensor.minimums.reshape(*groups.shape[:2], 1).astype(dtype)
    return result


def _quantize_rows(rows: NDArray[np.float32], into: WeightTensor) -> None:
    """Writes float32 rows into the tensor's arrays."""
    kind = into.kind
    if into.scales is None:
        with np.errstate(over="ignore"):
            into.values[...] = rows
        if kind.name == "fp16" and not np.isfinite(into.values).all():
            raise RequestError("a weight has elements beyond fp16's range (65504); choose --weights bf16")
        return
    groups = rows.reshape(len(rows), into.scales.size // max(1, len(rows)), -1)
    limit = np.abs(groups).max(axis=-1)
    if not (limit <= _LARGEST[kind.bits]).all():  # also for a NaN
        raise RequestError(f"a weight has elements that are not finite or too large for {kind.name}")
    if kind.name == "fp8":
        scales = (limit / np.float32(448)).astype(np.float32)
        into.scales[...] = scales.reshape(into.scales.shape)
        into.values[...] = (groups * inverse(scales)[..., None]).reshape(rows.shape)
    elif kind.bits == 8:
        scales = limit / np.float32(127)
        into.scales[...] = scales.reshape(into.scales.shape)
        scales = into.scales.reshape(scales.shape).astype(np.float32)
        scaled = np.rint(groups * inverse(scales)[..., None])
        into.values[...] = np.clip(scaled, -127, 127, out=scaled).reshape(rows.shape)
    elif into.minimums is None:
        values, scales = fit_scale(groups)
        into.values[...] = pack_nibbles(values.reshape(rows.shape))
        into.scales[...] = scales
    else:
        values, scales, minimums = fit_scale_and_minimum(groups)
        into.values[...] = pack_nibbles(values.reshape(rows.shape))
        into.scales[...] = scales
        into.minimums[...] = minimums


_LARGEST: Mapping[int, float] = {8: 65504.0 * 127, 4: 65504.0}
"""Largest element by bits for which the scales and minimums stay within fp16."""
