"""One measured point: every sample, what a device counted, and the figures derived from both."""

from __future__ import annotations

from dataclasses import dataclass, field

from anthesis.bench.operations import OperationKind
from anthesis.bench.statistic import Statistic
from anthesis.bench.subject import Configuration, Device, Model


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """The runs before those that count.

    Attributes:
        run_s: the time of each.
        settled: the last three agree within 5 %, so warming up ended; otherwise it ended at its bound.
    """

    run_s: tuple[float, ...]
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the device counted before the timed runs, and its memory; of rank 0.

    Attributes:
        captures: steps that were captured as graphs, or compiled, while loading and warming up.
        capture_s: seconds that this took.
        compilations: of graphs by the device's own compiler meanwhile; None where it does not count them.
        cpu_fallbacks: operations that the host's processor did for the device meanwhile; None where it does not count.
        peak_memory_bytes: of the device, the most that was held at once until the end of the first timed run; None
            where it does not count.
    """

    captures: int
    capture_s: float
    compilations: int | None
    cpu_fallbacks: int | None
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """What came of the drafts of a run, over all sequences.

    Attributes:
        steps: that gave tokens, the prompt's last one included; a step of several sequences counts for each.
        drafted_tokens: that were verified beside what was computed anyway.
        accepted_tokens: of those, that were right.
        decode_steps: after the last sequence's first token; a step of several sequences counts once.
    """

    steps: int
    drafted_tokens: int
    accepted_tokens: int
    decode_steps: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """The samples of one timed run.

    Attributes:
        total_s: of the whole call.
        token_s: for each sequence the time of each of its tokens; those that one step gave it have the same.
        read_bytes_per_s: one sample for each pass of the bandwidth measurement after the run; none where it can't.
        synchronise_s: waiting for the device after the clock was stopped. A step ends when its tokens are on the host,
            so nothing should be left to do.
        multiply_adds_per_s: the peaks measured after the run, by the kind of the inputs; empty where they are unknown.
        drafts: what came of them; None without speculation.
    """

    total_s: float
    token_s: tuple[tuple[float, ...], ...]
    read_bytes_per_s: tuple[float, ...]
    synchronise_s: float = 0.0
    multiply_adds_per_s: dict[str, float] = field(default_factory=dict)
    drafts: Drafts | None = None


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How much was gained by drafts, of the runs.

    Attributes:
        acceptance: accepted / drafted tokens, of the runs that drafted any; None where none did.
        drafted_tokens: of a run.
        tokens_per_step: generated tokens / steps that gave tokens: what one reading of the weights gives a sequence,
            on average; 1 without drafts.
    """

    acceptance: Statistic | None
    drafted_tokens: Statistic
    tokens_per_step: Statistic


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The figures derived from the samples; docs/measuring.md has every formula.

    Attributes:
        generated_tokens: counted in each run, over all sequences.
        total_s: of the runs.
        first_token_s: of every sequence of every run.
        between_tokens_s: of every sequence of every run, the time of a step shared evenly by the tokens that it gave;
            None with a single token.
        tokens_per_s: generated tokens / total_s, of the runs.
        prefill_tokens_per_s: prompt tokens of all sequences / prefill_s, of the runs.
        decode_tokens_per_s: tokens that came during decode_s / decode_s, of the runs; None with a single token.
    """

    generated_tokens: int
    total_s: Statistic
    first_token_s: Statistic
    between_tokens_s: Statistic | None
    tokens_per_s: Statistic
    prefill_tokens_per_s: Statistic
    decode_tokens_per_s: Statistic | None


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a decode step must read, and how near to the memory's speed it came.

    Attributes:
        weight_bytes_per_step: weights in their kinds, by the program's cost.
        cache_bytes_per_step: of all sequences at the mean context.
        bytes_per_token: both, divided by the tokens that a step gives: one for each sequence, or more by drafts.
        mean_context_tokens: to which the cache's share is computed.
        step_s: decode_s / decode steps, of the runs: new_tokens - 1, or fewer by drafts.
        read_bandwidth_bytes_per_s: of all passes after all runs; None where it was not measured.
        read_bandwidth_note: how it was measured, or why not.
        share_of_bandwidth: the time to read a step's bytes at the median bandwidth measured after the same run, by
            step_s, of the runs; ranks with memory of their own read at the same time. None without a bandwidth.
    """

    weight_bytes_per_step: int
    cache_bytes_per_step: int
    bytes_per_token: float
    mean_context_tokens: int
    step_s: Statistic
    read_bandwidth_bytes_per_s: Statistic | None
    read_bandwidth_note: str
    share_of_bandwidth: Statistic | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The least time that the work can take at the speeds measured between the runs, and how near it came (a roofline).

    A floor is max(bytes / read bandwidth, flops / peak); docs/measuring.md has what is counted.

    Attributes:
        multiply_adds_per_s: measured peaks by the kind of the inputs; empty where they are unknown, and computing
            counts as nothing.
        step_bytes, step_flops: of a decode step, on average.
        step_floor_s: of it, with the median bandwidth of all runs; None without a bandwidth.
        step_bound: "memory" or "compute": which of the two takes longer; None where one of the speeds is unknown.
        share_of_step_floor: step_floor_s / step_s, each run with the bandwidth measured after it.
        prefill_bytes, prefill_flops: of the prompts of all sequences, the weights read once.
        prefill_floor_s, prefill_bound, share_of_prefill_floor: the same of `prefill_s`.
    """

    multiply_adds_per_s: dict[str, float]
    step_bytes: int | None
    step_flops: int | None
    step_floor_s: float | None
    step_bound: str | None
    share_of_step_floor: Statistic | None
    prefill_bytes: int
    prefill_flops: int
    prefill_floor_s: float | None
    prefill_bound: str | None
    share_of_prefill_floor: Statistic | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One point, measured.

    Attributes:
        model, configuration, device: what ran.
        load_s: seconds of loading.
        warmup: the runs before.
        runs: every sample.
        speed: derived from the samples.
        traffic: of the decode steps; None with a single token, which has none.
        speculation: what drafts gained; None without them.
        tokens_sha256: of the tokens of the first run: ids as little-endian int32, sequence after sequence.
        runs_agree: every run generated these tokens.
        process_peak_memory_bytes: the most this process ever held until the end of the first timed run, before any
            bandwidth was measured.
        operations: where a decode step's time goes, counted in a run of its own before the timed ones; None unless
            asked for. Of rank 0.
        ranks_peak_memory_bytes: the same as `process_peak_memory_bytes` of the process of every rank, in rank order.
        counted: by the device; None in results of versions that did not ask.
        invalid: why the figures must not be used: what a timed run held besides the work, or what can't be; nothing
            where they may.
        limit: the least time the work can take; None in results of versions that did not compute it.
        bandwidth_moved: (greatest - least) / median of the bandwidths after the runs; None without two of them.
        marks: what to keep in mind with these figures: a bandwidth that moved by more than 20 %, say.
        first_run_s: the first run of all, which sets things up: to warm up, or the first timed one.
        timed_s: from the beginning of the first timed run to the end of the last, what was done between them included.
        between_s: of that, what was done between the runs: waiting for the device, measuring the bandwidth.
    """

    model: Model
    configuration: Configuration
    device: Device
    load_s: float
    warmup: Warmup
    runs: tuple[Run, ...]
    speed: Speed
    traffic: Traffic | None
    tokens_sha256: str
    runs_agree: bool
    process_peak_memory_bytes: int
    operations: tuple[OperationKind, ...] | None = None
    ranks_peak_memory_bytes: tuple[int, ...] = ()
    counted: Counted | None = None
    invalid: tuple[str, ...] = ()
    limit: Limit | None = None
    bandwidth_moved: float | None = None
    marks: tuple[str, ...] = ()
    first_run_s: float | None = None
    timed_s: float | None = None
    between_s: float | None = None
    speculation: Speculation | None = None
