"""Measures one loaded model: warm-up apart, then timed runs with every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from anthesis.bench.counted import intrusions, warming_up
from anthesis.bench.derive import has_settled, speed, tokens_sha256, traffic
from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.operations import measure_operations
from anthesis.bench.result import Configuration, Measurement, Run, Warmup
from anthesis.completion import Completion
from anthesis.devices.device import Counters
from anthesis.engine.blocks import check_batch
from anthesis.errors import AnthesisError, RequestError, check_counts
from anthesis.llm import LLM, PREFILL_CHUNK
from anthesis.quantize import weight_kind

DEFAULT_PROMPT = "DeepSpeed is a machine learning framework"
DEFAULT_PROMPT_TOKENS = 7
"""Of a model without a tokenizer: as many as BLOOM's tokenizer makes of the default prompt."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. `batch`, `weights` and `tp` are swept; the others are arguments of `LLM` and `generate`.

    Attributes:
        model: as in `LLM`.
        prompt: the text; None: the default one, or, without a tokenizer, 7 made-up tokens.
        prompt_tokens: a made-up prompt of so many tokens instead.
        max_new_tokens: generated for each sequence, exactly.
        batch: sequences at once.
        weights: kinds of the matrices.
        tp: ranks among which every layer is split.
        pp, device, threads, max_context, cache, cache_memory, prefill_chunk, invariant, seed: as in `LLM`.
        warmup: most runs before those that count; fewer where the last three agree within 5 %.
        runs: that count.
        operations: run once more with counters, and tell where the time of a decode step goes.

    Raises:
        RequestError: a number out of its range, an unknown kind of weights, nothing to sweep, or two prompts.
    """

    model: str | None = None
    prompt: str | None = None
    prompt_tokens: int | None = None
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
    warmup: int = 5
    runs: int = 5
    operations: bool = False

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_tokens is not None:
            raise RequestError("a text and a number of prompt tokens are two prompts; give one of them")
        numbers = {"max_new_tokens": (self.max_new_tokens,), "runs": (self.runs,), "batch": self.batch, "tp": self.tp}
        if self.prompt_tokens is not None:
            numbers["prompt_tokens"] = (self.prompt_tokens,)
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


def measure(
    llm: LLM,
    request: Request,
    batch: int,
    progress: Progress = lambda text: None,
    since: Counters | None = None,
) -> Measurement:
    """Measures a loaded model at one batch size.

    Args:
        llm: loaded as `request` says.
        request: what to run; its sweep is not looked at.
        batch: sequences B, all with the same prompt.
        progress: told what begins.
        since: what the device had counted when what belongs to this measurement began; None: it was just opened.

    Returns:
        The measurement; one whose timed runs held something else is kept, and says so (`Measurement.invalid`).

    Raises:
        RequestError: a prompt the model can't take, or more tokens than fit its context.
        AnthesisError: a run generated another number of tokens than asked for.
    """
    text, prompt_ids = _prompt(llm, request)
    _check_context(llm, len(prompt_ids), request.max_new_tokens)

    def once() -> tuple[float, list[Completion]]:
        begin = time.perf_counter()
        completions = llm.generate(
            [prompt_ids] * batch, max_new_tokens=request.max_new_tokens, ignore_eos=True, batch=batch
        )
        seconds = time.perf_counter() - begin
        _check_count(completions, request.max_new_tokens)
        return seconds, completions

    warmup_s: list[float] = []
    while len(warmup_s) < request.warmup and not has_settled(warmup_s):
        progress(f"warm-up {len(warmup_s) + 1} of at most {request.warmup}")
        warmup_s.append(once()[0])

    operations = None
    if request.operations:  # first, since it may be refused
        progress("once with counters")
        operations = measure_operations(llm, prompt_ids, batch, request.max_new_tokens)

    device = llm.loaded.device
    warm = device.counters()
    note = ""
    runs: list[Run] = []
    counted: list[tuple[Counters, Counters]] = []
    device_peak: int | None = None
    fingerprints: list[str] = []
    peak: tuple[int, ...] = ()
    for number in range(1, request.runs + 1):
        progress(f"run {number} of {request.runs}")
        before = device.counters()
        total_s, completions = once()
        after = device.counters()
        counted.append((before, after))
        if number == 1:  # before a buffer of ours is in it
            peak, device_peak = llm.loaded.peak_memory_bytes(), after.memory_bytes
        bandwidth = device.read_bandwidth()
        note = bandwidth.note
        token_s = tuple(c.timing.token_s for c in completions)
        runs.append(Run(total_s=total_s, token_s=token_s, read_bytes_per_s=bandwidth.samples))
        fingerprints.append(tokens_sha256([c.token_ids for c in completions]))

    return Measurement(
        model=model_of(llm),
        configuration=Configuration(
            prompt=text,
            prompt_token_ids=tuple(prompt_ids),
            new_tokens=request.max_new_tokens,
            ignore_eos=True,
            temperature=0.0,
            pp=request.pp,
            threads=request.threads,
            max_context=llm.max_context,
            prefill_chunk=request.prefill_chunk or PREFILL_CHUNK,
            seed=request.seed,
        ),
        device=device_of(llm),
        load_s=llm.load_s,
        warmup=Warmup(run_s=tuple(warmup_s), settled=has_settled(warmup_s)),
        runs=tuple(runs),
        speed=speed(runs, len(prompt_ids)),
        traffic=traffic(runs, llm.loaded.programs("argmax"), len(prompt_ids), request.max_new_tokens, note),
        tokens_sha256=fingerprints[0],
        runs_agree=len(set(fingerprints)) == 1,
        process_peak_memory_bytes=peak[0],
        ranks_peak_memory_bytes=peak,
        operations=operations,
        counted=warming_up(since or Counters(), warm, device_peak),
        invalid=intrusions(counted),
    )


def _prompt(llm: LLM, request: Request) -> tuple[str | None, list[int]]:
    """The text, if there is one, and the ids of one sequence."""
    made_up = request.prompt_tokens
    if made_up is None and request.prompt is None and llm.tokenizer is None:
        made_up = DEFAULT_PROMPT_TOKENS
    if made_up is not None:
        return None, llm.made_up_prompt(made_up)
    if llm.tokenizer is None:
        raise RequestError(f"{llm.description} has no tokenizer; give a made-up prompt with --prompt-tokens")
    text = DEFAULT_PROMPT if request.prompt is None else request.prompt
    return text, llm.encode(text)


def _check_context(llm: LLM, prompt_tokens: int, new_tokens: int) -> None:
    """Refuses before minutes of running what would end before its last token."""
    if llm.max_context is not None and prompt_tokens + new_tokens > llm.max_context:
        raise RequestError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the context of {llm.max_context}; "
            f"generate at most {max(0, llm.max_context - prompt_tokens)}, or take a shorter prompt or more max_context"
        )


def _check_count(completions: list[Completion], wanted: int) -> None:
    for completion in completions:
        count = len(completion.token_ids)
        if count != wanted:
            raise AnthesisError(
                f"a run generated {count} tokens instead of {wanted} (it ended by: {completion.finish_reason}), so its "
                "time is of something else; ask for fewer tokens, or more context"
            )
