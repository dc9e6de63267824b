"""Where sequences keep their keys and values: a pool of blocks, a table of who has which, and the device's cache.

The pool is as large as what runs and waits needs, up to a limit, and grows while sequences run. A block may stand in
several lines of the table: sequences that begin alike share what they have in common. What nobody holds any more but
is known by its tokens stays until its block is needed for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anthesis.devices.device import Cache
from anthesis.engine.prefixes import Prefixes
from anthesis.errors import DeviceMemoryError, RequestError, check_counts
from anthesis.program.ir import BLOCK_TOKENS

SCRATCH_BLOCK = 0
"""Never given to a sequence: rows that a device adds to fill a bucket write here."""
MAX_SEQUENCES = 256
"""That may be on their way at once: lines of the block table."""
CACHE_SHARE = 0.5
"""Of the memory that is free after loading: what the cache may take if nobody says how much."""
KEPT_BLOCKS = 16
"""That nobody holds but are known by their tokens, for which the pool grows as for those in use: 1,024 tokens."""


def check_batch(batch: int | None) -> None:
    """Refuses a number of sequences at once that there can't be; None is the device's choice.

    Raises:
        RequestError: below 1, or more than MAX_SEQUENCES.
    """
    check_counts(batch=batch)
    if batch is not None and batch > MAX_SEQUENCES:
        raise RequestError(f"batch is {batch}; at most {MAX_SEQUENCES} sequences run at once")


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def blocks_in(free_bytes: int, wanted_bytes: int | None, block_bytes: int) -> int:
    """Blocks that the pool may have, besides the scratch block.

    Args:
        free_bytes: of memory, once the model is loaded.
        wanted_bytes: that the cache may take of them; None: CACHE_SHARE.
        block_bytes: of one block in all layers.

    Raises:
        DeviceMemoryError: more is wanted than is free, or it is too little for one block.
    """
    if wanted_bytes is not None and wanted_bytes > free_bytes:
        raise DeviceMemoryError(
            f"cache_memory is {wanted_bytes:,} bytes, and {free_bytes:,} are free once the model is loaded"
        )
    room = int(free_bytes * CACHE_SHARE) if wanted_bytes is None else wanted_bytes
    blocks = room // block_bytes - 1
    if blocks < 1:
        raise DeviceMemoryError(
            f"the cache may take {room:,} bytes, and its least size, two blocks of 64 tokens, is {2 * block_bytes:,}; "
            "give more cache_memory"
        )
    return blocks


@dataclass(frozen=True)
class Place:
    """What a sequence holds: a line of the block table, and the blocks named there; SCRATCH_BLOCK where it has none."""

    slot: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Need:
    """What a sequence needs to be let in.

    Attributes:
        count: blocks of its place.
        first: those that it begins with, which others have too and which are held for it; SCRATCH_BLOCK for those that
            another one will bring.
    """

    count: int
    first: tuple[int, ...] = ()

    @property
    def own(self) -> int:
        """Blocks that nobody else has."""
        return self.count - len(self.first)


class BlockCache:
    """Gives sequences their places and takes them back.

    The block table's last line is never given away and is all zeros: the rows that a device adds to fill a bucket name
    it as their slot, so they write to the scratch block. So are the lines of slots that are free.

    Args:
        allocate: makes the device's cache of so many blocks; the first ones keep what an older cache holds, if given.
        copy_blocks: copies blocks of the device's cache: (cache, sources, targets).
        max_sequences: that have a place at once.
        max_blocks: that the pool may have, the scratch block not counted.

    Attributes:
        cache: the device's, or None before anything was needed.
        table: (max_sequences + 1, M) int32.
        prefixes: which blocks are known by the tokens in and before them.
    """

    def __init__(
        self,
        allocate: Callable[[int, Cache | None], Cache],
        copy_blocks: Callable[[Cache, Sequence[int], Sequence[int]], None],
        max_sequences: int,
        max_blocks: int,
    ) -> None:
        self._allocate, self._copy_blocks = allocate, copy_blocks
        self.max_blocks = max_blocks
        self.cache: Cache | None = None
        self.table = np.zeros((max_sequences + 1, 1), np.int32)
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._free_blocks: list[int] = []
        self._holders: list[int] = [0]
        self.prefixes = Prefixes()
        self.num_blocks = 0
        """Blocks in the pool, the scratch block not counted."""

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - len(self._free_blocks) - self.prefixes.num_idle

    @property
    def num_free_slots(self) -> int:
        """Sequences that could still get a place if there were blocks."""
        return len(self._free_slots)

    def max_batch(self, num_tokens: int) -> int:
        """How many sequences of so many tokens can have places at once.

        Raises:
            RequestError: not even one.
        """
        fits = min(len(self.table) - 1, self.max_blocks // blocks_for(num_tokens))
        if fits < 1:
            raise RequestError(
                f"the memory for the cache holds {self.max_blocks} blocks of {BLOCK_TOKENS} tokens, too few for a "
                f"sequence of {num_tokens}; ask for fewer tokens or give more --cache-memory"
            )
        return fits

    def make_room(self, needs: Sequence[Need], before: Callable[[], None] = lambda: None) -> bool:
        """Lets the pool grow, as far as it may, for sequences that want places.

        Args:
            needs: of each of them, in the order in which they wait.
            before: called before `cache` becomes another one: what was compiled over the old one holds it, and where
                nothing of it is kept both need not be there at once.

        Returns:
            Whether `cache` is another one now.
        """
        needs = needs[: self.num_free_slots]
        kept = min(self.prefixes.num_idle, KEPT_BLOCKS)
        total = min(self.num_used + kept + sum(need.own for need in needs), self.max_blocks)
        width = max((*(need.count for need in needs), self.table.shape[1]))
        if total <= self.num_blocks and width == self.table.shape[1]:
            return False
        before()
        old = self.cache
        if self.num_used == 0 and (kept == 0 or self.num_blocks + total > self.max_blocks):
            # nothing is kept, or there is no room for both, so the old cache can go before the new one comes
            old = self.cache = None
            self.prefixes = Prefixes()
            self.num_blocks, self._free_blocks = 0, []
        elif total > self.num_blocks:
            total = min(max(total, 2 * self.num_blocks), self.max_blocks)  # seldom again
        total = max(total, self.num_blocks)
        cache = self._allocate(1 + total, old)
        table = np.zeros((len(self.table), width), np.int32)
        table[:, : self.table.shape[1]] = self.table
        self.cache, self.table = cache, table
        self._free_blocks[:0] = range(total, self.num_blocks, -1)
        self._holders += [0] * (1 + total - len(self._holders))
        self.num_blocks = total
        return True

    def take(self, needs: Sequence[Need]) -> list[Place] | None:
        """Places for sequences that come in together, or None while there is no room for all of them."""
        room = len(self._free_blocks) + self.prefixes.num_idle
        is_wide = max(need.count for need in needs) <= self.table.shape[1]
        if len(needs) > len(self._free_slots) or sum(need.own for need in needs) > room or not is_wide:
            return None
        places = []
        for need in needs:
            blocks = need.first + tuple(self._new_block() for _ in range(need.own))
            places.append(self._write(self._free_slots.pop(), blocks))
        return places

    def give_back(self, place: Place) -> None:
        """Makes a place free again."""
        assert place.slot not in self._free_slots, "a place was given back twice"
        self.table[place.slot] = SCRATCH_BLOCK
        self._free_slots.append(place.slot)
        self.release(place.blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """Keeps known blocks, which others may hold as well, from being used for something else."""
        for block in blocks:
            if self._holders[block] == 0:
                self.prefixes.wake(block)
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Lets go of blocks."""
        for block in reversed(blocks):  # so that the end of a text is forgotten before its beginning
            if block == SCRATCH_BLOCK:
                continue
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was released too often"
            if self._holders[block] == 0 and not self.prefixes.rest(block):
                self._free_blocks.append(block)

    def replace(self, place: Place, index: int, block: int) -> Place:
        """The place with another block there, which others may hold too, instead of its own."""
        self.hold((block,))
        self.release((place.blocks[index],))
        return self._write(place.slot, (*place.blocks[:index], block, *place.blocks[index + 1 :]))

    def follow(self, places: Sequence[Place], parents: Sequence[int | None], lengths: Sequence[int]) -> list[Place]:
        """Places that go on from what other places hold: full blocks are shared, partly filled ones copied.

        Args:
            places: of sequences that advance together.
            parents: for each of them the index of the one whose tokens it has from now on; None: it is over, and what
                its place holds from now on means nothing.
            lengths: tokens in the cache of each before; those of a parent count.

        Returns:
            The new places, with the same slots.
        """
        heirs: dict[int, int] = {}  # who goes on in a parent's own blocks: itself, or else one child
        for child, parent in enumerate(parents):
            if parent is not None and (parent == child or parent not in heirs):
                heirs[parent] = child
        left = iter([place.blocks for i, place in enumerate(places) if i not in heirs])  # in which nobody goes on
        result: dict[int, tuple[int, ...]] = {child: places[parent].blocks for parent, child in heirs.items()}
        sources, targets = [], []
        for child, parent in enumerate(parents):
            if parent is None or child in result:
                continue
            full, rest = divmod(lengths[parent], BLOCK_TOKENS)
            shared, own = places[parent].blocks[:full], next(left)
            self.hold(shared)
            self.release(own[:full])
            result[child] = shared + own[full:]
            if rest:
                sources.append(places[parent].blocks[full])
                targets.append(own[full])
        if sources:
            self._copy_blocks(self.cache, sources, targets)
        return [self._write(place.slot, result[i] if i in result else next(left)) for i, place in enumerate(places)]

    def clear(self) -> None:
        """Lets go of the device's cache, for good."""
        self.cache = None
        self.prefixes = Prefixes()
        self.num_blocks, self._free_blocks, self._holders = 0, [], [0]

    def _write(self, slot: int, blocks: tuple[int, ...]) -> Place:
        self.table[slot, : len(blocks)] = blocks
        return Place(slot, blocks)

    def _new_block(self) -> int:
        block = self._free_blocks.pop() if self._free_blocks else self.prefixes.forget_oldest()
        self._holders[block] = 1
        return block
