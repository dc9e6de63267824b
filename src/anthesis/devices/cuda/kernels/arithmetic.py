"""What kernels share: reading inputs and normalising them, and what follows a product."""

from __future__ import annotations

import os

import triton
import triton.language as tl

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
"""Products and sums are fused, as all versions of Triton did until one changes its default."""

INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Kernels run on the host's tensors, as Triton decides when they are defined."""


@triton.jit
def dot(a, b, sums):
    """sums + a b, summed in float32; Triton's interpreter would multiply the bits of bf16 numbers as integers."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def moments(x, K: tl.constexpr, K_POWER: tl.constexpr, NORM: tl.constexpr, epsilon):
    """The mean that is subtracted and the factor of a norm over (K,) float32: Ba et al., Zhang and Sennrich."""
    columns = tl.arange(0, K_POWER)
    inside = columns < K
    row = tl.load(x + columns, mask=inside, other=0.0)
    mean = 0.0
    if NORM == "layer":
        mean = tl.sum(row, 0) / K
        row = tl.where(inside, row - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(row * row, 0) / K + epsilon)


@triton.jit
def inputs_at(
    x, columns, mean, factor, weight, bias, K: tl.constexpr, NORM: tl.constexpr, NORM_BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Inputs of a product at some columns, of any shape, normalised if NORM says so; 0 beyond the last column."""
    inside = columns < K
    if WHOLE:
        found = tl.load(x + columns)
    else:
        found = tl.load(x + columns, mask=inside, other=0.0)
    if NORM != "none":
        if WHOLE:
            found = (found - mean) * factor * tl.load(weight + columns)
        else:
            found = (found - mean) * factor * tl.load(weight + columns, mask=inside, other=0.0)
        if NORM_BIAS:
            if WHOLE:
                found += tl.load(bias + columns)
            else:
                found += tl.load(bias + columns, mask=inside, other=0.0)
    return found


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The named activation; tanh(u) is 1 - 2 / (exp(2 u) + 1), which has the right limits."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * (1.0 - 1.0 / (tl.exp(2.0 * inner) + 1.0))
    return x


@triton.jit
def in_plane(words, PLANE: tl.constexpr):
    """The four bits of one plane of int32 words as float32 numbers 1 + v / 16: a shift, a mask and no conversion."""
    if 4 * PLANE <= 19:
        bits = words << (19 - 4 * PLANE)
    else:
        bits = words >> (4 * PLANE - 19)
    return ((bits & 0x00780000) | 0x3F800000).to(tl.float32, bitcast=True)
