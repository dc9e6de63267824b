"""How much two things differ that were measured in pairs, without assuming how the measurements are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
LEAST_PAIRS = 8
"""With fewer not even pairs that all agree reach p < 0.01: 2 / 2**7 is 0.016."""

_MOST_PAIRS = 200
"""Of more, neighbours are averaged, which keeps them as likely above as below the shift and the counting short."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """By how much the differences of pairs are shifted from zero.

    Attributes:
        estimate: the median of all means of two differences (Hodges and Lehmann).
        low, high: the 99 % interval around it.
    """

    estimate: float
    low: float
    high: float


def shift(differences: Sequence[float]) -> Shift:
    """The shift of some differences and its 99 % interval, which is what `p_value` does not reject at 0.01.

    Args:
        differences: of `LEAST_PAIRS` pairs or more.

    Source:
        Hodges and Lehmann, Estimates of location based on rank tests, Annals of Mathematical Statistics 34 (1963);
        Tukey's interval: the k-th smallest and largest of the n (n + 1) / 2 means of two differences, where k - 1
        is the greatest signed-rank sum that has, with those below, a probability of at most 0.005.
    """
    values = _few(differences)
    count = len(values)
    assert count >= LEAST_PAIRS, "too few pairs for an interval"
    first, second = np.triu_indices(count)
    means = np.sort((values[first] + values[second]) / 2)
    rejected = _greatest_rejected(count)
    return Shift(
        estimate=float(np.median(means)),
        low=float(means[rejected]),
        high=float(means[len(means) - 1 - rejected]),
    )


def p_value(differences: Sequence[float], least: float = 0.0) -> float:
    """How likely differences as one-sided as these are, if the pairs are shifted by at most `least`.

    The signed-rank test, exact: every difference less the shift is as likely above as below zero. Where a coin decided
    which one of a pair came first, that holds for any distribution of the times, and however long a disturbance lasts.

    Args:
        differences: of pairs.
        least: a shift, up or down, that does not count; 0 or more.

    Returns:
        Twice the smaller one of the probabilities of a rank sum as great, and as small, or greater or smaller.

    Source:
        Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945); equal ones have the mean of
        their ranks, and zeros are left out.
    """
    values = _few(differences)
    return min(1.0, 2 * min(_upper_tail(values - least), _upper_tail(-values - least)))


def _few(differences: Sequence[float]) -> NDArray[np.float64]:
    """The differences, or means of neighbours, (N,) float64."""
    pieces = np.array_split(np.asarray(differences, np.float64), min(len(differences), _MOST_PAIRS))
    return np.array([piece.mean() for piece in pieces])


def _upper_tail(values: NDArray[np.float64]) -> float:
    """P(rank sum of the positive >= the one there is)."""
    kept = values[values != 0]
    if len(kept) == 0:
        return 1.0
    doubled = _doubled_ranks(np.abs(kept))
    observed = int(doubled[kept > 0].sum())
    return float(_distribution(doubled)[observed:].sum())


def _doubled_ranks(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Twice the rank of each, (N,) int64; equal ones share the mean of theirs.

    Args:
        sizes: (N,) float64.
    """
    ordered = np.sort(sizes)
    below, upto = np.searchsorted(ordered, sizes, "left"), np.searchsorted(ordered, sizes, "right")
    doubled: NDArray[np.int64] = (below + 1 + upto).astype(np.int64)
    return doubled


def _distribution(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of each sum of weights of which every one is in with probability 1/2, (sum + 1,) float64.

    Args:
        weights: (N,) int64.
    """
    chances = np.zeros(int(weights.sum()) + 1)
    chances[0] = 1.0
    reach = 0
    for weight in map(int, weights):
        chances[weight : reach + weight + 1] += chances[: reach + 1].copy()
        reach += weight
        chances[: reach + 1] *= 0.5
    return chances


def _greatest_rejected(count: int) -> int:
    """The greatest signed-rank sum of so many pairs that, with all below, has a probability of at most 0.005."""
    below = np.cumsum(_distribution(np.arange(1, count + 1)))
    return int(np.searchsorted(below, (1 - CONFIDENCE) / 2, "right")) - 1
