"""How a token is drawn: the noise, the filters, and log-probabilities, for one row of logits.

The draw is by the Gumbel-max method: the token with the largest score + Gumbel noise is a draw from the softmax. The
noise is a hash of (seed, position, token), so a seed gives the same text whatever else is in the batch, and every rank
can compute its own share.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from anthesis.program.ir import Array

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


@lru_cache(maxsize=4)  # a draw asks for its key up to three times
def _key(seed: int, position: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed % 2**64], dtype=np.uint64) + GOLDEN)
        key = _mix(key + np.uint64(position) * GOLDEN)
    key.setflags(write=False)
    return key


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
def all_tokens(count: int) -> NDArray[np.int64]:
    """The ids 0 to count - 1: (V,) int64, read-only, made once."""
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


def log_probability(logits: Array, token: int) -> float:
    """The logarithm of one token's probability, several times as fast as those of all.

    Args:
        logits: (V,) float32 or float64.
        token: its id.
    """
    largest = logits.max()
    total = np.exp(logits - largest).sum(dtype=np.float64)
    return float(logits[token]) - float(largest) - math.log(total)
