"""The line of a row that `bench` measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from anthesis.bench.command import command_of
from anthesis.bench.measurement import Measurement
from anthesis.bench.request import Request
from anthesis.bench.result import UNFINISHED, Point, Report, Row
from anthesis.bench.statistic import Statistic
from anthesis.records import from_document
from anthesis.report.line import Line


def line_of_row(row: Row, report: Report, source: str, sha256: str) -> Line:
    """The line of a row.

    Args:
        row: measured, or failed.
        report: that it is of.
        source: the file's name.
        sha256: of the file.
    """
    pp = report.request.get("pp")
    stages = pp if isinstance(pp, int) and not isinstance(pp, bool) else 1
    commit, versions = report.commit, report.versions
    if row.turns is not None and row.turns.versions:
        # the other side may be another installation
        commit, versions = row.turns.commit, row.turns.versions
    shared: dict[str, Any] = {
        "kind": report.kind,
        "source": source,
        "source_sha256": sha256,
        "started_at": row.started_at or report.started_at,
        "processor": report.machine.processor,
        "tp": row.point.tp,
        "pp": stages,
        "devices": row.point.tp * stages,
        "batch": row.point.batch,
        "turns": None if row.turns is None else f"{row.turns.side} of {row.turns.session}",
        "command": row.command or _rebuilt_command(report.request, row.point),
        "commit": commit,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    unfinished = [] if report.finished else [UNFINISHED]
    if row.measurement is None:
        new_tokens = report.request.get("max_new_tokens")
        return Line(
            **shared,
            **_asked_for(report),
            weights=row.point.weights,
            prompt_tokens=row.point.prompt_tokens,
            new_tokens=new_tokens if isinstance(new_tokens, int) else None,
            error=row.error or "no measurement, and no reason was given",
            marks="; ".join(unfinished) or None,
        )
    found = row.measurement
    marks = [*(found.marks or _doubts(found)), *unfinished]
    return Line(**shared, **_subject(found), **_speed(found), **_limit(found), marks="; ".join(marks) or None)


def _rebuilt_command(request: dict[str, Any], point: Point) -> str | None:
    """The command of a row, for results of versions that did not say it; None where the request is no longer one."""
    made_up = request.get("prompt_tokens")
    if isinstance(made_up, int):  # one number, before it could be swept
        point = replace(point, prompt_tokens=made_up)
        request = {**request, "prompt_tokens": [made_up]}
    try:
        return command_of(from_document(Request, request, "the request"), point)
    except ValueError:
        return None


def _asked_for(report: Report) -> dict[str, Any]:
    """Model and device of a row that failed: those of the rows beside it, or as they were asked for."""
    measured = next((row.measurement for row in report.rows if row.measurement is not None), None)
    if measured is not None:
        names = ("model", "model_source", "fingerprint", "is_random", "parameters", "device", "device_description")
        subject = _subject(measured)
        return {name: subject[name] for name in names}
    model, device = report.request.get("model"), report.request.get("device")
    return {
        "model": model if isinstance(model, str) else None,
        "device": device if isinstance(device, str) and device != "auto" else None,
    }


def _subject(measured: Measurement) -> dict[str, Any]:
    model, configuration = measured.model, measured.configuration
    counted = measured.counted
    return {
        "model": model.description,
        "model_source": model.source,
        "fingerprint": model.fingerprint,
        "is_random": model.is_random,
        "parameters": model.parameters,
        "device": measured.device.name,
        "device_description": measured.device.description,
        "weights": "+".join(model.weight_kinds),
        "cache": model.cache_dtype,
        "prompt": configuration.prompt,
        "prompt_tokens": len(configuration.prompt_token_ids),
        "new_tokens": configuration.new_tokens,
        "runs": len(measured.runs),
        "speculate": configuration.speculate,
        "load_s": measured.load_s,
        "first_run_s": _first_run_s(measured),
        "captures": None if counted is None else counted.captures,
        "capture_s": None if counted is None else counted.capture_s,
        "peak_memory_bytes": sum(measured.ranks_peak_memory_bytes) or measured.process_peak_memory_bytes,
        "device_peak_memory_bytes": None if counted is None else counted.peak_memory_bytes,
        "tokens_sha256": measured.tokens_sha256,
        "invalid": "; ".join(measured.invalid) or None,
    }


def _first_run_s(measured: Measurement) -> float | None:
    """Of the first run of all; results of versions that did not say have it among those to warm up."""
    if measured.first_run_s is not None:
        return measured.first_run_s
    return measured.warmup.run_s[0] if measured.warmup.run_s else None


def _doubts(measured: Measurement) -> list[str]:
    """What results of versions without marks say in other words."""
    doubts = [] if measured.warmup.settled else ["warming up did not settle"]
    return doubts if measured.runs_agree else [*doubts, "the runs did not all generate the same tokens"]


def _speed(measured: Measurement) -> dict[str, Any]:
    speed, between, drafts = measured.speed, measured.speed.between_tokens_s, measured.speculation
    total_s = [run.total_s for run in measured.runs]
    least, most = np.percentile(total_s, [5, 95]).tolist() if total_s else (None, None)
    return {
        "generated_tokens": speed.generated_tokens,
        "acceptance": None if drafts is None else _median(drafts.acceptance),
        "drafted_tokens": None if drafts is None else drafts.drafted_tokens.median,
        "tokens_per_step": None if drafts is None else drafts.tokens_per_step.median,
        "first_token_s": speed.first_token_s.median,
        "token_s": _median(between),
        "token_p95_s": None if between is None else between.p95,
        "total_s": speed.total_s.median,
        "total_p5_s": least,
        "total_p95_s": most,
        "total_standard_deviation_s": speed.total_s.standard_deviation,
        "latency_s": _ratio(speed.total_s.median, measured.configuration.new_tokens),
        "prefill_tokens_per_s": speed.prefill_tokens_per_s.median,
        "decode_tokens_per_s": _median(speed.decode_tokens_per_s),
        "tokens_per_s": speed.tokens_per_s.median,
    }


def _limit(measured: Measurement) -> dict[str, Any]:
    traffic, limit = measured.traffic, measured.limit
    found: dict[str, Any] = {"bandwidth_moved": measured.bandwidth_moved}
    if traffic is not None:
        found["share_of_bandwidth"] = _median(traffic.share_of_bandwidth)
        found["step_s"] = traffic.step_s.median
        found["read_bandwidth_bytes_per_s"] = _median(traffic.read_bandwidth_bytes_per_s)
    if limit is not None:
        prompts = len(measured.configuration.prompt_token_ids) * (len(measured.runs[0].token_s) if measured.runs else 0)
        found |= {
            "share_of_step_floor": _median(limit.share_of_step_floor),
            "step_bound": limit.step_bound,
            "share_of_prefill_floor": _median(limit.share_of_prefill_floor),
            "prefill_bound": limit.prefill_bound,
            "step_bytes": limit.step_bytes,
            "step_flops": limit.step_flops,
            "prefill_s": _ratio(prompts, measured.speed.prefill_tokens_per_s.median),
            "prefill_bytes": limit.prefill_bytes,
            "prefill_flops": limit.prefill_flops,
            "multiply_adds_per_s": limit.multiply_adds_per_s or None,
        }
    return found


def _median(statistic: Statistic | None) -> float | None:
    return None if statistic is None else statistic.median


def _ratio(amount: float, by: float) -> float | None:
    return amount / by if by else None
