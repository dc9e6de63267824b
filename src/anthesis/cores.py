"""How many cores this process may keep busy: its affinity, and what its control group pays for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


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
    for mount_point, group in _groups(proc):
        for directory in (mount_point / group, *(mount_point / parent for parent in group.parents)):
            quota = _quota(directory)
            if quota is not None:
                yield quota


def _groups(proc: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """(mount point, group below it) of each hierarchy that can limit the processor's time."""
    groups: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):  # "4:cpu,cpuacct:/a/b"; version 2 is "0::/a/b"
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, root, mount_point, *_ = before.split(" ")
        kind, _, options = after.split(" ", 2)
        name = "" if kind == "cgroup2" else "cpu"
        if name in groups and (kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(","))):
            group = PurePosixPath(groups[name])
            # In a container the mount shows only a part of the hierarchy; a group outside it is seen as its root.
            inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            yield Path(mount_point), inside


def _quota(directory: Path) -> float | None:
    """Cores that one control group may use on average, or None without a limit."""
    quota, period = "max", "0"
    for line in _lines(directory / "cpu.max"):  # version 2: "150000 100000" or "max 100000"
        quota, period = line.split()
    for quota_line, period_line in zip(
        _lines(directory / "cpu.cfs_quota_us"), _lines(directory / "cpu.cfs_period_us"), strict=True
    ):
        quota, period = quota_line, period_line
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    """Lines of a file; none where there is no such file, as on a system without control groups."""
    try:
        return file.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
