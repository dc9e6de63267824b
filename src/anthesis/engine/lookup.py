"""Drafts by looking up what followed the last tokens where they occurred before, in the prompt or in the completion.

Source:
    Saxena, "Prompt Lookup Decoding" (2023): in texts that quote their input the continuation is often there.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from anthesis.engine.sequence import Sequence

NGRAMS = (4, 2)
"""Lengths of the runs of tokens that are looked up, the longer first."""

OCCURRENCES = 4
"""Of a run that are remembered, the latest: the one is taken before which most tokens are the same."""

MOST_MATCHED = 16
"""Tokens before the draft that are compared; more say no more."""


class _Index:
    """Where the runs of a text's tokens ended."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._num_indexed = 0

    def find(self, tokens: Seq[int]) -> tuple[int, int] | None:
        """The place before which most of the text's last tokens occurred before.

        Returns:
            Where what followed them there begins, and how many tokens before it are the same; None: there is no place.
        """
        for end in range(self._num_indexed + 1, len(tokens)):
            for n in NGRAMS:
                if n <= end:
                    ends = self._ends.setdefault(tuple(tokens[end - n : end]), [])
                    ends.append(end)
                    del ends[:-OCCURRENCES]
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)
        for n in NGRAMS:
            ends = self._ends.get(tuple(tokens[-n:]), [])
            if ends:
                matched, found = max((_matched(tokens, end), end) for end in ends)
                return found, matched
        return None


def _matched(tokens: Seq[int], end: int) -> int:
    """How many tokens before `end` are the same as the last ones."""
    matched, most = 0, min(end, MOST_MATCHED)
    while matched < most and tokens[end - 1 - matched] == tokens[-1 - matched]:
        matched += 1
    return matched


class PromptLookup:
    """A `Drafter`. The evidence of a draft is how many tokens before it are the same at both places."""

    chances = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.75, 0.8, 0.8, 0.8, 0.85, 0.85, 0.85, 0.9)

    def __init__(self) -> None:
        self._indexes: dict[Sequence, _Index] = {}
        self._found: dict[Sequence, int] = {}

    def evidence(self, sequence: Sequence) -> int | None:
        """See `Drafter.evidence`."""
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _Index()
        found = index.find(sequence.tokens)
        if found is None:
            return None
        self._found[sequence], matched = found
        return matched

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Drafter.draft`; where the text ends within the draft, it goes on as if the draft were part of it."""
        return {sequence: self._following(sequence, length) for sequence, length in wanted.items()}

    def cost_s(self, sequences: Seq[Sequence], length: int) -> float:
        """Nothing that would count beside a step."""
        return 0.0

    def backlog_s(self, sequence: Sequence) -> float:
        """None: what is new is indexed as it comes."""
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
