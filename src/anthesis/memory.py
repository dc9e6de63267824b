"""How much memory this process took, and may take: what is free or reclaimable, and what its control group leaves."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from anthesis.cgroups import group_directories, read_lines

PROC = Path("/proc")


def available_memory_bytes(proc: Path = PROC) -> int:
    """Bytes that can be taken without swapping: the kernel's estimate, or less where a control group has a limit.

    Args:
        proc: the directory with `meminfo` and `self/`.

    Source:
        Linux, Documentation/filesystems/proc.rst (MemAvailable) and Documentation/admin-guide/cgroup-v2.rst
        (memory.max, memory.current).
    """
    available = _meminfo_available(proc / "meminfo")
    for directory in group_directories("memory", proc / "self"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(directory / limit_file), _number(directory / used_file)
            if limit is not None and used is not None:
                available = min(available, max(0, limit - used))
    return available


def process_peak_memory_bytes(proc: Path = PROC) -> int:
    """The most memory this process ever held, pages of mapped files included.

    Args:
        proc: the directory with `self/status`.

    Source:
        Linux, Documentation/filesystems/proc.rst (VmHWM). Elsewhere getrusage(2), ru_maxrss, whose units differ, and
        which a process has from the one that started it.
    """
    for line in read_lines(proc / "self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _meminfo_available(file: Path) -> int:
    for line in read_lines(file):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # elsewhere than on Linux: what is installed is the best that can be asked for without a dependency
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(file: Path) -> int | None:
    """The number in a control group's file, None where there is no file or no limit ("max")."""
    text = "".join(read_lines(file)).strip()
    return int(text) if text.isdigit() else None
