"""How long a step takes, by the number of its rows: measured when a model is loaded, and kept up to date."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

SIZES = (1, 2, 4, 8, 12, 16, 24, 32)
"""Rows that are measured; what is between them is interpolated, what is above goes on as between the last two."""

REPETITIONS = 3
_WEIGHT_OF_NEW = 0.05
_NEAREST = [min(range(len(SIZES)), key=lambda i: abs(SIZES[i] - rows)) for rows in range(SIZES[-1] + 1)]


class StepTimes:
    """Seconds of steps.

    Args:
        measured: at `SIZES`, in order.
    """

    def __init__(self, measured: list[float]) -> None:
        self._seconds = measured
        for i in range(1, len(measured)):  # more rows never take less: what says so is noise
            self._seconds[i] = max(self._seconds[i], self._seconds[i - 1])
        self._drift = 1.0

    def seconds(self, num_rows: int) -> float:
        """Of a step of so many rows."""
        i = min(max(bisect_left(SIZES, num_rows), 1), len(SIZES) - 1)
        low, high = SIZES[i - 1], SIZES[i]
        share = (num_rows - low) / (high - low)
        return self._drift * (self._seconds[i - 1] * (1 - share) + self._seconds[i] * share)

    def learn(self, num_rows: int, seconds: float) -> None:
        """Takes a step into account: its own size moves, and all move a little, since what slows one slows others."""
        if num_rows > SIZES[-1]:
            return
        change = _WEIGHT_OF_NEW * (min(max(seconds / self.seconds(num_rows), 0.5), 2.0) - 1)
        self._seconds[_NEAREST[num_rows]] *= 1 + 0.75 * change
        self._drift *= 1 + 0.25 * change


def measure_steps(run: Callable[[int], float]) -> StepTimes:
    """Measures steps of all sizes.

    Args:
        run: runs a step of so many rows, and gives the seconds that it took.
    """
    run(SIZES[-1])  # what is made at the first step is made now
    # sizes in turns, and the least of each: what else the machine does meanwhile makes none of them shorter
    rounds = [[run(size) for size in SIZES] for _ in range(REPETITIONS)]
    return StepTimes([min(times) for times in zip(*rounds, strict=True)])
