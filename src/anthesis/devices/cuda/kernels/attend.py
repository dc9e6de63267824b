"""Attention over the block cache: rows one by one, split along the context, or tiles of a prompt's rows.

Rows one by one have one arithmetic, whatever is beside them: for each block of 64 keys the maximum, the sum and the
weighted sum; the blocks of a chunk combine from left to right, and so do the chunks. Which blocks make a chunk depends
on their place in the context alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anthesis.devices.cuda.kernels.arithmetic import dot

BLOCK: tl.constexpr = tl.constexpr(64)
"""Keys of a block of the cache; its values stand behind them."""


@triton.jit
def rotated(x, at, d, angles, D: tl.constexpr, ROTATED: tl.constexpr):
    """Elements d of a head at `at`, turned if ROTATED says so: pairs (i, i + D / 2); angles are cosines, then sines."""
    found = tl.load(x + at + d, mask=d < D, other=0.0)
    if ROTATED:
        HALF: tl.constexpr = D // 2
        other = tl.load(x + at + tl.where(d < HALF, d + HALF, d - HALF), mask=d < D, other=0.0)
        cos = tl.load(angles + d % HALF)
        sin = tl.load(angles + HALF + d % HALF)
        found = found * cos + tl.where(d < HALF, -other, other) * sin
    return found


@triton.jit
def store_rows(
    k, v, k_stride, v_stride, cache, key_rows, angles,
    KV: tl.constexpr, KV_POWER: tl.constexpr, D: tl.constexpr, D_POWER: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """Writes the keys and values of one row into the cache."""
    row = tl.program_id(0).to(tl.int64)
    heads, d = tl.arange(0, KV_POWER)[:, None], tl.arange(0, D_POWER)[None, :]
    inside = (heads < KV) & (d < D)
    at = row * k_stride + heads * D
    into = cache + tl.load(key_rows + row).to(tl.int64) * (KV * D) + heads * D + d
    key = tl.load(k + at + d, mask=inside, other=0.0)
    if ROTATED:
        HALF: tl.constexpr = D // 2
        other = tl.load(k + at + tl.where(d < HALF, d + HALF, d - HALF), mask=inside, other=0.0)
        cos = tl.load(angles + row * D + d % HALF)
        sin = tl.load(angles + row * D + HALF + d % HALF)
        key = key * cos + tl.where(d < HALF, -other, other) * sin
    tl.store(into, key.to(cache.dtype.element_ty), mask=inside)
    value = tl.load(v + row * v_stride + heads * D + d, mask=inside, other=0.0)
    tl.store(into + BLOCK * KV * D, value.to(cache.dtype.element_ty), mask=inside)


@triton.jit
def attend_rows(
    q, k, v, q_stride, k_stride, v_stride, cache, positions, key_rows, blocks, row_places, angles, slopes, kv_head_of,
    parts, arrived, out, scale,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, D_POWER: tl.constexpr, TABLE: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, ALIBI: tl.constexpr, WINDOW: tl.constexpr, ROTATED: tl.constexpr,
    STORES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One query head of one row over one chunk of its context.

    q (R, H D), k and v (R, K D) float32, whose rows stand so many strides apart; out (R, H D) float32; cache
    (128 P, K D); positions, key_rows (R,) int32; blocks (T, TABLE) int32; kv_head_of (H,) int64. STORES: rows are of
    different sequences, and their keys and values, which are not in the cache yet, are stored on the way. TILE above 0:
    row_places (R,) int32 say where in tiles of so many rows each row is, and a tile has a line of `blocks`; else each
    row has its own. parts (R, H, CHUNKS, D + 2) float32 and arrived (R, H) int32, which is zero before and after, are
    scratch memory of more chunks than one.
    """
    chunk, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    position = tl.load(positions + row)
    first_key = chunk * (CHUNK * BLOCK)
    if first_key <= position:
        d = tl.arange(0, D_POWER)
        keys = tl.arange(0, BLOCK)
        kv_head = tl.load(kv_head_of + head)
        number = cache.dtype.element_ty
        own_angles = angles + row * D
        query = rotated(q, row * q_stride + head * D, d, own_angles, D, ROTATED) * scale
        query = query.to(number).to(tl.float32)
        own_key = tl.zeros([D_POWER], tl.float32)
        own_value = tl.zeros([D_POWER], tl.float32)
        if STORES:
            own_key = rotated(k, row * k_stride + kv_head * D, d, own_angles, D, ROTATED).to(number).to(tl.float32)
            own_value = tl.load(v + row * v_stride + kv_head * D + d, mask=d < D, other=0.0).to(number).to(tl.float32)
            # of the heads that share it the first one stores it, where the row's chunk ends
            is_first = True
            if head > 0:
                is_first = tl.load(kv_head_of + head - 1) != kv_head
            if is_first & (position < first_key + CHUNK * BLOCK):
                into = cache + tl.load(key_rows + row).to(tl.int64) * (KV * D) + kv_head * D + d
                tl.store(into, own_key.to(number), mask=d < D)
                tl.store(into + BLOCK * KV * D, own_value.to(number), mask=d < D)
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + head)
        oldest = 0
        if WINDOW > 0:
            oldest = tl.maximum(position + 1 - WINDOW, 0)
        line = row
        if TILE > 0:
            line = (tl.load(row_places + row) // TILE).to(tl.int64)

        largest = float("-inf")
        total = 0.0
        weighted = tl.zeros([D_POWER], tl.float32)
        first = tl.maximum(chunk * CHUNK, oldest // BLOCK)
        last = tl.minimum((chunk + 1) * CHUNK, position // BLOCK + 1)
        for block in range(first, last):
            place = tl.load(blocks + line * TABLE + block).to(tl.int64) * (2 * BLOCK)
            at = cache + (place + keys)[:, None] * (KV * D) + kv_head * D + d[None, :]
            of_key = keys + block * BLOCK
            seen = (of_key <= position) & (of_key >= oldest)
            stored = seen
            if STORES:
                stored = seen & (of_key < position)
            inside = stored[:, None] & (d < D)[None, :]
            key = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(at + BLOCK * KV * D, mask=inside, other=0.0).to(tl.float32)
            if STORES:
                is_own = (of_key == position)[:, None]
                key = tl.where(is_own, own_key[None, :], key)
                value = tl.where(is_own, own_value[None, :], value)
            scores = tl.sum(key * query[None, :], 1)
            if ALIBI:
                scores -= slope * (position - of_key).to(tl.float32)
            scores = tl.where(seen, scores, float("-inf"))
            block_largest = tl.max(scores, 0)
            weights = tl.exp(scores - block_largest)
            block_weighted = tl.sum(weights[:, None] * value, 0)
            new_largest = tl.maximum(largest, block_largest)
            before, now = tl.exp(largest - new_largest), tl.exp(block_largest - new_largest)
            total = total * before + tl.sum(weights, 0) * now
            weighted = weighted * before + block_weighted * now
            largest = new_largest

        of_head = row * HEADS + head
        if CHUNKS == 1:
            tl.store(out + of_head * D + d, weighted / total, mask=d < D)
        else:
            _combine(
                parts, arrived, out, of_head, chunk, oldest // (CHUNK * BLOCK), position // (CHUNK * BLOCK),
                largest, total, weighted, d, D, CHUNKS,
            )  # fmt: skip


@triton.jit
def _combine(
    parts, arrived, out, of_head, chunk, first, last, largest, total, weighted, d, D: tl.constexpr, CHUNKS: tl.constexpr
):
    """Hands over a chunk's part; the program that is the last of a row and head to do so puts all together."""
    own = parts + (of_head * CHUNKS + chunk) * (D + 2)
    tl.store(own, largest)
    tl.store(own + 1, total)
    tl.store(own + 2 + d, weighted, mask=d < D)
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(arrived + of_head, 1, sem="acq_rel") == last:
        largest = float("-inf")
        total = 0.0
        weighted = weighted * 0.0
        for other in range(first, last + 1):
            part = parts + (of_head * CHUNKS + other) * (D + 2)
            part_largest = tl.load(part, cache_modifier=".cg")
            new_largest = tl.maximum(largest, part_largest)
            before, now = tl.exp(largest - new_largest), tl.exp(part_largest - new_largest)
            total = total * before + tl.load(part + 1, cache_modifier=".cg") * now
            of_part = tl.load(part + 2 + d, mask=d < D, other=0.0, cache_modifier=".cg")
            weighted = weighted * before + of_part * now
            largest = new_largest
        tl.store(out + of_head * D + d, weighted / total, mask=d < D)
        tl.store(arrived + of_head, 0)


@triton.jit
def attend_tiles(
    q, q_stride, cache, tile_first, tile_count, tile_position, blocks, angles, slopes, kv_head_of, out, scale,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, D_POWER: tl.constexpr, TABLE: tl.constexpr,
    TILE: tl.constexpr, ALIBI: tl.constexpr, WINDOW: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """One query head of the rows of a tile, whose keys are in the cache; tensors as in `attend_rows`."""
    tile, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(tile_count + tile)
    if count > 0:
        first_row, first_position = tl.load(tile_first + tile).to(tl.int64), tl.load(tile_position + tile)
        t, d, keys = tl.arange(0, TILE), tl.arange(0, D_POWER), tl.arange(0, BLOCK)
        number = cache.dtype.element_ty
        kv_head = tl.load(kv_head_of + head)
        has_row = t < count
        rows = first_row + tl.where(has_row, t, 0)
        at = rows[:, None] * q_stride + head * D
        inside = has_row[:, None] & (d < D)[None, :]
        query = tl.load(q + at + d[None, :], mask=inside, other=0.0)
        if ROTATED:
            HALF: tl.constexpr = D // 2
            other = tl.load(q + at + tl.where(d < HALF, d + HALF, d - HALF)[None, :], mask=inside, other=0.0)
            cos = tl.load(angles + rows[:, None] * D + (d % HALF)[None, :])
            sin = tl.load(angles + rows[:, None] * D + (HALF + d % HALF)[None, :])
            query = query * cos + tl.where((d < HALF)[None, :], -other, other) * sin
        query = (query * scale).to(number)
        positions = first_position + t
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + head)

        largest = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        weighted = tl.zeros([TILE, D_POWER], tl.float32)
        begin = 0
        if WINDOW > 0:
            begin = tl.maximum(first_position + 1 - WINDOW, 0) // BLOCK
        for block in range(begin, (first_position + count - 1) // BLOCK + 1):
            place = tl.load(blocks + tile * TABLE + block).to(tl.int64) * (2 * BLOCK)
            into = cache + (place + keys)[:, None] * (KV * D) + kv_head * D + d[None, :]
            # beyond the tile a block may hold what another sequence has left there, and 0 times a NaN would not be 0
            held = (keys + block * BLOCK < first_position + count)[:, None] & (d < D)[None, :]
            key = tl.load(into, mask=held, other=0.0)
            value = tl.load(into + BLOCK * KV * D, mask=held, other=0.0)
            scores = dot(query, tl.trans(key), tl.zeros([TILE, BLOCK], tl.float32))
            distance = positions[:, None] - (keys + block * BLOCK)[None, :]
            if ALIBI:
                scores -= slope * distance.to(tl.float32)
            seen = distance >= 0
            if WINDOW > 0:
                seen = seen & (distance < WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            # rows that see nothing of this block yet, as with a window
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            weights = tl.exp(scores - shift[:, None])
            before = tl.exp(largest - shift)
            total = total * before + tl.sum(weights, 1)
            weighted = weighted * before[:, None]
            weighted = dot(weights.to(number), value, weighted)
            largest = new_largest
        result = weighted / tl.where(has_row, total, 1.0)[:, None]
        tl.store(out + (rows * HEADS + head)[:, None] * D + d[None, :], result, mask=inside)
