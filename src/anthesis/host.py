"""The machine we run on: its processor's name, and how fast its memory is read."""

from __future__ import annotations

import platform
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from anthesis import native
from anthesis.cores import usable_cores
from anthesis.errors import UnsupportedError
from anthesis.memory import available_memory_bytes
from anthesis.units import counted

CPUINFO = Path("/proc/cpuinfo")

BANDWIDTH_BUFFER_BYTES = 256 << 20
"""Many times a last-level cache, and quick to fill."""

BANDWIDTH_SECONDS = 0.1

_MEMORY_SHARE = 4
"""The buffer may take one part in this many of the memory that is available."""

_MIN_FREE_BYTES = 64 << 20
"""With less for the buffer there is too little memory to do anything with."""


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """How fast all usable cores together read memory.

    Attributes:
        samples: of every pass over the buffer, bytes per second.
        threads: that read.
        buffer_bytes: that they read in a pass.
    """

    samples: tuple[float, ...]
    threads: int
    buffer_bytes: int

    @property
    def median(self) -> float:
        """Of the samples, bytes per second."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        threads = counted(self.threads, "thread")
        return f"median of {len(self.samples)} passes of {threads} over {self.buffer_bytes >> 20} MiB"


def memory_bandwidth(buffer_bytes: int = BANDWIDTH_BUFFER_BYTES, seconds: float = BANDWIDTH_SECONDS) -> Bandwidth:
    """Measures it.

    Args:
        buffer_bytes: to read; at least a mebibyte, and less where the memory that is available is not four times as
            large.
        seconds: to spend reading; at least three passes are made.

    Raises:
        UnsupportedError: the native extension was never built, or there is too little memory.
    """
    available = available_memory_bytes()
    most = available // _MEMORY_SHARE
    if most < _MIN_FREE_BYTES:
        raise UnsupportedError(f"{available >> 20} MiB of memory is too little to measure how fast it is read")
    threads = usable_cores()
    buffer_bytes = max(native.MIN_BANDWIDTH_BYTES, min(buffer_bytes, most))
    samples = native.read_bandwidth(buffer_bytes, threads, seconds)
    return Bandwidth(samples=tuple(samples), threads=threads, buffer_bytes=buffer_bytes)


def processor_name() -> str:
    """As the operating system calls it."""
    text = CPUINFO.read_text() if CPUINFO.is_file() else ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
