"""The control groups that limit this process, where Linux mounts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_directories(controller: str, proc: Path) -> Iterator[Path]:
    """The directories of every group over this process: its own and those around it, of either version.

    Args:
        controller: "cpu" or "memory".
        proc: directory with this process's `cgroup` and `mountinfo`.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst and Documentation/filesystems/proc.rst (mountinfo).
    """
    groups: dict[str, str] = {}
    for line in read_lines(proc / "cgroup"):  # "4:cpu,cpuacct:/a/b"; version 2 is "0::/a/b"
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in read_lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, root, mount_point, *_ = before.split(" ")
        kind, _, options = after.split(" ", 2)
        name = "" if kind == "cgroup2" else controller
        if name in groups and (kind == "cgroup2" or (kind == "cgroup" and controller in options.split(","))):
            group = PurePosixPath(groups[name])
            # In a container the mount shows only a part of the hierarchy; a group outside it is seen as its root.
            inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            yield Path(mount_point) / inside
            for parent in inside.parents:
                yield Path(mount_point) / parent


def read_lines(file: Path) -> list[str]:
    """Lines of a file; none where there is no such file, as on a system without control groups."""
    try:
        return file.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
