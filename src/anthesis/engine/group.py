"""Sequences that advance together: their next tokens are chosen by looking at all of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from anthesis.engine.beams import BeamSearch
from anthesis.engine.constraints import nothing_is_allowed
from anthesis.engine.outputs import NOT_FINITE, StepOutputs, all_forbidden
from anthesis.engine.sequence import Sequence
from anthesis.program.draw import log_softmax

OVER = -1
"""As a member's next token: there is none, the member is over."""

Advance = Callable[[list[int], list[int]], None]
"""Member i becomes what member parents[i] was, followed by tokens[i]."""


class Group(ABC):
    """Members that have their prompts from the first of their run, and then take a row each in the same steps.

    Args:
        members: all of them, in runs of `width` that have one prompt.
        width: members of a run.

    Attributes:
        top: how many of the most likely tokens of each row it looks at; None: it needs all logits.
        begun: whether every member has a row of its own: until then only the first of each run is computed.
    """

    top: int | None = None

    def __init__(self, members: list[Sequence], width: int) -> None:
        self.members, self.width = members, width
        self.begun = False
        for member in members:
            member.group = self
            member.is_plain = False

    @property
    def firsts(self) -> list[Sequence]:
        """The members that bring the prompts into the cache."""
        return self.members[:: self.width]

    @property
    def live(self) -> list[Sequence]:
        """The members that take a row in the next step, in order."""
        return [m for m in (self.members if self.begun else self.firsts) if not m.finished]

    @property
    def is_waiting(self) -> bool:
        """Whether somebody has to choose tokens before it can go on."""
        return False

    @abstractmethod
    def take(self, outputs: StepOutputs, rows: list[int], advance: Advance) -> None:
        """Looks at what the step gave for `live`, and advances, or ends.

        Args:
            outputs: of the step.
            rows: for each of `live` its row of the outputs.
            advance: to be called once at most.
        """

    def fail(self, why: str) -> None:
        """Ends all members."""
        for member in self.members:
            member.failure = why


class BeamGroup(Group):
    """The beams of one prompt; in the end its first members are the completions.

    Args:
        members: one for each beam, all alike.
        search: which has not begun.
    """

    def __init__(self, members: list[Sequence], search: BeamSearch) -> None:
        super().__init__(members, len(members))
        self._search = search
        self._times: list[float] = []
        params, constraints = members[0].params, members[0].constraints
        if constraints is None and params.repetition_penalty is None:
            self.top = search.num_candidates

    def take(self, outputs: StepOutputs, rows: list[int], advance: Advance) -> None:
        """Goes on with the next beams, or concludes."""
        beams = [self.members[0]] * self.width if not self.begun else self.members
        rows = rows * self.width if not self.begun else rows
        if not all(outputs.is_finite(row) for row in rows):
            self.fail(NOT_FINITE)
            return
        if self.top is not None:
            likeliest = [outputs.likeliest(row, self.top) for row in rows]
            tokens, log_probs = (np.stack(arrays) for arrays in zip(*likeliest, strict=True))
        else:
            log_probs = np.stack([self._constrained(outputs, row, beam) for row, beam in zip(rows, beams, strict=True)])
            tokens = np.broadcast_to(np.arange(log_probs.shape[1]), log_probs.shape)
        if nothing_is_allowed(log_probs):
            self.fail(all_forbidden(self.members[0]))
            return
        parents, chosen = self._search.advance(tokens, log_probs)
        self._times.append(time.perf_counter())
        if self._search.over:
            self._conclude()
        else:
            advance(parents, chosen)

    def _constrained(self, outputs: StepOutputs, row: int, beam: Sequence) -> np.ndarray:
        # what transformers' processors are given in a beam search are log-probabilities, not logits
        scores = log_softmax(outputs.logits(row))[: outputs.usable].astype(np.float32)
        outputs.constrain(scores, beam)
        return scores

    def _conclude(self) -> None:
        found = self._search.hypotheses(self.members[0].params.num_return_sequences)
        for member, hypothesis in zip(self.members, found, strict=False):
            member.counts.steps = len(self._times)
            member.conclude(hypothesis.tokens, hypothesis.score, self._times[: len(hypothesis.tokens)])
        for member in self.members[len(found) :]:
            member.finish_reason = member.limit_reason
