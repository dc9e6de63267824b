"""What a request forbids and favours, as changes of the logits that its next token is chosen by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Constraints:
    """The constraints of one prompt's sequences, the same as those of Transformers' logits processors.

    Transformers (5.23, `_get_logits_processor`) has this order: bias, repetition penalty, n-grams, bad words, minimum
    of new tokens, forced tokens; then temperature and filters. `apply` is all of these but the penalty, and stands
    before it: what is forbidden is -inf, which a penalty leaves as it is, so the result is the same.

    A forced token comes even where something else forbids it, and then has the logit 0, as that of Transformers'
    `prefix_allowed_tokens_fn`.

    Args:
        prompt_tokens: that each text begins with.
        end_ids: that end a sequence; empty where it ignores them.
        bad_words: sequences of tokens that are never completed, also where they begin in the prompt. One that is
            nothing but a token of `end_ids` is allowed all the same.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, those of the prompt counted; None: any may.
        min_new_tokens: no token of `end_ids` comes before so many others.
        forced_prefix: what comes first, each token the only one at its place.
        logit_bias: (token, number that is added to its logit), each token once.
    """

    def __init__(
        self,
        *,
        prompt_tokens: int,
        end_ids: frozenset[int] = frozenset(),
        bad_words: Sequence[Sequence[int]] = (),
        no_repeat_ngram_size: int | None = None,
        min_new_tokens: int = 0,
        forced_prefix: Sequence[int] = (),
        logit_bias: Sequence[tuple[int, float]] = (),
    ) -> None:
        self._prompt_tokens, self._end_ids, self._min_new_tokens = prompt_tokens, [*end_ids], min_new_tokens
        self._forced_prefix = tuple(forced_prefix)
        self._biased = np.array([token for token, _ in logit_bias], np.intp)
        self._biases = np.array([bias for _, bias in logit_bias], np.float32)
        self._words: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """By what comes before their last token, the last tokens of bad words."""
        for word in bad_words:
            if len(word) > 1 or word[0] not in end_ids:
                self._words[tuple(word[:-1])].append(word[-1])
        self._word_lengths = {len(start) for start in self._words}
        self._ngrams = None if no_repeat_ngram_size is None else _Ngrams(no_repeat_ngram_size)

    def needs_logits(self, num_tokens: int) -> bool:
        """Whether the choice of the token after so many, prompt included, may be any other than without constraints.

        Once it is not, it stays so for all tokens that follow.
        """
        new_tokens = num_tokens - self._prompt_tokens
        return (
            bool(self._words)
            or self._ngrams is not None
            or len(self._biased) > 0
            or new_tokens < len(self._forced_prefix)
            or (new_tokens < self._min_new_tokens and bool(self._end_ids))
        )

    def forced_after(self, tokens: list[int]) -> list[int]:
        """The forced tokens that follow this text."""
        return [*self._forced_prefix[max(0, len(tokens) - self._prompt_tokens) :]]

    def apply(self, tokens: list[int], logits: NDArray[Any]) -> None:
        """Adds biases to the logits of the next token, and makes those of forbidden tokens -inf, in place.

        Each call may be for another text: that of another beam, or of a draft that was cut. The work is that of the
        tokens in which it differs from the text of the last call, besides finding where they begin.

        Args:
            tokens: prompt and completion so far.
            logits: (V,) float32 or float64, writable; ids beyond them can't come anyway.
        """
        logits[self._biased] += self._biases
        logits[[token for token in self._forbidden(tokens) if token < len(logits)]] = -np.inf
        new_tokens = len(tokens) - self._prompt_tokens
        if new_tokens < len(self._forced_prefix):
            forced = self._forced_prefix[new_tokens]
            its_logit = logits[forced]
            logits[:] = -np.inf
            logits[forced] = 0 if np.isneginf(its_logit) else its_logit

    def _forbidden(self, tokens: list[int]) -> list[int]:
        """Tokens that may not come next."""
        found: list[int] = []
        if self._ngrams is not None:
            found += self._ngrams.that_came_after(tokens)
        for length in self._word_lengths:
            if length <= len(tokens):
                found += self._words.get(tuple(tokens[len(tokens) - length :]), ())
        if len(tokens) - self._prompt_tokens < self._min_new_tokens:
            found += self._end_ids
        return found


def nothing_is_allowed(logits: NDArray[Any]) -> bool:
    """Whether logits (V,) float32 or float64 that `Constraints.apply` changed leave no token to choose."""
    return bool(np.isneginf(logits).all())


class _Ngrams:
    """The n-grams of a text, which grows at its end, or is cut or replaced by another one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._text: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """By the first n - 1 tokens of n-grams, their last ones in the order in which they came."""

    def that_came_after(self, text: list[int]) -> list[int]:
        """The tokens that came earlier in this text after what are now its last n - 1 tokens."""
        kept = _common_start(self._text, text)
        for end in range(len(self._text), kept, -1):  # latest first, so that each is the last of its list
            if end >= self._size:
                self._followers[tuple(self._text[end - self._size : end - 1])].pop()
        del self._text[kept:]
        self._text += text[kept:]
        for end in range(max(kept + 1, self._size), len(text) + 1):
            self._followers[tuple(text[end - self._size : end - 1])].append(text[end - 1])
        return [] if len(text) < self._size else self._followers.get(tuple(text[len(text) - self._size + 1 :]), [])


def _common_start(a: list[int], b: list[int]) -> int:
    """How many tokens two texts have in common at their start."""
    same, end = 0, min(len(a), len(b))
    if a[:end] == b[:end]:  # by far the most frequent: one goes on from the other
        return end
    while end - same > 1:
        middle = (same + end) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            end = middle
    return same
