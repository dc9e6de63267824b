"""The operations of a program in plain PyTorch: what every accelerator can run, and kernels are compared with.

They are pure functions of tensors but for the cache, whose shapes depend on the step's size alone: no operation waits
for the host, looks at a value to decide what comes next, or writes through a view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from anthesis.devices.accelerator import draw
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.sizes import StepSize
from anthesis.program.attend import Attend
from anthesis.program.ir import BLOCK_TOKENS
from anthesis.program.ops import Activation, Norm
from anthesis.program.sample import Sample

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class NormWeights:
    """A norm with its weights.

    Attributes:
        op: what it does.
        weight: (E,) float32.
        bias: (E,) float32, or None.
    """

    op: Norm
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Product:
    """Products of the same input, with what follows them.

    Attributes:
        matrices: one, joined, where their kinds allow it.
        biases: of each matrix (N,) float32, or None.
        widths: columns of each result.
        norm: of the input, before.
        activation: of the first result.
        gated: the one result is the activated first half of the columns times the second.
        gives_logits: the results are logits.
    """

    matrices: tuple[Matrix, ...]
    biases: tuple[torch.Tensor | None, ...]
    widths: tuple[int, ...]
    norm: NormWeights | None
    activation: Activation | None
    gated: bool
    gives_logits: bool = False


@dataclass(frozen=True)
class Attention:
    """An attention with what it needs besides its inputs.

    Attributes:
        op: what it does.
        heads: query heads H of this rank.
        kv_heads: key-value heads K of this rank.
        kv_head_of: (H,) int64: which of them each query head reads.
        slopes: (H,) float32 of ALiBi, or None.
        angles: the name of the angles by which queries and keys are rotated first, or None.
    """

    op: Attend
    heads: int
    kv_heads: int
    kv_head_of: torch.Tensor
    slopes: torch.Tensor | None
    angles: str | None


class Operations:
    """What a device does for each kind of operation; a device with kernels of its own overrides some.

    Attributes:
        kernels: what computes, for results.
    """

    kernels = "PyTorch"

    def settle(self) -> None:
        """Has what was asked for so far done, where a device gathers it and holds on to what it needs for it."""

    def embed(self, ids: torch.Tensor, matrix: Matrix, offset: int) -> torch.Tensor:
        """Rows of a table for ids (R,) int32: (R, E) float32; zeros where it has none."""
        rows = ids + offset
        present = (rows >= 0) & (rows < matrix.shape[0])
        found = matrix.rows(torch.where(present, rows, 0)).numbers()
        return torch.where(present[:, None], found, 0.0)

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """(R, E) float32, normalised in runs of the norm's width."""
        runs = x.view(x.shape[0], -1, norm.op.width)
        if norm.op.norm == "layer":
            runs = runs - runs.mean(-1, keepdim=True)
        result = runs * torch.rsqrt((runs * runs).mean(-1, keepdim=True) + norm.op.epsilon) * norm.weight
        return (result if norm.bias is None else result + norm.bias).view(x.shape)

    def linear(self, x: torch.Tensor, product: Product, residual: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Products of (R, K) float32: (R, N) float32 each, with what follows them."""
        if product.norm is not None:
            x = self.norm(x, product.norm)
        parts = []
        for matrix, bias in zip(product.matrices, product.biases, strict=True):
            part = self.multiply(x, matrix)
            parts.append(part if bias is None else part + bias)
        # the one result of one matrix is no view of itself: ranks add theirs up in place
        results = list(parts[0].split(product.widths, 1)) if len(parts) < len(product.widths) else parts
        if product.activation is not None:
            results[0] = self.activate(results[0], product.activation)
        if product.gated:
            results = [results[0] * results[1]]
        if residual is not None:
            results[0] = residual + results[0]
        return tuple(results)

    def multiply(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """x (R, K) float32 times a matrix (N, K): (R, N) float32, inputs rounded as the matrix's kind asks."""
        if matrix.kind.name not in ("fp32", "fp16"):
            x = x.bfloat16().float()
        return x @ matrix.numbers().t()

    def rotate(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """(R, H D) float32 with each head's pairs turned; angles (R, D) float32: cosines, then sines."""
        cos, sin = angles[:, None].chunk(2, -1)
        first, second = x.view(x.shape[0], -1, 2, cos.shape[-1]).unbind(2)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), 2).view(x.shape)

    def attend(
        self,
        attention: Attention,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: torch.Tensor,
        inputs: Tensors,
        size: StepSize,
    ) -> torch.Tensor:
        """Stores keys and values, and attends.

        Args:
            attention: what to do.
            q: (R, H * D) float32.
            k, v: (R, K * D) float32.
            cache: (128 * P, K * D) float32 or bf16: of each block 64 rows of keys, then 64 of values.
            inputs: of the step (`StepInputs`).
            size: of the step.

        Returns:
            (R, H * D) float32.
        """
        op, head = attention.op, attention.op.head_dim
        if attention.angles is not None:
            q, k = (self.rotate(x, inputs[attention.angles]) for x in (q, k))
        key_rows = inputs["key_rows"].long()
        cache.index_copy_(0, key_rows, k.to(cache.dtype))
        cache.index_copy_(0, key_rows + BLOCK_TOKENS, v.to(cache.dtype))

        tiles, rows = size.num_tiles, size.tile_rows
        within = torch.arange(rows, device=q.device)
        if size.tiles:
            places = (inputs["tile_first"][:, None] + within).clamp(max=size.rows - 1)
            q = q.index_select(0, places.view(-1))
        # the products' inputs are as wide as the cache, their sums float32
        q = (q.view(tiles, rows, attention.heads, head) * op.scale).to(cache.dtype).float()
        first_rows = inputs["tile_blocks"][:, :, None] * (2 * BLOCK_TOKENS)
        key_rows = (first_rows + torch.arange(BLOCK_TOKENS, device=q.device)).view(-1)
        keys, values = (
            cache.index_select(0, at)
            .view(tiles, -1, attention.kv_heads, head)
            .index_select(2, attention.kv_head_of)
            .transpose(1, 2)
            .float()
            for at in (key_rows, key_rows + BLOCK_TOKENS)
        )  # (T, H, S, D)
        scores = q.transpose(1, 2) @ keys.transpose(2, 3)  # (T, H, rows, S)
        positions = inputs["tile_position"][:, None, None, None] + within[:, None]
        key_positions = torch.arange(size.blocks * BLOCK_TOKENS, device=q.device)
        distance = positions - key_positions
        if attention.slopes is not None:
            scores = scores - attention.slopes[:, None, None] * distance
        unseen = distance < 0 if op.window is None else (distance < 0) | (distance >= op.window)
        weights = torch.softmax(scores.masked_fill(unseen, -math.inf), -1)
        # a block may hold what another sequence has left there, and 0 times a NaN would not be 0
        last = inputs["tile_position"] + (inputs["tile_count"] - 1 if size.tiles else 0)
        values = values.masked_fill((key_positions > last[:, None])[:, None, :, None], 0.0)
        out = (weights.to(cache.dtype).float() @ values).transpose(1, 2).reshape(tiles * rows, -1)
        return out.index_select(0, inputs["row_places"]) if size.tiles else out

    def activate(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """The named activation of (R, F) float32."""
        if activation == "relu":
            return torch.relu(x)
        if activation == "silu":
            return torch.nn.functional.silu(x)
        return torch.nn.functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")

    def sample(self, op: Sample, logits: torch.Tensor, inputs: Tensors, size: StepSize) -> torch.Tensor:
        """Of (L, V) float32 the tokens of `Sample`: (L,) int32.

        Args:
            op: what to do.
            logits: (L, V) float32, of the whole vocabulary.
            inputs: of the step (`StepInputs`).
            size: of the step: rows draw or not, have filters or not.
        """
        return draw.sample(op, logits, inputs, size)

    def argmax(self, logits: torch.Tensor, usable: int, first_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (L, V) float32 the best of the first `usable`: score (L,) float32 and token (L,) int32 (see `Argmax`)."""
        if usable == 0:  # this rank holds padding rows only
            score = torch.full(logits.shape[:1], -math.inf, device=logits.device)
            return score, torch.full(logits.shape[:1], -1, dtype=torch.int32, device=logits.device)
        logits = logits[:, :usable]
        best = logits.argmax(1)
        score = logits.gather(1, best[:, None])[:, 0]
        token = torch.where(torch.isfinite(score), best + first_id, -1).int()
        return torch.where(torch.isnan(score), math.inf, score), token
