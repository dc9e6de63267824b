"""The best of many logits, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def best_of_row(
    logits, part_scores, part_tokens, arrived, scores, tokens, V, usable, first_id,
    PARTS: tl.constexpr, PARTS_POWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scores (L,) float32 and tokens (L,) int32 of logits (L, V), as `Argmax` says; one of equal ones the lowest.

    Every program looks at BLOCK logits of a row; the one that is done last looks at what all have found. `arrived`
    (L,) int32 counts them, and is zero again afterwards.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    k = part * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(logits + row.to(tl.int64) * V + k, mask=k < usable, other=float("-inf"))
    found = tl.where(found != found, float("inf"), found)
    tl.store(part_scores + row * PARTS + part, tl.max(found, 0))
    tl.store(part_tokens + row * PARTS + part, part * BLOCK + tl.argmax(found, 0, tie_break_left=True))
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
        parts = tl.arange(0, PARTS_POWER)
        every = tl.load(
            part_scores + row * PARTS + parts, mask=parts < PARTS, other=float("-inf"), cache_modifier=".cg"
        )
        best = tl.argmax(every, 0, tie_break_left=True)
        score = tl.max(every, 0)
        token = tl.load(part_tokens + row * PARTS + best, cache_modifier=".cg") + first_id
        tl.store(scores + row, score)
        finite = (score < float("inf")) & (score > float("-inf"))
        tl.store(tokens + row, tl.where(finite, token, -1))
        tl.store(arrived + row, 0)
