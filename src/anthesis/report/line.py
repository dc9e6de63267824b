"""One line of a report: what a `bench` row and a `complete` summary have in common, and what each has alone.

This is the one schema of all formats: a column of csv and a key of json is an attribute of `Line`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anthesis.bench.measurement import Measurement
from anthesis.bench.result import KIND as BENCH
from anthesis.bench.result import Report, Row
from anthesis.dataset.summary import KIND as COMPLETE
from anthesis.dataset.summary import Counts, Summary, summary_path
from anthesis.errors import RequestError, naming
from anthesis.records import read_document


@dataclass(frozen=True, kw_only=True)
class Line:
    """A measured point, or a completed data set; None where a figure has no meaning or is not known.

    Attributes:
        source: the file it comes from.
        kind: "bench" or "complete".
        started_at: UTC, ISO 8601.
        model: what ran.
        is_random: its weights are made up.
        device, processor: where.
        weights, cache: kinds of the matrices, and dtype of the key-value cache.
        tp: devices among which the model was split.
        batch: sequences at once.
        prompt_tokens, new_tokens: asked for, for each sequence.
        generated_tokens: counted: in a run of all sequences, or for the whole data set.
        first_token_s: median.
        token_s, token_p95_s: from one token to the next: median, and what 95 % stay below.
        total_s: median of the runs; for a data set the sum of its sessions.
        prefill_tokens_per_s, decode_tokens_per_s: medians of the runs.
        tokens_per_s: generated tokens / total_s; of the runs the median.
        share_of_bandwidth: median.
        rows, failed_rows: of a data set.
        timed_rows: of these, those that total_s and the rates are of: without what a killed session did after its last
            note.
        rows_per_s: timed_rows / total_s.
        finished: a data set is whole.
        peak_memory_bytes: of the process.
        error: why there is no measurement.
        invalid: why its figures must not be used.
    """

    source: str
    kind: str
    started_at: str | None
    model: str | None
    is_random: bool | None = None
    device: str | None = None
    processor: str | None = None
    weights: str | None = None
    cache: str | None = None
    tp: int | None = None
    batch: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    generated_tokens: int | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    token_p95_s: float | None = None
    total_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    share_of_bandwidth: float | None = None
    rows: int | None = None
    failed_rows: int | None = None
    timed_rows: int | None = None
    rows_per_s: float | None = None
    finished: bool | None = None
    peak_memory_bytes: int | None = None
    error: str | None = None
    invalid: str | None = None

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, float) and not math.isfinite(value):  # of figures near the ends of what a float holds
                object.__setattr__(self, name, None)


def read_lines(path: Path) -> list[Line]:
    """The lines that a result file gives.

    Args:
        path: what `bench -o` wrote, the summary of a data-set run, or its output, beside which the summary stands.

    Raises:
        RequestError: it can't be read, or is neither.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a directory; name a file that bench -o or complete wrote")
    beside = summary_path(path)
    path = beside if beside.is_file() else path
    with naming(path):
        document = read_document(path)
        if document.get("kind") == COMPLETE:
            return [_of_summary(Summary.from_document(document), str(path))]
        if document.get("kind") != BENCH:
            raise RequestError(
                "neither a result of `anthesis bench -o` nor a summary of `anthesis complete`; name such a file"
            )
        report = Report.from_document(document)
    return [_of_row(row, report, str(path)) for row in report.rows]


def _of_row(row: Row, report: Report, source: str) -> Line:
    shared: dict[str, Any] = {
        "source": source,
        "kind": report.kind,
        "started_at": report.started_at,
        "processor": report.machine.processor,
        "tp": row.point.tp,
        "batch": row.point.batch,
    }
    if row.measurement is None:
        model = report.request.get("model")
        return Line(**shared, model=model, weights=row.point.weights, error=row.error)
    return Line(**shared, **_of_measurement(row.measurement))


def _of_measurement(measured: Measurement) -> dict[str, Any]:
    speed, traffic, model = measured.speed, measured.traffic, measured.model
    between, decode = speed.between_tokens_s, speed.decode_tokens_per_s
    share = None if traffic is None else traffic.share_of_bandwidth
    return {
        "model": model.description,
        "is_random": model.is_random,
        "device": measured.device.name,
        "weights": "+".join(model.weight_kinds),
        "cache": model.cache_dtype,
        "prompt_tokens": len(measured.configuration.prompt_token_ids),
        "new_tokens": measured.configuration.new_tokens,
        "generated_tokens": speed.generated_tokens,
        "first_token_s": speed.first_token_s.median,
        "token_s": None if between is None else between.median,
        "token_p95_s": None if between is None else between.p95,
        "total_s": speed.total_s.median,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s.median,
        "decode_tokens_per_s": None if decode is None else decode.median,
        "tokens_per_s": speed.tokens_per_s.median,
        "share_of_bandwidth": None if share is None else share.median,
        "peak_memory_bytes": measured.process_peak_memory_bytes,
        "invalid": "; ".join(measured.invalid) or None,
    }


def _of_summary(summary: Summary, source: str) -> Line:
    timed = sum((session.counts for session in summary.sessions), Counts())
    run_s = sum(session.run_s for session in summary.sessions)
    last = summary.sessions[-1] if summary.sessions else None
    return Line(
        source=source,
        kind=summary.kind,
        started_at=summary.sessions[0].started_at if summary.sessions else None,
        model=summary.model.description,
        is_random=summary.model.is_random,
        device=summary.device.name,
        processor=summary.machine.processor,
        weights="+".join(summary.model.weight_kinds),
        cache=summary.model.cache_dtype,
        batch=None if last is None else last.batch,
        prompt_tokens=summary.request.get("prompt_tokens"),
        new_tokens=summary.request.get("max_new_tokens"),
        generated_tokens=summary.counts.completion_tokens,
        total_s=run_s or None,
        tokens_per_s=timed.completion_tokens / run_s if run_s else None,
        rows=summary.counts.rows,
        failed_rows=summary.counts.failed_rows,
        timed_rows=timed.rows,
        rows_per_s=timed.rows / run_s if run_s else None,
        finished=summary.finished,
        peak_memory_bytes=max((session.process_peak_memory_bytes for session in summary.sessions), default=None),
    )
