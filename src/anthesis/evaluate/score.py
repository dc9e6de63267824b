"""How well windows are predicted: log-probabilities from logits, their means, and how sure these are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.outputs import NOT_FINITE
from anthesis.errors import AnthesisError
from anthesis.evaluate.result import Quality
from anthesis.llm import LLM


@dataclass
class Sums:
    """What is added up over the tokens of one window, in float64.

    Attributes:
        tokens: that were scored.
        nll: negative log-likelihood of the evaluated weights, in nats.
        other_nll: of the other weights.
        kl: KL(P || Q), P of the other weights.
        max_kl: of a single token.
        agreed: tokens before which both have the same best token.
    """

    tokens: int = 0
    nll: float = 0.0
    other_nll: float = 0.0
    kl: float = 0.0
    max_kl: float = 0.0
    agreed: int = 0


@dataclass
class Scores:
    """The sums of all windows, and the means that they give.

    Attributes:
        windows: in the order of the text.
    """

    windows: list[Sums] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """That were scored."""
        return sum(window.tokens for window in self.windows)

    def mean(self, name: str) -> float:
        """Of one of the sums, for each token."""
        return math.fsum(getattr(window, name) for window in self.windows) / self.tokens

    def quality(self, name: str = "nll") -> Quality:
        """Of the evaluated weights, or by "other_nll" of the others.

        Raises:
            AnthesisError: the perplexity is beyond all numbers.
        """
        mean = self.mean(name)
        error = standard_error([getattr(window, name) for window in self.windows], self._sizes)
        return Quality(perplexity=exp(mean), mean_nll=mean, nll_standard_error=error)

    def log_ratio(self) -> tuple[float, float | None]:
        """Of the perplexities, Q's to P's, and its standard error: both predicted the same tokens."""
        differences = [window.nll - window.other_nll for window in self.windows]
        return math.fsum(differences) / self.tokens, standard_error(differences, self._sizes)

    def mean_kl(self) -> tuple[float, float | None]:
        """For each token, and its standard error."""
        return self.mean("kl"), standard_error([window.kl for window in self.windows], self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [window.tokens for window in self.windows]


def exp(nats: float) -> float:
    """A perplexity, or a ratio of two.

    Raises:
        AnthesisError: it is beyond what float64 holds.
    """
    try:
        return math.exp(nats)
    except OverflowError:
        raise AnthesisError(
            f"the model is off by {nats:,.0f} nats a token, and e to that is beyond all numbers: its weights are "
            "damaged or made up; compare with --device reference-fp64"
        ) from None


def standard_error(sums: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Of the mean for each token, (sum of sums) / (sum of sizes), over windows that are taken as independent.

    Args:
        sums: of each window.
        sizes: tokens of each.

    Returns:
        sqrt(n / (n - 1) sum((sum - mean size)^2)) / (sum of sizes); None of a single window.

    Source:
        The ratio estimator of cluster samples: Cochran, Sampling Techniques (1977), section 2.11. Of windows of one
        size it is the standard deviation of their means / sqrt(n).
    """
    n = len(sums)
    if n < 2:
        return None
    mean = math.fsum(sums) / sum(sizes)
    squares = math.fsum((each - mean * size) ** 2 for each, size in zip(sums, sizes, strict=True))
    return math.sqrt(n / (n - 1) * squares) / sum(sizes)


def score_window(ids: Sequence[int], llm: LLM, other: LLM | None = None) -> Sums:
    """Predicts each token of a window but the first from those before it, a step's rows at a time.

    Args:
        ids: token ids, two at least.
        llm: with the evaluated weights, Q.
        other: with the other weights, P; None: there are none.

    Raises:
        AnthesisError: logits that are not finite.
    """
    given, sums = ids[:-1], Sums()
    others = repeat(None, len(given)) if other is None else _log_probabilities(other, given)
    for token, log_q, log_p in zip(ids[1:], _log_probabilities(llm, given), others, strict=True):
        sums.tokens += 1
        sums.nll -= float(log_q[token])
        if log_p is not None:
            kl = divergence(log_p, log_q)
            sums.other_nll -= float(log_p[token])
            sums.kl += kl
            sums.max_kl = max(sums.max_kl, kl)
            sums.agreed += int(log_p.argmax() == log_q.argmax())
    return sums


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The logarithms of a row's probabilities.

    Args:
        logits: (V,) float32 or float64.

    Returns:
        (V,) float64.

    Raises:
        AnthesisError: one is not finite.
    """
    if not np.isfinite(logits).all():
        raise AnthesisError(NOT_FINITE)
    shifted: NDArray[np.float64] = np.subtract(logits, logits.max(), dtype=np.float64)
    shifted -= math.log(np.exp(shifted).sum())
    return shifted


def divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> float:
    """KL(P || Q) in nats, which is never below 0.

    Args:
        log_p, log_q: (V,) float64, logarithms of probabilities.
    """
    # of equal distributions rounding leaves a few 1e-16 on either side
    return max(0.0, float(np.exp(log_p) @ (log_p - log_q)))


def _log_probabilities(llm: LLM, ids: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """A row for each token, of the vocabulary without the rows that pad it."""
    usable = llm.config.usable_vocab_size
    chunks: Iterable[NDArray[np.floating]] = llm.logit_chunks(ids)
    return (log_softmax(row[:usable]) for chunk in chunks for row in chunk)
