"""The attention operation over the block cache: stores this step's keys and values, then attends.

One arithmetic everywhere: for each block of 64 keys the maximum, the sum of exponentials and the weighted sum of
values; blocks combine from left to right. A row's result depends on its position and the cache, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anthesis.program.ir import BLOCK_TOKENS, DTYPE_BYTES, Array, Arrays, Cost, Op, Step, Value


def alibi_slopes(num_heads: int) -> NDArray[np.float64]:
    """Slope of the ALiBi distance penalty for each head.

    Args:
        num_heads: heads in the whole model, not in a rank's share.

    Returns:
        (H,) float64, positive: head h adds -slope[h] * (query position - key position) to its logits.

    Source:
        Press et al., arXiv:2108.12409, section 3; for head counts that are not a power of two, as BLOOM does: the
        slopes of the next lower power of two, then every second slope of the next higher one.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, lower + 1) / lower)
    between = 2.0 ** (-8.0 * np.arange(1, 2 * (num_heads - lower), 2) / (2 * lower))
    return np.concatenate([slopes, between])


@dataclass(frozen=True, kw_only=True)
class Attend(Op):
    """out = softmax(scale q k^T + bias) v over every earlier key of the row's sequence and its own.

    Values:
        q (R, H D), k and v (R, K D); cache (P, 2, 64, K D): keys and values of each block; positions (R,); slots (R,):
        each row's line of block_table (B, M); segments (B, 3): first row, number of rows, first position of each run of
        rows of one sequence (0 rows: none). H and K are this rank's heads.

    Attributes:
        head_dim: D.
        num_heads: query heads of the whole model.
        num_kv_heads: key-value heads of the whole model.
        first_head: this rank's first query head.
        first_kv_head: this rank's first key-value head.
        scale: multiplies q k^T.
        alibi: adds the distance penalty of `alibi_slopes`.
        window: how many keys a row sees, its own included, or None for all.
    """

    kind: ClassVar[str] = "attend"
    q: str
    k: str
    v: str
    cache: str
    positions: str
    slots: str
    segments: str
    block_table: str
    out: str
    head_dim: int
    num_heads: int
    num_kv_heads: int
    first_head: int = 0
    first_kv_head: int = 0
    scale: float
    alibi: bool = False
    window: int | None = None

    def reads(self) -> tuple[str, ...]:
        return self.q, self.k, self.v, self.cache, self.positions, self.slots, self.segments, self.block_table

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        q, k, v, cache = (values[name] for name in (self.q, self.k, self.v, self.cache))
        assert k.shape == v.shape, f"{self.out}: {k} and {v} differ"
        assert cache.shape[2:] == (BLOCK_TOKENS, k.shape[1]), f"{self.out}: {cache} does not hold {k}"
        return (Value(self.out, q.shape, "fp32", "buffer", q.axes),)

    def kv_head_of(self, heads: int) -> NDArray[np.int64]:
        """For each of this rank's query heads the local key-value head it reads.

        Args:
            heads: this rank's query heads H.

        Returns:
            (H,) int64.
        """
        share = self.num_heads // self.num_kv_heads
        return np.arange(self.first_head, self.first_head + heads) // share - self.first_kv_head

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        q, k = values[self.q].static_width, values[self.k].static_width
        context = min(step.context, self.window or step.context)
        per_token = 2 * k * DTYPE_BYTES[values[self.cache].dtype]
        return Cost(
            cache_bytes=(step.sequences * context + step.rows) * per_token,
            activation_bytes=4 * step.rows * 2 * (q + k),
            flops=4 * step.rows * context * q,
        )

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        q, cache, table = arrays[self.q], arrays[self.cache], arrays[self.block_table]
        positions, slots = arrays[self.positions], arrays[self.slots]
        blocks = table[slots, positions // BLOCK_TOKENS]
        cache[blocks, 0, positions % BLOCK_TOKENS] = arrays[self.k]
        cache[blocks, 1, positions % BLOCK_TOKENS] = arrays[self.v]

        heads = q.shape[1] // self.head_dim
        slopes = alibi_slopes(self.num_heads)[self.first_head : self.first_head + heads].astype(q.dtype)
        kv_heads = self.kv_head_of(heads)
        out = np.empty_like(q)
        for first_row, rows, first_position in arrays[self.segments]:
            if rows == 0:
                continue
            count = -(-(first_position + rows) // BLOCK_TOKENS)
            # (blocks, 2, 64, K, D) -> for each query head its keys (H, blocks, 64, D), in the arithmetic's dtype
            held = cache[table[slots[first_row], :count]].reshape(count, 2, BLOCK_TOKENS, -1, self.head_dim)
            keys, vals = (held[:, i].astype(q.dtype)[:, :, kv_heads].transpose(2, 0, 1, 3) for i in (0, 1))
            for row in range(first_row, first_row + rows):
                query = q[row].reshape(heads, self.head_dim) * q.dtype.type(self.scale)
                out[row] = self._attend_one(query, keys, vals, int(positions[row]), slopes)
        return (out,)

    def _attend_one(self, query: Array, keys: Array, vals: Array, position: int, slopes: Array) -> Array:
        """One row: query (H, D), keys and vals (H, blocks, 64, D) -> (H D,)."""
        largest = total = weighted = None
        oldest = 0 if self.window is None else max(0, position + 1 - self.window)
        for block in range(oldest // BLOCK_TOKENS, position // BLOCK_TOKENS + 1):
            start = block * BLOCK_TOKENS
            seen = slice(max(oldest - start, 0), min(BLOCK_TOKENS, position + 1 - start))
            scores = (keys[:, block, seen] @ query[:, :, None])[:, :, 0]
            if self.alibi:
                distance = position - np.arange(start + seen.start, start + seen.stop)
                scores = scores - slopes[:, None] * distance.astype(query.dtype)
            block_largest = scores.max(axis=1, keepdims=True)
            weights = np.exp(scores - block_largest)
            block_total = weights.sum(axis=1, keepdims=True)
            block_weighted = (weights[:, None] @ vals[:, block, seen])[:, 0]
            if largest is None or total is None or weighted is None:
                largest, total, weighted = block_largest, block_total, block_weighted
                continue
            new_largest = np.maximum(largest, block_largest)
            before, now = np.exp(largest - new_largest), np.exp(block_largest - new_largest)
            total = total * before + block_total * now
            weighted = weighted * before + block_weighted * now
            largest = new_largest
        assert weighted is not None
        assert total is not None
        return np.asarray((weighted / total).reshape(-1))
