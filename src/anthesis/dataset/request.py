"""What is asked for each row of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anthesis.engine.blocks import check_batch
from anthesis.engine.sampling import SamplingParams
from anthesis.errors import RequestError, check_counts


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to do with each row.

    Attributes:
        prompt_tokens: of the row's beginning that make the prompt. Only the text's first characters are looked at, 64
            for each of these tokens and at least 65,536.
        max_new_tokens: to generate at most.
        limit: most rows; None: all.
        batch: rows at once; None: chosen by the memory.
        seed: of drawn tokens; row r draws with seed + r. None: a new one, or that of the run to go on with.
        sampling: the other arguments of `LLM.generate`, but those of a beam search and of several completions.

    Raises:
        RequestError: a number out of its range, or more than one completion for each row.
    """

    prompt_tokens: int = 16
    max_new_tokens: int = 50
    limit: int | None = None
    batch: int | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_counts(prompt_tokens=self.prompt_tokens, limit=self.limit)
        check_batch(self.batch)
        params = self.params  # whose values are checked
        if params.num_beams > 1 or params.num_return_sequences > 1:
            raise RequestError("a row of a data set has one completion; leave num_beams and num_return_sequences at 1")

    @property
    def params(self) -> SamplingParams:
        """Of a row, but for its own seed."""
        return SamplingParams.given(max_new_tokens=self.max_new_tokens, seed=self.seed or 0, **self.sampling)
