"""The operations between ranks. A traced program has none; `partition` inserts them.

Their arithmetic needs every rank's arrays, so `evaluate`, which sees one rank, is the case of a single rank; `combine`
is the general one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import numpy as np

from anthesis.program.ir import Array, Arrays, Cost, Op, Step, Value
from anthesis.program.sample import Sample


class Collective(Op):
    """An operation in which all ranks take part and after which all hold the same result."""

    @abstractmethod
    def combine(self, ranks: Sequence[Arrays]) -> tuple[Array, ...]:
        """The reference implementation.

        Args:
            ranks: for each rank, in order, the arrays of `reads()`, in their own dtypes.

        Returns:
            The arrays of `writes()`: (R, E) float32 for a sum, (L,) float32 and (L,) int32 for a choice, (L, V)
            float32 for a gather, what `Sample` gives for a sample; float64 where the arithmetic is.
        """

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        return self.combine([arrays])


@dataclass(frozen=True, kw_only=True)
class AllReduce(Collective):
    """out = the sum over ranks, added in rank order so that all ranks hold the same bits."""

    kind: ClassVar[str] = "all_reduce"
    x: str
    out: str

    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        return (Value(self.out, x.shape, x.dtype, "buffer", x.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        return Cost(sent_bytes=values[self.x].nbytes(step.sizes()))

    def combine(self, ranks: Sequence[Arrays]) -> tuple[Array, ...]:
        return (reduce(np.add, (arrays[self.x] for arrays in ranks)),)


@dataclass(frozen=True, kw_only=True)
class AllReduceBest(Collective):
    """The (score, token) pair with the highest score; of equal scores the lowest rank's, which has the lowest token.

    A token of -1, which `Argmax` gives where a logit is NaN or +inf, comes with the score +inf and so wins. A rank
    whose logits are all -inf, or that has padding only, brings (-inf, -1), which loses to every finite score.
    """

    kind: ClassVar[str] = "all_reduce_best"
    score: str
    token: str
    out_score: str
    out_token: str

    def reads(self) -> tuple[str, ...]:
        return self.score, self.token

    def writes(self) -> tuple[str, ...]:
        return self.out_score, self.out_token

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        score, token = values[self.score], values[self.token]
        return (
            Value(self.out_score, score.shape, score.dtype, "buffer"),
            Value(self.out_token, token.shape, token.dtype, "buffer"),
        )

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        return Cost(sent_bytes=sum(values[name].nbytes(step.sizes()) for name in self.reads()))

    def combine(self, ranks: Sequence[Arrays]) -> tuple[Array, ...]:
        scores = np.stack([arrays[self.score] for arrays in ranks])
        tokens = np.stack([arrays[self.token] for arrays in ranks])
        best = scores.argmax(axis=0)[None]
        return np.take_along_axis(scores, best, 0)[0], np.take_along_axis(tokens, best, 0)[0]


@dataclass(frozen=True, kw_only=True)
class AllGather(Collective):
    """out = every rank's columns side by side, in rank order.

    Attributes:
        widths: columns of each rank. They may differ; where a device's gather wants equal shares it pads each to the
            largest and leaves the padding out of the result.
    """

    kind: ClassVar[str] = "all_gather"
    x: str
    out: str
    widths: tuple[int, ...]

    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        assert x.static_width in self.widths, f"{self.out}: {x} is nobody's share of {self.widths}"
        return (Value(self.out, (x.shape[0], sum(self.widths)), x.dtype, "buffer"),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        return Cost(sent_bytes=values[self.x].nbytes(step.sizes()))

    def combine(self, ranks: Sequence[Arrays]) -> tuple[Array, ...]:
        return (np.concatenate([arrays[self.x] for arrays in ranks], axis=1),)


@dataclass(frozen=True, kw_only=True)
class SampleOverRanks(Collective):
    """`sample` where each rank has the logits of its part of the vocabulary only.

    What it gives is what `sample` would of all logits. A device gets there without sending any rank's logits: ranks
    exchange their largest ones, their masses by ranges of scores, the tokens that may be kept, few but for ties, and
    their draws, whose noise each can compute for its own tokens. The reference implementation puts the logits side by
    side.

    Attributes:
        sample: of the whole vocabulary, its `logits` being this rank's columns.
        widths: columns of each rank.
        first_id: id of this rank's first column.
    """

    kind: ClassVar[str] = "sample"
    sample: Sample
    widths: tuple[int, ...]
    first_id: int

    def reads(self) -> tuple[str, ...]:
        return self.sample.reads()

    def writes(self) -> tuple[str, ...]:
        return self.sample.writes()

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        return self.sample.infer(self._of_whole_rows(values))

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        pairs = step.logit_rows * _SAMPLE_PAIRS * (1 + (self.sample.top or 0))
        own = self.sample.cost(values, step)
        return replace(own, sent_bytes=pairs * _PAIR_BYTES)

    def combine(self, ranks: Sequence[Arrays]) -> tuple[Array, ...]:
        logits = np.concatenate([arrays[self.sample.logits] for arrays in ranks], axis=1)
        return self.sample.evaluate({**ranks[0], self.sample.logits: logits})

    def _of_whole_rows(self, values: Mapping[str, Value]) -> Mapping[str, Value]:
        logits = values[self.sample.logits]
        assert logits.static_width in self.widths, f"{self.sample.token}: {logits} is nobody's share of {self.widths}"
        whole = replace(logits, shape=(logits.shape[0], sum(self.widths)))
        return {**values, whole.name: whole}


_PAIR_BYTES = 16
"""A token and its score in float64."""

_SAMPLE_PAIRS = 3
"""Of a row at least: the largest logit and score, and the draw. Top-k adds k, top-p what its border holds."""
