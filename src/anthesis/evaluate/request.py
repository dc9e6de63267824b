"""What is to be evaluated."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from anthesis.bench.command import options_of
from anthesis.errors import RequestError, check_counts
from anthesis.quantize import weight_kind

WINDOW = 512
"""Tokens of a window, unless asked otherwise or the model's context is shorter."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which text to predict, and by what. Those that are not described are arguments of `LLM`.

    Attributes:
        text: name of a UTF-8 file.
        model: as in `LLM`.
        weights: that are evaluated.
        against: other weights of the same model, to compare with; None: nothing.
        window: tokens that are predicted by themselves; None: 512, or the model's context where that is shorter.
        tokens: of the text's beginning that are used at most; None: all.
        device, tp, pp, threads, cache, cache_memory, prefill_chunk, invariant, adapter, seed: as in `LLM`, for both.

    Raises:
        RequestError: a number out of its range, an unknown kind of weights, or weights against themselves.
    """

    text: str
    model: str | None = None
    weights: str = "native"
    against: str | None = None
    window: int | None = None
    tokens: int | None = None
    device: str = "auto"
    tp: int = 1
    pp: int = 1
    threads: int | None = None
    cache: str = "auto"
    cache_memory: int | None = None
    prefill_chunk: int | None = None
    invariant: bool = False
    adapter: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(tp=self.tp, pp=self.pp)
        for name in ("window", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise RequestError(f"{name} is {value}; a token is predicted by those before it, so take 2 or more")
        for kind in (self.weights, self.against):
            if kind is not None and kind != "native":
                weight_kind(kind)
        if self.against == self.weights:
            raise RequestError(
                f"the weights are {self.weights} and would be compared with {self.against}: the same predict the same; "
                "name another kind to compare with, such as bf16"
            )

    def opening(self, weights: str) -> dict[str, Any]:
        """The arguments of `LLM`, with these weights."""
        own = ("text", "window", "tokens", "weights", "against")
        shared = {name: value for name, value in vars(self).items() if name not in own}
        return {"weights": weights, **shared}

    def command(self) -> str:
        """The command line that asks for the same."""
        model = [] if self.model is None else [self.model]
        return shlex.join(["anthesis", "evaluate", *model, *options_of(self)])
