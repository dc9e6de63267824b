"""Which blocks of the cache are known by their tokens, so that a text that begins alike need not be computed again.

A block is known by the 64 tokens in it and by the known block before it: tokens are compared, not their hashes, so a
hit is never wrong. A known block that nobody holds rests: it stays as it is until its memory is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anthesis.program.ir import BLOCK_TOKENS

START = 0
"""What stands before a text's first block."""

Key = tuple[int, tuple[int, ...]]
"""(name of the block before, the block's tokens)."""


@dataclass(frozen=True)
class Known:
    """A block that is known.

    Attributes:
        name: never given twice, so that what followed a forgotten block is not found by its successor.
        block: of the cache.
    """

    name: int
    block: int


class Prefixes:
    """The known blocks."""

    def __init__(self) -> None:
        self._known: dict[Key, Known] = {}
        self._keys: dict[int, Key] = {}
        self._resting: dict[int, None] = {}  # in the order in which they were let go of
        self._last_name = START

    @property
    def num_idle(self) -> int:
        """Known blocks that nobody holds."""
        return len(self._resting)

    def find(self, key: Key) -> Known | None:
        """The block with these tokens behind that block, if it is known."""
        return self._known.get(key)

    def find_all(self, prompt: Sequence[int], names: Sequence[int] = ()) -> list[Known]:
        """The blocks that are known of a prompt, but for that of its last token: its logits are wanted.

        Args:
            prompt: its token ids.
            names: of its first blocks, behind which to look.
        """
        found: list[Known] = []
        before = names[-1] if names else START
        for start in range(len(names) * BLOCK_TOKENS, len(prompt) - BLOCK_TOKENS, BLOCK_TOKENS):
            known = self.find((before, tuple(prompt[start : start + BLOCK_TOKENS])))
            if known is None:
                break
            found.append(known)
            before = known.name
        return found

    def learn(self, key: Key, block: int) -> int:
        """Makes a block known once all of its tokens are computed; gives the name of the one that is known by the key.

        That is the first one with these tokens: two sequences may have computed the same side by side.
        """
        if key not in self._known:
            self._last_name += 1
            self._known[key] = Known(self._last_name, block)
            self._keys[block] = key
        return self._known[key].name

    def rest(self, block: int) -> bool:
        """Takes note that nobody holds a block any more; whether it is known, and so not free."""
        if block in self._keys:
            self._resting[block] = None
        return block in self._keys

    def wake(self, block: int) -> None:
        """Takes note that somebody holds a resting block again."""
        del self._resting[block]

    def forget_oldest(self) -> int:
        """Forgets the block that rests for longest, and gives it for another use."""
        block = next(iter(self._resting))
        del self._resting[block]
        del self._known[self._keys.pop(block)]
        return block
