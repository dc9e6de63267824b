"""What a step computed, row by row, and the token that a sequence takes from a row.

The device chooses tokens by itself (`argmax`, `sample`) wherever it can. A request that forbids or favours tokens has
its logits brought to the host: then all rows of the step are chosen here, by the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.constraints import nothing_is_allowed
from anthesis.engine.sequence import Sequence, TokenLogprobs
from anthesis.program.draw import log_softmax, most_likely
from anthesis.program.ir import Array
from anthesis.program.sample import choose, ids_of_bits, penalise

NOT_FINITE = (
    "the model's logits are not finite numbers: its weights are damaged, or a value went out of range; "
    "compare with --device reference-fp64"
)


def all_forbidden(sequence: Sequence) -> str:
    """Why a sequence can't go on that has no token left to choose."""
    return (
        f"every token is forbidden at place {len(sequence.tokens) - len(sequence.prompt)} of the completion; allow "
        "more: bad_words, no_repeat_ngram_size, min_new_tokens and logit_bias together leave none"
    )


class StepOutputs:
    """The outputs of one step.

    Args:
        arrays: token (L,) int32, logprob (L,), top_tokens and top_logprobs (L, N), or logits (L, V).
        usable: of the vocabulary V; the ids behind are padding.
    """

    def __init__(self, arrays: Mapping[str, Array], usable: int) -> None:
        self._arrays = arrays
        self.usable = usable

    def is_finite(self, row: int) -> bool:
        """Whether the model gave numbers that a token can be chosen by."""
        if "token" in self._arrays:
            return bool(self._arrays["token"][row] >= 0)
        return bool(np.isfinite(self._arrays["logits"][row, : self.usable].max()))  # NaN is the maximum where one is

    def logits(self, row: int) -> Array:
        """(V,) float32, or the device's arithmetic; of a step that has them."""
        return np.asarray(self._arrays["logits"][row])

    def likeliest(self, row: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The most likely tokens, most likely first, and the logarithms of their probabilities.

        Returns:
            (N,) int64 or int32 and (N,) float32, N = `count` or as many as there are.
        """
        if "token" in self._arrays:
            return self._arrays["top_tokens"][row, :count], self._arrays["top_logprobs"][row, :count]
        tokens = most_likely(self.logits(row)[: self.usable], count)
        return tokens, log_softmax(self.logits(row))[tokens].astype(np.float32)

    def constrain(self, scores: NDArray[np.floating], sequence: Sequence) -> None:
        """Applies to scores, in place, what a sequence forbids, favours and penalises.

        Args:
            scores: (V,) float32 or float64, of the usable tokens.
            sequence: whose next token they are of.
        """
        if sequence.constraints is not None:
            sequence.constraints.apply(sequence.tokens, scores)
        if sequence.params.repetition_penalty is not None:
            # a beam's text is another's from step to step, so the bits of what occurred are not kept
            bits = sequence.seen if sequence.group is None else None
            occurred = np.array(sequence.tokens) if bits is None else ids_of_bits(bits)
            penalise(scores, sequence.params.repetition_penalty, occurred)

    def take(self, row: int, sequence: Sequence) -> bool:
        """Gives a sequence the token of a row, or lets it fail; whether it got one."""
        if not self.is_finite(row):
            sequence.failure = NOT_FINITE
            return False
        if "token" in self._arrays:
            token = int(self._arrays["token"][row])
        else:
            scores = self.logits(row)[: self.usable].astype(np.float64)
            self.constrain(scores, sequence)
            if nothing_is_allowed(scores):
                sequence.failure = all_forbidden(sequence)
                return False
            params = sequence.params
            token = choose(
                scores,
                temperature=params.temperature,
                top_k=params.top_k or 0,
                top_p=1 if params.top_p is None else params.top_p,
                min_p=params.min_p or 0,
                seed=params.seed,
                position=len(sequence.tokens) - 1,
            )
        sequence.append(token, self._logprobs(row, token, sequence.params.logprobs))
        return True

    def _logprobs(self, row: int, token: int, wanted: int | None) -> TokenLogprobs | None:
        if wanted is None:
            return None
        own = self._arrays["logprob"][row] if "token" in self._arrays else log_softmax(self.logits(row))[token]
        top = self.likeliest(row, wanted)
        pairs = tuple((int(other), float(logprob)) for other, logprob in zip(*top, strict=True))
        return TokenLogprobs(float(np.float32(own)), pairs)  # as the device has it
