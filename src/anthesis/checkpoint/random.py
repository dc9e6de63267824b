"""Random weights in the shape of a model, so that its latency can be measured without a download.

Every element is an integer function of the seed, the weight's name and its place, computed directly in the packed kind.
So a rank makes just its share, any device can make the same numbers, and it takes seconds. All arithmetic is on
unsigned 64-bit integers, modulo 2**64:

    mix(x):  x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31
    fnv(s):  h = 0xCBF29CE484222325;  for each byte b of s in UTF-8:  h = (h ^ b) * 0x100000001B3
    key      = mix(fnv(name) ^ mix(seed + 0x9E3779B97F4A7C15))
    word[i]  = mix(key + (i + 1) * 0x9E3779B97F4A7C15)

(SplitMix64, Steele et al., OOPSLA 2014; FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/.) Row n of a matrix (a
vector is one row) takes the words from n * ceil(b / 8) on, as a stream of b bytes, each word's lowest byte first; b is
the number of columns, or half of it in a four-bit kind.

- Kinds of eight bits and more: byte k of the row's stream, taken as a signed integer with -128 replaced by 0, is
  element k, in steps of 2**-12. Norm weights are 1 plus such an integer times 2**-10; biases are in steps of 2**-13.
  (fp8 rounds the integer to e4m3; all other kinds hold the same numbers.)
- Four-bit kinds: byte k is byte k of the packed row. Steps are 2**-8; without a minimum the four bits 0 are replaced by
  8, which makes the values symmetric about zero; with one, the minimum is -7.5 steps.

Matrices then have a standard deviation of 0.017 or 0.018 and zero mean, about what trained models are initialised with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from anthesis.cores import on_all_cores
from anthesis.program.ir import Value
from anthesis.quantize import WeightKind, WeightTensor, weight_kind

_Decoder = Callable[[NDArray[np.uint8]], NDArray[Any]]

GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Shifts and factors of `mix`, whose last shift, by 31, multiplies nothing."""
_MASK = (1 << 64) - 1

MATRIX_STEP = 2.0**-12
FOUR_BIT_STEP = 2.0**-8
FOUR_BIT_MINIMUM = -7.5
"""In steps."""
NORM_STEP = 2.0**-10
BIAS_STEP = 2.0**-13

_CHUNK_WORDS = 1 << 14
"""Words hashed at a time: their temporaries stay in the second-level cache."""


class RandomWeights:
    """Weights of any name and shape, made when they are asked for.

    Args:
        seed: 0 .. 2**64 - 1.
        kind: of matrices; vectors are fp32.
    """

    def __init__(self, seed: int, kind: str) -> None:
        self._seed = seed
        self._kind = kind

    def kind_of(self, name: str, shape: tuple[int, ...]) -> str:
        """See `Checkpoint.kind_of`."""
        return "fp32" if len(shape) == 1 else self._kind

    def recipe(self, value: Value) -> RandomWeight:
        """See `Checkpoint.recipe`."""
        shape = value.static_shape
        full_shape, start = value.full_shape or shape, value.start or (0,) * len(shape)
        return RandomWeight(self._seed, value.name, full_shape, start, shape, weight_kind(value.dtype))

    def load(self, value: Value) -> WeightTensor:
        """See `Checkpoint.load`."""
        return self.recipe(value).on_host()

    def release(self) -> None:
        """See `Checkpoint.release`: there are no files."""

    def check(self, weights: Iterable[Value]) -> None:
        """See `Checkpoint.check`: every weight there may be can be made."""


