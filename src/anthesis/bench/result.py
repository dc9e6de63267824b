"""Results that describe themselves: what was asked for, what ran, every sample, and the figures derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anthesis.bench.operations import OperationKind
from anthesis.bench.statistic import Statistic
from anthesis.errors import naming
from anthesis.records import from_result, read_document, to_document

SCHEMA_VERSION = 1
KIND = "bench"

CLOCKS: Mapping[str, str] = {
    "load_s": "opening the device, the checkpoint and the tokenizer, and packing every weight",
    "total_s": "around one call of LLM.generate with the prompts as token ids: making the requests, prefill, every "
    "token step, choosing tokens, detokenising, making the results; tokenising is outside",
    "token_s": "of each token, from the moment its request was made (after tokenising) until the host had the token",
    "first_token_s": "the first of token_s, of every sequence of every run",
    "between_tokens_s": "differences of neighbouring token_s, of every sequence of every run",
    "prefill_s": "until the last sequence of the run had its first token",
    "decode_s": "from then until the last token of the run",
    "capture_s": "capturing steps as graphs, or compiling them, before the timed runs, within those of the warm-up",
    "read_bandwidth": "reading a buffer in the memory that holds the weights, right after each timed run",
}
"""What is inside each clock; stored in every result."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What differs from row to row of a sweep.

    Attributes:
        batch: sequences B at once.
        weights: as asked for, "native" or a kind.
        tp: ranks W among which every layer was split.
    """

    batch: int
    weights: str
    tp: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What was measured.

    Attributes:
        description: for people.
        is_random: the weights are made up.
        family: of the model.
        parameters: elements of all weights.
        weight_kinds: kinds of the matrices, as loaded.
        cache_dtype: of the key-value cache.
    """

    description: str
    is_random: bool
    family: str
    parameters: int
    weight_kinds: tuple[str, ...]
    cache_dtype: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How it was run, defaults filled in.

    Attributes:
        prompt: the text, or None where token ids were made up.
        prompt_token_ids: of each sequence.
        new_tokens: asked for, for each sequence.
        ignore_eos: always true: every run generates exactly `new_tokens`.
        temperature: always 0: greedy.
        threads: of each rank, asked for; or None for the device's choice.
        max_context: of the model or as asked for; None: without limit.
        prefill_chunk: most prompt rows in one step.
        seed: of random weights.
        pp: stages of layers.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    new_tokens: int
    ignore_eos: bool
    temperature: float
    threads: int | None
    max_context: int | None
    prefill_chunk: int
    seed: int
    pp: int = 1


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it ran.

    Attributes:
        name: as in `--device`, never "auto".
        description: of the processor or card.
        arithmetic: dtypes of sums and inputs.
        batch_invariant: a prompt's logits are the same bits in any batch.
    """

    name: str
    description: str
    arithmetic: str
    batch_invariant: bool


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
class Run:
    """The samples of one timed run.

    Attributes:
        total_s: of the whole call.
        token_s: for each sequence the time of each of its tokens.
        read_bytes_per_s: one sample for each pass of the bandwidth measurement after the run; none where there is none.
    """

    total_s: float
    token_s: tuple[tuple[float, ...], ...]
    read_bytes_per_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The figures derived from the samples; docs/measuring.md has every formula.

    Attributes:
        generated_tokens: counted in each run, over all sequences.
        total_s: of the runs.
        first_token_s: of every sequence of every run.
        between_tokens_s: of every sequence of every run; None with a single token.
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
        bytes_per_token: both, divided by the sequences.
        mean_context_tokens: to which the cache's share is computed.
        step_s: decode_s / (new_tokens - 1), of the runs.
        read_bandwidth_bytes_per_s: of all passes after all runs; None where it was not measured.
        read_bandwidth_note: how it was measured, or why not.
        share_of_bandwidth: bytes per step / step_s / the median bandwidth measured after the same run, of the runs;
            None without a bandwidth. Above 1 where weights stay in a cache.
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
class Measurement:
    """One point, measured.

    Attributes:
        model, configuration, device: what ran.
        load_s: seconds of loading, once for all points that share model, weights and devices.
        warmup: the runs before.
        runs: every sample.
        speed: derived from the samples.
        traffic: of the decode steps; None with a single token, which has none.
        tokens_sha256: of the tokens of the first run: ids as little-endian int32, sequence after sequence.
        runs_agree: every run generated these tokens.
        process_peak_memory_bytes: the most this process ever held until the end of the first timed run, before any
            bandwidth was measured for this point; earlier points of a sweep count.
        operations: where a decode step's time goes, counted in a run of its own after the timed ones; None unless asked
            for. Of rank 0.
        ranks_peak_memory_bytes: the same as `process_peak_memory_bytes` of the process of every rank, in rank order.
        counted: by the device; None in results of versions that did not ask.
        invalid: why the figures must not be used: what a timed run held besides the work; nothing where they may.
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """A point with its measurement, or with the error that prevented it.

    Attributes:
        point: what was asked for.
        measurement: or None.
        error: one line, or None.
    """

    point: Point
    measurement: Measurement | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The computer.

    Attributes:
        processor: its name.
        usable_cores: by affinity and control groups.
        memory_bytes: installed.
        available_memory_bytes: when the measurement began.
        os: name and version.
    """

    processor: str
    usable_cores: int
    memory_bytes: int
    available_memory_bytes: int
    os: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The document of a whole `bench`.

    Attributes:
        started_at: UTC, ISO 8601.
        request: as it was made.
        machine: the computer.
        versions: of anthesis, Python and NumPy, and of what else the device computes with.
        clocks: what is inside each of them.
        rows: one for each point.
        schema_version: of this document.
        kind: "bench".
    """

    started_at: str
    request: dict[str, Any]
    machine: Machine
    versions: dict[str, str]
    clocks: dict[str, str]
    rows: tuple[Row, ...]
    schema_version: int = SCHEMA_VERSION
    kind: str = KIND

    def document(self) -> dict[str, Any]:
        """The report as JSON knows it; `Report.from_document` is the way back."""
        document: dict[str, Any] = to_document(self)
        return document

    @staticmethod
    def from_document(document: Any) -> Report:
        """A report from its JSON document.

        Raises:
            RequestError: it is no result of `bench`, of another schema version, or incomplete.
        """
        otherwise = "measure again, or read it"
        return from_result(Report, document, kind=KIND, version=SCHEMA_VERSION, what="result", otherwise=otherwise)


def read_report(path: Path) -> Report:
    """Reads a file that `bench -o` wrote.

    Raises:
        RequestError: it can't be read, or is no such file.
    """
    with naming(path):
        return Report.from_document(read_document(path))
