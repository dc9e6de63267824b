"""What is to be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anthesis.engine.blocks import check_batch
from anthesis.errors import RequestError, check_counts
from anthesis.quantize import weight_kind


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. `batch`, `weights`, `tp` and `prompt_tokens` are swept; most others are arguments of `LLM`.

    Attributes:
        model: as in `LLM`.
        prompt: the text; None: the default one, or, without a tokenizer, 7 made-up tokens.
        prompt_tokens: made-up prompts of so many tokens instead.
        max_new_tokens: generated for each sequence, exactly.
        batch: sequences at once.
        weights: kinds of the matrices.
        tp: ranks among which every layer is split.
        pp, device, threads, max_context, cache, cache_memory, prefill_chunk, invariant, seed: as in `LLM`.
        warmup: most runs before those that count; fewer where the last three agree within 5 %.
        runs: that count, at least.
        min_s: seconds that they take together, at least, or 100 runs.
        operations: run once more with counters, and tell where the time of a decode step goes.

    Raises:
        RequestError: a number out of its range, an unknown kind of weights, nothing to sweep, or two prompts.
    """

    model: str | None = None
    prompt: str | None = None
    prompt_tokens: tuple[int, ...] | None = None
    max_new_tokens: int = 100
    batch: tuple[int, ...] = (1,)
    weights: tuple[str, ...] = ("native",)
    tp: tuple[int, ...] = (1,)
    pp: int = 1
    device: str = "auto"
    threads: int | None = None
    max_context: int | None = None
    cache: str = "auto"
    cache_memory: int | None = None
    prefill_chunk: int | None = None
    invariant: bool = False
    seed: int = 0
    warmup: int = 10
    runs: int = 10
    min_s: float = 10.0
    operations: bool = False

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_tokens is not None:
            raise RequestError("a text and a number of prompt tokens are two prompts; give one of them")
        numbers = {"max_new_tokens": (self.max_new_tokens,), "runs": (self.runs,), "batch": self.batch, "tp": self.tp}
        if self.prompt_tokens is not None:
            numbers["prompt_tokens"] = self.prompt_tokens
        for name, values in {**numbers, "weights": self.weights}.items():
            if not values:
                raise RequestError(f"{name} is empty; give at least one")
        check_counts(**{name: min(counts) for name, counts in numbers.items()})
        check_batch(max(self.batch))
        for kind in self.weights:
            if kind != "native":
                weight_kind(kind)
        if self.operations and self.max_new_tokens < 2:
            raise RequestError("one token takes no decode step whose operations could be counted; ask for 2 or more")
        if self.warmup < 0:
            raise RequestError(f"warmup is {self.warmup}; it must be 0 or more")
        if not 0 <= self.min_s < math.inf:
            raise RequestError(f"min_s is {self.min_s}; it must be a number of seconds, 0 or more")
