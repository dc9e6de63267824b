"""Random weights made on the device, the same numbers as `checkpoint/random.py` makes on the host.

PyTorch has no unsigned 64-bit arithmetic on every device, and needs none: additions and products of signed words wrap
to the same bits, and a logical shift is an arithmetic one whose copies of the sign are masked out.
"""

from __future__ import annotations

import torch

from anthesis.checkpoint.random import (
    BIAS_STEP,
    FOUR_BIT_MINIMUM,
    FOUR_BIT_STEP,
    GOLDEN,
    MATRIX_STEP,
    MIX,
    NORM_STEP,
    RandomWeight,
)
from anthesis.devices.accelerator.matrices import Matrix, from_nibbles

_CHUNK_WORDS = 1 << 22
"""Words hashed at a time: their temporaries are a few times 32 MiB. `from_nibbles` asks for fewer."""


def random_matrix(weight: RandomWeight, device: torch.device) -> Matrix:
    """A part of a random matrix in the device's layout."""
    kind, (rows, columns) = weight.kind, weight.shape
    if kind.bits == 4:

        def packed(start: int, stop: int) -> torch.Tensor:
            nibbles = _stream(weight, start, stop, device)
            if not kind.has_minimum:  # the four bits 0 are replaced by 8
                low, high = nibbles & 15, nibbles >> 4
                nibbles = torch.where(low == 0, 8, low) | (torch.where(high == 0, 8, high) << 4)
            return nibbles

        values = from_nibbles(kind, (rows, columns), packed, device)
        groups = values.shape[1] * 8 // (kind.group_size or 1)
        used = torch.arange(groups, device=device) < columns // (kind.group_size or 1)

        def filled(number: float) -> torch.Tensor:
            return torch.where(used, number, 0.0).half().expand(rows, -1).contiguous()

        minimums = filled(FOUR_BIT_MINIMUM * FOUR_BIT_STEP) if kind.has_minimum else None
        return Matrix(kind, (rows, columns), values, filled(FOUR_BIT_STEP), minimums)
    step = max(1, 8 * _CHUNK_WORDS // columns)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
    values = torch.empty((rows, columns), dtype=dtype.get(kind.name, torch.int8), device=device)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        signed = _signed(_stream(weight, start, stop, device))
        if kind.scaled_by == "none":
            values[start:stop] = signed.float() * MATRIX_STEP
        elif kind.name == "fp8":
            values.view(torch.uint8)[start:stop] = signed.float().to(torch.float8_e4m3fn).view(torch.uint8)
        else:
            values[start:stop] = signed
    if kind.scaled_by == "none":
        return Matrix(kind, (rows, columns), values)
    groups = 1 if kind.scaled_by == "row" else columns // (kind.group_size or 1)
    scale_dtype = torch.float32 if kind.name == "fp8" else torch.float16
    return Matrix(
        kind, (rows, columns), values, torch.full((rows, groups), MATRIX_STEP, dtype=scale_dtype, device=device)
    )


def random_vector(weight: RandomWeight, device: torch.device) -> torch.Tensor:
    """A part of a random vector: (N,) float32."""
    (first,) = weight.start
    row = _bytes(weight.key, 0, 1, weight.full_shape[0], first, weight.shape[0], device)[0]
    base, step = (1.0, NORM_STEP) if weight.name.endswith(".weight") else (0.0, BIAS_STEP)
    return _signed(row).float() * step + base


def _stream(weight: RandomWeight, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """The bytes of the rows from `start` up to `stop` of the part: (rows, K), or (rows, K / 2) of four bits."""
    packing = 2 if weight.kind.bits == 4 else 1
    first, columns = weight.start[1] // packing, weight.shape[1] // packing
    row_bytes = weight.full_shape[1] // packing
    return _bytes(weight.key, weight.start[0] + start, stop - start, row_bytes, first, columns, device)


def _bytes(
    key: int, row: int, rows: int, row_bytes: int, first: int, columns: int, device: torch.device
) -> torch.Tensor:
    words_per_row = -(-row_bytes // 8)
    begin, end = first // 8, -(-(first + columns) // 8)
    index = torch.arange(row, row + rows, dtype=torch.int64, device=device)[:, None] * words_per_row
    words = index + torch.arange(begin + 1, end + 1, dtype=torch.int64, device=device)
    words = mixed(words * signed64(GOLDEN) + signed64(key))
    return words.view(torch.uint8)[:, first - begin * 8 : first - begin * 8 + columns]


def mixed(x: torch.Tensor) -> torch.Tensor:
    """The output function of SplitMix64 on int64 words (...)."""
    for shift, factor in MIX:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * signed64(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def signed64(word: int) -> int:
    """An unsigned 64-bit word as the signed one with the same bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _signed(stream: torch.Tensor) -> torch.Tensor:
    signed = stream.contiguous().view(torch.int8)
    return torch.where(signed == -128, 0, signed)
