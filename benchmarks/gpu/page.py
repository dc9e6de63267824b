"""The page of what benchmarks/gpu.py has measured, or of what is yet to be measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from anthesis.bench.measurement import Measurement
from anthesis.plan import make_plan
from anthesis.records import from_document
from anthesis.units import amount
from gpu.work import JOBS, NEW_TOKENS, PROMPT_TOKENS, PUBLISHED, PUBLISHED_SOURCE, Job, Row

NOT_MEASURED = "not measured"
SHEET = "h100"
"""The data sheet through which the bytes of a step are planned where nothing was measured; they depend on no figure."""

TOP = 8
"""Kernels shown of each row."""

HOW = """
## How

- One call of `LLM.generate` for 100 greedy tokens after a prompt of 7, with random weights of the true shapes: as
  `anthesis bench` measures it (docs/measuring.md), after warming up, median of the runs.
- The floor is the bytes that each step must read, weights and cache, by the read bandwidth measured on the card in the
  same run; the share is how much of that bandwidth the steps after the first reached.
- Kernels and launches are those of one step, seen by PyTorch's profiler in a process of its own, so that no timed run
  has it in it; busy is the time in which the card worked, by its own clock. With several sequences a step gives a token
  of each.
- transformers completes the same prompt with as many tokens in turns with Anthesis in one process, by its own
  `generate`, with random bf16 weights.
- Every figure's samples are in the JSON file beside this page.
"""


class DryRunError(ValueError):
    """A dry run has no results to publish."""


def page(document: Mapping[str, Any] | None) -> str:
    """The whole page, in Markdown.

    Args:
        document: the JSON file's content; None: nothing was measured yet.

    Raises:
        DryRunError: it is of a dry run, whose times are those of another machine.
    """
    if document is not None and document["dry_run"]:
        raise DryRunError("this file is of a dry run: its times are the host's, of tiny shapes; measure on a card")
    outcomes = {} if document is None else {outcome["job"]: outcome for outcome in document["jobs"]}
    parts = [
        "# Anthesis on one NVIDIA card",
        _began(document, outcomes),
        f"## {NEW_TOKENS} tokens after a prompt of {PROMPT_TOKENS}\n\n" + _latencies(outcomes),
        f"Published for the same work, in seconds ({PUBLISHED_SOURCE}):\n\n" + _published(),
        "## Beside transformers\n\n" + _peers(outcomes),
        "## What a step is made of\n\n" + _steps(outcomes),
        *_kernels(outcomes),
        "## Tiles\n\n" + _tiles(outcomes),
        "## Correctness\n\n" + _correctness(outcomes.get("correctness")),
        HOW.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _began(document: Mapping[str, Any] | None, outcomes: Mapping[str, Any]) -> str:
    if document is None:
        return (
            "Nothing on this page was measured yet. On a machine with an NVIDIA card, PyTorch for CUDA and Triton, "
            "`PYTHONPATH=src python benchmarks/gpu.py` measures all of it in less than ten minutes and writes this "
            "page."
        )
    found = (outcomes.get("environment") or {}).get("result")
    if not found:
        return f"`{document['command']}` began at {document['began_at']}; the card is unknown."
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    text = (
        f"`{document['command']}` measured this on {document['began_at'][:10]} in {document['took_s']:.0f} s, on "
        f"{found['device']['description']} with {amount(found['device']['memory_bytes'], 'B')} of free memory; "
        f"{versions}."
    )
    if bandwidth := _bandwidth(outcomes):
        text += f" Reading the card's memory: {amount(bandwidth, 'B/s')} ({found['read_bandwidth']['note']})"
        if "copy_bandwidth" in found:
            copied = statistics.median(found["copy_bandwidth"]["samples"])
            text += f"; copying: {amount(copied, 'B/s')} ({found['copy_bandwidth']['note']})"
        text += "."
    return text


def _bandwidth(outcomes: Mapping[str, Any]) -> float | None:
    """Of the card's memory, bytes per second."""
    found = (outcomes.get("environment") or {}).get("result") or {}
    bandwidth: float | None = found.get("read_bandwidth", {}).get("median_bytes_per_s")
    return bandwidth


def _rows() -> list[tuple[Job, Row]]:
    return [(job, job.rows[0]) for job in JOBS if job.step == "row"]


