"""Small work on rows: looking them up, normalising them."""

from __future__ import annotations

import triton
import triton.language as tl

from anthesis.devices.cuda.kernels.arithmetic import moments


@triton.jit
def look_up(
    ids, values, scales, minimums, out, offset, ROWS, E: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    MINIMUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (R, E) float32: rows `ids` (R,) + offset of a table (ROWS, E) of any kind; zeros where it has none."""
    row = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < E
    wanted = tl.load(ids + row) + offset
    present = (wanted >= 0) & (wanted < ROWS)
    place = tl.where(present, wanted, 0).to(tl.int64)
    if KIND == "four":
        RUNS: tl.constexpr = (E + 255) // 256
        words = tl.load(values + place * (RUNS * 32) + k // 256 * 32 + k % 32, mask=inside, other=0)
        found = ((words >> (k % 256 // 32 * 4)) & 15).to(tl.float32)
        group = place * (RUNS * (256 // GROUP)) + k // GROUP
        scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
        if MINIMUM:
            found = found * scale + tl.load(minimums + group, mask=inside, other=0.0).to(tl.float32)
        else:
            found = (found - 8.0) * scale
    else:
        found = tl.load(values + place * E + k, mask=inside, other=0.0).to(tl.float32)
        if KIND == "row":
            found *= tl.load(scales + place).to(tl.float32)
        elif KIND == "group":
            found *= tl.load(scales + place * (E // GROUP) + k // GROUP, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * E + k, tl.where(present, found, 0.0), mask=inside)


@triton.jit
def normalise(
    x, weight, bias, out, epsilon, WIDTH: tl.constexpr, WIDTH_POWER: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """Each run of WIDTH elements of x float32, normalised, in the dtype of `out`."""
    begin = tl.program_id(0).to(tl.int64) * WIDTH
    mean, factor = moments(x + begin, WIDTH, WIDTH_POWER, NORM, epsilon)
    k = tl.arange(0, WIDTH_POWER)
    inside = k < WIDTH
    result = (tl.load(x + begin + k, mask=inside, other=0.0) - mean) * factor
    result *= tl.load(weight + k, mask=inside, other=0.0)
    if BIAS:
        result += tl.load(bias + k, mask=inside, other=0.0)
    tl.store(out + begin + k, result.to(out.dtype.element_ty), mask=inside)
