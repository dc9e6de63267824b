"""The pool of cache blocks: which are free, and how many a sequence needs."""

from __future__ import annotations

from anthesis.program.ir import BLOCK_TOKENS

SCRATCH_BLOCK = 0
"""Never given to a sequence: rows that a device adds to fill a bucket write here."""


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Hands out blocks and takes them back.

    Args:
        num_blocks: of the pool, the scratch block among them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free blocks; there must be as many."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Makes the blocks free again."""
        assert not set(blocks) & set(self._free), "a block was given back twice"
        self._free.extend(reversed(blocks))
