"""The operations that choose the next token: `argmax` and `sample`.

Sampling is by the Gumbel-max method: the token with the largest logit / temperature + Gumbel noise, among those the
filters leave, is a draw from the softmax. The noise is a hash of (seed, position, token), so a seed gives the same text
whatever else is in the batch, and every rank can compute its own share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anthesis.program.ir import Array, Arrays, Cost, Op, Step, Value

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: the step of SplitMix64."""

PIECE = 8192
"""Tokens worked on at a time, so that what is computed of them stays in a core's cache. New arrays as long as the
vocabulary would take most of the time here: each page of them is a fault."""

RARE = np.uint64(255 << 56)
"""A 256th of all hashes reach this; the noise of the others is below -log(-log(255 / 256)) = 5.54."""

COMMON_NOISE = 6.0
"""More than the noise of any hash below `RARE`, by a margin wider than the rounding of any sum."""

MASS_UNIT = 2.0**33
"""The most likely token's mass in units that are summed exactly: 2^20 tokens of it stay within 2^53."""

MASS_BINS = 4096
"""Ranges of scores whose masses are added up before one of them is sorted."""


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), in place: a bijection of 64-bit words."""
    shifted = np.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.right_shift(x, np.uint64(shift), out=shifted)
        x ^= shifted
        x *= np.uint64(factor)
    return x


def _key(seed: int, position: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed % 2**64], dtype=np.uint64) + GOLDEN)
        return _mix(key + np.uint64(position) * GOLDEN)


def _hashes(key: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    words = tokens.astype(np.uint64)
    words += np.uint64(1)
    words *= GOLDEN
    words += key
    return _mix(words)


def gumbel_noise(seed: int, position: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel variates from a counter-based generator.

    Args:
        seed: the request's seed, any integer (its lowest 64 bits count).
        position: position of the row that chooses, so of the token before the chosen one.
        tokens: (N,) int64, the candidates' ids.

    Returns:
        (N,) float64, finite: -log(-log(u)), u = (top 52 bits of the hash + 1/2) / 2^52, and the hash is
        mix(mix(mix(seed + g) + position g) + (token + 1) g) in 64-bit arithmetic with the golden ratio's g.
    """
    # of 53 bits the half would be rounded away, and the highest hash would give u = 1 and infinite noise
    uniform = ((_hashes(_key(seed, position), tokens) >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    return np.asarray(-np.log(-np.log(uniform)))


def draw(seed: int, position: int, tokens: NDArray[np.int64], scores: NDArray[np.float64]) -> int:
    """The token with the largest score + `gumbel_noise`, of equal ones the lowest id.

    The logarithms of the noise are its cost, so they are taken only where the sum can be the largest: of the few
    highest hashes first, then of the tokens whose score can still beat the best of those with what noise is left.

    Args:
        seed: as in `gumbel_noise`.
        position: as in `gumbel_noise`.
        tokens: (N,) int64, ids in ascending order.
        scores: (N,) float64, the logarithms of their probabilities but for a constant; -inf is never drawn.

    Returns:
        One of the tokens.
    """
    key = _key(seed, position)
    found = [np.array([scores.argmax()])]
    for start in range(0, len(tokens), PIECE):
        found.append(start + np.flatnonzero(_hashes(key, tokens[start : start + PIECE]) >= RARE))
    rare = np.concatenate(found)
    best = (scores[rare] + gumbel_noise(seed, position, tokens[rare])).max()
    left = np.union1d(rare, np.flatnonzero(scores >= best - COMMON_NOISE))
    return int(tokens[left[(scores[left] + gumbel_noise(seed, position, tokens[left])).argmax()]])


@lru_cache(maxsize=4)
def _all_tokens(count: int) -> NDArray[np.int64]:
    tokens = np.arange(count)
    tokens.setflags(write=False)
    return tokens


def outside_top_p(scores: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """All tokens but the smallest set, most likely first, of equal ones the lowest id, that has the mass `top_p`.

    Masses are rounded to 2^-33 of the most likely token's, so that their sums are exact in any order: the set does not
    depend on how it is found, nor on who adds. Masses are added up by ranges of scores, and only the range in which
    `top_p` is reached is sorted.

    Args:
        scores: (V,) float64, the logarithms of the probabilities but for a constant; V is at most 2^20.
        top_p: from 0 to 1 (excluded).

    Returns:
        (V,) bool; never all of them.
    """
    assert len(scores) <= 2**20, f"{len(scores)} masses can't be summed exactly"
    largest = scores.max()
    span = float(_distance(largest, scores.min())) or 1.0
    ranges = np.empty(len(scores), np.int16)
    mass_of_range = np.zeros(MASS_BINS)
    for start in range(0, len(scores), PIECE):
        distance = _distance(largest, scores[start : start + PIECE])
        number = (distance * ((MASS_BINS - 1) / span)).astype(np.intp)
        mass_of_range += np.bincount(number, _masses(distance), MASS_BINS)
        ranges[start : start + PIECE] = number
    reached = np.cumsum(mass_of_range)
    needed = top_p * reached[-1]
    last = int(np.searchsorted(reached, needed))
    outside = ranges > last
    border = np.flatnonzero(ranges == last)
    border = border[np.argsort(-scores[border], kind="stable")]
    mass = reached[last] - mass_of_range[last] + np.cumsum(_masses(_distance(largest, scores[border])))
    outside[border[1 + int(np.searchsorted(mass, needed)) :]] = True
    return outside


def _distance(largest: np.float64, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    # from 23.6 on the mass rounds to 0, so nothing is lost where the distance ends
    return np.asarray(np.minimum(largest - scores, 24.0))


def _masses(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.rint(np.exp(-distance) * MASS_UNIT))


def most_likely(logits: Array, count: int) -> NDArray[np.int64]:
    """The ids of the largest logits, of equal ones the lowest first.

    Args:
        logits: (V,) float32 or float64.
        count: how many.

    Returns:
        (N,) int64, N = `count`, or V where that is less.
    """
    if count == 0:
        return np.empty(0, np.int64)
    count = min(count, len(logits))
    ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Logarithms of the probabilities.

    Args:
        logits: (V,) float32 or float64.

    Returns:
        (V,) float64.
    """
    shifted = logits.astype(np.float64)
    shifted -= float(logits.max())
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


@dataclass(frozen=True, kw_only=True)
class Argmax(Op):
    """token[l] = the id of the largest usable logit (of equal ones the lowest id), score[l] = that logit.

    A NaN counts as the largest and gives the score +inf, and the token is -1 where the score is not finite: where any
    usable logit is NaN or +inf, or all are -inf. Scores are never NaN, so that the maximum over ranks needs no care.

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
            return np.full(len(logits), -np.inf, logits.dtype), np.full(len(logits), -1, np.int32)
        best = logits.argmax(axis=1)
        score = np.take_along_axis(logits, best[:, None], 1)[:, 0]
        token = np.where(np.isfinite(score), best + self.first_id, -1).astype(np.int32)
        return np.where(np.isnan(score), score.dtype.type(np.inf), score), token


@dataclass(frozen=True, kw_only=True)
class Sample(Op):
    """A draw from the filtered distribution of each row; rows of temperature 0 take the most likely token.

    In order: the repetition penalty on ids in `seen`; division by the temperature; top-k (the k largest and those equal
    to the k-th); top-p (of what is left the smallest set, most likely first, with at least that mass: see
    `outside_top_p`); min-p (at least that fraction of the most likely token's probability). Log-probabilities are the
    model's own, before all of this, and are computed only where `top` asks for them.

    Parameters are fp32: a temperature that rounds to 0 takes the most likely token, an infinite one counts as the
    largest finite number, and so does a penalty; a penalty that rounds to 0 counts as the smallest number above 0.

    Where any usable logit of a row is NaN or +inf, or all are -inf, its token and its most likely ids are -1, and its
    log-probabilities NaN.

    Values:
        logits (L, V); per row temperature, top_p, min_p, repetition_penalty (L,) fp32, top_k (L,) int32 (0: off),
        seed (L,) uint64, seen (L, ceil(V / 8)) uint8, the ids of prompt and completion as bits, lowest bit first;
        positions (R,) and logit_rows (L,) give the position that keys the generator.
        Results: token (L,) int32; unless `top` is None also logprob (L,) fp32 of the token, and the `top` most likely
        usable ids and their log-probabilities (L, top).

    Attributes:
        usable: usable ids of the vocabulary.
        top: how many most likely tokens to report, at most `usable`; None: no log-probabilities at all.

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
    logprob: str | None = None
    top_tokens: str | None = None
    top_logprobs: str | None = None
    usable: int
    top: int | None = None

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
        if self.top is None:
            return (self.token,)
        names = (self.logprob, self.top_tokens, self.top_logprobs)
        return (self.token, *(name for name in names if name is not None))

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        logits = values[self.logits]
        rows = logits.shape[0]
        assert self.usable <= logits.static_width, f"{self.token}: {logits} are not those of the whole vocabulary"
        token = Value(self.token, (rows,), "int32", "buffer")
        if self.top is None:
            return (token,)
        assert self.logprob and self.top_tokens and self.top_logprobs, f"{self.token}: log-probabilities have no name"
        assert self.top <= self.usable, f"{self.token}: the {self.top} most likely of {self.usable} tokens"
        return (
            token,
            Value(self.logprob, (rows,), "fp32", "buffer"),
            Value(self.top_tokens, (rows, self.top), "int32", "buffer"),
            Value(self.top_logprobs, (rows, self.top), "fp32", "buffer"),
        )

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        logits = values[self.logits]
        return Cost(activation_bytes=logits.nbytes(step.sizes()), flops=20 * step.logit_rows * logits.static_width)

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        logits = arrays[self.logits]
        usable = logits[:, : self.usable]
        best = usable.argmax(axis=1)
        defined = np.isfinite(np.take_along_axis(usable, best[:, None], 1)[:, 0])
        tokens = np.full(len(logits), -1, np.int32)
        for i in np.flatnonzero(defined):
            greedy = arrays[self.temperature][i] <= 0 and arrays[self.repetition_penalty][i] == 1
            tokens[i] = best[i] if greedy else self._chosen(usable[i], int(i), arrays)
        if self.top is None:
            return (tokens,)
        logprobs = np.full(len(logits), np.nan, np.float32)
        top_tokens = np.full((len(logits), self.top), -1, np.int32)
        top_logprobs = np.full((len(logits), self.top), np.nan, np.float32)
        for i in np.flatnonzero(defined):
            own = log_softmax(logits[i])
            logprobs[i] = own[tokens[i]]
            top_tokens[i] = most_likely(usable[i], self.top)
            top_logprobs[i] = own[top_tokens[i]]
        return tokens, logprobs, top_tokens, top_logprobs

    def _chosen(self, row: Array, i: int, arrays: Arrays) -> int:
        """The token of row i: penalty, temperature, filters, draw; `row` (usable,)."""
        scores = row.astype(np.float64)
        penalty = _clipped(arrays[self.repetition_penalty][i])
        if penalty != 1:
            seen = _ids(arrays[self.seen][i])
            seen = seen[seen < len(scores)]
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        if arrays[self.temperature][i] <= 0:
            return int(scores.argmax())
        scores /= _clipped(arrays[self.temperature][i])
        tokens = _all_tokens(len(scores))
        top_k = int(arrays[self.top_k][i])
        if 0 < top_k < len(scores):
            tokens = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
            scores = scores[tokens]
        top_p = float(arrays[self.top_p][i])
        if top_p < 1:
            scores[outside_top_p(scores, top_p)] = -np.inf
        min_p = float(arrays[self.min_p][i])
        if min_p > 0:
            scores[scores < scores.max() + np.log(min_p)] = -np.inf
        position = arrays[self.positions][arrays[self.logit_rows][i]]
        return draw(int(arrays[self.seed][i]), int(position), tokens, scores)


def _clipped(parameter: np.float32) -> float:
    """A parameter that rounding to fp32 made 0 or infinite, as the nearest number that can be divided by."""
    limits = np.finfo(np.float32)
    return min(max(float(parameter), float(limits.smallest_subnormal)), float(limits.max))


def _ids(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers of the set bits, lowest bit first; most bytes are 0 and are not unpacked."""
    filled = np.flatnonzero(bits)
    byte, bit = np.nonzero(np.unpackbits(bits[filled, None], axis=1, bitorder="little"))
    return filled[byte] * 8 + bit
