"""A matrix times one row: what decoding one sequence spends nearly all its time on.

Each program has some rows of the matrix and reads them once, as wide as the memory likes; the input is normalised on
the way, and bias, activation, gate and residual follow before anything is written. Inputs are float32: the time is that
of the matrix's bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anthesis.devices.cuda.kernels.arithmetic import activated, in_plane, inputs_at, moments


@triton.jit
def one_row(
    x, norm_weight, norm_bias, epsilon, values, scales, minimums, bias, residual, out, N,
    K: tl.constexpr, K_POWER: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr,
    NORM: tl.constexpr, NORM_BIAS: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (N,) = product of x (K,) float32 with a matrix (N, K), or (2 N, K) if gated, with what follows.

    KIND: "float" (fp32, bf16, fp16), "row" (int8, fp8: one scale for a row), "group" (int8 in groups), "four" (bits).
    """
    mean = 0.0
    factor = 1.0
    if NORM != "none":
        mean, factor = moments(x, K, K_POWER, NORM, epsilon)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    product = _product(
        x, mean, factor, norm_weight, norm_bias, values, scales, minimums, tl.where(inside, rows, 0).to(tl.int64),
        K, KIND, GROUP, MINIMUM, NORM, NORM_BIAS, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if BIAS:
        product += tl.load(bias + rows, mask=inside, other=0.0)
    product = activated(product, ACTIVATION)
    if GATED:
        second = _product(
            x, mean, factor, norm_weight, norm_bias, values, scales, minimums,
            tl.where(inside, rows + N, 0).to(tl.int64),
            K, KIND, GROUP, MINIMUM, NORM, NORM_BIAS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if BIAS:
            second += tl.load(bias + rows + N, mask=inside, other=0.0)
        product *= second
    if RESIDUAL:
        product += tl.load(residual + rows, mask=inside, other=0.0)
    tl.store(out + rows, product, mask=inside)


@triton.jit
def _product(
    x, mean, factor, norm_weight, norm_bias, values, scales, minimums, rows,
    K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N,) float32: the sums of some rows."""
    if KIND == "four":
        return _four_bits(
            x, mean, factor, norm_weight, norm_bias, values, scales, minimums, rows,
            K, GROUP, MINIMUM, NORM, NORM_BIAS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if KIND == "group":
        return _groups(
            x, mean, factor, norm_weight, norm_bias, values, scales, rows, K, GROUP, NORM, NORM_BIAS, BLOCK_N, BLOCK_K
        )
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        at = values + rows[:, None] * K + columns[None, :]
        if K % BLOCK_K == 0:
            weights = tl.load(at)
        else:
            weights = tl.load(at, mask=(columns < K)[None, :], other=0.0)
        inputs = inputs_at(
            x, columns, mean, factor, norm_weight, norm_bias, K, NORM, NORM_BIAS, K % BLOCK_K == 0
        )  # fmt: skip
        sums += weights.to(tl.float32) * inputs[None, :]
    total = tl.sum(sums, 1)
    if KIND == "row":
        total *= tl.load(scales + rows).to(tl.float32)
    return total


@triton.jit
def _groups(
    x, mean, factor, norm_weight, norm_bias, values, scales, rows,
    K: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, NORM_BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Eight-bit values whose groups of columns have a scale; K is a multiple of GROUP."""
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    sums = tl.zeros([BLOCK_N, GROUPS, GROUP], tl.float32)
    for start in range(0, K, BLOCK_K):
        groups = start // GROUP + tl.arange(0, GROUPS)
        columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = groups < K // GROUP
        weights = tl.load(values + rows[:, None, None] * K + columns[None, :, :], mask=inside[None, :, None], other=0)
        scale = tl.load(scales + rows[:, None] * (K // GROUP) + groups[None, :], mask=inside[None, :], other=0.0)
        inputs = inputs_at(x, columns, mean, factor, norm_weight, norm_bias, K, NORM, NORM_BIAS, K % BLOCK_K == 0)
        sums += weights.to(tl.float32) * inputs[None, :, :] * scale.to(tl.float32)[:, :, None]
    return tl.sum(tl.reshape(sums, [BLOCK_N, BLOCK_K]), 1)


@triton.jit
def _four_bits(
    x, mean, factor, norm_weight, norm_bias, words, scales, minimums, rows,
    K: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, NORM: tl.constexpr, NORM_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Four-bit values v in runs of 256 columns (see `accelerator/matrices.py`).

    A group's part of a sum is scale (sum of v x) + (minimum or -8 scale) (sum of x). With u = 1 + v / 16, which the
    bits give without a conversion, sum of v x = 16 (sum of u x) - 16 (sum of x).
    """
    RUNS: tl.constexpr = BLOCK_K // 256
    ALL_RUNS: tl.constexpr = (K + 255) // 256
    GROUPS_OF_RUN: tl.constexpr = 256 // GROUP
    sums = tl.zeros([BLOCK_N, RUNS, 32], tl.float32)
    lanes = tl.arange(0, 32)
    for start in range(0, ALL_RUNS, RUNS):
        runs = start + tl.arange(0, RUNS)
        inside = runs < ALL_RUNS
        at = words + rows[:, None, None] * (ALL_RUNS * 32) + (runs[:, None] * 32 + lanes[None, :])[None, :, :]
        if ALL_RUNS % RUNS == 0:
            packed = tl.load(at)
        else:
            packed = tl.load(at, mask=inside[None, :, None], other=0)
        products = tl.zeros([BLOCK_N, RUNS, 32], tl.float32)
        inputs_sum = tl.zeros([RUNS, 32], tl.float32)
        for plane in tl.static_range(8):
            columns = runs[:, None] * 256 + 32 * plane + lanes[None, :]
            inputs = inputs_at(
                x, columns, mean, factor, norm_weight, norm_bias, K, NORM, NORM_BIAS, K % BLOCK_K == 0
            )  # fmt: skip
            products += in_plane(packed, plane) * inputs[None, :, :]
            inputs_sum += inputs
            if (32 * (plane + 1)) % GROUP == 0:
                group = rows[:, None] * (ALL_RUNS * GROUPS_OF_RUN) + (
                    runs * GROUPS_OF_RUN + 32 * plane // GROUP
                )[None, :]  # fmt: skip
                scale = 16.0 * tl.load(scales + group, mask=inside[None, :], other=0.0).to(tl.float32)
                if MINIMUM:
                    offset = tl.load(minimums + group, mask=inside[None, :], other=0.0).to(tl.float32) - scale
                else:
                    offset = -1.5 * scale
                sums += scale[:, :, None] * products + offset[:, :, None] * inputs_sum[None, :, :]
                products = tl.zeros([BLOCK_N, RUNS, 32], tl.float32)
                inputs_sum = tl.zeros([RUNS, 32], tl.float32)
    return tl.sum(tl.reshape(sums, [BLOCK_N, RUNS * 32]), 1)
