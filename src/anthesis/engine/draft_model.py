"""Drafts by a second, much smaller model of the same tokenizer.

It chooses tokens as the request does: with its temperature and filters, and with the same noise at the same places. So
where the two models' distributions are alike, so are the tokens that they draw.

Source:
    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (ICML 2023). There a drawn
    token is accepted by a second draw. With noise in common the token that the large model draws is the result in any
    case, and a seed gives the same text as without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np

from anthesis.engine.engine import Engine
from anthesis.engine.sequence import Sequence
from anthesis.engine.speculation import MAX_DRAFT


class DraftModel:
    """A `Drafter`. The evidence of a draft's first token is 0: only its place in the draft says how likely it is right.

    Args:
        engine: of the small model, that nobody else uses and that shares no prefixes: its texts are cut again.
        max_context: of the small model; longer texts have no drafts.
        vocab_size: of the small model, rows that pad its embedding included.
    """

    chances = (0.7,) * MAX_DRAFT

    def __init__(self, engine: Engine, max_context: int | None, vocab_size: int) -> None:
        self._engine, self._max_context, self._vocab_size = engine, max_context, vocab_size
        self._times = engine.step_times()
        self._mirrors: dict[Sequence, Sequence] = {}

    def evidence(self, sequence: Sequence) -> int | None:
        """See `Drafter.evidence`."""
        return 0 if self._max_context is None or sequence.limit <= self._max_context else None

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Drafter.draft`; where the small model has no room for a text, or fails, its draft is empty."""
        mirrors = {sequence: self._mirror(sequence) for sequence in wanted}
        short = dict(mirrors)
        while short and self._engine.step():
            for sequence in list(short):
                mirror = short[sequence]
                if mirror.finished or len(mirror.tokens) >= len(sequence.tokens) + wanted[sequence]:
                    mirror.paused = True
                    del short[sequence]
        for mirror in short.values():
            mirror.paused = True
        return {sequence: mirror.tokens[len(sequence.tokens) :] for sequence, mirror in mirrors.items()}

    def cost_s(self, sequences: Seq[Sequence], length: int) -> float:
        """See `Drafter.cost_s`: a step of the small model for each token."""
        return length * self._times.seconds(len(sequences))

    def backlog_s(self, sequence: Sequence) -> float:
        """See `Drafter.backlog_s`: of what it has not read yet, the whole prompt at first."""
        unread = len(sequence.tokens) - self._num_read(sequence)
        return self._times.seconds(unread) - self._times.seconds(1)

    def first_token(self, sequence: Sequence) -> int | None:
        """None: it would have to be computed."""
        return None

    def forget(self, sequence: Sequence) -> None:
        """Frees what the small model holds of a text."""
        mirror = self._mirrors.pop(sequence, None)
        if mirror is not None:
            self._engine.abort([mirror])

    def _num_read(self, sequence: Sequence) -> int:
        mirror = self._mirrors.get(sequence)
        return 0 if mirror is None else _common_length(mirror, sequence)

    def _mirror(self, sequence: Sequence) -> Sequence:
        """The text in the small model, cut to what it is now, and ready to go on."""
        mirror = self._mirrors.get(sequence)
        if mirror is None:
            params = replace(sequence.params, stop=(), logprobs=None)
            mirror = Sequence(
                prompt=list(sequence.tokens),
                params=params,
                limit=sequence.limit,
                limit_reason=sequence.limit_reason,
                eos_token_ids=frozenset(),
                text_stream=None,
                vocab_size=self._vocab_size,
            )
            self._mirrors[sequence] = mirror
            self._engine.submit([mirror])
        else:
            mirror.computed = _common_length(mirror, sequence)
            mirror.tokens = list(sequence.tokens)
            mirror.prompt = list(sequence.tokens)  # what is not read yet is read as a prompt is
        if sequence.seen is not None:
            mirror.seen = np.zeros(-(-self._vocab_size // 8), np.uint8)
            common = min(len(mirror.seen), len(sequence.seen))  # what is beyond pads an embedding and never occurs
            mirror.seen[:common] = sequence.seen[:common]
        mirror.paused = False
        return mirror


def _common_length(mirror: Sequence, sequence: Sequence) -> int:
    """How many tokens are computed of what both begin with; at least the last one is left to compute."""
    end = min(mirror.computed, len(sequence.tokens) - 1)
    start = min(len(mirror.prompt), end)  # what was the sequence's text at the last draft is its beginning still
    while start < end and mirror.tokens[start] == sequence.tokens[start]:
        start += 1
    return start
