"""The Python interface: a model that completes prompts."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint import IN_MEMORY, InMemoryModel, model_fingerprint, open_checkpoint
from anthesis.completion import Completion, Handle, Stream, completion_of
from anthesis.cores import usable_cores
from anthesis.devices.device import InstructionTime
from anthesis.engine.blocks import MAX_SEQUENCES, BlockCache, blocks_for, check_batch
from anthesis.engine.engine import Engine, OnStep
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.sequence import Sequence, last_token
from anthesis.engine.serve import leave_to_rank_zero
from anthesis.engine.spread import open_model, start_ranks
from anthesis.errors import RequestError, UnsupportedError, check_counts, naming
from anthesis.parallel.layout import Layout
from anthesis.program.draw import log_probability
from anthesis.program.ir import BLOCK_TOKENS
from anthesis.prompts import Prompt, as_messages, as_prompts, as_strings, as_token_ids, check_token_ids
from anthesis.tokenizer import Tokenizer, open_tokenizer

OnWeight = Callable[[int, int], None]

MAX_NEW_TOKENS = 100
PREFILL_CHUNK = 256
_MADE_UP_STEP = 7919


class LLM:
    """A model, loaded, that completes prompts. Close it, or use it as a context manager; several may be open at once.

    It serves one thread; streams may be open side by side and advance together.

    Args:
        model: a Hugging Face id, a directory, a .gguf file, `random:NAME`; one in memory (`anthesis.hf.accelerate`
            makes it); None: the embedded default.
        weights: the kind of all matrices ("bf16", "int8", "int4", ...), or "native": as stored.
        device: "auto", "cpu", "reference", ...
        tp: ranks among which every layer is split; they are started on this machine, unless a launcher has started as
            many processes as there are ranks.
        pp: stages of layers, one behind the other, each split among `tp` ranks.
        threads: that each rank may use on the processor; None: its share of the cores.
        max_context: most tokens of prompt and completion together; None: what the model allows.
        cache: dtype of the key-value cache, "fp32", "bf16" or "auto" (fp32 with fp32 weights, else bf16).
        cache_memory: bytes the cache may take on a machine; None: half of what is free after loading. It takes what it
            needs.
        prefill_chunk: most prompt rows in one step; None: 256.
        invariant: no completion may depend on what runs beside it, on devices that don't promise that anyway.
        seed: of random weights.
        on_weight: called while loading, with (weights loaded, weights in all).
        load: read the weights now. If not, `load()` does; until then the model can tell about itself and encode texts.

    Raises:
        RequestError: an argument that can't be met; the message says why and what can.
        RankError: a rank did not come, failed or ended. Under a launcher, SystemExit on ranks but 0, which serve it.
        CheckpointError: a damaged or incomplete checkpoint.
        TokenizerError: a damaged tokenizer, or one of a kind that is not read.
    """

    def __init__(
        self,
        model: str | InMemoryModel | None = None,
        *,
        weights: str = "native",
        device: str = "auto",
        tp: int = 1,
        pp: int = 1,
        threads: int | None = None,
        max_context: int | None = None,
        cache: str = "auto",
        cache_memory: int | None = None,
        prefill_chunk: int | None = None,
        invariant: bool = False,
        seed: int = 0,
        on_weight: OnWeight = lambda loaded, total: None,
        load: bool = True,
    ) -> None:
        counts = {"threads": threads, "max_context": max_context, "cache_memory": cache_memory}
        check_counts(tp=tp, pp=pp, prefill_chunk=prefill_chunk, **counts)
        if threads is not None and threads > usable_cores():
            # threads without a core of their own keep the others waiting: measured, ten times slower and worse
            raise RequestError(f"threads is {threads}; this process may use {usable_cores()} cores")
        layout = Layout(tp, pp)
        if layout.size > 1:
            leave_to_rank_zero(layout)
        begin = time.perf_counter()
        # what is open is closed in the end, or at once where something of this fails
        with ExitStack() as opened:
            self._checkpoint = checkpoint = opened.enter_context(open_checkpoint(model, weights=weights, seed=seed))
            config = checkpoint.config
            group = start_ranks(checkpoint, layout, device, opened)  # which come while the tokenizer is read
            with naming(checkpoint.path):
                self.tokenizer: Tokenizer | None = open_tokenizer(
                    checkpoint.tokenizer_source, usable_vocab_size=config.vocab_size
                )
            if self.tokenizer is not None:
                # rows that pad the embedding mean nothing; some models have more of them than their family knows
                config = replace(config, usable_vocab_size=min(config.usable_vocab_size, self.tokenizer.size))
            self.max_context = self._context_limit(config.max_context, max_context)
            self.description = checkpoint.description
            self.source, self.path = checkpoint.source, checkpoint.path
            self.is_random = checkpoint.is_random
            self.config = config
            self.seed = seed
            self.layout = layout
            request = {"model": model, "weights": weights, "seed": seed, "device": device, "threads": threads}
            request |= {"cache": cache, "invariant": invariant}
            self.loaded = open_model(checkpoint, config, request, group)
            self.device_info = self.loaded.device.info()
            self._cache_memory, self._prefill_chunk = cache_memory, prefill_chunk or PREFILL_CHUNK
            self._running: tuple[BlockCache, Engine] | None = None
            self.load_s = time.perf_counter() - begin
            if load:
                self.load(on_weight)
            self._opened = opened.pop_all()

    def load(self, on_weight: OnWeight = lambda loaded, total: None) -> None:
        """Reads the weights, if that was left for later.

        Args:
            on_weight: called with (weights loaded, weights in all).

        Raises:
            RequestError: the cache has no room beside them.
            CheckpointError: they are damaged.
        """
        if self._running is not None:
            return
        begin = time.perf_counter()
        with self._checkpoint as checkpoint:
            self.loaded.load(checkpoint, on_weight)
        self.device_info = self.loaded.device.info()  # with the memory that is free now
        blocks = BlockCache(self.loaded.allocate, MAX_SEQUENCES, self.loaded.max_blocks(self._cache_memory))
        self._running = blocks, Engine(blocks, self.loaded.compile, self._prefill_chunk)
        self.load_s += time.perf_counter() - begin

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        ignore_eos: bool = False,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Seq[str] = (),
        logprobs: int | None = None,
        chat: bool = False,
        batch: int | None = None,
    ) -> list[Completion]:
        """Completes prompts, several at a time.

        Args:
            prompts: one prompt or several, each a text or a list of token ids; with `chat` also a list of messages.
            max_new_tokens: tokens to generate at most, for each prompt.
            ignore_eos: go on after an end-of-sequence token.
            temperature: 0 takes the most likely token; above, tokens are drawn.
            top_k: draw among the k most likely tokens.
            top_p: draw among the smallest set of tokens with this probability mass.
            min_p: draw among tokens at least this fraction as likely as the most likely one.
            repetition_penalty: divides the logits of tokens that occurred.
            seed: of the random numbers, the same for each prompt; None: a new one for each, which its completion tells.
            stop: texts before which to stop.
            logprobs: how many most likely tokens to report beside the chosen one; None: no log-probabilities.
            chat: put each prompt through the model's chat template, a text as one user message.
            batch: how many are on their way at once; None: `device_info.full_batch`. No completion depends on it.

        Returns:
            One completion for each prompt, in order.

        Raises:
            RequestError: a bad parameter, an empty or too long prompt, token ids the model does not have.
        """
        check_batch(batch)
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            ignore_eos=ignore_eos,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=as_strings(stop),
            logprobs=logprobs,
        )
        sequences = [self._sequence(prompt, params, seed, chat) for prompt in as_prompts(prompts)]
        self._engine.run(sequences, self.device_info.full_batch if batch is None else batch)
        return [completion_of(sequence) for sequence in sequences]

    def stream(self, prompt: Prompt, *, chat: bool = False, seed: int | None = None, **params: Any) -> Stream:
        """The completion of one prompt, piece by piece; the parameters are those of `generate`.

        Raises:
            RequestError: as `generate`; also a model without a tokenizer, which has no text to stream.
        """
        if self.tokenizer is None:
            raise RequestError(f"{self.description} has no tokenizer, so there is no text to stream; use generate")
        return Stream(self._engine, self._sequence(prompt, _sampling_params(params), seed, chat))

    def submit(self, prompt: Prompt, *, chat: bool = False, seed: int | None = None, **params: Any) -> Handle:
        """Takes in a request that `step` brings forward together with all others; the parameters are as in `generate`.

        Raises:
            RequestError: as `generate`.
        """
        return Handle(self._engine, self._sequence(prompt, _sampling_params(params), seed, chat))

    def step(self) -> None:
        """Runs one step of all requests that are on their way: a token for each, or part of its prompt.

        Raises:
            RequestError: the model is closed.
        """
        self._engine.step()

    def watch(self, on_step: OnStep | None) -> None:
        """From now on tells what is in each step, once it has run; None: no longer."""
        self._engine.on_step = on_step

    def measure(self, on: bool) -> list[InstructionTime]:
        """See `Executable.measure`; of greedy steps."""
        return self._engine.measure(on)

    def max_batch(self, num_tokens: int) -> int:
        """How many sequences of so many tokens, prompt and completion together, can be on their way at once.

        Raises:
            RequestError: not even one.
        """
        fits = min(MAX_SEQUENCES, self._blocks.max_blocks // blocks_for(num_tokens))
        if fits < 1:
            raise RequestError(
                f"the memory for the cache holds {self._blocks.max_blocks} blocks of {BLOCK_TOKENS} tokens, too few "
                f"for a sequence of {num_tokens}; ask for fewer tokens or give more --cache-memory"
            )
        return fits

    @property
    def fingerprint(self) -> str:
        """Of the model's files, as they are now: the same for the same configuration, weights and tokenizer.

        Random weights of one shape have the same; their `description` tells the seeds apart.

        Raises:
            UnsupportedError: the model came from memory.
        """
        if self.source == IN_MEMORY:
            raise UnsupportedError(
                f"{self.description} has no files to take a fingerprint of; open it from a directory"
            )
        return model_fingerprint(self._checkpoint.path, self.config)

    def logits(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """All of `logit_chunks` in one array, (T, V) float32 (float64 on reference-fp64).

        Args:
            token_ids: T ids.

        Raises:
            RequestError: as `logit_chunks`.
        """
        return np.concatenate(list(self.logit_chunks(token_ids)))

    def logit_chunks(self, token_ids: Seq[int]) -> Iterator[NDArray[np.float32]]:
        """The logits after each token of a text, without holding all of them at once.

        Args:
            token_ids: T ids.

        Returns:
            Arrays (R, V) float32 (float64 on reference-fp64), at most `prefill_chunk` rows each, T in all: row t scores
            the token that follows token t.

        Raises:
            RequestError: no ids, ids the model does not have, or more than fit its context.
        """
        ids = self.encode(token_ids)
        if self.max_context is not None and len(ids) > self.max_context:
            raise RequestError(f"{len(ids)} token ids do not fit the context of {self.max_context}")
        sequence = Sequence(ids, SamplingParams(max_new_tokens=1), len(ids), "length", frozenset(), None, 1)
        return self._engine.logits(sequence)

    def score(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """How likely each token of a text is after those before it, without holding all logits at once.

        Args:
            token_ids: T ids, at least two.

        Returns:
            (T - 1,) float32: natural log-probability of token t + 1 after tokens 0 to t.

        Raises:
            RequestError: as `logits`, or a single id.
        """
        if len(token_ids) < 2:
            raise RequestError(f"scoring needs at least 2 token ids; there are {len(token_ids)}")
        scores: list[float] = []
        for chunk in self.logit_chunks(token_ids):
            following = token_ids[len(scores) + 1 : len(scores) + 1 + len(chunk)]
            scores.extend(log_probability(row, token) for row, token in zip(chunk, following, strict=False))
        return np.array(scores, np.float32)

    def close(self) -> None:
        """Ends what is still running, and frees the weights and the cache."""
        if self._running is not None:
            self._engine.close()
            self.loaded.free()
        self._opened.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def encode(self, prompt: Prompt, chat: bool = False) -> list[int]:
        """The token ids of a prompt, checked.

        Raises:
            RequestError: a text without a tokenizer, no tokens, or ids the model does not have.
        """
        if chat or isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError(f"{self.description} has no tokenizer; give token ids instead of text")
            if chat:
                ids = self.tokenizer.encode_chat(as_messages(prompt))
            else:
                assert isinstance(prompt, str)
                ids = self.tokenizer.encode(prompt)
        else:
            ids = as_token_ids(prompt)
        check_token_ids(ids, self.config.vocab_size)
        return ids

    def made_up_prompt(self, num_tokens: int) -> list[int]:
        """Token ids that stand for a prompt of this length, always the same: multiples of a prime, wrapped around.

        Raises:
            RequestError: more tokens than fit the context or the memory for the cache.
        """
        most = min(self.max_context or sys.maxsize, self._blocks.max_blocks * BLOCK_TOKENS)
        if not 1 <= num_tokens <= most:
            raise RequestError(f"a prompt of {num_tokens:,} tokens was asked for; from 1 to {most:,} are possible")
        return [(i + 1) * _MADE_UP_STEP % self.config.usable_vocab_size for i in range(num_tokens)]

    @property
    def _blocks(self) -> BlockCache:
        return self._loaded_parts[0]

    @property
    def _engine(self) -> Engine:
        return self._loaded_parts[1]

    @property
    def _loaded_parts(self) -> tuple[BlockCache, Engine]:
        if self._running is None:
            raise RequestError("the weights are not loaded yet; call load() first")
        return self._running

    def _sequence(self, prompt: Prompt, params: SamplingParams, seed: int | None, chat: bool) -> Sequence:
        ids = self.encode(prompt, chat)
        if params.stop and self.tokenizer is None:
            raise RequestError(f"stop strings need a tokenizer, and {self.description} has none")
        limit, reason = last_token(len(ids), params.max_new_tokens, self.max_context)
        # ids that pad the embedding have no text; the model reads them all the same
        known = ids if self.tokenizer is None else [token for token in ids if token < self.tokenizer.size]
        if seed is None:
            seed = secrets.randbits(64) if params.temperature > 0 else 0
        return Sequence(
            prompt=ids,
            params=replace(params, seed=seed),
            limit=limit,
            limit_reason=reason,
            eos_token_ids=frozenset() if params.ignore_eos else frozenset(self.config.eos_token_ids),
            text_stream=None if self.tokenizer is None else self.tokenizer.stream(after=known),
            vocab_size=self.config.vocab_size,
        )

    @staticmethod
    def _context_limit(model_limit: int | None, wanted: int | None) -> int | None:
        if wanted is not None and model_limit is not None and wanted > model_limit:
            raise RequestError(f"max_context is {wanted}, and the model was made for at most {model_limit} tokens")
        return model_limit if wanted is None else wanted


def _sampling_params(params: Mapping[str, Any]) -> SamplingParams:
    """Those of a request that gives some by name; the others are as in `LLM.generate`."""
    return SamplingParams(**{"max_new_tokens": MAX_NEW_TOKENS, **params, "stop": as_strings(params.get("stop", ()))})
