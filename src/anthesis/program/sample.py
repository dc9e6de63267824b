"""The operations that choose the next token: `argmax` and `sample`; `draw.py` has what they do to a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anthesis.program.draw import all_tokens, draw, log_softmax, most_likely, outside_top_p
from anthesis.program.ir import Array, Arrays, Cost, Op, Step, Value


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
        """The token of row i; `row` (usable,)."""
        scores = row.astype(np.float64)
        penalise(scores, arrays[self.repetition_penalty][i], ids_of_bits(arrays[self.seen][i]))
        return choose(
            scores,
            temperature=arrays[self.temperature][i],
            top_k=int(arrays[self.top_k][i]),
            top_p=float(arrays[self.top_p][i]),
            min_p=float(arrays[self.min_p][i]),
            seed=int(arrays[self.seed][i]),
            position=int(arrays[self.positions][arrays[self.logit_rows][i]]),
        )


def penalise(scores: NDArray[np.floating], penalty: float | np.float32, occurred: NDArray[np.int64]) -> None:
    """Divides positive scores (N,) of tokens that occurred by the penalty, and multiplies negative ones, in place.

    Args:
        scores: (N,) float32 or float64, of the tokens.
        penalty: rounded to float32.
        occurred: (T,) int64, ids of tokens, some of them more than once or beyond the scores.
    """
    factor = clipped(np.float32(penalty))
    if factor == 1:
        return
    ids = occurred[occurred < len(scores)]
    scores[ids] = np.where(scores[ids] > 0, scores[ids] / factor, scores[ids] * factor)


def choose(
    scores: NDArray[np.float64],
    *,
    temperature: float | np.float32,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    """The token that a row of scores gives: by temperature, filters and draw, as `Sample` says.

    Args:
        scores: (N,) float64, penalised; some may be -inf. They are overwritten.
        temperature: rounded to float32; 0 takes the largest score.
        top_k: 0: no filter.
        top_p, min_p: of the filters; 1 and 0: none.
        seed, position: of the noise.
    """
    if temperature <= 0:
        return int(scores.argmax())
    scores /= clipped(np.float32(temperature))
    tokens = all_tokens(len(scores))
    if 0 < top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
        scores = scores[tokens]
    top_p, min_p = float(np.float32(top_p)), float(np.float32(min_p))
    if top_p < 1:
        scores[outside_top_p(scores, top_p)] = -np.inf
    if min_p > 0:
        scores[scores < scores.max() + np.log(min_p)] = -np.inf
    return draw(seed, position, tokens, scores)


def clipped(parameter: np.float32) -> float:
    """A parameter that rounding to fp32 made 0 or infinite, as the nearest number that can be divided by."""
    limits = np.finfo(np.float32)
    return min(max(float(parameter), float(limits.smallest_subnormal)), float(limits.max))


def ids_of_bits(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers of the set bits, lowest bit first; most bytes are 0 and are not unpacked.

    Args:
        bits: (N,) uint8.

    Returns:
        (T,) int64.
    """
    filled = np.flatnonzero(bits)
    byte, bit = np.nonzero(np.unpackbits(bits[filled, None], axis=1, bitorder="little"))
    return filled[byte] * 8 + bit
