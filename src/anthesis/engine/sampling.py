"""What a request asks for: how tokens are chosen and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

from anthesis.errors import RequestError

MAX_LOGPROBS = 100
"""More most-likely tokens than anyone looks at; each costs a place in every step's output."""

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
        if self.temperature == 0:
            idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
            if idle:
                raise RequestError(
                    f"{', '.join(idle)} has no effect at temperature 0, which always takes the most likely token; "
                    "give a temperature above 0 too"
                )

    def _need(self, name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise RequestError(f"{name} is {getattr(self, name)}; it must be {allowed}")

    @property
    def needs_sample(self) -> bool:
        """Whether the tokens can't come from a plain argmax."""
        return self.temperature > 0 or self.repetition_penalty is not None or self.logprobs is not None


def _fits(factor: float) -> bool:
    return SMALL <= factor <= LARGE  # false for a NaN, too