@dataclass(frozen=True)
class RandomWeight:
    """A part of the random weight of a name: all that is needed to make it, anywhere.

    Attributes:
        seed: 0 .. 2**64 - 1.
        name: of the weight in the program.
        full_shape: of the whole weight, (N, K) or (N,).
        start: first element of the part, by dimension.
        shape: of the part.
        kind: of the weight; fp32 for a vector.

    Raises:
        RequestError: a width that the kind's groups don't divide, or a part that cuts a group.
    """

    seed: int
    name: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    kind: WeightKind

    def __post_init__(self) -> None:
        self.kind.check_shape(self.full_shape)
        if len(self.shape) > 1:
            self.kind.check_columns(self.start[1], self.start[1] + self.shape[1], self.full_shape[1])

    @property
    def key(self) -> int:
        """Of its words, unsigned."""
        return _key(self.seed, self.name)

    def on_host(self) -> WeightTensor:
        """The part, made by the processor."""
        kind, shape, full_shape, start, key = self.kind, self.shape, self.full_shape, self.start, self.key
        if len(shape) == 1:
            row = np.empty((1, shape[0]), np.int8)
            _write_rows(key, full_shape[0], start[0], _signed, row, 0)
            base, step = (1.0, NORM_STEP) if self.name.endswith(".weight") else (0.0, BIAS_STEP)
            return WeightTensor(kind, shape, (row[0] * np.float32(step) + np.float32(base)).astype(np.float32))

        result = WeightTensor.empty(kind, shape)
        decode = _decoder(kind.name.partition("-")[0])
        packing = 2 if kind.bits == 4 else 1
        step = FOUR_BIT_STEP if kind.bits == 4 else MATRIX_STEP
        if result.scales is not None:
            result.scales[...] = step
        if result.minimums is not None:
            result.minimums[...] = FOUR_BIT_MINIMUM * step

        def write(part: tuple[int, int]) -> None:
            first, last = part
            into = result.values[first:last]
            _write_rows(key, full_shape[1] // packing, start[1] // packing, decode, into, start[0] + first)

        per_part = max(1, _CHUNK_WORDS * 8 // max(1, result.values.shape[1]))
        borders = [*range(0, shape[0], per_part), shape[0]]
        on_all_cores(write, pairwise(borders))
        return result


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _key(seed: int, name: str) -> int:
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x100000001B3) & _MASK
    return _mix(hashed ^ _mix((seed + GOLDEN) & _MASK))


def _write_rows(
    key: int,
    row_bytes: int,
    start: int,
    decode: _Decoder,
    into: NDArray[Any],
    row: int,
) -> None:
    """Writes the decoded bytes `start`, `start` + 1, ... of the streams of rows `row`, `row` + 1, ... into an array."""
    count, width = into.shape
    words_per_row = -(-row_bytes // 8)
    first, last = start // 8, -(-(start + width) // 8)
    # A row longer than a chunk is written in pieces.
    for at in range(first, last, _CHUNK_WORDS):
        end = min(at + _CHUNK_WORDS, last)
        index = np.arange(row, row + count, dtype=np.uint64)[:, None] * np.uint64(words_per_row)
        x = index + np.arange(at + 1, end + 1, dtype=np.uint64)
        x *= np.uint64(GOLDEN)
        x += np.uint64(key)
        scratch = x >> np.uint64(30)
        x ^= scratch
        x *= np.uint64(0xBF58476D1CE4E5B9)
        np.right_shift(x, np.uint64(27), out=scratch)
        x ^= scratch
        x *= np.uint64(0x94D049BB133111EB)
        np.right_shift(x, np.uint64(31), out=scratch)
        x ^= scratch
        stream = x.astype("<u8", copy=False).view(np.uint8)
        low, high = max(at * 8, start), min(end * 8, start + width)
        into[:, low - start : high - start] = decode(stream[:, low - at * 8 : high - at * 8])


def _signed(stream: NDArray[np.uint8]) -> NDArray[np.int8]:
    signed = stream.view(np.int8)
    result: NDArray[np.int8] = signed * (signed != -128)
    return result


@cache
def _decoder(kind: str) -> _Decoder:
    """What turns the bytes of a row's stream into stored values."""
    every_byte = np.arange(256, dtype=np.uint8)
    if kind == "int8":
        return _signed
    if kind == "int4m":
        return lambda stream: stream
    if kind == "int4":
        low, high = every_byte & 15, every_byte >> 4
        table: NDArray[Any] = np.where(low == 0, 8, low) | np.where(high == 0, 8, high) << 4
        return table.astype(np.uint8).__getitem__
    numbers = _signed(every_byte).astype(np.float32)
    if kind == "fp8":
        return numbers.astype(ml_dtypes.float8_e4m3fn).__getitem__
    dtype = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}[kind]
    return (numbers * np.float32(MATRIX_STEP)).astype(dtype).__getitem__
