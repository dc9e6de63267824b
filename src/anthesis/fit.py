"""Chooses four-bit values and their scales: the search for a small squared error behind `quantize`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 for a group of zeros.

    Args:
        scales: (N, K / G) float32.

    Returns:
        (N, K / G) float32.
    """
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0, dtype=np.float32)


def _fp16(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to what will be stored, so that values are fitted to the scale that dequantisation will see."""
    return array.astype(np.float16).astype(np.float32)


def fit_scale(groups: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric four-bit values and scales with small squared error.

    Tries scales that put the element of largest magnitude at -8 or a bit beyond it, or at 7, and keeps for each group
    the one with the least squared error, then refits the scale to the chosen values by least squares.

    Args:
        groups: (N, K / G, G) float32.

    Returns:
        values, (N, K / G, G) uint8, 8 for zero; scales (N, K / G) float32, representable in fp16.
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    extreme = np.where(-low > high, low, high)
    best = np.full(extreme.shape, np.inf, np.float32)
    best_scales = np.zeros_like(extreme)
    best_values = np.zeros_like(groups)

    def attempt(scales: NDArray[np.float32]) -> None:
        scales = _fp16(scales)
        values = groups * inverse(scales)[..., None]
        np.clip(np.rint(values, out=values), -8, 7, out=values)
        error = np.square(groups - values * scales[..., None]).sum(axis=-1)
        better = error < best
        best[better] = error[better]
        best_scales[better] = scales[better]
        best_values[better] = values[better]

    for place in _SYMMETRIC_PLACES:
        attempt(extreme * np.float32(1 / place))
    squares = np.square(best_values).sum(axis=-1)
    attempt((groups * best_values).sum(axis=-1) * inverse(squares))
    return (best_values + 8).astype(np.uint8), best_scales


_SYMMETRIC_PLACES = (-8.0, -7.25, -8.75, 7.0)
_MINIMUM_SHRINKS = (1.0, 0.92)


def fit_scale_and_minimum(
    groups: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Four-bit values, scales and minimums with small squared error.

    Starts from the group's whole range and from a slightly narrower one, keeps the better, then refits scale and
    minimum to the chosen values by linear regression.

    Args:
        groups: (N, K / G, G) float32.

    Returns:
        values, (N, K / G, G) uint8; scales and minimums (N, K / G) float32, representable in fp16.
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    best = np.full(low.shape, np.inf, np.float32)
    best_scales, best_minimums = np.zeros_like(low), np.zeros_like(low)
    best_values = np.zeros_like(groups)

    def attempt(scales: NDArray[np.float32], minimums: NDArray[np.float32]) -> None:
        scales, minimums = _fp16(scales), _fp16(minimums)
        values = (groups - minimums[..., None]) * inverse(scales)[..., None]
        np.clip(np.rint(values, out=values), 0, 15, out=values)
        error = np.square(groups - (values * scales[..., None] + minimums[..., None])).sum(axis=-1)
        better = error < best
        best[better] = error[better]
        best_scales[better], best_minimums[better] = scales[better], minimums[better]
        best_values[better] = values[better]

    for shrink in _MINIMUM_SHRINKS:
        width = (high - low) * np.float32(shrink)
        attempt(width * np.float32(1 / 15), low + (high - low - width) * np.float32(0.5))
    mean_value, mean = best_values.mean(axis=-1), groups.mean(axis=-1)
    spread = best_values - mean_value[..., None]
    slope = (spread * groups).sum(axis=-1) * inverse(np.square(spread).sum(axis=-1))
    attempt(slope, mean - slope * mean_value)
    return best_values.astype(np.uint8), best_scales, best_minimums
