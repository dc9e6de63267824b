"""Which cores each rank of a machine runs on: neighbours of one NUMA node as far as that goes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def shares_of_cores(ranks: int, cores: set[int] | None = None, nodes: Path = NODES) -> list[set[int]] | None:
    """The cores of each rank of this machine.

    Args:
        ranks: on this machine.
        cores: to share; None: those that this process may use.
        nodes: the kernel's directory of NUMA nodes.

    Returns:
        One set for each rank, disjoint; None where there are fewer cores than ranks, so that they have to take turns.

    Source:
        Linux, Documentation/ABI/stable/sysfs-devices-node (cpulist) and sysfs-devices-system-cpu
        (thread_siblings_list).
    """
    cores = os.sched_getaffinity(0) if cores is None else cores
    if len(cores) < ranks:
        return None
    node_of = dict(_nodes(nodes))
    # two threads of one core are neighbours, whatever their numbers: ranks don't share its caches then
    ordered = sorted(cores, key=lambda core: (node_of.get(core, 0), _first_sibling(core, nodes), core))
    borders = [len(ordered) * rank // ranks for rank in range(ranks + 1)]
    return [set(ordered[first:last]) for first, last in pairwise(borders)]


def rivals(rank: int, machines: Mapping[int, int], cores: Mapping[int, set[int]]) -> list[int]:
    """The ranks that have to share cores with this one, which is one of them, in order.

    A launcher such as Slurm's may have given each rank cores of its own; then it has no others.

    Args:
        rank: this one.
        machines: by rank, which machine it is on.
        cores: by rank, those that it may use there.
    """
    there = sorted(other for other in machines if machines[other] == machines[rank])
    return [other for other in there if other == rank or not cores[other].isdisjoint(cores[rank])]


@contextmanager
def bound_to(cores: set[int] | None) -> Iterator[None]:
    """Keeps this thread, and threads that it starts meanwhile, on these cores; None: where it is."""
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, before)


def _first_sibling(core: int, nodes: Path) -> int:
    """The lowest number of the threads of a core; its own where the kernel does not say."""
    try:
        siblings = (nodes.parent / f"cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return core
    found = re.match(r"\d+", siblings)
    return core if found is None else int(found[0])


def _nodes(directory: Path) -> Iterator[tuple[int, int]]:
    """(core, node) of every core that the kernel tells of."""
    for file in directory.glob("node[0-9]*/cpulist"):
        node = int(file.parent.name.removeprefix("node"))
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", file.read_text()):
            yield from ((core, node) for core in range(int(first), int(last or first) + 1))
