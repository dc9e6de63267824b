"""The line of a data set that `complete` completed."""

from __future__ import annotations

from typing import Any, TypeGuard

from anthesis.dataset.summary import Counts, Session, Summary
from anthesis.report.line import Line


def line_of_summary(summary: Summary, source: str, sha256: str) -> Line:
    """The line of a data set: its rates are those of all sessions over their seconds.

    Args:
        summary: that `complete` wrote.
        source: the file's name.
        sha256: of the file.
    """
    sessions = summary.sessions
    timed = sum((session.counts for session in sessions), Counts())
    run_s = sum(session.run_s for session in sessions)
    last = sessions[-1] if sessions else None
    tp = _tp(summary)
    devices = tp if last is None else _ranks(last, tp)
    prompt_tokens, new_tokens = summary.request.get("prompt_tokens"), summary.request.get("max_new_tokens")
    return Line(
        kind=summary.kind,
        source=source,
        source_sha256=sha256,
        started_at=sessions[0].started_at if sessions else None,
        model=summary.model.description,
        model_source=summary.model.source,
        fingerprint=summary.model.fingerprint,
        is_random=summary.model.is_random,
        parameters=summary.model.parameters,
        device=summary.device.name,
        device_description=summary.device.description,
        processor=summary.machine.processor,
        weights="+".join(summary.model.weight_kinds),
        cache=summary.model.cache_dtype,
        tp=tp,
        pp=devices // tp,
        devices=devices,
        batch=None if last is None else last.batch,
        prompt_tokens=prompt_tokens if _is_count(prompt_tokens) else None,
        new_tokens=new_tokens if _is_count(new_tokens) else None,
        generated_tokens=summary.counts.completion_tokens,
        total_s=run_s or None,
        tokens_per_s=timed.completion_tokens / run_s if run_s else None,
        load_s=sum(session.load_s for session in sessions) if sessions else None,
        rows=summary.counts.rows,
        failed_rows=summary.counts.failed_rows,
        timed_rows=timed.rows,
        rows_per_s=timed.rows / run_s if run_s else None,
        data_prompt_tokens=summary.counts.prompt_tokens,
        reused_tokens=sum(session.reused_tokens for session in sessions) or None,
        share_of_limit=summary.share_of_limit,
        finished=summary.finished,
        shards=len({session.shard for session in sessions if session.shard is not None}) or None,
        devices_s=sum(session.run_s * _ranks(session, tp) for session in sessions) or None,
        peak_memory_bytes=max((session.process_peak_memory_bytes for session in sessions), default=None),
        command=summary.command,
        commit=summary.commit,
        versions=", ".join(f"{name} {version}" for name, version in summary.versions.items()),
    )


def _ranks(session: Session, tp: int) -> int:
    """Among which its model was split: those of a single stage, where it does not say."""
    return max(tp, session.ranks or 0)


def _tp(summary: Summary) -> int:
    """The ranks of a stage, on which the bytes of the output depend; a request with one does not name it."""
    device = summary.request.get("device")
    tp = device.get("tp") if isinstance(device, dict) else None
    return tp if _is_count(tp) and tp > 0 else 1


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
