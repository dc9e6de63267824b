"""How many cores this process may keep busy - its affinity, and what its control group pays for - and their use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from anthesis.cgroups import group_directories, read_lines

PROC = Path("/proc/self")

T = TypeVar("T")


def on_all_cores(work: Callable[[T], None], parts: Iterable[T]) -> None:
    """Calls `work` for every part, on all cores; Ctrl-C, or an error in one part, keeps the others from beginning.

    Args:
        work: for NumPy and the like, which let other threads run.
        parts: what it is called with.
    """
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for done in [pool.submit(work, part) for part in parts]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores(proc: Path = PROC) -> int:
    """Cores this process may keep busy at once: those of its affinity mask, or fewer where a control group has a quota.

    More threads than this would be stopped in the middle of a step, with the others waiting for them. A quota of one
    core and a half is therefore one core.

    Args:
        proc: directory with this process's `cgroup` and `mountinfo`.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and Documentation/scheduler/sched-bwc.rst
        (cpu.cfs_quota_us, cpu.cfs_period_us).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, int(quota)) for quota in _quotas(proc))])


def _quotas(proc: Path) -> Iterator[float]:
    """Every quota over this process, in cores: a group's own and those of the groups around it."""
    for directory in group_directories("cpu", proc):
        quota = _quota(directory)
        if quota is not None:
            yield quota


def _quota(directory: Path) -> float | None:
    """Cores that one control group may use on average, or None without a limit."""
    quota, period = "max", "0"
    for line in read_lines(directory / "cpu.max"):  # version 2: "150000 100000" or "max 100000"
        quota, period = line.split()
    for quota_line, period_line in zip(
        read_lines(directory / "cpu.cfs_quota_us"), read_lines(directory / "cpu.cfs_period_us"), strict=True
    ):
        quota, period = quota_line, period_line
    return None if quota in ("max", "-1") else int(quota) / int(period)
