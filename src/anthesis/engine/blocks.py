"""Where sequences keep their keys and values: a pool of blocks, a table of who has which, and the device's cache.

The pool is as large as what runs and waits needs, up to a limit, and grows while sequences run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anthesis.devices.device import Cache
from anthesis.errors import DeviceMemoryError, RequestError, check_counts
from anthesis.program.ir import BLOCK_TOKENS

SCRATCH_BLOCK = 0
"""Never given to a sequence: rows that a device adds to fill a bucket write here."""
MAX_SEQUENCES = 256
"""That may be on their way at once: lines of the block table."""
CACHE_SHARE = 0.5
"""Of the memory that is free after loading: what the cache may take if nobody says how much."""


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
    """What a sequence holds: a line of the block table, and the blocks named there."""

    slot: int
    blocks: tuple[int, ...]


class BlockCache:
    """Gives sequences their places and takes them back.

    The block table's last line is never given away and is all zeros: the rows that a device adds to fill a bucket name
    it as their slot, so they write to the scratch block. So are the lines of slots that are free.

    Args:
        allocate: makes the device's cache of so many blocks; the first ones keep what an older cache holds, if given.
        max_sequences: that have a place at once.
        max_blocks: that the pool may have, the scratch block not counted.

    Attributes:
        cache: the device's, or None before anything was needed.
        table: (max_sequences + 1, M) int32.
    """

    def __init__(self, allocate: Callable[[int, Cache | None], Cache], max_sequences: int, max_blocks: int) -> None:
        self._allocate = allocate
        self.max_blocks = max_blocks
        self.cache: Cache | None = None
        self.table = np.zeros((max_sequences + 1, 1), np.int32)
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._free_blocks: list[int] = []
        self.num_blocks = 0
        """Blocks in the pool, the scratch block not counted."""

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - len(self._free_blocks)

    @property
    def num_free_slots(self) -> int:
        """Sequences that could still get a place if there were blocks."""
        return len(self._free_slots)

    def make_room(self, needs: Sequence[int], before: Callable[[], None] = lambda: None) -> bool:
        """Lets the pool grow, as far as it may, for sequences that want places.

        Args:
            needs: how many blocks each of them wants, in the order in which they wait.
            before: called before `cache` becomes another one: what was compiled over the old one holds it, and where
                nothing of it is kept both need not be there at once.

        Returns:
            Whether `cache` is another one now.
        """
        needs = needs[: self.num_free_slots]
        total = min(self.num_used + sum(needs), self.max_blocks)
        width = max((*needs, self.table.shape[1]))
        if total <= self.num_blocks and width == self.table.shape[1]:
            return False
        before()
        old = self.cache
        if self.num_used == 0:
            # nothing is kept, so the old cache can go before the new one comes
            old = self.cache = None
            self.num_blocks, self._free_blocks = 0, []
        elif total > self.num_blocks:
            total = min(max(total, 2 * self.num_blocks), self.max_blocks)  # seldom again
        total = max(total, self.num_blocks)
        cache = self._allocate(1 + total, old)
        table = np.zeros((len(self.table), width), np.int32)
        table[:, : self.table.shape[1]] = self.table
        self.cache, self.table = cache, table
        self._free_blocks[:0] = range(total, self.num_blocks, -1)
        self.num_blocks = total
        return True

    def take(self, num_blocks: int) -> Place | None:
        """A place with so many blocks, or None while there is none."""
        if not self._free_slots or num_blocks > len(self._free_blocks) or num_blocks > self.table.shape[1]:
            return None
        place = Place(self._free_slots.pop(), tuple(self._free_blocks.pop() for _ in range(num_blocks)))
        self.table[place.slot, :num_blocks] = place.blocks
        return place

    def give_back(self, place: Place) -> None:
        """Makes a place free again."""
        assert place.slot not in self._free_slots, "a place was given back twice"
        self.table[place.slot] = SCRATCH_BLOCK
        self._free_slots.append(place.slot)
        self._free_blocks.extend(reversed(place.blocks))

    def clear(self) -> None:
        """Lets go of the device's cache, for good."""
        self.cache = None
        self.num_blocks, self._free_blocks = 0, []
