"""What a request asks for: how tokens are chosen and when to stop."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anthesis.engine.beams import EarlyStopping
from anthesis.errors import RequestError, UnsupportedError

MAX_LOGPROBS = 100
"""More most-likely tokens than anyone looks at; each costs a place in every step's output."""

MOST_DIVISOR = 1e30
"""A beam's score is divided by a power of its length; this, and its inverse, leave it within float32's range."""

SMALL, LARGE = 1e-6, 1e6
"""Factors of logits outside these would go out of float32's range, and none is of any use long before."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The parameters of one request; `program.sample.Sample` says exactly what the choosing ones do.

    Attributes:
        max_new_tokens: tokens to generate at most.
        ignore_eos: go on after an end-of-sequence token.
        temperature: 0 takes the most likely token; else logits are divided by it and a token is drawn.
        top_k: draw among the k most likely tokens, or None.
        top_p: draw among the smallest set of tokens with this probability mass, or None.
        min_p: draw among tokens at least this fraction as likely as the most likely one, or None.
        repetition_penalty: divides the logits of tokens that occurred (multiplies negative ones), or None.
        seed: of the random numbers.
        stop: texts before which to stop.
        logprobs: how many most likely tokens to report at each place besides the chosen one, or None for nothing.
        min_new_tokens: before so many, no end-of-sequence token comes.
        no_repeat_ngram_size: no run of so many tokens comes twice, those of the prompt included, or None.
        bad_words: that never come, each a text or token ids.
        forced_prefix: what the completion begins with, a text or token ids, or None.
        logit_bias: numbers added to the logits of tokens, by id.
        num_beams: beams of a beam search; 1: none.
        length_penalty: as in `engine.beams.BeamSearch`.
        early_stopping: as in `engine.beams.BeamSearch`.
        num_return_sequences: completions of each prompt: draws, or the best of a beam search.

    Raises:
        RequestError: a value out of its range, or a filter that greedy choice would ignore.
    """

    max_new_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    min_new_tokens: int = 0
    no_repeat_ngram_size: int | None = None
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    forced_prefix: str | tuple[int, ...] | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        self._need("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._need("temperature", self.temperature == 0 or _fits(self.temperature), f"0, or from {SMALL} to {LARGE}")
        self._need("top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        self._need("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        self._need("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        self._need("repetition_penalty", penalty is None or _fits(penalty), f"from {SMALL} to {LARGE}")
        self._need("seed", 0 <= self.seed < 2**64, "from 0 to 2**64 - 1")
        self._need("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}")
        for name in ("max_new_tokens", "min_new_tokens", "num_beams", "num_return_sequences"):
            self._need(name, isinstance(getattr(self, name), int), "a whole number")
        self._need("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to max_new_tokens")
        ngram = self.no_repeat_ngram_size
        self._need("no_repeat_ngram_size", ngram is None or ngram >= 1, "at least 1")
        self._need("bad_words", all(self.bad_words), "texts or lists of token ids, none of them empty")
        self._need("forced_prefix", self.forced_prefix is None or bool(self.forced_prefix), "a text or token ids")
        fits = all(abs(bias) <= LARGE or bias == -math.inf for _, bias in self.logit_bias)
        self._need("logit_bias", fits, f"numbers within ±{LARGE:g}, or -inf")
        self._need("num_return_sequences", self.num_return_sequences >= 1, "at least 1")
        self._check_beams()
        if self.temperature == 0:
            idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
            if idle:
                raise RequestError(
                    f"{', '.join(idle)} has no effect at temperature 0, which always takes the most likely token; "
                    "give a temperature above 0 too"
                )
            if self.num_beams == 1 and self.num_return_sequences > 1:
                raise RequestError(
                    f"num_return_sequences is {self.num_return_sequences}, and at temperature 0 without beams all "
                    "would be the same; give a temperature above 0, or num_beams"
                )

    def _check_beams(self) -> None:
        self._need("num_beams", self.num_beams >= 1, "at least 1")
        most = math.log(MOST_DIVISOR) / math.log(max(self.max_new_tokens, 2))
        fits = abs(self.length_penalty) <= most
        self._need("length_penalty", fits, f"within ±{most:.1f} for {self.max_new_tokens} tokens")
        self._need(
            "early_stopping",
            any(self.early_stopping is known for known in (True, False)) or self.early_stopping == "never",
            'True, False or "never"',
        )
        if self.num_beams == 1:
            if self.length_penalty != 1 or self.early_stopping is not False:
                raise RequestError("length_penalty and early_stopping are those of a beam search; give num_beams too")
            return
        self._need("num_return_sequences", self.num_return_sequences <= self.num_beams, "at most num_beams")
        others = {"temperature": self.temperature > 0, "stop": bool(self.stop), "logprobs": self.logprobs is not None}
        if given := [name for name, is_given in others.items() if is_given]:
            raise UnsupportedError(f"a beam search has no {' and no '.join(given)}; leave it out, or take num_beams=1")

    def _need(self, name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @classmethod
    def given(cls, **params: Any) -> SamplingParams:
        """Those of a request, from the forms in which `LLM.generate` takes them."""
        stop, words, prefix = params.get("stop", ()), params.get("bad_words", ()), params.get("forced_prefix")
        as_held = {
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            "bad_words": (words,) if isinstance(words, str) else tuple(_word("bad_words", word) for word in words),
            "forced_prefix": None if prefix is None else _word("forced_prefix", prefix),
            "logit_bias": _biases(params.get("logit_bias") or {}),
        }
        return cls(**{**params, **as_held})

    @property
    def needs_sample(self) -> bool:
        """Whether the tokens can't come from a plain argmax."""
        return self.temperature > 0 or self.repetition_penalty is not None or self.logprobs is not None


def _word(name: str, word: str | Sequence[int]) -> str | tuple[int, ...]:
    if isinstance(word, str):
        return word
    try:
        return tuple(operator.index(token) for token in word)
    except TypeError:
        raise RequestError(f"{name} has {word!r}; texts are needed, or lists of token ids") from None


def _biases(given: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((operator.index(token), float(bias)) for token, bias in dict(given).items())
    except (TypeError, ValueError):
        raise RequestError(f"logit_bias is {given!r}; numbers by token id are needed, like {{5: -2.0}}") from None


def _fits(factor: float) -> bool:
    return SMALL <= factor <= LARGE  # false for a NaN, too
