"""Beam search for one prompt: which continuations of which beams to go on with, and which texts are the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EarlyStopping = bool | Literal["never"]

_NEVER = np.float32(-1e9)
"""Added to the score of what must not be chosen."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that the search has found.

    Attributes:
        score: the sum of its tokens' log-probabilities divided by (their number ** length penalty).
        tokens: generated, an end-of-sequence token included.
        beams: for each token the beam whose continuation it was.
    """

    score: float
    tokens: list[int]
    beams: list[int]


@dataclass(frozen=True)
class _Candidate:
    score: np.float32
    tokens: list[int]
    beams: list[int]
    ends: bool


class BeamSearch:
    """The texts of highest score that keeping the best few beginnings in each step finds.

    Of all continuations of all beams by one token the best `num_candidates` are looked at. Those among the best
    `num_beams` of them that end are hypotheses; the best `num_beams` that don't end are the next beams. Sums are made
    in float32, in the order of the tokens.

    Args:
        num_beams: beginnings that are kept.
        max_new_tokens: after which every text ends.
        end_ids: tokens that end a text.
        length_penalty: exponent of the length that a score is divided by: above 0 favours long texts.
        early_stopping: when to end once there are `num_beams` hypotheses: True: at once; False: when the best beam
            would not be better than the worst of them if it ended now; "never": when it could not become better, were
            all of its further tokens certain.

    Source:
        The rules, ties and constants are those of `generate` of transformers 5, so that both find the same.
    """

    def __init__(
        self,
        num_beams: int,
        *,
        max_new_tokens: int,
        end_ids: frozenset[int] = frozenset(),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> None:
        self.num_beams = num_beams
        self.num_candidates = max(2, 1 + len(end_ids)) * num_beams
        self._max_new_tokens, self._end_ids = max_new_tokens, end_ids
        self._length_penalty, self._early_stopping = length_penalty, early_stopping
        self._beams = [_Candidate(np.float32(0) if i == 0 else _NEVER, [], [], False) for i in range(num_beams)]
        self._found: list[_Candidate] = []
        self._can_improve = True
        self.over = False
        """Whether nothing that is still to come would change the hypotheses."""

    def advance(self, tokens: NDArray[np.integer], log_probs: NDArray[np.float32]) -> tuple[list[int], list[int]]:
        """Goes on by one token.

        Args:
            tokens: (N, C) int64, continuations of each of the N beams: at least its `num_candidates` most likely ones.
                Of the first step all beams are the same.
            log_probs: (N, C) float32, logarithms of their probabilities after that beam.

        Returns:
            For each of the next beams the one that it continues, and the token by which: num_beams of each.
        """
        scores = (log_probs + self.scores[:, None]).reshape(-1)
        best = np.argsort(-scores, kind="stable")[: self.num_candidates]
        width = log_probs.shape[1]
        return self.choose([(int(i) // width, int(tokens[i // width, i % width]), scores[i]) for i in best])

    @property
    def scores(self) -> NDArray[np.float32]:
        """The sum of each beam's log-probabilities, (N,) float32; far below all others of beams that don't count."""
        return np.array([beam.score for beam in self._beams], np.float32)

    def choose(
        self, picked: Sequence[tuple[int, int, np.float32]], ends: Sequence[bool] | None = None
    ) -> tuple[list[int], list[int]]:
        """Goes on by one of these continuations for each beam; `advance` for a caller that has picked them itself.

        Args:
            picked: `num_candidates` of (beam, token, `scores` of the beam and the token's log-probability together),
                those first that are to be looked at first.
            ends: for each whether it ends by something else than `end_ids` and `max_new_tokens`.

        Returns:
            As `advance`.
        """
        texts = [[*self._beams[beam].tokens, token] for beam, token, _ in picked]
        length = len(texts[0])
        other_ends = [False] * len(texts) if ends is None else ends
        candidates = [
            _Candidate(
                score,
                text,
                [*self._beams[beam].beams, beam],
                token in self._end_ids or length >= self._max_new_tokens or bool(other),
            )
            for (beam, token, score), text, other in zip(picked, texts, other_ends, strict=True)
        ]
        self._beams = self._going_on(candidates)
        self._find(candidates, length)
        self._look_ahead(length)
        has_all = len(self._found) == self.num_beams
        self.over = (
            not self._can_improve
            or (self._early_stopping is True and has_all)
            or all(candidate.ends for candidate in candidates)
        )
        return [beam.beams[-1] for beam in self._beams], [beam.tokens[-1] for beam in self._beams]

    def hypotheses(self, count: int) -> list[Hypothesis]:
        """The best texts, best first: `count` of them. Beams that have not ended come where too few have."""
        rest = [replace(c, score=c.score + _NEVER) for c in self._beams]
        return [Hypothesis(float(c.score), c.tokens, c.beams) for c in [*self._found, *rest][:count]]

    def _going_on(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """The next beams. One that has ended goes on only where too few others are left, far behind all of them."""
        scores = np.array([c.score + _NEVER if c.ends else c.score for c in candidates], np.float32)
        order = np.argsort(-scores, kind="stable")[: self.num_beams]
        return [_Candidate(scores[i], candidates[i].tokens, candidates[i].beams, False) for i in order]

    def _find(self, candidates: list[_Candidate], length: int) -> None:
        if not self._can_improve or (self._early_stopping is True and len(self._found) == self.num_beams):
            return
        divisor = np.float32(length**self._length_penalty)
        new = [_Candidate(c.score / divisor, c.tokens, c.beams, True) for c in candidates[: self.num_beams] if c.ends]
        self._found = sorted([*self._found, *new], key=lambda c: -c.score)[: self.num_beams]

    def _look_ahead(self, length: int) -> None:
        """Whether a beam could still become better than the worst hypothesis."""
        worst = self._found[-1].score if len(self._found) == self.num_beams else _NEVER
        reachable = length
        if self._early_stopping == "never" and self._length_penalty > 0:
            reachable = self._max_new_tokens
        best = self._beams[0].score / np.float32(reachable**self._length_penalty)
        self._can_improve = self._can_improve and bool(best > worst)
