"""Drawing a token of each row where no filter needs the order of all tokens: two launches.

The numbers are those of `program/draw.py`: scores in float64, Gumbel noise from a hash of (seed, position, token).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mixed(x):
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def scores_of_row(
    logits, seen, temperature, penalty, scores, part_logits, part_scores, part_tokens, V, usable,
    SEEN_BYTES: tl.constexpr, PARTS: tl.constexpr, PENALISES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scores (L, usable) float64 of logits (L, V): penalised and divided by the temperature; the best of each part.

    part_logits (L, PARTS) float32 are infinite where a logit is no number. Rows whose temperature is 0 are not divided.
    """
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = part * BLOCK + tl.arange(0, BLOCK)
    inside = k < usable
    found = tl.load(logits + row * V + k, mask=inside, other=float("-inf"))
    score = found.to(tl.float64)
    if PENALISES:
        byte = tl.load(seen + row * SEEN_BYTES + k // 8, mask=inside, other=0)
        factor = tl.load(penalty + row).to(tl.float64)
        factored = tl.where(score > 0, score / factor, score * factor)
        score = tl.where(((byte >> (k % 8).to(tl.uint8)) & 1) > 0, factored, score)
    heat = tl.load(temperature + row)
    score = score / tl.where(heat > 0, heat, 1.0).to(tl.float64)
    tl.store(scores + row * usable + k, score, mask=inside)
    at = row * PARTS + part
    tl.store(part_logits + at, tl.max(tl.where(found != found, float("inf"), found), 0))
    tl.store(part_scores + at, tl.max(score, 0))
    tl.store(part_tokens + at, part * BLOCK + tl.argmax(score, 0, tie_break_left=True))


@triton.jit
def draw_of_row(
    scores, part_logits, part_scores, part_tokens, part_noisy, part_drawn, arrived, temperature, min_p, seed, positions,
    logit_rows, tokens, usable, PARTS: tl.constexpr, PARTS_POWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """tokens (L,) int32: of each row the largest score plus noise, or the largest score where the temperature is 0.

    What `scores_of_row` has written is read; `arrived` (L,) int32 counts the programs that are done, as in
    `best_of_row`.
    """
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    parts = tl.arange(0, PARTS_POWER)
    of_parts, has_part = row * PARTS + parts, parts < PARTS
    every = tl.load(part_scores + of_parts, mask=has_part, other=float("-inf"))
    least = tl.max(every, 0) + tl.log(tl.load(min_p + row).to(tl.float64))

    k = part * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + row * usable + k, mask=k < usable, other=float("-inf"))
    key = mixed(tl.load(seed + row).to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15)
    position = tl.load(positions + tl.load(logit_rows + row)).to(tl.uint64)
    key = mixed(key + position * 0x9E3779B97F4A7C15)
    bits = mixed((k + 1).to(tl.uint64) * 0x9E3779B97F4A7C15 + key) >> 12
    uniform = (bits.to(tl.float64) + 0.5) * (1.0 / 4503599627370496.0)
    noisy = tl.where(score >= least, score - tl.log(-tl.log(uniform)), float("-inf"))
    at = row * PARTS + part
    tl.store(part_noisy + at, tl.max(noisy, 0))
    tl.store(part_drawn + at, part * BLOCK + tl.argmax(noisy, 0, tie_break_left=True))
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
        drawn = tl.load(part_noisy + of_parts, mask=has_part, other=float("-inf"), cache_modifier=".cg")
        best = tl.argmax(drawn, 0, tie_break_left=True)
        token = tl.load(part_drawn + row * PARTS + best, cache_modifier=".cg")
        if tl.load(temperature + row) <= 0:
            token = tl.load(part_tokens + row * PARTS + tl.argmax(every, 0, tie_break_left=True))
        largest = tl.max(tl.load(part_logits + of_parts, mask=has_part, other=float("-inf")), 0)
        finite = (largest < float("inf")) & (largest > float("-inf"))
        tl.store(tokens + row, tl.where(finite, token, -1))
        tl.store(arrived + row, 0)
