"""Speculation: tokens that may come next are verified beside the one that must be computed anyway.

A step reads the weights once for all of its rows, so on most devices some more rows cost little. The rows behind a
sequence's last token hold a draft of what follows; each gives the token that the model chooses there, by the same
arithmetic, noise and constraints as without a draft. As far as the draft is what was chosen, the step has given
several tokens; what was chosen after it is right in any case. So nothing of the text depends on the drafts.

How long a draft is worth its rows follows from what was measured: how long steps of so many rows take, and how often
drafts like it were right. No request pays more than `MOST_LOST` of its time for drafts that were not, nor, before it is
known what drafts gain, more than `MOST_INVESTED` for what has to be read for them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from anthesis.engine.sequence import Sequence
from anthesis.engine.step_time import StepTimes

MAX_DRAFT = 16
"""Tokens of a draft. Of longer ones little is gained: steps take longer, and one wrong token ends it."""

MOST_LOST = 0.02
"""Of a request's time, for rows that gave no token."""

MOST_INVESTED = 0.03
"""Of the time that a request is expected to take, for reading its text before anything is known of what that gains."""

LEAST_RETURN = 2.0
"""How many times what reading takes it must promise to save, where drafts have been verified before."""

PROVEN_TRIALS = 16.0
"""Tokens of drafts of which it is known whether they were right, from which on a promise rests on them."""

HORIZON = 32
"""Tokens that a request is taken to go on for, unless it must end before: so it may lose a little at its beginning."""

LEAST_GAIN = 1.1
"""Tokens per second that a draft must promise, relative to none. The promise rests on few drafts, and on steps that may
have been measured while something else ran."""

LEAST_CHANCE = 0.05
"""Of a draft's token, all before it included; less is worth no row, and no time to think about it."""


class Drafter(Protocol):
    """Proposes what may follow a text."""

    @property
    def chances(self) -> Seq[float]:
        """How likely a token of a draft is right by its evidence, the last one: that much or more; a first guess."""

    def evidence(self, sequence: Sequence) -> int | None:
        """How much speaks for a draft's first token, one more for each token behind it; None: there is no draft."""

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Drafts of so many tokens at most, each likely to follow its sequence's text."""

    def cost_s(self, sequences: Seq[Sequence], length: int) -> float:
        """Seconds that drafts of these sequences take, the longest of `length` tokens."""

    def backlog_s(self, sequence: Sequence) -> float:
        """Seconds that a first draft takes on top of `cost_s`, for what the drafter has not read of a text yet."""

    def first_token(self, sequence: Sequence) -> int | None:
        """The first token of the draft that `evidence` was asked about, where it is known without further cost."""

    def forget(self, sequence: Sequence) -> None:
        """Takes note that a sequence is over."""


class Acceptance:
    """How often tokens of drafts were right, by their evidence; what is old counts less and less.

    Args:
        chances: of each evidence, before anything is known.
    """

    _MEMORY = 0.98
    _PRIOR_TRIALS = 4.0
    _DOUBT = 0.01

    def __init__(self, chances: Seq[float]) -> None:
        self._chances = chances
        self._trials = [self._PRIOR_TRIALS] * len(chances)
        self._right = [self._PRIOR_TRIALS * chance for chance in chances]

    def chance(self, evidence: int) -> float:
        """That a token is right, if those before it in the draft are."""
        i = min(evidence, len(self._trials) - 1)
        return self._right[i] / self._trials[i]

    @property
    def num_trials(self) -> float:
        """Of how many tokens it is known whether they were right, old ones counting less."""
        return sum(self._trials) - self._PRIOR_TRIALS * len(self._trials)

    def chances(self, evidence: int, most: int) -> list[float]:
        """That all tokens of a draft are right up to each place, for as many places as are worth a thought."""
        found: list[float] = []
        chance = 1.0
        for place in range(most):
            chance *= self.chance(evidence + place)
            if chance < LEAST_CHANCE:
                break
            found.append(chance)
        return found

    def learn(self, evidence: int, drafted: int, accepted: int) -> None:
        """Takes note of a draft whose first token had this evidence."""
        for place in range(min(accepted + 1, drafted)):
            i = min(evidence + place, len(self._trials) - 1)
            self._trials[i] = self._trials[i] * self._MEMORY + 1
            self._right[i] = self._right[i] * self._MEMORY + (place < accepted)

    def doubt(self) -> None:
        """Trusts what was found a little less: what follows may be easier to guess, and nothing else would tell."""
        for i, chance in enumerate(self._chances):
            self._trials[i] += self._DOUBT * (self._PRIOR_TRIALS - self._trials[i])
            self._right[i] += self._DOUBT * (self._PRIOR_TRIALS * chance - self._right[i])

    def copy(self) -> Acceptance:
        """One that begins with what this one has found, as if that were only a guess."""
        return Acceptance([self.chance(i) for i in range(len(self._trials))])


@dataclass
class _Request:
    """What is known of a sequence.

    Attributes:
        acceptance: of its drafts.
        begin_s: when its first step came.
        lost_s: seconds by which drafts have made it longer; below 0: shorter.
        invested_s: seconds that the drafter has spent on reading its text.
        extra_s: by which the drafts of this step, its own and others', make the step longer.
        evidence: for the draft of this step, verified or not.
        guess: the first token of the draft that was not verified.
    """

    acceptance: Acceptance
    begin_s: float
    lost_s: float = 0.0
    invested_s: float = 0.0
    extra_s: float = 0.0
    evidence: int | None = None
    guess: int | None = None