def _result(outcomes: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """What a job found, as far as it came."""
    found: dict[str, Any] = (outcomes.get(job.name) or {}).get("result") or {}
    return found


def _measurement(outcomes: Mapping[str, Any], job: Job) -> Measurement | None:
    found = _result(outcomes, job).get("measurement")
    return None if found is None else from_document(Measurement, found, job.name)


def _profile(outcomes: Mapping[str, Any], row: Row) -> dict[str, Any] | None:
    """Of a row's steps; with an "error" where there is none."""
    (job,) = (job for job in JOBS if job.step == "profile" and row in job.rows)
    seen: dict[str, Any] | None = _result(outcomes, job).get(row.name)
    reason = (outcomes.get(job.name) or {}).get("error")
    return {"error": reason} if seen is None and reason is not None else seen


def _why(outcomes: Mapping[str, Any], job: Job) -> str:
    """Why there is no figure."""
    reason = _result(outcomes, job).get("refused") or (outcomes.get(job.name) or {}).get("error")
    return NOT_MEASURED if reason is None else f"{NOT_MEASURED}: {_line(reason)}"


def step_bytes(row: Row) -> int:
    """What a step must read, of weights and cache, by the program's cost."""
    plan = make_plan(
        row.source,
        device=SHEET,
        weights=row.weights,
        batch=row.batch,
        context=row.prompt_tokens + row.new_tokens,
        prompt_tokens=row.prompt_tokens,
        new_tokens=row.new_tokens,
    )
    return plan.token_floor.read_bytes


def _latencies(outcomes: Mapping[str, Any]) -> str:
    lines = [
        [
            *("model and weights", "seconds", "ms per step", "tokens/s", "share", "floor, s", "target, s"),
            *("published, s", "bytes per step"),
        ]
    ]
    bandwidth = _bandwidth(outcomes)
    for job, row in _rows():
        needed, found = step_bytes(row), _measurement(outcomes, job)
        floor = NOT_MEASURED if bandwidth is None else f"{row.new_tokens * needed / bandwidth:.3f}"
        target = "-" if row.target_s is None else f"{row.target_s:.2f}"
        target += f" ({row.target_card})" if row.target_card else ""
        last = [floor, target, _best_published(row), amount(needed, "B")]
        if found is None:
            lines.append([row.name, _why(outcomes, job), "", "", "", *last])
            continue
        share = None if found.traffic is None else found.traffic.share_of_bandwidth
        seconds = f"{found.speed.total_s.median:.3f}"
        if found.invalid:
            seconds += f" (invalid: {_line('; '.join(found.invalid))})"
        lines.append(
            [
                row.name,
                seconds,
                "-" if found.traffic is None else f"{1e3 * found.traffic.step_s.median:.2f}",
                f"{found.speed.tokens_per_s.median:,.0f}",
                "-" if share is None else f"{share.median:.0%}",
                *last,
            ]
        )
    return _markdown(lines)


def _best_published(row: Row) -> str:
    """The fastest of one device, else of several."""
    found = [one for one in PUBLISHED if one.model == row.model and row.batch == 1]
    if not found:
        return "-"
    best = min(found, key=lambda one: (not one.devices.startswith("1 "), one.seconds))
    return f"{best.seconds:.3f} ({best.devices})"


def _published() -> str:
    return _markdown(
        [["model", "on", "seconds"], *([one.model, one.devices, f"{one.seconds:.3f}"] for one in PUBLISHED)]
    )


def _peers(outcomes: Mapping[str, Any]) -> str:
    lines = [["model", "Anthesis, s", "transformers, s", "how", "Anthesis is ... times as fast"]]
    notes = []
    for job in JOBS:
        if job.step != "peer":
            continue
        (row,) = job.rows
        found = _result(outcomes, job)
        ways = {name: way for name, way in found.get("ways", {}).items() if way["total_s"]}
        if "anthesis" not in ways or len(ways) == 1:
            lines.append([row.name, _why(outcomes, job), "", "", ""])
        else:
            own = statistics.median(ways.pop("anthesis")["total_s"])
            for name, way in ways.items():
                theirs = statistics.median(way["total_s"])
                lines.append([row.name, f"{own:.3f}", f"{theirs:.3f}", name, f"{theirs / own:.2f}"])
        notes += [
            f"- {row.name}, transformers {found['transformers']}, {name}: {_line(way['error'])}"
            for name, way in found.get("ways", {}).items()
            if way["error"]
        ]
    return "\n\n".join(filter(None, [_markdown(lines), "\n".join(notes)]))


def _steps(outcomes: Mapping[str, Any]) -> str:
    lines = [
        [
            *("model and weights", "load, s", "captures", "capture, s", "memory"),
            *("graph launches", "other launches", "kernels", "busy, ms"),
        ]
    ]
    for job, row in _rows():
        found, seen = _measurement(outcomes, job), _profile(outcomes, row)
        if found is None:
            lines.append([row.name, NOT_MEASURED])
            continue
        counted = found.counted
        held = None if counted is None else counted.peak_memory_bytes
        lines.append(
            [
                row.name,
                f"{found.load_s:.1f}",
                *(("-", "-") if counted is None else (str(counted.captures), f"{counted.capture_s:.2f}")),
                "-" if held is None else amount(held, "B"),
                *_launches(seen),
            ]
        )
    return _markdown(lines)


def _launches(seen: Mapping[str, Any] | None) -> list[str]:
    if seen is None or "error" in seen:
        return [NOT_MEASURED if seen is None else f"{NOT_MEASURED}: {_line(seen['error'])}"]
    counts = [f"{seen[name]:.1f}" for name in ("graph_launches", "kernel_launches")]
    return [*counts, f"{seen['kernels']:.0f}", f"{1e3 * seen['busy_s']:.2f}"]


def _kernels(outcomes: Mapping[str, Any]) -> list[str]:
    """Of each row with a profile, where the time of a step goes."""
    parts = []
    for _, row in _rows():
        seen = _profile(outcomes, row)
        if seen and seen.get("top"):
            lines = [["kernel", "launches per step", "us per step"]]
            lines += [
                [f"`{kernel['name'][:80].replace('`', '')}`", f"{kernel['count']:.1f}", f"{1e6 * kernel['step_s']:.1f}"]
                for kernel in seen["top"][:TOP]
            ]
            parts.append(f"### {row.name}\n\n{_markdown(lines)}")
    return parts


def _tiles(outcomes: Mapping[str, Any]) -> str:
    (job,) = (job for job in JOBS if job.step == "tiles")
    lines = [["weights", "rows", "columns", "warps", "of the card's bandwidth", "bytes per second", ""]]
    bandwidth = _bandwidth(outcomes)
    for kind, tried in _result(outcomes, job).items():
        for i, one in enumerate(tried):
            what = [kind, *(str(one[name]) for name in ("rows", "columns", "warps"))]
            if "error" in one:
                lines.append([*what, NOT_MEASURED, "", _line(one["error"])])
                continue
            share = "-" if bandwidth is None else f"{one['bytes_per_s'] / bandwidth:.0%}"
            lines.append([*what, share, amount(one["bytes_per_s"], "B/s"), "" if i else "as it is"])
    if len(lines) == 1:
        return _why(outcomes, job) + "."
    return f"One row times the MLP's first matrix of {job.rows[0].model}, launches in a graph.\n\n{_markdown(lines)}"


def _correctness(outcome: Mapping[str, Any] | None) -> str:
    found = (outcome or {}).get("result")
    if not found:
        return NOT_MEASURED + (f": {_line(outcome['error'])}" if outcome and outcome["error"] else "") + "."
    lines = [["model", "weights", "difference", "bound", "same greedy tokens", ""]]
    for one in found["models"]:
        if "error" in one:
            lines.append([one["model"], one["kind"], _line(one["error"])])
            continue
        difference = "not finite" if one["difference"] is None else f"{one['difference']:.1e}"
        same = f"{one['same_tokens']} of {one['tokens']}"
        fine = "" if one["fine"] else "too far"
        lines.append([one["model"], one["kind"], difference, f"{one['bound']:.0e}", same, fine])
    odd = [
        f"{one['kind']} ({_line(one['error'])})" if "error" in one else one["kind"]
        for one in found["random_weights"]
        if not one.get("equal")
    ]
    equal = "Random weights made on the card are those of the host, bit by bit, of every kind."
    if odd:
        equal = f"Random weights made on the card differ from those of the host: {', '.join(odd)}."
    about = "The largest difference of logits from the reference device's, as a share of its largest logit."
    return f"{about}\n\n{_markdown(lines)}\n\n{equal}"


def _line(text: str) -> str:
    """A message within a cell of a table."""
    return " ".join(text.split())[:300].replace("|", "/")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; a line that is too short ends with empty cells."""
    width = len(lines[0])
    rows = [[*line, *[""] * (width - len(line))] for line in lines]
    rows.insert(1, ["---"] * width)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
