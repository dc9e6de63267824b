"""What is to be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anthesis.engine.blocks import check_batch
from anthesis.errors import RequestError, check_counts
from anthesis.quantize import weight_kind
from anthesis.records import MAX_RESULT_VALUES

MAX_RUNS = 100
MAX_TIMES = 100_000
"""Where that many runs, or times of tokens, take less than `min_s`, there are no more, unless they were asked for."""

MAX_RESULT_TIMES = MAX_RESULT_VALUES // 2
"""Times of tokens that a result can hold; bandwidths and all else have room beside them."""


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
        pp, device, threads, max_context, cache, cache_memory, prefill_chunk, speculate, invariant, adapter, seed: as in
            `LLM`, which is opened without reusing prefixes: every run computes its prompts.
        warmup: most runs before those that count; fewer where the last three agree within 5 %.
        runs: that count, at least.
        min_s: seconds that they take together, at least, or 100 runs, or 100,000 times of tokens.
        operations: run once more with counters, and tell where the time of a decode step goes.

    Raises:
        RequestError: a number out of its range, an unknown kind of weights, nothing to sweep, two prompts, operations
            of steps with drafts, or more samples than a result can hold.
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
    speculate: str | None = None
    invariant: bool = False
    adapter: str | None = None
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
        if self.operations and self.speculate is not None:
            raise RequestError(
                "operations (--ops) are those of steps of one size, and drafts make steps differ; leave one of them out"
            )
        if self.warmup < 0:
            raise RequestError(f"warmup is {self.warmup}; it must be 0 or more")
        if not 0 <= self.min_s < math.inf:
            raise RequestError(f"min_s is {self.min_s}; it must be a number of seconds, 0 or more")
        times = sum(self._most_times(batch) for batch in self.batch)
        times *= len(self.weights) * len(self.tp) * len(self.prompt_tokens or (None,))
        if times > MAX_RESULT_TIMES:
            raise RequestError(
                f"up to {times:,} times of tokens are more than the {MAX_RESULT_TIMES:,} that a result can hold; "
                "ask for fewer runs, tokens or sequences, or sweep in parts"
            )

    def _most_times(self, batch: int) -> int:
        """Of tokens, in all timed runs of a point."""
        of_run = batch * self.max_new_tokens
        return max(of_run * self.runs, min(of_run * MAX_RUNS, MAX_TIMES + of_run))