class Speculation:
    """Decides which drafts a step verifies, and learns from what came of them.

    Args:
        drafter: that proposes them.
        times: of steps.
    """

    def __init__(self, drafter: Drafter, times: StepTimes) -> None:
        self.drafter, self.times = drafter, times
        self._acceptance = Acceptance(drafter.chances)
        self._requests: dict[Sequence, _Request] = {}
        self._plain_s = 0.0

    def propose(self, sequences: list[Sequence], num_rows: int) -> None:
        """Gives sequences the drafts that are worth it.

        Args:
            sequences: that take one row in the step.
            num_rows: of the step without drafts, those of all sequences together.
        """
        gains: list[tuple[float, int]] = []  # chance that a row gives one more token, whose it is
        for i, sequence in enumerate(sequences):
            request = self._request(sequence)
            most = min(MAX_DRAFT, sequence.limit - len(sequence.tokens) - 1)
            request.evidence = self.drafter.evidence(sequence) if most > 0 else None
            if request.evidence is not None and not self._is_worth_reading(sequence, request, num_rows):
                request.evidence = None
            if request.evidence is not None:
                gains += [(chance, i) for chance in request.acceptance.chances(request.evidence, most)]
        if not gains:
            return
        gains.sort(reverse=True)
        lengths, extra_s = self._lengths(sequences, gains, num_rows)
        wanted = {sequences[i]: length for i, length in lengths.items()}
        for sequence in wanted:
            self._requests[sequence].invested_s += self.drafter.backlog_s(sequence)
        drafts = self.drafter.draft(wanted) if wanted else {}
        for sequence in sequences:
            request = self._requests[sequence]
            request.extra_s = extra_s
            if draft := drafts.get(sequence):
                sequence.drafts = draft
            elif request.evidence is not None:
                request.guess = self.drafter.first_token(sequence)

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Takes note of what came of a draft, also of one that was too uncertain to be verified."""
        request = self._request(sequence)
        evidence, guess = request.evidence, request.guess
        if evidence is None and request.extra_s == 0:
            return
        if evidence is not None:
            for acceptance in (request.acceptance, self._acceptance):
                if drafted:
                    acceptance.learn(evidence, drafted, accepted)
                elif guess is not None:
                    acceptance.learn(evidence, 1, int(sequence.tokens[-1] == guess))
                else:
                    acceptance.doubt()
        request.lost_s += request.extra_s - accepted * self._plain_s
        request.evidence, request.guess, request.extra_s = None, None, 0.0

    def timed(self, num_rows: int, seconds: float) -> None:
        """Takes note of how long a step of so many rows, none of them of a prompt, took."""
        self.times.learn(num_rows, seconds)

    def forget(self, sequence: Sequence) -> None:
        """Takes note that a sequence is over."""
        self._requests.pop(sequence, None)
        self.drafter.forget(sequence)

    def _request(self, sequence: Sequence) -> _Request:
        request = self._requests.get(sequence)
        if request is None:
            request = _Request(self._acceptance.copy(), time.perf_counter())
            self._requests[sequence] = request
        return request

    def _is_worth_reading(self, sequence: Sequence, request: _Request, num_rows: int) -> bool:
        """Whether the drafter may read what it has not read of a text."""
        backlog_s = self.drafter.backlog_s(sequence)
        if backlog_s <= 0:
            return True
        plain_s, left = self.times.seconds(num_rows), sequence.limit - len(sequence.tokens)
        expected_s = time.perf_counter() - request.begin_s + plain_s * left
        if request.invested_s + backlog_s <= MOST_INVESTED * expected_s:
            return True
        if self._acceptance.num_trials < PROVEN_TRIALS:
            return False
        best_s, tokens = plain_s, 1.0  # for a token
        for length, gain in enumerate(self._acceptance.chances(0, MAX_DRAFT), start=1):
            tokens += gain
            step_s = self.times.seconds(num_rows + length) + self.drafter.cost_s([sequence], length)
            best_s = min(best_s, step_s / tokens)
        return left * (plain_s - best_s) >= LEAST_RETURN * backlog_s

    def _lengths(
        self, sequences: list[Sequence], gains: list[tuple[float, int]], num_rows: int
    ) -> tuple[dict[int, int], float]:
        """How long a draft each sequence gets, by its index, so that the step gives the most tokens per second.

        Returns:
            The lengths, and the seconds by which they make the step longer.
        """
        now, plain_s, seconds = time.perf_counter(), self.times.seconds(num_rows), self.times.seconds
        allowed_s = min(
            MOST_LOST * (now - request.begin_s + plain_s * min(HORIZON, sequence.limit - len(sequence.tokens)))
            - request.lost_s
            for sequence in sequences
            for request in (self._requests[sequence],)
        )
        self._plain_s = plain_s
        best_speed, best_rows, best_extra_s = LEAST_GAIN * len(sequences) / plain_s, 0, 0.0
        lengths: dict[int, int] = {}
        drafting: list[Sequence] = []
        tokens, longest = float(len(sequences)), 0
        for rows, (gain, i) in enumerate(gains, start=1):
            if i not in lengths:
                drafting.append(sequences[i])
            lengths[i] = lengths.get(i, 0) + 1
            tokens += gain
            longest = max(longest, lengths[i])
            step_s = seconds(num_rows + rows) + self.drafter.cost_s(drafting, longest)
            if step_s - plain_s > allowed_s:
                break
            if tokens > best_speed * step_s:
                best_speed, best_rows, best_extra_s = tokens / step_s, rows, step_s - plain_s
        return dict(Counter(i for _, i in gains[:best_rows])), best_extra_s
