"""Where a rank sits: what it has to know to take part in a model that is split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from anthesis.cores import usable_cores
from anthesis.parallel.binding import shares_of_cores
from anthesis.parallel.communicator import Communicator
from anthesis.parallel.gaudi import LocalRank
from anthesis.parallel.layout import Layout
from anthesis.parallel.process_groups import ProcessGroups


@dataclass
class Seat:
    """What a rank has to know to take part.

    Attributes:
        rank: among all.
        layout: of all.
        communicator: what it exchanges by with the ranks of its stage; None where it is alone in it.
        groups: PyTorch's process groups, where ranks are on several machines or stages; else None.
        sharers: ranks on this machine, this one included.
        rivals: those of them that may use the same cores, this one included.
        place: this rank's number among the ranks on this machine, by which it takes a card.
        cores: to run on; None: any.
        threads: that may run a step at once.
        leaving: called before the groups are left: a library of cards waits there until nothing captured uses it.
    """

    rank: int
    layout: Layout
    communicator: Communicator | None = None
    groups: ProcessGroups | None = None
    sharers: int = 1
    rivals: int = 1
    place: int = 0
    cores: set[int] | None = None
    threads: int = 1
    leaving: list[Callable[[], None]] = field(default_factory=list)

    @property
    def local_rank(self) -> LocalRank:
        """What the software of a card has to know of it."""
        return LocalRank(self.rank, self.layout.size, self.place, self.sharers)

    def take_place(self, index: int, rivals: int, sharers: int, place: int) -> None:
        """Chooses this rank's cores, and notes which of the machine's cards is its own.

        Args:
            index: its number among its rivals.
            rivals: of them; a launcher such as Slurm's may have given each rank cores of its own.
            sharers: ranks of its machine.
            place: its number among those.
        """
        shares = shares_of_cores(rivals)
        self.sharers, self.rivals, self.place = sharers, rivals, place
        self.cores = None if shares is None else shares[index]
        # what a control group grants is granted to all of them together; all are given as many, since all wait for the
        # slowest
        self.threads = max(1, usable_cores() // rivals)

    def fail(self) -> None:
        """Makes exchanges fail, those in progress too; by any thread."""
        for exchanges in (self.communicator, self.groups):
            fail = getattr(exchanges, "fail", None)
            if fail is not None:
                fail()

    def close(self) -> None:
        """Leaves the groups, and lets go of what the ranks share."""
        for let_go in self.leaving:
            let_go()
        self.communicator = None
        if self.groups is not None:
            self.groups.close()
