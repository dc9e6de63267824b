"""Which part of a model each rank has: the stage of layers, and within it the share of every split dimension."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """All ranks of a model: rank r is in stage r // tp, where it has the share r % tp.

    Attributes:
        tp: ranks W among which each stage is split.
        pp: stages of layers, one behind the other.
    """

    tp: int = 1
    pp: int = 1

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.tp * self.pp

    def stage(self, rank: int) -> int:
        """The stage that a rank is in."""
        return rank // self.tp

    def share(self, rank: int) -> int:
        """Which share of its stage a rank has: its tensor-parallel rank."""
        return rank % self.tp

    def team(self, rank: int) -> range:
        """The ranks of the same stage, this one included: those that exchange within a step."""
        first = rank - self.share(rank)
        return range(first, first + self.tp)

    def teams(self) -> list[list[int]]:
        """The ranks of each stage, in order."""
        return [list(self.team(stage * self.tp)) for stage in range(self.pp)]

    def __str__(self) -> str:
        return f"tp {self.tp}" + (f" x pp {self.pp}" if self.pp > 1 else "")
