"""Who is let in: a sequence waits until the pool has all the blocks it can ever need, so that none is ever evicted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from anthesis.engine.blocks import MAX_SEQUENCES, SCRATCH_BLOCK, BlockCache, Need, blocks_for
from anthesis.engine.prefixes import Known
from anthesis.engine.sequence import Sequence
from anthesis.errors import RequestError
from anthesis.program.ir import BLOCK_TOKENS

NO_ROOM = (
    "this waits for memory of the cache that nothing will free; close what else is open, such as a Lockstep, or give "
    "more cache_memory"
)


class Admission:
    """The queue in front of the cache.

    Args:
        blocks: of the cache.
        reuse_prefixes: sequences begin with the blocks that are known of their prompts.
        before_growth: called before the cache becomes another one.

    Attributes:
        waiting: in the order in which they came; the members of a group behind one another.
    """

    def __init__(self, blocks: BlockCache, reuse_prefixes: bool, before_growth: Callable[[], None]) -> None:
        self._blocks, self._reuse_prefixes, self._before_growth = blocks, reuse_prefixes, before_growth
        self.waiting: deque[Sequence] = deque()

    def check(self, sequences: list[Sequence]) -> None:
        """Refuses sequences that could never be let in.

        Raises:
            RequestError: one of them alone, or a group, needs more cache than there may be.
        """
        most = self._blocks.max_blocks
        for sequence in sequences:
            needed = blocks_for(sequence.limit)
            if needed > most:
                raise RequestError(
                    f"a sequence of {sequence.limit} tokens needs {needed} cache blocks, and the memory for the cache "
                    f"holds {most}; ask for fewer tokens or give more --cache-memory"
                )
        for group in {sequence.group for sequence in sequences if sequence.group is not None}:
            needed = sum(_need(member).own for member in group.members)
            if len(group.members) > MAX_SEQUENCES:
                raise RequestError(
                    f"{len(group.members)} texts would advance together, and at most {MAX_SEQUENCES} run at once; ask "
                    "for fewer beams or prompts"
                )
            if needed > most:
                raise RequestError(
                    f"{len(group.members)} texts that advance together need {needed} cache blocks, and the memory for "
                    f"the cache holds {most}; ask for fewer beams or tokens, or give more --cache-memory"
                )

    def submit(self, sequences: list[Sequence]) -> None:
        """Takes sequences in; those of a group must all be there.

        Raises:
            RequestError: as `check`.
        """
        self.check(sequences)
        self.waiting.extend(sequences)

    def withdraw(self, sequence: Sequence) -> None:
        """Takes a sequence out, if it waits."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Those that are let in now, in order."""
        admitted: list[Sequence] = []
        while self.waiting:
            first = self.waiting[0]
            unit = [first] if first.group is None else first.group.members
            if not self.enter(unit):
                break
            admitted += [self.waiting.popleft() for _ in unit]
        return admitted

    def enter(self, unit: list[Sequence], behind_known: bool = True) -> bool:
        """Gives sequences their places, if they are to be had; the pool may grow for them and for those that wait.

        Args:
            unit: that enter together or not at all; they need not be among those that wait.
            behind_known: they may begin behind what is known of their prompts.
        """
        known = [self._known_prefix(sequence) if behind_known else [] for sequence in unit]
        needs = [_need(sequence, prefix) for sequence, prefix in zip(unit, known, strict=True)]
        held = [k.block for prefix in known for k in prefix]
        self._blocks.hold(held)
        places = None
        try:
            places = self._blocks.take(needs)
            if places is None and self._blocks.num_free_slots >= len(unit):
                others = (other for other in islice(self.waiting, self._blocks.num_free_slots) if other not in unit)
                self._blocks.make_room([*needs, *map(_need, others)], self._before_growth)
                places = self._blocks.take(needs)
        finally:
            if places is None:
                self._blocks.release(held)
        for sequence, place, prefix in zip(unit, places or (), known, strict=False):
            sequence.place = place
            sequence.begin_behind(prefix)
        return places is not None

    def _known_prefix(self, sequence: Sequence) -> list[Known]:
        """The blocks that are known of what a sequence begins with, and that it may take."""
        if not self._reuse_prefixes or sequence.shares_its_first_blocks:
            return []
        return self._blocks.prefixes.find_all(sequence.prompt)


def _need(sequence: Sequence, known: Iterable[Known] = ()) -> Need:
    count = blocks_for(sequence.limit)
    if sequence.shares_its_first_blocks:
        return Need(count, (SCRATCH_BLOCK,) * min(len(sequence.prompt) // BLOCK_TOKENS, count))
    return Need(count, tuple(k.block for k in known))
