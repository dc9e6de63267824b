"""Triton's kernels beside the plain operations, where the small models of the contract don't take them.

Long contexts, wide matrices, large vocabularies: what goes round a loop more than once, and parts that the last of
several programs puts together. Interpreted where there is no card.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anthesis.devices.accelerator.matrices import pack
from anthesis.devices.accelerator.operations import Attention, NormWeights, Operations, Product
from anthesis.devices.accelerator.sizes import StepSize
from anthesis.devices.cuda import operations, tiles
from anthesis.devices.cuda.operations import CHUNK_BLOCKS, LIBRARY_ROWS, CudaOperations
from anthesis.program.attend import Attend, alibi_slopes
from anthesis.program.ops import Norm
from anthesis.program.sample import Sample
from anthesis.quantize import WEIGHT_KINDS, quantize

HOST = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RNG = np.random.default_rng(0)


def normal(*shape: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(mean, scale, shape).astype(np.float32)).to(HOST)


def integers(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.int32)).to(HOST)


@pytest.mark.parametrize("window", [None, 1, 70, 200])
def test_contexts_of_several_chunks(window: int | None) -> None:
    """Twice, since what counts the programs that are done has to be zero again."""
    heads, kv_heads, head, blocks = 4, 2, 16, 5
    positions = np.array([0, 63, 64, 127, 128, 255, 300, 319], np.int32)
    rows = len(positions)
    assert blocks > 2 * CHUNK_BLOCKS
    op = Attend(
        q="q", k="k", v="v", out="out", cache="cache", positions="p", slots="s", segments="g", block_table="t",
        head_dim=head, num_heads=heads, num_kv_heads=kv_heads, scale=head**-0.5, alibi=True, window=window,
    )  # fmt: skip
    kv_head_of = torch.arange(heads, device=HOST) // (heads // kv_heads)
    slopes = torch.from_numpy(alibi_slopes(heads)).float().to(HOST)
    attention = Attention(op, heads, kv_heads, kv_head_of, slopes, None)
    table = 1 + np.arange(rows * blocks, dtype=np.int32).reshape(rows, blocks)
    inputs = {
        "positions": integers(positions),
        "key_rows": integers(table[range(rows), positions // 64] * 128 + positions % 64),
        "tile_first": integers(range(rows)),
        "tile_position": integers(positions),
        "tile_blocks": integers(table),
    }
    cache = normal(128 * (1 + rows * blocks), kv_heads * head)
    q, k, v = normal(rows, heads * head, scale=3), normal(rows, kv_heads * head), normal(rows, kv_heads * head)
    size = StepSize(rows, rows, 0, blocks)
    kernels, own, plain = CudaOperations(), cache.clone(), cache.clone()
    expected = Operations().attend(attention, q, k, v, plain, inputs, size)
    for _ in range(2):
        assert torch.allclose(kernels.attend(attention, q, k, v, own, inputs, size), expected, atol=2e-5)
        assert torch.equal(own, plain)
        assert all(not counters.any() for counters in kernels._counters.values())


def test_the_best_of_several_parts() -> None:
    """Of equal ones the lowest, in whatever part it is; a NaN and an infinite one give no token."""
    logits = normal(4, 3 * 8192 + 5)
    logits[1, 5] = logits[1, -3] = 9.0
    logits[2, -1] = float("nan")
    logits[3, 8192] = float("inf")
    for usable in (logits.shape[1], logits.shape[1] - 2):
        for found, expected in zip(
            CudaOperations().argmax(logits, usable, 7), Operations().argmax(logits, usable, 7), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8", "int8", "int8-g32", "int4", "int4m-g64", "int4-g128"])
def test_matrices_wider_than_a_program_reads_at_a_time(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,408 columns: one and a half of what is read at a time, five and a half runs of four bits."""
    monkeypatch.setattr(tiles, "PROGRAMS", 2)
    width, outputs = 1408, 36
    matrix = pack(quantize(normal(outputs, width, scale=width**-0.5).cpu().numpy(), WEIGHT_KINDS[kind]), HOST)
    op = Norm(x="x", weight="w", bias="b", out="out", norm="layer", epsilon=1e-5, width=width)
    norm = NormWeights(op, normal(width, mean=1, scale=0.3), normal(width, scale=0.3))
    bias, x = normal(outputs), normal(rows, width, mean=0.5)
    for gated in (False, True):
        residual = normal(rows, outputs // 2 if gated else outputs)
        widths = (outputs // 2,) * 2 if gated else (outputs,)
        product = Product((matrix,), (bias,), widths, norm, "silu" if gated else None, gated)
        (found,) = CudaOperations().linear(x, product, residual)
        (expected,) = Operations().linear(x, product, residual)
        exact = kind == "fp32"
        assert (found - expected).abs().max() < (1e-5 if exact else 0.02) * expected.abs().max()


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "fp8", "int8", "int8-g32", "int4", "int4m-g128"])
def test_many_rows_go_through_the_library(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised matrices are converted piece by piece; here of seven rows each."""
    width, outputs = 384, 50
    monkeypatch.setattr(operations, "_CONVERTED_ELEMENTS", 7 * width)
    matrix = pack(quantize(normal(outputs, width, scale=width**-0.5).cpu().numpy(), WEIGHT_KINDS[kind]), HOST)
    x, bias = normal(LIBRARY_ROWS, width), normal(outputs)
    product = Product((matrix,), (bias,), (20, 30), None, None, False)
    for found, expected in zip(
        CudaOperations().linear(x, product, None), Operations().linear(x, product, None), strict=True
    ):
        exact = kind in ("fp32", "fp16")
        assert (found - expected).abs().max() < (1e-5 if exact else 0.02) * expected.abs().max()


@pytest.mark.parametrize("penalises", [False, True])
def test_draws_from_several_parts(penalises: bool) -> None:
    """Rows that draw beside greedy ones, with min-p and without; the same tokens as the plain operations."""
    rows, vocabulary = 6, 2 * 4096 + 100
    logits = normal(rows, vocabulary, scale=2)
    logits[4, 17] = float("nan")
    op = Sample(
        logits="logits", positions="positions", logit_rows="logit_rows", temperature="t", top_k="k", top_p="p",
        min_p="m", repetition_penalty="r", seed="s", seen="seen", token="token", usable=vocabulary - 3,
    )  # fmt: skip
    floats = {
        "temperature": [0, 1, 0.5, 3, 1, 2],
        "min_p": [0, 0, 0.1, 0.01, 0, 1],
        "repetition_penalty": [1.5, 1, 2, 0.5, 1, 1.2],
        "top_p": [1] * 6,
    }
    inputs = {name: torch.tensor(values, dtype=torch.float32, device=HOST) for name, values in floats.items()}
    inputs["top_k"] = integers([0] * 6)
    inputs["positions"], inputs["logit_rows"] = integers([5, 900, 7, 8, 9, 2**20]), integers(range(6))
    inputs["seed"] = torch.tensor([1, -1, 2**62, -(2**63), 5, 6], device=HOST)
    seen = RNG.integers(0, 256, (rows, -(-vocabulary // 8)), dtype=np.uint8)
    inputs["seen"] = torch.from_numpy(seen).to(HOST)
    size = StepSize(rows, rows, 0, 1, draws=True, penalises=penalises)
    kernels = CudaOperations()
    expected = Operations().sample(op, logits, inputs, size)
    for _ in range(2):
        assert torch.equal(kernels.sample(op, logits, inputs, size), expected)
    assert expected[4] == -1
