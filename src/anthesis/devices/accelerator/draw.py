"""How tokens are drawn, in plain PyTorch: the same numbers as `program/draw.py`, for all rows at once.

Top-k and top-p need the order of all tokens; they sort once. Everything else is work on every token that has no order,
and where no row asks for these filters nothing is sorted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from anthesis.devices.accelerator.random import mixed, signed64
from anthesis.devices.accelerator.sizes import StepSize
from anthesis.program.draw import GOLDEN, MASS_UNIT
from anthesis.program.sample import Sample

_GOLDEN = signed64(int(GOLDEN))


def sample(op: Sample, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor], size: StepSize) -> torch.Tensor:
    """The token of each row.

    Args:
        op: what to do.
        logits: (L, V) float32, of the whole vocabulary.
        inputs: of the step (`StepInputs`).
        size: of the step: rows draw or not, have filters or not.

    Returns:
        (L,) int32; -1 where the best usable logit is not a finite number.
    """
    usable = logits[:, : op.usable]
    best = usable.argmax(1, keepdim=True)
    finite = torch.isfinite(usable.gather(1, best)[:, 0])
    if not size.draws and not size.penalises:
        return torch.where(finite, best[:, 0], -1).int()
    scores = usable.double()
    if size.penalises:
        scores = _penalised(scores, inputs["seen"], inputs["repetition_penalty"])
        best = scores.argmax(1, keepdim=True)
    chosen = best[:, 0]
    if size.draws:
        temperature = inputs["temperature"]
        drawn = _drawn(op, scores / torch.where(temperature > 0, temperature, 1.0).double()[:, None], inputs, size)
        chosen = torch.where(temperature > 0, drawn, chosen)
    return torch.where(finite, chosen, -1).int()


def log_probabilities(
    op: Sample, logits: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the chosen tokens and of the most likely ones.

    Args:
        op: what to do.
        logits: (L, V) float32.
        token: (L,) int32.

    Returns:
        (L,) float32, (L, top) int32 and (L, top) float32, as `Sample` says.
    """
    assert op.top is not None
    own = torch.log_softmax(logits.double(), 1)
    order = logits[:, : op.usable].sort(dim=1, descending=True, stable=True).indices[:, : op.top]
    undefined = token < 0
    logprob = own.gather(1, token.clamp(min=0).long()[:, None])[:, 0].float()
    return (
        torch.where(undefined, math.nan, logprob),
        torch.where(undefined[:, None], -1, order).int(),
        torch.where(undefined[:, None], math.nan, own.gather(1, order).float()),
    )


def _penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    bits = torch.arange(8, dtype=torch.uint8, device=seen.device)
    has = ((seen[:, :, None] >> bits) & 1).view(seen.shape[0], -1)[:, : scores.shape[1]] > 0
    factor = penalty.double()[:, None]
    return torch.where(has, torch.where(scores > 0, scores / factor, scores * factor), scores)


def _drawn(op: Sample, scores: torch.Tensor, inputs: Mapping[str, torch.Tensor], size: StepSize) -> torch.Tensor:
    """The draw of each row from (L, usable) float64 scores: (L,) int64."""
    ids = torch.arange(scores.shape[1], device=scores.device)[None]
    kept = torch.ones_like(scores, dtype=torch.bool)
    if size.sorts:
        scores, ids = scores.sort(dim=1, descending=True, stable=True)
        top_k = inputs["top_k"].long()[:, None]
        last = scores.gather(1, (top_k - 1).clamp(0, scores.shape[1] - 1))
        kept = (top_k <= 0) | (scores >= last)
        distance = (scores[:, :1] - scores).clamp(max=24.0)
        masses = torch.where(kept, torch.round(torch.exp(-distance) * MASS_UNIT), 0.0)  # their sums are exact
        before = masses.cumsum(1) - masses
        top_p = inputs["top_p"].double()[:, None]
        kept = kept & ((top_p >= 1) | (before < top_p * masses.sum(1, keepdim=True)))
    largest = scores.amax(1, keepdim=True)
    kept = kept & (scores >= largest + torch.log(inputs["min_p"].double())[:, None])
    positions = inputs["positions"].index_select(0, inputs["logit_rows"]).long()
    noisy = torch.where(kept, scores + gumbel_noise(inputs["seed"], positions, ids), -math.inf)
    return ids.expand_as(scores).gather(1, noisy.argmax(1, keepdim=True))[:, 0]


def gumbel_noise(seed: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """`anthesis.program.draw.gumbel_noise` for several rows.

    Args:
        seed: (L,) int64, the bits of the unsigned seeds.
        position: (L,) int64.
        tokens: (L, N) or (1, N) int64.

    Returns:
        (L, N) float64.
    """
    key = mixed(mixed(seed + _GOLDEN) + position * _GOLDEN)[:, None]
    hashes = mixed((tokens + 1) * _GOLDEN + key)
    uniform = (((hashes >> 12) & ((1 << 52) - 1)).double() + 0.5) / 2.0**52
    return -torch.log(-torch.log(uniform))
