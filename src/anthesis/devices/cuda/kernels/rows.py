"""A matrix times several rows, on the tensor cores: small batches, short prompts, and whatever must not depend on R.

The order in which an output is summed depends on the block sizes alone; with the same ones a row's result is the same
bits whatever is beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anthesis.devices.cuda.kernels.arithmetic import activated, dot


@triton.jit
def several_rows(
    x, values, scales, minimums, bias, residual, out, R, N,
    K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (R, N) float32 = products of x (R, K) with a matrix (N, K), or (2 N, K) if gated, with what follows.

    x is bf16, or float32 with fp32 and fp16 matrices. KIND as in `one_row`.
    """
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    has_row, has_column = r < R, n < N
    inputs = x + tl.where(has_row, r, 0).to(tl.int64)[:, None] * K
    columns = tl.where(has_column, n, 0).to(tl.int64)
    product = _product(
        inputs, values, scales, minimums, columns, K, KIND, GROUP, MINIMUM, BLOCK_R, BLOCK_N, BLOCK_K
    )  # fmt: skip
    if BIAS:
        product += tl.load(bias + columns)[None, :]
    product = activated(product, ACTIVATION)
    if GATED:
        second = _product(
            inputs, values, scales, minimums, columns + N, K, KIND, GROUP, MINIMUM, BLOCK_R, BLOCK_N, BLOCK_K
        )  # fmt: skip
        if BIAS:
            second += tl.load(bias + columns + N)[None, :]
        product *= second
    at = r.to(tl.int64)[:, None] * N + n[None, :]
    inside = has_row[:, None] & has_column[None, :]
    if RESIDUAL:
        product += tl.load(residual + at, mask=inside, other=0.0)
    tl.store(out + at, product, mask=inside)


@triton.jit
def _product(
    inputs, values, scales, minimums, columns,
    K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_R, BLOCK_N) float32."""
    sums = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    if KIND == "four":
        ALL_RUNS: tl.constexpr = (K + 255) // 256
        GROUPS: tl.constexpr = ALL_RUNS * (256 // GROUP)
        lanes = tl.arange(0, 32)
        for run in range(ALL_RUNS):
            packed = tl.load(values + columns[None, :] * (ALL_RUNS * 32) + run * 32 + lanes[:, None])
            part = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
            inputs_sum = tl.zeros([BLOCK_R], tl.float32)
            for plane in tl.static_range(8):
                k = run * 256 + 32 * plane + lanes
                x = tl.load(inputs + k[None, :], mask=(k < K)[None, :], other=0.0)
                weights = (packed >> (4 * plane)) & 15
                if not MINIMUM:
                    weights -= 8
                part = dot(x, weights.to(tl.float32).to(x.dtype), part)
                inputs_sum += tl.sum(x.to(tl.float32), 1)
                if (32 * (plane + 1)) % GROUP == 0:
                    group = columns * GROUPS + run * (256 // GROUP) + 32 * plane // GROUP
                    sums += part * tl.load(scales + group).to(tl.float32)[None, :]
                    if MINIMUM:
                        sums += inputs_sum[:, None] * tl.load(minimums + group).to(tl.float32)[None, :]
                    part = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
                    inputs_sum = tl.zeros([BLOCK_R], tl.float32)
        return sums
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = values + columns[None, :] * K + k[:, None]
        if K % BLOCK_K == 0:
            x = tl.load(inputs + k[None, :])
            weights = tl.load(at)
        else:
            x = tl.load(inputs + k[None, :], mask=(k < K)[None, :], other=0.0)
            weights = tl.load(at, mask=(k < K)[:, None], other=0.0)
        if KIND == "float":
            sums = dot(x, weights.to(x.dtype), sums)
        elif KIND == "row":  # both kinds of values are exact in bf16
            sums = dot(x, weights.to(tl.float32).to(x.dtype), sums)
        else:  # BLOCK_K is one group
            part = dot(x, weights.to(tl.float32).to(x.dtype), tl.zeros([BLOCK_R, BLOCK_N], tl.float32))
            sums += part * tl.load(scales + columns * (K // GROUP) + start // GROUP).to(tl.float32)[None, :]
    if KIND == "row":
        sums *= tl.load(scales + columns).to(tl.float32)[None, :]
    return sums
