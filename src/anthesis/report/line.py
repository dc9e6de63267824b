"""One line of a report: what a `bench` row, a `complete` summary and a published figure have in common.

This is the one schema of all formats: a column of csv and a key of json is an attribute of `Line`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from anthesis.errors import printable

COMPLETE = "complete"
PUBLISHED = "published"

_SHAPE = re.compile(r"random weights in the shape of (.+) \(seed \d+\)$")
"""As a checkpoint of random weights describes itself."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A measured point, a completed data set, or a published figure; None where it has no meaning or is not known.

    Attributes:
        number: of the line in the report, from 1 on: "#3" in tables.
        kind: "bench", "complete", or "published", which was measured by others.
        source: the file it comes from, or the address where it was published.
        source_sha256: of all bytes of the file.
        started_at: UTC, ISO 8601; of what is published, the day it was.
        model: what ran.
        model_source, fingerprint: of its weights, as in results: lines with the same are of one model.
        is_random: its weights are made up.
        parameters: elements of all weights.
        device: as in `--device`; of what is published, its name.
        device_description: of the processor or card.
        processor: of the machine.
        weights, cache: kinds of the matrices, and dtype of the key-value cache.
        tp, pp: ranks among which each layer was split, and stages of layers.
        devices: among which the model was split, tp x pp; of a data set in its last session.
        batch: sequences at once.
        prompt: the text; None where tokens were made up.
        prompt_tokens, new_tokens: asked for, for each sequence.
        generated_tokens: counted: in a run of all sequences, or for the whole data set.
        runs: that were timed.
        speculate: where drafts came from: "lookup" or a model; None: there were none.
        acceptance, drafted_tokens: the share of drafted tokens that were right, and how many a run drafted; medians.
        tokens_per_step: that a reading of the weights gave a sequence, on average; median.
        first_token_s: median.
        token_s, token_p95_s: from one token to the next: median, and what 95 % stay below.
        total_s, total_p5_s, total_p95_s: of the runs: median, and what 5 % and 95 % stay below; of a data set the sum
            of its sessions.
        total_standard_deviation_s: of the runs; None of a single one.
        latency_s: total_s / new_tokens: what a token of a sequence takes, its share of the prompt included.
        prefill_tokens_per_s, decode_tokens_per_s: medians of the runs.
        tokens_per_s: generated tokens / total_s; of the runs the median.
        share_of_bandwidth: median.
        share_of_step_floor, step_bound: how near a decode step came to the least time it can take, and what bounds it:
            "memory" or "compute".
        share_of_prefill_floor, prefill_bound: the same of the prompts.
        step_s, step_bytes, step_flops: of a decode step of all sequences.
        prefill_s, prefill_bytes, prefill_flops: of the prompts of all sequences.
        read_bandwidth_bytes_per_s: measured between the runs, median.
        bandwidth_moved: (greatest - least) / median of these.
        multiply_adds_per_s: measured peaks, by the kind of the inputs.
        load_s, first_run_s, captures, capture_s: what came before the timed runs.
        peak_memory_bytes: the most the processes of all ranks ever held, together.
        device_peak_memory_bytes: of the device of rank 0.
        rows, failed_rows: of a data set.
        timed_rows: of these, those that total_s and the rates are of: without what a killed session did after its last
            note.
        rows_per_s: timed_rows / total_s.
        data_prompt_tokens: of all rows of a data set.
        reused_tokens: of these, that were not computed: rows before them begin alike.
        share_of_limit: of a data set: of the least time that its tokens can take.
        finished: a data set is whole.
        shards: that its sessions worked on; None: each on all rows.
        devices_s: of a data set: seconds of its sessions, each times the devices that it ran on.
        perplexity, perplexity_ratio, mean_kl, greedy_agreement: what the weights cost, by an evaluation in the files.
        quality_against: the weights that the last three are against.
        quality_text: on which text.
        quality_note: why there is none of them, where one should be.
        usd_per_hour, price_source, price_date: of one device.
        usd_per_million_tokens, usd_per_job: of generated tokens, and of total_s.
        price_note: why there are no dollars, where a device has a price.
        times_as_fast_token, times_as_fast: token_s and total_s of the baseline / those of this line.
        turns: with which side of which session it was measured in turns.
        tokens_sha256: of the tokens of the first run.
        command: that measures it again.
        commit, versions: of the software.
        marks: what to keep in mind with its figures.
        variant: which one of several published figures of one point.
        note: what is known, and unknown, of a published figure.
        error: why there is no measurement.
        invalid: why its figures must not be used.
    """

    kind: str
    source: str
    number: int | None = None
    source_sha256: str | None = None
    started_at: str | None = None
    model: str | None = None
    model_source: str | None = None
    fingerprint: str | None = None
    is_random: bool | None = None
    parameters: int | None = None
    device: str | None = None
    device_description: str | None = None
    processor: str | None = None
    weights: str | None = None
    cache: str | None = None
    tp: int | None = None
    pp: int | None = None
    devices: int | None = None
    batch: int | None = None
    prompt: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    generated_tokens: int | None = None
    runs: int | None = None
    speculate: str | None = None
    acceptance: float | None = None
    drafted_tokens: float | None = None
    tokens_per_step: float | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    token_p95_s: float | None = None
    total_s: float | None = None
    total_p5_s: float | None = None
    total_p95_s: float | None = None
    total_standard_deviation_s: float | None = None
    latency_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    share_of_bandwidth: float | None = None
    share_of_step_floor: float | None = None
    step_bound: str | None = None
    share_of_prefill_floor: float | None = None
    prefill_bound: str | None = None
    step_s: float | None = None
    step_bytes: int | None = None
    step_flops: int | None = None
    prefill_s: float | None = None
    prefill_bytes: int | None = None
    prefill_flops: int | None = None
    read_bandwidth_bytes_per_s: float | None = None
    bandwidth_moved: float | None = None
    multiply_adds_per_s: dict[str, float] | None = None
    load_s: float | None = None
    first_run_s: float | None = None
    captures: int | None = None
    capture_s: float | None = None
    peak_memory_bytes: int | None = None
    device_peak_memory_bytes: int | None = None
    rows: int | None = None
    failed_rows: int | None = None
    timed_rows: int | None = None
    rows_per_s: float | None = None
    data_prompt_tokens: int | None = None
    reused_tokens: int | None = None
    share_of_limit: float | None = None
    finished: bool | None = None
    shards: int | None = None
    devices_s: float | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    mean_kl: float | None = None
    greedy_agreement: float | None = None
    quality_against: str | None = None
    quality_text: str | None = None
    quality_note: str | None = None
    usd_per_hour: float | None = None
    price_source: str | None = None
    price_date: str | None = None
    usd_per_million_tokens: float | None = None
    usd_per_job: float | None = None
    price_note: str | None = None
    times_as_fast_token: float | None = None
    times_as_fast: float | None = None
    turns: str | None = None
    tokens_sha256: str | None = None
    command: str | None = None
    commit: str | None = None
    versions: str | None = None
    marks: str | None = None
    variant: str | None = None
    note: str | None = None
    error: str | None = None
    invalid: str | None = None

    def __post_init__(self) -> None:
        keep_finite(self)

    @property
    def is_published(self) -> bool:
        """Measured by others."""
        return self.kind == PUBLISHED

    @property
    def name(self) -> str | None:
        """The model in few words: random weights by the name of their shape."""
        shape = _SHAPE.match(self.model or "")
        return self.model if shape is None else f"{shape[1]}, random"

    @property
    def title(self) -> str:
        """The line in words: its number, its model, and what tells it apart."""
        return f"#{self.number} {printable(self.name or '', 60)}, {printable(self.label, 100)}"

    @property
    def is_usable(self) -> bool:
        """It has figures, and they may be compared, ranked and priced."""
        return self.total_s is not None and self.total_s > 0 and self.error is None and self.invalid is None

    @property
    def has_latency(self) -> bool:
        """It is a point with a time for each token, and not a data set."""
        return self.is_usable and self.latency_s is not None and self.latency_s > 0

    @property
    def is_on_processor(self) -> bool:
        """Its device is the processor of the machine, which its ranks share."""
        return bool(self.processor) and (self.device_description or "").startswith(self.processor or "")

    @property
    def place(self) -> str | None:
        """Where it ran, as people call it: the card, or the processor of a device that is the machine's own."""
        described = (self.device_description or "").partition(",")[0]
        return described or self.processor or self.device

    @property
    def label(self) -> str:
        """What tells the line apart in a few words: weights, devices, batch and drafts."""
        parts = [
            self.weights or "",
            f"{self.devices} devices" if (self.devices or 1) > 1 else "",
            f"batch {self.batch}" if self.batch else "",
            f"drafts by {self.speculate}" if self.speculate else "",
            self.place or "",
        ]
        return ", ".join(part for part in parts if part)


def keep_finite(record: Any) -> None:
    """Makes None of the figures of a new dataclass that are no number, or near the ends of what a float holds."""
    for name, value in list(vars(record).items()):
        if isinstance(value, float) and not math.isfinite(value):
            object.__setattr__(record, name, None)
        elif isinstance(value, dict):
            object.__setattr__(record, name, {key: item for key, item in value.items() if math.isfinite(item)})
