"""What a model says of texts that are given: the part of `LLM` that generates nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.engine import Engine
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.sequence import Sequence
from anthesis.errors import RequestError
from anthesis.program.draw import log_probability


class Scoring(ABC):
    """Logits and log-probabilities of texts, by an engine."""

    max_context: int | None

    @property
    @abstractmethod
    def _engine(self) -> Engine: ...

    @abstractmethod
    def encode(self, prompt: Seq[int]) -> list[int]:
        """The ids, checked."""

    def logits(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """All of `logit_chunks` in one array, (T, V) float32 (float64 on reference-fp64).

        Args:
            token_ids: T ids.

        Raises:
            RequestError: as `logit_chunks`.
        """
        return np.concatenate(list(self.logit_chunks(token_ids)))

    def logit_chunks(self, token_ids: Seq[int]) -> Iterator[NDArray[np.float32]]:
        """The logits after each token of a text, without holding all of them at once.

        Args:
            token_ids: T ids.

        Returns:
            Arrays (R, V) float32 (float64 on reference-fp64), at most `prefill_chunk` rows each, T in all: row t scores
            the token that follows token t.

        Raises:
            RequestError: no ids, ids the model does not have, or more than fit its context.
        """
        ids = self.encode(token_ids)
        if self.max_context is not None and len(ids) > self.max_context:
            raise RequestError(f"{len(ids)} token ids do not fit the context of {self.max_context}")
        params = SamplingParams(max_new_tokens=1)
        sequence = Sequence(ids, params, len(ids), "length", frozenset(), text_stream=None, vocab_size=1)
        return self._engine.logits(sequence)

    def score(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """How likely each token of a text is after those before it, without holding all logits at once.

        Args:
            token_ids: T ids, at least two.

        Returns:
            (T - 1,) float32: natural log-probability of token t + 1 after tokens 0 to t.

        Raises:
            RequestError: as `logits`, or a single id.
        """
        if len(token_ids) < 2:
            raise RequestError(f"scoring needs at least 2 token ids; there are {len(token_ids)}")
        scores: list[float] = []
        for chunk in self.logit_chunks(token_ids):
            following = token_ids[len(scores) + 1 : len(scores) + 1 + len(chunk)]
            scores.extend(log_probability(row, token) for row, token in zip(chunk, following, strict=False))
        return np.array(scores, np.float32)
