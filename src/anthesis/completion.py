"""What a prompt was completed with: all at once, or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anthesis.engine.engine import Engine
from anthesis.engine.sequence import FinishReason, Sequence, Timing, TokenLogprobs
from anthesis.errors import RequestError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


@dataclass(frozen=True)
class Completion:
    """What a prompt was completed with.

    Attributes:
        text: the completion only, without a stop string or special tokens; None without a tokenizer.
        token_ids: every generated id, an end-of-sequence token included.
        prompt_token_ids: the prompt's ids.
        finish_reason: "stop" (end of sequence or stop string), "length" (max_new_tokens), "context" (max_context).
        logprobs: one for each generated token if asked for, else empty.
        timing: when the tokens came.
        seed: of the random numbers, where tokens were drawn; with it the request gives the same again. None: greedy.
        score: of a beam search: the sum of the log-probabilities divided by (number of tokens ** length penalty).
        reused_tokens: of the prompt, that were not computed for it: a request that began alike had them.
        steps: readings of the weights that gave it tokens.
        drafted_tokens: that were verified beside what was computed anyway (`LLM(speculate=)`).
        accepted_tokens: of those, that were right.
    """

    text: str | None
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs]
    timing: Timing
    seed: int | None
    score: float | None = None
    reused_tokens: int = 0
    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Handle:
    """A request that is on its way; `LLM.step` brings it and all others forward.

    Closing it, or leaving it as a context manager, ends the request and frees its place within one step. One
    that is only let go of is computed to its end.
    """

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence
        engine.submit([sequence])

    @property
    def finished(self) -> bool:
        """Whether its completion is whole, or it has failed."""
        return self._sequence.finished

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self._sequence.tokens) - len(self._sequence.prompt)

    @property
    def token_ids(self) -> list[int]:
        """The ids generated so far."""
        return self._sequence.completion

    @property
    def completion(self) -> Completion:
        """The finished completion.

        Raises:
            RequestError: it is not finished yet.
            AnthesisError: the model computed numbers that are not finite.
        """
        self._sequence.check()
        if not self._sequence.finished:
            raise RequestError("the request is not at its end yet; go on with LLM.step, or iterate over the stream")
        return completion_of(self._sequence)

    def close(self) -> None:
        """Ends the request; what was generated so far stays."""
        self._engine.abort([self._sequence])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Stream(Handle):
    """The text of a completion as it comes, in pieces that never cut a character; iterate over it."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        super().__init__(engine, sequence)
        self._shown = 0

    def __del__(self) -> None:  # of streams only: it would swallow a Ctrl-C that comes just then
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            while len(self._sequence.text) == self._shown:
                self._sequence.check()
                if self._sequence.finished:
                    raise StopIteration
                self._engine.step()
        except KeyboardInterrupt:
            self.close()
            raise
        piece = self._sequence.text[self._shown :]
        self._shown = len(self._sequence.text)
        return piece


def completion_of(sequence: Sequence) -> Completion:
    """What a finished sequence was completed with."""
    assert sequence.finish_reason is not None
    return Completion(
        text=None if sequence.text_stream is None else sequence.text,
        token_ids=sequence.completion,
        prompt_token_ids=sequence.prompt,
        finish_reason=sequence.finish_reason,
        logprobs=sequence.logprobs,
        timing=sequence.timing(),
        seed=sequence.params.seed if sequence.params.temperature > 0 else None,
        score=sequence.score,
        reused_tokens=sequence.reused,
        steps=sequence.counts.steps,
        drafted_tokens=sequence.counts.drafted_tokens,
        accepted_tokens=sequence.counts.accepted_tokens,
    )
