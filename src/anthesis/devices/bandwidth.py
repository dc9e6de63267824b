"""How fast a device reads the memory that holds its weights."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from anthesis.errors import UnsupportedError
from anthesis.host import BANDWIDTH_BUFFER_BYTES, BANDWIDTH_SECONDS, memory_bandwidth
from anthesis.units import counted

MAX_BUFFER_BYTES = 1 << 30
"""Many times a last-level cache: of a larger buffer no more would stay in it."""


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


def of_host(nbytes: int | None = None) -> ReadBandwidth:
    """That of the host's memory, all usable cores reading.

    Args:
        nbytes: as in `Device.read_bandwidth`.
    """
    try:
        found = memory_bandwidth(BANDWIDTH_BUFFER_BYTES if nbytes is None else min(nbytes, MAX_BUFFER_BYTES))
    except UnsupportedError as error:
        return ReadBandwidth((), f"not measured: {error}")
    threads, size = counted(found.threads, "thread"), f"{found.buffer_bytes / (1 << 20):,.0f} MiB"
    return ReadBandwidth(found.samples, f"{threads} reading {size} for {BANDWIDTH_SECONDS} s")
