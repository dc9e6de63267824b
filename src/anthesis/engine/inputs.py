"""The inputs of a step, from the rows that it has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.blocks import Place
from anthesis.engine.rows import Rows
from anthesis.program.ir import Array

_INT32_MAX = 2**31 - 1


def row_inputs(rows: list[Rows], table: NDArray[np.int32]) -> dict[str, Array]:
    """The inputs of every program.

    Args:
        rows: of the sequences of the step, R in all, L of them wanted.
        table: (B, M) int32, the block table.

    Returns:
        By name: tokens, positions and slots (R,), segments (B, 3), block_table (B, M), and logit_rows (L,) if there are
        any; all int32.
    """
    # lists first: for the few rows of most steps NumPy's calls would take longer than the work
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    segments = np.zeros((len(table), 3), np.int32)
    for i, r in enumerate(rows):
        assert r.sequence.place is not None
        first, count = r.sequence.computed, len(r.tokens)
        segments[i] = len(tokens), count, first
        tokens += r.tokens
        positions += range(first, first + count)
        slots += [r.sequence.place.slot] * count
        logit_rows += range(len(tokens) - r.wanted, len(tokens))
    inputs = {
        "tokens": np.array(tokens, np.int32),
        "positions": np.array(positions, np.int32),
        "slots": np.array(slots, np.int32),
        "segments": segments,
        "block_table": table,
    }
    return inputs | {"logit_rows": np.array(logit_rows, np.int32)} if logit_rows else inputs


def verifying_inputs(place: Place, rows: int, table: NDArray[np.int32]) -> dict[str, Array]:
    """As `row_inputs`, of one sequence at its beginning, with all rows wanted: to measure what a step takes.

    Args:
        place: of the sequence.
        rows: R.
        table: (B, M) int32, the block table.
    """
    zeros, numbers = np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32)
    segments = np.zeros((len(table), 3), np.int32)
    segments[0] = 0, rows, 0
    inputs = {"tokens": zeros, "positions": numbers, "slots": zeros + place.slot, "segments": segments}
    return {**inputs, "block_table": table, "logit_rows": numbers}


def sample_inputs(rows: list[Rows]) -> dict[str, Array]:
    """The inputs of `sample` for the rows whose logits are computed.

    Args:
        rows: of which L are wanted in all.

    Returns:
        By name: temperature, top_p, min_p, repetition_penalty (L,) float32, top_k (L,) int32, seed (L,) uint64, seen
        (L, ceil(V / 8)) uint8.
    """
    params = [r.sequence.params for r in rows for _ in range(r.wanted)]
    unseen = np.zeros(-(-rows[0].sequence.vocab_size // 8), np.uint8)
    return {
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([min(p.top_k or 0, _INT32_MAX) for p in params], np.int32),
        "top_p": np.array([1 if p.top_p is None else p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p or 0 for p in params], np.float32),
        "repetition_penalty": np.array([p.repetition_penalty or 1 for p in params], np.float32),
        "seed": np.array([p.seed for p in params], np.uint64),
        "seen": np.stack([unseen if seen is None else seen for r in rows for seen in r.seen()]),
    }
