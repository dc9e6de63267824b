"""Measures one loaded model at one point: warm-up apart, then timed runs with every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from anthesis.bench import audit
from anthesis.bench.counted import intrusions, warming_up
from anthesis.bench.derive import decode_tokens, has_settled, speed, tokens_sha256
from anthesis.bench.drafts import decode_steps, drafts_of, speculation, unverified
from anthesis.bench.limit import limit, work_of
from anthesis.bench.loaded import device_of, model_of
from anthesis.bench.measurement import Measurement, Run, Warmup
from anthesis.bench.operations import measure_operations
from anthesis.bench.request import MAX_RUNS, MAX_TIMES, Request
from anthesis.bench.result import Point
from anthesis.bench.subject import Configuration
from anthesis.bench.traffic import traffic
from anthesis.completion import Completion
from anthesis.devices.device import Counters
from anthesis.errors import AnthesisError, RequestError
from anthesis.llm import LLM, PREFILL_CHUNK
from anthesis.plan.counted import Sequences

DEFAULT_PROMPT = "DeepSpeed is a machine learning framework"
DEFAULT_PROMPT_TOKENS = 7
"""Of a model without a tokenizer: as many as BLOOM's tokenizer makes of the default prompt."""

Progress = Callable[[str, float], None]
"""Told what begins, and which share of the point's work, between 0 and 1, is done by then."""

_WARM_SHARE = 0.3
"""Of the work, by when the timed runs begin: a guess, for progress only."""


def measure(llm: LLM, request: Request, point: Point, progress: Progress = lambda text, done: None) -> Measurement:
    """Measures a loaded model at one point.

    Args:
        llm: loaded as `request` and `point` say, and used by nobody before.
        request: what to run; of what is swept, `point` is looked at.
        point: which of its combinations.
        progress: told what begins.

    Returns:
        The measurement; one whose timed runs held something else is kept, and says so (`Measurement.invalid`).

    Raises:
        RequestError: a prompt the model can't take, or more tokens than fit its context.
        AnthesisError: a run generated another number of tokens than asked for.
    """
    session = Session(llm, request, point)
    session.warm_up(progress)
    while not session.is_enough:
        session.run(progress)
    return session.measurement()


