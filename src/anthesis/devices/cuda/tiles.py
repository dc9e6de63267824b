"""How large a piece of a matrix each program of a kernel takes.

Chosen by what must be in flight: a card's memory answers after some 600 ns, so that at 3 TB/s and 132 multiprocessors
each of them has to have asked for about 15 KB at any time. Programs of 4 warps with 64 bytes a thread have 8 KB each,
and several run on a multiprocessor at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from anthesis.quantize import WeightKind


@dataclass(frozen=True)
class OneRowTiles:
    """Of `one_row`: rows of the matrix that a program has, columns that it reads at a time, warps."""

    rows: int
    columns: int
    warps: int


@dataclass(frozen=True)
class SeveralRowsTiles:
    """Of `several_rows`: rows of the input, outputs, columns at a time, warps, and stages of the software pipeline."""

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int


PROGRAMS = 512
"""That a launch should have at least: four for each multiprocessor of the largest cards, less some."""


def one_row_tiles(kind: WeightKind, outputs: int, width: int) -> OneRowTiles:
    """For a matrix of this kind with so many rows that are summed (N), and so many columns (K).

    With these, most kernels need at most 128 registers for a thread, so that four programs of 4 warps fit on a
    multiprocessor; benchmarks/compile_cuda.py shows those of all.
    """
    most = 16 if kind.bits == 4 and (kind.group_size or 0) >= 128 else 8
    rows = next((rows for rows in (16, 8, 4) if rows <= most and outputs >= rows * PROGRAMS), 2)
    columns = 1024 if kind.bits == 4 else min(1024, max(32, 1 << (width - 1).bit_length()))
    return OneRowTiles(rows, columns, 4)


def several_rows_tiles(kind: WeightKind, rows: int) -> SeveralRowsTiles:
    """For a matrix of this kind and so many rows of inputs; the columns at a time of groups are one group."""
    row_tile = 16 if rows <= 16 else 32 if rows <= 32 else 64
    if kind.bits == 4:
        return SeveralRowsTiles(row_tile, 32, 256, 4, 3)
    if kind.scaled_by == "group":
        return SeveralRowsTiles(row_tile, 32, kind.group_size or 32, 4, 4)
    if kind.name in ("fp32", "fp16"):
        return SeveralRowsTiles(row_tile, 32, 32, 4, 3)
    return SeveralRowsTiles(row_tile, 32, 128, 4, 4)
