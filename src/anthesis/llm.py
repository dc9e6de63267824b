"""The Python interface: a model that completes prompts."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from anthesis.checkpoint import InMemoryModel, open_checkpoint
from anthesis.completion import Completion, Handle, Stream, completion_of
from anthesis.cores import usable_cores
from anthesis.devices.device import InstructionTime
from anthesis.engine.beams import EarlyStopping
from anthesis.engine.blocks import MAX_SEQUENCES, BlockCache, check_batch
from anthesis.engine.draft_model import DraftModel
from anthesis.engine.engine import Engine, OnStep
from anthesis.engine.lockstep import Lockstep
from anthesis.engine.lookup import PromptLookup
from anthesis.engine.sampling import SamplingParams
from anthesis.engine.sequence import Sequence
from anthesis.engine.serve import leave_to_rank_zero
from anthesis.engine.spread import open_model, start_ranks
from anthesis.errors import RequestError, UnsupportedError, check_counts, naming
from anthesis.intake import Intake, context_limit
from anthesis.parallel.layout import Layout
from anthesis.program.ir import BLOCK_TOKENS
from anthesis.prompts import Prompt, as_prompts
from anthesis.scoring import Scoring
from anthesis.tokenizer import Tokenizer, open_tokenizer

OnWeight = Callable[[int, int], None]
logger = logging.getLogger("anthesis")
MAX_NEW_TOKENS = 100
LOOKUP = "lookup"
"""As `speculate`: drafts come from the text so far."""
PREFILL_CHUNK = 256
_MADE_UP_STEP = 7919


class LLM(Scoring):
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
        cache_memory: bytes the cache may take on a machine, and that of a draft model as much again; None: half of what
            is free after loading. They take what they need.
        prefill_chunk: most prompt rows in one step; None: 256.
        reuse_prefixes: what prompts begin with in common is computed once, also by prompts that come later.
        speculate: "lookup": steps verify what followed the last tokens where they occurred before; a model: what that
            one proposes, of the same tokenizer and much smaller. No completion depends on it. None: neither.
        invariant: no completion may depend on what runs beside it, on devices that don't promise that anyway.
        seed: of random weights.
        adapter: the directory of a PEFT LoRA adapter that is merged into the weights; None: none.
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
        reuse_prefixes: bool = True,
        speculate: str | None = None,
        invariant: bool = False,
        seed: int = 0,
        adapter: str | None = None,
        on_weight: OnWeight = lambda loaded, total: None,
        load: bool = True,
    ) -> None:
        counts = {"threads": threads, "max_context": max_context, "cache_memory": cache_memory}
        check_counts(tp=tp, pp=pp, prefill_chunk=prefill_chunk, **counts)
        if threads is not None and threads > usable_cores():
            # threads without a core of their own keep the others waiting: measured, ten times slower and worse
            raise RequestError(f"threads is {threads}; this process may use {usable_cores()} cores")
        layout = Layout(tp, pp)
        if layout.size > 1 and speculate not in (None, LOOKUP):
            raise UnsupportedError(f"a draft model beside one on {layout.size} ranks; take {LOOKUP!r}, or one rank")
        if layout.size > 1:
            leave_to_rank_zero(layout)
        begin = time.perf_counter()
        # what is open is closed in the end, or at once where something of this fails
        with ExitStack() as opened:
            checkpoint = opened.enter_context(open_checkpoint(model, weights=weights, seed=seed, adapter=adapter))
            self._checkpoint = checkpoint
            config = checkpoint.config
            group = start_ranks(checkpoint, layout, device, opened)  # which come while the tokenizer is read
            with naming(checkpoint.path):
                self.tokenizer: Tokenizer | None = open_tokenizer(
                    checkpoint.tokenizer_source, usable_vocab_size=config.vocab_size
                )
            if self.tokenizer is not None:
                # rows that pad the embedding mean nothing; some models have more of them than their family knows
                config = replace(config, usable_vocab_size=min(config.usable_vocab_size, self.tokenizer.size))
            self.max_context = context_limit(config.max_context, max_context)
            self.description, self.source, self.path = checkpoint.description, checkpoint.source, checkpoint.path
            self.is_random, self.config, self.seed, self.layout = checkpoint.is_random, config, seed, layout
            request = {"model": model, "weights": weights, "seed": seed, "device": device, "threads": threads}
            request |= {"cache": cache, "invariant": invariant, "adapter": adapter}
            self.loaded = open_model(checkpoint, config, request, group)
            self.device_info = self.loaded.device.info()
            self._cache_memory, self._prefill_chunk = cache_memory, prefill_chunk or PREFILL_CHUNK
            self._intake = Intake(config, self.tokenizer, self.max_context, self.description)
            self._reuse_prefixes, self._lookup = reuse_prefixes, speculate == LOOKUP
            self._draft: LLM | None = None
            if speculate is not None and speculate != LOOKUP:
                draft = LLM(
                    speculate,
                    device=self.device_info.name,
                    threads=threads,
                    cache_memory=cache_memory,
                    reuse_prefixes=False,
                    load=False,
                )
                self._draft = opened.enter_context(closing(draft))
                self._intake.check_draft(self._draft._intake)
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
        if self._draft is not None:
            self._draft.load()  # first, so that what is free afterwards is what the cache may take of
        most = self.loaded.max_blocks(self._cache_memory)
        blocks = BlockCache(self.loaded.allocate, self.loaded.copy_blocks, MAX_SEQUENCES, most)
        usable = self.config.usable_vocab_size
        engine = Engine(blocks, self.loaded.compile, self._prefill_chunk, usable, self._reuse_prefixes)
        self._running = blocks, engine
        if (self._lookup or self._draft is not None) and not self.device_info.batch_invariant:
            logger.warning(
                "drafts are not bit-exact on %s, whose sums depend on the rows of a step; invariant=True makes them so",
                self.device_info.name,
            )
        if self._lookup:
            engine.speculate(PromptLookup())
        if self._draft is not None:
            engine.speculate(DraftModel(self._draft._engine, self._draft.max_context, self._draft.config.vocab_size))
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
        min_new_tokens: int = 0,
        no_repeat_ngram_size: int | None = None,
        bad_words: Seq[str | Seq[int]] = (),
        forced_prefix: str | Seq[int] | None = None,
        logit_bias: Mapping[int, float] | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        num_return_sequences: int = 1,
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
                Several completions of a prompt have it, and the numbers behind it.
            stop: texts before which to stop.
            logprobs: how many most likely tokens to report beside the chosen one; None: no log-probabilities.
            min_new_tokens: no end-of-sequence token comes before so many.
            no_repeat_ngram_size: no run of so many tokens comes twice, those of the prompt included.
            bad_words: that never come: texts, as the tokenizer writes them at a beginning and behind a space; or token
                ids.
            forced_prefix: what each completion begins with, a text or token ids.
            logit_bias: numbers to be added to the logits of tokens, by id.
            num_beams: of a beam search (`engine.beams.BeamSearch`); 1: none.
            length_penalty: of a beam search: above 0 favours long texts, below 0 short ones.
            early_stopping: of a beam search: True, False or "never".
            num_return_sequences: completions of each prompt, that share its computation: draws, or the best of a beam
                search, best first.
            chat: put each prompt through the model's chat template, a text as one user message.
            batch: how many are on their way at once; None: `device_info.full_batch`. No completion depends on it.

        Returns:
            One completion for each prompt, in order; or num_return_sequences for each, behind one another.

        Raises:
            RequestError: a bad parameter, an empty or too long prompt, token ids the model does not have.
        """
        check_batch(batch)
        params = SamplingParams.given(
            max_new_tokens=max_new_tokens,
            ignore_eos=ignore_eos,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            logprobs=logprobs,
            min_new_tokens=min_new_tokens,
            no_repeat_ngram_size=no_repeat_ngram_size,
            bad_words=bad_words,
            forced_prefix=forced_prefix,
            logit_bias=logit_bias,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_return_sequences=num_return_sequences,
        )
        units = [self._intake.sequences(prompt, params, seed, chat) for prompt in as_prompts(prompts)]
        self._engine.run(units, self.device_info.full_batch if batch is None else batch)
        return [completion_of(sequence) for unit in units for sequence in unit[:num_return_sequences]]

    def lockstep(self, prompts: Prompt | Iterable[Prompt], *, max_new_tokens: int, width: int = 1) -> Lockstep:
        """Texts that advance together by tokens that you choose, for decoding methods that are not built in.

        Args:
            prompts: as of `generate`.
            max_new_tokens: that a row can take at most.
            width: rows of each prompt.

        Raises:
            RequestError: as `generate`.
        """
        check_counts(width=width)
        if not (prompts := as_prompts(prompts)):
            raise RequestError("there are no prompts; give at least one")
        params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
        ids = [self.encode(prompt) for prompt in prompts]
        members = [self._intake.sequence(tokens, params, 0) for tokens in ids for _ in range(width)]
        return Lockstep(self._engine, members, width, self.config.vocab_size)

    def stream(self, prompt: Prompt, *, chat: bool = False, seed: int | None = None, **params: Any) -> Stream:
        """The completion of one prompt, piece by piece; the parameters are those of `generate`.

        Raises:
            RequestError: as `generate`; also a model without a tokenizer, which has no text to stream.
        """
        if self.tokenizer is None:
            raise RequestError(f"{self.description} has no tokenizer, so there is no text to stream; use generate")
        return Stream(self._engine, self._only_sequence(prompt, params, seed, chat))

    def submit(self, prompt: Prompt, *, chat: bool = False, seed: int | None = None, **params: Any) -> Handle:
        """Takes in a request that `step` brings forward together with all others; the parameters are as in `generate`.

        Raises:
            RequestError: as `generate`.
        """
        return Handle(self._engine, self._only_sequence(prompt, params, seed, chat))

    def step(self) -> bool:
        """Runs one step of all requests that are on their way: a token for each, or part of its prompt.

        Returns:
            Whether there was anything to run.

        Raises:
            RequestError: the model is closed.
        """
        return self._engine.step()

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
        return self._blocks.max_batch(num_tokens)

    @property
    def fingerprint(self) -> str:
        """Of the model's files, as they are now: the same for the same configuration, weights and tokenizer.

        Random weights of one shape have the same; their `description` tells the seeds apart.

        Raises:
            UnsupportedError: the model came from memory.
        """
        return self._checkpoint.fingerprint(self.config)

    def close(self) -> None:
        """Ends what is still running, and frees the weights and the cache."""
        if self._running is not None:
            self._engine.close()
            self.loaded.free()
        self._opened.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def encode(self, prompt: Prompt, chat: bool = False) -> list[int]:
        """The token ids of a prompt, checked.

        Raises:
            RequestError: a text without a tokenizer, no tokens, or ids the model does not have.
        """
        return self._intake.encode(prompt, chat)

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

    def _only_sequence(self, prompt: Prompt, params: Mapping[str, Any], seed: int | None, chat: bool) -> Sequence:
        """Of a request that gives some parameters by name; the others are as in `generate`."""
        given = SamplingParams.given(**{"max_new_tokens": MAX_NEW_TOKENS, **params})
        first, *more = self._intake.sequences(prompt, given, seed, chat)
        if more:
            raise RequestError("one completion at a time is streamed or submitted; use generate for beams and several")
        return first