class Session:
    """The same in pieces, for who measures two models in turns: `warm_up`, `run` until `is_enough`, `measurement`.

    Args:
        llm, request, point: as in `measure`.

    Raises:
        RequestError: as `measure`.
    """

    def __init__(self, llm: LLM, request: Request, point: Point) -> None:
        self._llm, self._request, self._point = llm, request, point
        self._text, self._prompt_ids = _prompt(llm, request, point)
        _check_context(llm, len(self._prompt_ids), request.max_new_tokens)
        self._device = llm.loaded.device
        self._warmup_s: list[float] = []
        self._runs: list[Run] = []
        self._steps: list[list[Sequences]] = []
        self._counted: list[tuple[Counters, Counters]] = []
        self._fingerprints: list[str] = []
        self._span: tuple[float, float] | None = None
        self._between_s = 0.0

    def warm_up(self, progress: Progress = lambda text, done: None) -> None:
        """Runs like those that count, until the last three agree or there were `request.warmup` of them."""
        most = self._request.warmup
        while len(self._warmup_s) < most and not has_settled(self._warmup_s):
            number = len(self._warmup_s) + 1
            progress(f"warm-up {number} of at most {most}", _WARM_SHARE * (number - 1) / most)
            self._warmup_s.append(self._once()[0])
        self._operations = None
        if self._request.operations:  # first, since it may be refused
            progress("once with counters", _WARM_SHARE)
            self._operations = measure_operations(
                self._llm, self._prompt_ids, self._point.batch, self._request.max_new_tokens
            )
        self._warm = self._device.counters()

    @property
    def is_enough(self) -> bool:
        """There are as many timed runs, and they took as long, as was asked for; or there are very many."""
        count, asked = len(self._runs), self._request
        times = count * self._point.batch * asked.max_new_tokens
        return count >= asked.runs and (self._total_s >= asked.min_s or count >= MAX_RUNS or times >= MAX_TIMES)

    @property
    def _total_s(self) -> float:
        return sum(run.total_s for run in self._runs)

    def run(self, progress: Progress = lambda text, done: None) -> float:
        """One timed run, and what is measured after it; the run's seconds."""
        done = min(len(self._runs) / self._request.runs, self._total_s / (self._request.min_s or 1e-9))
        progress(f"run {len(self._runs) + 1}", _WARM_SHARE + (1 - _WARM_SHARE) * min(1.0, done))
        before = self._device.counters()
        self._device.synchronize()
        begin = time.perf_counter()
        total_s, completions, steps = self._once()
        end = time.perf_counter()
        self._device.synchronize()
        synchronise_s = time.perf_counter() - end
        if self._span is None:
            self._span = begin, begin
        self._between_s += begin - self._span[1]
        self._span = self._span[0], end
        after = self._device.counters()
        self._counted.append((before, after))
        run = Run(
            total_s=total_s,
            token_s=tuple(tuple(round(time_s, 9) for time_s in c.timing.token_s) for c in completions),
            read_bytes_per_s=(),
            synchronise_s=synchronise_s,
            drafts=drafts_of(completions, steps, len(self._prompt_ids)) if steps else None,
        )
        self._steps.append(steps)
        if not self._runs:  # before a buffer of ours is in it
            self._peak, self._device_peak = self._llm.loaded.peak_memory_bytes(), after.memory_bytes
            observed = decode_steps(steps, len(self._prompt_ids)) if steps else None
            self._work = work_of(self._llm, run, len(self._prompt_ids), self._request.max_new_tokens, observed)
        bandwidth = self._device.read_bandwidth(self._work.bytes_of_step)
        self._note = bandwidth.note
        peaks = dict(self._device.multiply_add_peaks())
        self._runs.append(
            replace(run, read_bytes_per_s=tuple(map(round, bandwidth.samples)), multiply_adds_per_s=peaks)
        )
        self._fingerprints.append(tokens_sha256([c.token_ids for c in completions]))
        return total_s

    def measurement(self) -> Measurement:
        """What was found; after one run or more."""
        llm, request, runs, prompt_tokens = self._llm, self._request, self._runs, len(self._prompt_ids)
        assert self._span is not None, "measurement() comes after run()"
        works = [
            self._work.with_decode(decode_steps(steps, prompt_tokens), decode_tokens(run)) if steps else self._work
            for run, steps in zip(runs, self._steps, strict=True)
        ]
        warmup = Warmup(run_s=tuple(self._warmup_s), settled=has_settled(self._warmup_s))
        found = speed(runs, prompt_tokens)
        timed_s = self._span[1] - self._span[0]
        moved = audit.bandwidth_moved(runs)
        runs_agree = len(set(self._fingerprints)) == 1
        programs = llm.loaded.programs("argmax")
        return Measurement(
            model=model_of(llm),
            configuration=Configuration(
                prompt=self._text,
                prompt_token_ids=tuple(self._prompt_ids),
                new_tokens=request.max_new_tokens,
                ignore_eos=True,
                temperature=0.0,
                pp=request.pp,
                threads=request.threads,
                max_context=llm.max_context,
                prefill_chunk=request.prefill_chunk or PREFILL_CHUNK,
                seed=request.seed,
                speculate=request.speculate,
            ),
            device=device_of(llm),
            load_s=llm.load_s,
            warmup=warmup,
            runs=tuple(runs),
            speed=found,
            traffic=traffic(works, programs, runs, self._note),
            tokens_sha256=self._fingerprints[0],
            runs_agree=runs_agree,
            process_peak_memory_bytes=self._peak[0],
            ranks_peak_memory_bytes=self._peak,
            operations=self._operations,
            counted=warming_up(Counters(), self._warm, self._device_peak),
            invalid=(
                *intrusions(self._counted),
                *audit.still_at_work(runs),
                *audit.too_fast(works, runs),
                *audit.unaccounted(runs, timed_s, self._between_s),
                *audit.miscounted(runs, found, self._point.batch, request.max_new_tokens),
                *audit.wrong_rates(runs, found, prompt_tokens),
                *unverified(runs, self._steps, prompt_tokens),
                *audit.idle_ends(runs),
                *audit.wrong_bytes(programs, self._point.batch),
            ),
            limit=limit(works, runs),
            bandwidth_moved=moved,
            marks=audit.marks(warmup, moved, runs_agree, self._total_s, request.min_s),
            first_run_s=(self._warmup_s or [runs[0].total_s])[0],
            timed_s=timed_s,
            between_s=self._between_s,
            speculation=speculation(runs),
        )

    def _once(self) -> tuple[float, list[Completion], list[Sequences]]:
        """Seconds, completions, and with drafts the steps, whose sizes nothing else tells."""
        steps: list[Sequences] = []
        with_drafts = self._request.speculate is not None
        if with_drafts:
            self._llm.watch(lambda finish, sequences, *_: steps.append(sequences))
        begin = time.perf_counter()
        completions = self._llm.generate(
            [self._prompt_ids] * self._point.batch,
            max_new_tokens=self._request.max_new_tokens,
            ignore_eos=True,
            batch=self._point.batch,
        )
        seconds = time.perf_counter() - begin
        if with_drafts:
            self._llm.watch(None)
        _check_count(completions, self._request.max_new_tokens)
        return seconds, completions, steps


def _prompt(llm: LLM, request: Request, point: Point) -> tuple[str | None, list[int]]:
    """The text, if there is one, and the ids of one sequence."""
    made_up = point.prompt_tokens
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
