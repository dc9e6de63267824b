"""How fast a device reads the memory that holds its weights."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from anthesis.errors import UnsupportedError
from anthesis.host import BANDWIDTH_SECONDS, memory_bandwidth


@dataclass(frozen=True)
class ReadBandwidth:
    """What a measurement of it gave.

    Attributes:
        samples: of every pass over a buffer, bytes per second; none where it can't be measured.
        note: how they were taken, or why there are none.
    """

    samples: tuple[float, ...]
    note: str

    @property
    def median(self) -> float | None:
        """Of the samples, bytes per second."""
        return statistics.median(self.samples) if self.samples else None


def of_host() -> ReadBandwidth:
    """That of the host's memory, all usable cores reading."""
    try:
        found = memory_bandwidth()
    except UnsupportedError as error:
        return ReadBandwidth((), f"not measured: {error}")
    threads, size = found.threads, found.buffer_bytes >> 20
    return ReadBandwidth(found.samples, f"{threads} threads reading {size} MiB for {BANDWIDTH_SECONDS} s")
