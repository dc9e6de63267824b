"""The sizes of a step, rounded up: a graph is captured for each, so there must be few of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anthesis.program.ir import BLOCK_TOKENS, Arrays

TILE = 16
"""Rows of one sequence that attention takes together where a step has rows of prompts."""


@dataclass(frozen=True)
class StepSize:
    """What the shapes of a step depend on.

    Attributes:
        rows: R, a power of two.
        logit_rows: L, a power of two, or 0.
        tiles: T, runs of up to `TILE` rows of one sequence, a power of two; 0: each row is its own, as in decoding.
        blocks: of the cache to which attention looks.
        selects: not the logits of all rows are wanted, in their order.
        draws: tokens are drawn, some row having a temperature above 0.
        sorts: some row that draws has top-k or top-p.
        penalises: some row has a repetition penalty.
    """

    rows: int
    logit_rows: int
    tiles: int
    blocks: int
    selects: bool = True
    draws: bool = False
    sorts: bool = False
    penalises: bool = False

    @property
    def tile_rows(self) -> int:
        """Rows of a tile."""
        return TILE if self.tiles else 1

    @property
    def num_tiles(self) -> int:
        """Tiles, those of single rows included."""
        return self.tiles or self.rows


_NONE = np.empty(0, np.int32)


def power_of_two(count: int) -> int:
    """The least one that is not below; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def all_blocks(needed: int, width: int) -> int:
    """Attention looks at the whole table's width: its kernels skip what a row has not reached."""
    return width


def needed_blocks(needed: int, width: int) -> int:
    """Attention looks at a power of two of blocks: what it computes is as long as that."""
    return min(power_of_two(needed), width)


def size_of(inputs: Arrays, blocks: Callable[[int, int], int]) -> StepSize:
    """The size of a step.

    Args:
        inputs: as `Executable.run` takes them: (R,) int32 and so on.
        blocks: (blocks that some row needs, width M of the table) -> blocks to which attention looks.
    """
    segments = inputs["segments"]
    counts = segments[:, 1]
    needed = int((-(-(segments[:, 2] + counts) // BLOCK_TOKENS))[counts > 0].max(initial=1))
    tiles = 0 if counts.max(initial=0) <= 1 else int((-(-counts // TILE)).sum())
    draws = sorts = penalises = False
    if "temperature" in inputs:
        drawn = inputs["temperature"] > 0
        draws = bool(drawn.any())
        sorts = bool((drawn & ((inputs["top_k"] > 0) | (inputs["top_p"] < 1))).any())
        penalises = bool((inputs["repetition_penalty"] != np.float32(1)).any())
    rows, wanted = len(inputs["tokens"]), inputs.get("logit_rows", _NONE)
    return StepSize(
        rows=power_of_two(rows),
        logit_rows=power_of_two(len(wanted)),
        tiles=power_of_two(tiles),
        blocks=blocks(needed, inputs["block_table"].shape[1]),
        selects=len(wanted) != rows or wanted.tolist() != list(range(rows)),
        draws=draws,
        sorts=sorts,
        penalises=penalises,
    )
