"""A sequence on its way through the engine: its tokens, its text, and whether it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from anthesis.engine.blocks import Place
from anthesis.engine.constraints import Constraints
from anthesis.engine.prefixes import START, Key, Known
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.stopping import StopStrings
from anthesis.errors import AnthesisError, RequestError
from anthesis.program.ir import BLOCK_TOKENS
from anthesis.tokenizer import TextStream

if TYPE_CHECKING:
    from anthesis.engine.group import Group

FinishReason = Literal["stop", "length", "context"]


def last_token(prompt_tokens: int, max_new_tokens: int, max_context: int | None) -> tuple[int, FinishReason]:
    """After how many tokens of prompt and completion together a sequence ends at the latest, and why it then does.

    Args:
        prompt_tokens: that it begins with.
        max_new_tokens: that were asked for.
        max_context: of the model; None: without limit.

    Raises:
        RequestError: the prompt leaves no room in the context.
    """
    limit = prompt_tokens + max_new_tokens
    if max_context is None or limit <= max_context:
        return limit, "length"
    if prompt_tokens >= max_context:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and the context ends at {max_context}, so there is no room "
            "for a completion; shorten the prompt or raise max_context as far as the model allows"
        )
    return max_context, "context"


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one place of a completion, natural logarithms under the model's own distribution.

    Attributes:
        logprob: of the chosen token.
        top: the most likely tokens with theirs, most likely first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Timing:
    """When the tokens came, in seconds from the moment the request was submitted.

    Attributes:
        token_s: time of each generated token; tokens that one step gave have the same.
    """

    token_s: tuple[float, ...]

    @property
    def first_token_s(self) -> float:
        """Until the first token."""
        return self.token_s[0]

    @property
    def total_s(self) -> float:
        """Until the last token."""
        return self.token_s[-1]

    @property
    def per_token_s(self) -> tuple[float, ...]:
        """From each token to the next (`per_token_s`)."""
        return per_token_s(self.token_s)


def per_token_s(token_s: Seq[float]) -> tuple[float, ...]:
    """What each token but the first took: where a step gave several, its time is shared evenly among them.

    Args:
        token_s: times of tokens; those that one step gave have the same time.
    """
    found: list[float] = []
    for at, tokens in groupby(token_s[1:]):
        count = sum(1 for _ in tokens)
        found += [(at - token_s[len(found)]) / count] * count
    return tuple(found)


@dataclass
class DecodeCounts:
    """How a completion came about.

    Attributes:
        steps: readings of the weights that gave it tokens.
        drafted_tokens: that were proposed and verified.
        accepted_tokens: of those, that the model would have chosen.
    """

    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(eq=False)
class Sequence:
    """One text on its way: its prompt, what has been generated, and how far it is in the cache.

    Attributes:
        prompt: its token ids, at least one.
        params: what was asked for.
        limit: most tokens of prompt and completion together.
        limit_reason: why it ends when `limit` is reached.
        eos_token_ids: ids that end it; empty if it is to ignore them.
        text_stream: turns ids into text, or None without a tokenizer.
        vocab_size: rows V of the embedding.
        constraints: what it must not contain or has to begin with; None: nothing.
        tokens: prompt and completion.
        computed: how many of them are in the cache.
        place: where in the cache; None while it waits, and once it is over.
        known: names of its full blocks, as far as they are known by their tokens (`engine.prefixes`).
        reused: tokens of the prompt that were in the cache already.
        drafts: tokens that may come next, which the step at work verifies.
        followers: sequences of the same prompt, that take what they have in common from this one.
        leader: whose follower it is, while it waits for it.
        paused: it takes no rows, until it goes on.
        group: with which it advances, or None.
        score: of a hypothesis of a beam search, else None.
        counts: of its steps and drafts.
        is_plain: its tokens are the most likely ones, whatever came before, and it advances alone.
        failure: why it can't go on, or None.
    """

    prompt: list[int]
    params: SamplingParams
    limit: int
    limit_reason: FinishReason
    eos_token_ids: frozenset[int]
    text_stream: TextStream | None
    vocab_size: int
    constraints: Constraints | None = None
    tokens: list[int] = field(init=False)
    computed: int = field(init=False, default=0)
    place: Place | None = field(init=False, default=None)
    known: list[int] = field(init=False, default_factory=list)
    reused: int = field(init=False, default=0)
    drafts: list[int] = field(init=False, default_factory=list)
    followers: list[Sequence] = field(init=False, default_factory=list)
    leader: Sequence | None = field(init=False, default=None)
    paused: bool = field(init=False, default=False)
    group: Group | None = field(init=False, default=None)
    score: float | None = field(init=False, default=None)
    counts: DecodeCounts = field(init=False)
    is_plain: bool = field(init=False)
    finish_reason: FinishReason | None = field(init=False, default=None)
    failure: str | None = field(init=False, default=None)
    logprobs: list[TokenLogprobs] = field(init=False, default_factory=list)
    seen: NDArray[np.uint8] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.counts = DecodeCounts()
        self.is_plain = self.constraints is None and not self.params.needs_sample
        self._stops = StopStrings(self.params.stop)
        self._text = ""
        self._num_spelled = len(self.tokens)
        self._submitted_s = time.perf_counter()
        self._token_s: list[float] = []
        if self.params.repetition_penalty is not None:
            self.seen = np.zeros(-(-self.vocab_size // 8), np.uint8)
            self._mark_seen(self.prompt)

    @property
    def completion(self) -> list[int]:
        """The generated ids."""
        return self.tokens[len(self.prompt) :]

    @property
    def num_pending(self) -> int:
        """Tokens not in the cache yet: the rest of the prompt, or the last generated token."""
        return len(self.tokens) - self.computed

    @property
    def next_key(self) -> Key:
        """What the block behind the known ones would be known by."""
        start = len(self.known) * BLOCK_TOKENS
        return self.known[-1] if self.known else START, tuple(self.tokens[start : start + BLOCK_TOKENS])

    @property
    def shares_its_first_blocks(self) -> bool:
        """Whether another member of its group brings the prompt into the cache for it."""
        return self.group is not None and self not in self.group.firsts

    def begin_behind(self, known: Seq[Known]) -> None:
        """Takes note that its first blocks are known, and in its place."""
        self.known = [block.name for block in known]
        self.computed = self.reused = len(known) * BLOCK_TOKENS

    @property
    def finished(self) -> bool:
        """Whether it is done, or has failed."""
        return self.finish_reason is not None or self.failure is not None

    @property
    def text(self) -> str:
        """What is certain of the completion's text.

        It is made when it is asked for: between two steps, with cold caches, a token's takes several times as long as
        where all are made at once.
        """
        self._spell(len(self.tokens))
        return self._text

    def check(self) -> None:
        """Raises what it failed by.

        Raises:
            AnthesisError: it has failed.
        """
        if self.failure is not None:
            raise AnthesisError(self.failure)

    def timing(self) -> Timing:
        """When its tokens came."""
        return Timing(tuple(at - self._submitted_s for at in self._token_s))

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Takes a generated token, and finishes if it was the last."""
        self._token_s.append(time.perf_counter())
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if self.seen is not None:
            self._mark_seen([token])
        if token in self.eos_token_ids:
            self._finish("stop", len(self.tokens) - 1)  # the token is no part of the text
        elif self.params.stop and self._spell(len(self.tokens)):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self._finish(self.limit_reason, len(self.tokens))

    def came_together(self, count: int) -> None:
        """Takes note that one step gave so many of the last tokens: the host had all of them at once."""
        self._token_s[-count:] = self._token_s[-1:] * count

    def conclude(self, tokens: Seq[int], score: float, times: Seq[float]) -> None:
        """Takes a whole completion at once: one that a beam search has found.

        Args:
            tokens: generated, an end-of-sequence token included.
            score: of it.
            times: when each came, by `time.perf_counter`.
        """
        self.tokens = [*self.prompt, *tokens]
        self.score = score
        self._token_s = list(times)
        ended = tokens[-1] in self.eos_token_ids
        self._finish("stop" if ended else self.limit_reason, len(self.tokens) - ended)

    def _finish(self, reason: FinishReason, text_end: int) -> None:
        self.finish_reason = reason
        if self.text_stream is None:
            return
        self._spell(text_end)
        self._num_spelled = len(self.tokens)
        if self._release(self.text_stream.finish()):
            self.finish_reason = "stop"
        else:
            self._text += self._stops.finish()

    def _spell(self, end: int) -> bool:
        """Adds the text of the tokens up to there; whether a stop string was in it."""
        stopped = False
        while self.text_stream is not None and self._num_spelled < end and not stopped:
            self._num_spelled += 1
            stopped = self._release(self.text_stream.push(self.tokens[self._num_spelled - 1]))
        return stopped

    def _release(self, text: str) -> bool:
        certain, stopped = self._stops.push(text)
        self._text += certain
        return stopped

    def _mark_seen(self, tokens: Seq[int]) -> None:
        assert self.seen is not None
        ids = np.asarray(tokens)
        np.bitwise_or.at(self.seen, ids // 8, (1 << (ids % 8)).astype(np.uint8))
