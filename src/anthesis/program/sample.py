"""The operations that choose the next token: `argmax` and `sample`.

Sampling is by the Gumbel-max method: the token with the largest logit / temperature + Gumbel noise, among those the
filters leave, is a draw from the softmax. The noise is a hash of (seed, position, token), so a seed gives the same text
whatever else is in the batch, and every rank can compute its own share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anthesis.program.ir import Array, Arrays, Cost, Op, Step, Value


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def gumbel_noise(seed: int, position: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel variates from a counter-based generator.

    Args:
        seed: the request's seed, any integer (its lowest 64 bits count).
        position: position of the row that chooses, so of the token before the chosen one.
        tokens: (N,) int64, the candidates' ids.

    Returns:
        (N,) float64: -log(-log(u)), u = (top 53 bits of the hash + 1/2) / 2^53, and the hash is
        mix(mix(mix(seed + g) + position g) + (token + 1) g) in 64-bit arithmetic with the golden ratio's g.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed % 2**64], dtype=np.uint64) + golden)
        key = _mix(key + np.uint64(position) * golden)
        hashed = _mix(key + (tokens.astype(np.uint64) + np.uint64(1)) * golden)
    uniform = ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(-np.log(-np.log(uniform)))


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Logarithms of the probabilities.

    Args:
        logits: (V,) float32 or float64.

    Returns:
        (V,) float64.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


@dataclass(frozen=True, kw_only=True)
class Argmax(Op):
    """token[l] = the id of the largest usable logit (of equal ones the lowest id), score[l] = that logit.

    Attributes:
        usable: usable ids of the whole vocabulary.
        first_id: id of this rank's first column.
    """

    kind: ClassVar[str] = "argmax"
    logits: str
    score: str
    token: str
    usable: int
    first_id: int = 0

    def reads(self) -> tuple[str, ...]:
        return (self.logits,)

    def writes(self) -> tuple[str, ...]:
        return self.score, self.token

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        rows = values[self.logits].shape[0]
        return Value(self.score, (rows,), "fp32", "buffer"), Value(self.token, (rows,), "int32", "buffer")

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        return Cost(activation_bytes=values[self.logits].nbytes(step.sizes()))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        logits = arrays[self.logits][:, : max(0, self.usable - self.first_id)]
        if logits.shape[1] == 0:  # this rank holds padding rows only
            return np.full(len(logits), -np.inf, logits.dtype), np.zeros(len(logits), np.int32)
        best = logits.argmax(axis=1)
        return np.take_along_axis(logits, best[:, None], 1)[:, 0], (best + self.first_id).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Sample(Op):
    """A draw from the filtered distribution of each row; rows of temperature 0 take the most likely token.

    In order: the repetition penalty on ids in `seen`; division by the temperature; top-k (the k largest and those equal
    to the k-th); top-p (of what is left the smallest set, most likely first, with at least that mass); min-p (at least
    that fraction of the most likely token's probability). Log-probabilities are the model's own, before all of this.

    Values:
        logits (L, V); per row temperature, top_p, min_p, repetition_penalty (L,) fp32, top_k (L,) int32 (0: off),
        seed (L,) uint64, seen (L, ceil(V / 8)) uint8, the ids of prompt and completion as bits, lowest bit first;
        positions (R,) and logit_rows (L,) give the position that keys the generator.
        Results: token (L,) int32, logprob (L,) fp32 of the token, and the `top` most likely ids and log-probabilities
        (L, top).

    Attributes:
        usable: usable ids of the vocabulary.
        top: how many most likely tokens to report.

    Source:
        Keskar et al., arXiv:1909.05858 (repetition penalty: logits are divided by it, negative ones multiplied);
        Holtzman et al., arXiv:1904.09751 (top-p); Nguyen et al., arXiv:2407.01082 (min-p).
    """

    kind: ClassVar[str] = "sample"
    logits: str
    positions: str
    logit_rows: str
    temperature: str
    top_k: str
    top_p: str
    min_p: str
    repetition_penalty: str
    seed: str
    seen: str
    token: str
    logprob: str
    top_tokens: str
    top_logprobs: str
    usable: int
    top: int = 0

    def reads(self) -> tuple[str, ...]:
        parameters = (
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.seed,
            self.seen,
        )
        return (self.logits, self.positions, self.logit_rows, *parameters)

    def writes(self) -> tuple[str, ...]:
        return self.token, self.logprob, self.top_tokens, self.top_logprobs

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        logits = values[self.logits]
        rows = logits.shape[0]
        assert logits.axes[1] is None or logits.shape[1] == logits.static_width, f"{self.token}: {logits}"
        return (
            Value(self.token, (rows,), "int32", "buffer"),
            Value(self.logprob, (rows,), "fp32", "buffer"),
            Value(self.top_tokens, (rows, self.top), "int32", "buffer"),
            Value(self.top_logprobs, (rows, self.top), "fp32", "buffer"),
        )

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        logits = values[self.logits]
        return Cost(activation_bytes=logits.nbytes(step.sizes()), flops=20 * step.logit_rows * logits.static_width)

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        logits = arrays[self.logits]
        count = len(logits)
        positions = arrays[self.positions][arrays[self.logit_rows]]
        tokens = np.empty(count, np.int32)
        logprobs = np.empty(count, np.float32)
        top_tokens = np.empty((count, self.top), np.int32)
        top_logprobs = np.empty((count, self.top), np.float32)
        for i, row in enumerate(logits):
            scores = self._filtered(row, i, arrays)
            temperature = float(arrays[self.temperature][i])
            if temperature > 0:
                candidates = np.flatnonzero(np.isfinite(scores))
                noise = gumbel_noise(int(arrays[self.seed][i]), int(positions[i]), candidates)
                tokens[i] = candidates[(scores[candidates] + noise).argmax()]
            else:
                tokens[i] = scores.argmax()
            own = log_softmax(row)
            logprobs[i] = own[tokens[i]]
            top_tokens[i] = np.argsort(-own[: self.usable], kind="stable")[: self.top]
            top_logprobs[i] = own[top_tokens[i]]
        return tokens, logprobs, top_tokens, top_logprobs

    def _filtered(self, row: Array, i: int, arrays: Arrays) -> NDArray[np.float64]:
        """Scores (usable,) float64 of one row after penalty, temperature and filters; -inf: filtered out."""
        scores = row[: self.usable].astype(np.float64)
        penalty = float(arrays[self.repetition_penalty][i])
        if penalty != 1:
            seen = np.unpackbits(arrays[self.seen][i], bitorder="little")[: self.usable].astype(bool)
            scores = np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)
        temperature = float(arrays[self.temperature][i])
        if temperature <= 0:
            return scores
        scores = scores / temperature
        top_k = int(arrays[self.top_k][i])
        if 0 < top_k < len(scores):
            scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
        top_p = float(arrays[self.top_p][i])
        if top_p < 1:
            order = np.argsort(-scores, kind="stable")
            mass = np.cumsum(np.exp(log_softmax(scores[order])))
            scores[order[1 + int(np.searchsorted(mass, top_p)) :]] = -np.inf
        min_p = float(arrays[self.min_p][i])
        if min_p > 0:
            scores[scores < scores.max() + np.log(min_p)] = -np.inf
        return scores
