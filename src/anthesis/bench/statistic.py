"""What is said of a set of samples."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A summary of samples, in their unit.

    Attributes:
        count: of samples.
        median: half of the samples are below it.
        p95: 95 % of the samples are below it, linearly interpolated between neighbours.
        min: the least.
        max: the greatest.
        standard_deviation: with count - 1 in the denominator; None of a single sample.
    """

    count: int
    median: float
    p95: float
    min: float
    max: float
    standard_deviation: float | None


def summary(samples: Iterable[float]) -> Statistic | None:
    """The summary of some samples, None of none."""
    values = list(samples)
    if not values:
        return None
    return Statistic(
        count=len(values),
        median=statistics.median(values),
        p95=float(np.percentile(values, 95)),
        min=min(values),
        max=max(values),
        standard_deviation=statistics.stdev(values) if len(values) > 1 else None,
    )


def whole_summary(samples: Iterable[float]) -> Statistic:
    """The summary of samples of which there is at least one."""
    found = summary(samples)
    assert found is not None, "no samples"
    return found
