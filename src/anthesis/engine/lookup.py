"""Drafts by looking up what followed the last tokens where they occurred before, in the prompt or in the completion.

Source:
    Saxena, "Prompt Lookup Decoding" (2023): in texts that quote their input the continuation is often there.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from weakref import WeakKeyDictionary

from anthesis.engine.sequence import Sequence

NGRAMS = (8, 4, 2)
"""Lengths of the runs of tokens that are looked up, the longest first."""

MOST_MATCHED = 16
"""Tokens before the draft that are compared; more say no more."""


class _Index:
    """Where the runs of a text's tokens ended last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def find(self, tokens: Seq[int]) -> int | None:
        """Where what follows the text's last tokens begins, at their last occurrence before; None: there is none."""
        for end in range(self._num_indexed + 1, len(tokens)):
            for n in NGRAMS:
                if n <= end:
                    self._ends[tuple(tokens[end - n : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)
        end = len(tokens)
        for n in NGRAMS:
            if n <= end and (found := self._ends.get(tuple(tokens[end - n : end]))) is not None:
                return found
        return None


class PromptLookup:
    """A `Drafter`. The evidence of a draft is how many tokens before it are the same at both places."""

    chances = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.75, 0.8, 0.8, 0.8, 0.85, 0.85, 0.85, 0.9)

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Sequence, _Index] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def evidence(self, sequence: Sequence) -> int | None:
        """See `Drafter.evidence`."""
        tokens = sequence.tokens
        found = self._indexes.setdefault(sequence, _Index()).find(tokens)
        if found is None:
            return None
        self._found[sequence] = found
        matched = 0
        while matched < min(found, MOST_MATCHED) and tokens[found - 1 - matched] == tokens[-1 - matched]:
            matched += 1
        return matched

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Drafter.draft`; where the text ends within the draft, it goes on as if the draft were part of it."""
        return {sequence: self._following(sequence, length) for sequence, length in wanted.items()}

    def cost_s(self, sequences: Seq[Sequence], length: int) -> float:
        """Nothing that would count beside a step."""
        return 0.0

    def first_token(self, sequence: Sequence) -> int | None:
        """See `Drafter.first_token`."""
        return self._following(sequence, 1)[0]

    def forget(self, sequence: Sequence) -> None:
        """Lets go of the index."""
        self._indexes.pop(sequence, None)
        self._found.pop(sequence, None)

    def _following(self, sequence: Sequence, length: int) -> list[int]:
        found, tokens = self._found[sequence], sequence.tokens
        draft = tokens[found : found + length]
        while len(draft) < length:
            draft.append(draft[len(draft) - (len(tokens) - found)])
        return draft
