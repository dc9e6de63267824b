"""Rank 0 gives every rank its seat: `Member` has the other side of each of these messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from anthesis.errors import RankError
from anthesis.parallel.binding import rivals
from anthesis.parallel.process_groups import PROCESSORS, ProcessGroups
from anthesis.parallel.shared_memory import SharedMemory, close_listener, local_listener

if TYPE_CHECKING:
    from anthesis.parallel.group import Group


def seat_all(group: Group) -> None:
    """Tells every rank its place, and finds out which of them can share memory.

    Raises:
        AnthesisError: a rank failed or ended.
    """
    layout = group.layout
    group.tell({"do": "sit", "tp": layout.tp, "pp": layout.pp})
    machines, cores = _machines(group)
    _place(group, machines, cores)  # before groups of cards, which have to know whose card is which
    shared = layout.tp == 1 or (group.backend == PROCESSORS and _share_memory(group, machines))
    if layout.pp > 1 or not shared:
        _join_groups(group, shared)


def _machines(group: Group) -> tuple[dict[int, int], dict[int, set[int]]]:
    """For each rank the first rank of those on its machine, as every one of them has tried; and its cores."""
    listener, name = local_listener()
    try:
        replies = group.ask({"do": "listen"})
        names = {0: name, **{rank: reply["name"] for rank, reply in replies.items()}}
        found = group.ask({"do": "look", "names": {str(rank): name for rank, name in names.items()}})
    finally:
        close_listener(listener)
    group.ask({"do": "stop listening"})
    cores = {0: os.sched_getaffinity(0), **{rank: set(reply["cores"]) for rank, reply in replies.items()}}
    return {0: 0, **{rank: int(reply["first"]) for rank, reply in found.items()}}, cores


def _share_memory(group: Group, machines: Mapping[int, int]) -> bool:
    """Whether the ranks of every stage share memory now; none does where one stage can't."""
    layout = group.layout
    if any(machines[rank] != machines[layout.team(rank)[0]] for rank in machines):
        return False
    own = SharedMemory(layout.tp)
    try:
        offers = group.ask({"do": "offer memory"})
        names = {0: own.name, **{rank: reply["name"] for rank, reply in offers.items() if reply["name"]}}
        joined = group.ask({"do": "join memory", "names": {str(rank): name for rank, name in names.items()}})
        group.seat.communicator = own.communicator()
    finally:
        own.close()
    group.ask({"do": "end offer"})
    failed = [rank for rank, reply in joined.items() if not reply["joined"]]
    if failed:
        raise RankError(f"rank {failed[0]} can't share memory with its stage, though it is on the same machine")
    return True


def _join_groups(group: Group, shared: bool) -> None:
    teams = [] if shared else group.layout.teams()
    hosts = [c.own_address for c in group.connections.values() if not c.is_local]
    host = hosts[0] if hosts else "127.0.0.1"
    groups = ProcessGroups(group.layout.size, host, None, group.backend, group.seat.local_rank)
    group.tell({"do": "connect", "host": host, "port": groups.port, "backend": group.backend, "teams": teams})
    group.seat.groups = groups
    found = group.while_all_run(lambda: groups.connect(teams, 0, host))
    if not shared:
        group.seat.communicator = found
    group.gather_replies()


def _place(group: Group, machines: Mapping[int, int], cores: Mapping[int, set[int]]) -> None:
    """Tells every rank how many share its machine and its cores, and which of them it is: it chooses itself."""
    for rank in sorted(machines, reverse=True):
        together = sorted(other for other, machine in machines.items() if machine == machines[rank])
        others = rivals(rank, machines, cores)
        place = {
            "index": others.index(rank),
            "rivals": len(others),
            "sharers": len(together),
            "place": together.index(rank),
        }
        if rank:
            group.send(rank, {"do": "place", **place})
        else:
            group.seat.take_place(**place)
    group.gather_replies()
