"""What `anthesis bench` prints: the rows as a table, what its figures mean, and what to beware of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anthesis.columns import aligned
from anthesis.units import amount, counted, duration, rate

if TYPE_CHECKING:
    from anthesis.bench import Measurement, Report
    from anthesis.bench.operations import OperationKind
    from anthesis.bench.result import Point, Row

DRAFTS = ("accepted", "drafted", "per read")
COLUMNS = ("batch", "weights", "tp", "tokens", "first", "token", "p95", "prompt", "decode", "in all", "limit", *DRAFTS)


def print_table(report: Report) -> None:
    """Prints the measured rows, what failed, where steps spend their time, and what the figures mean."""
    from anthesis.bench.sweep import named

    for line in _table_lines(report):
        print(line)
    for row in report.rows:
        if row.error is not None:
            print(f"failed: {named(row.point)}: {row.error}")
        for reason in invalid(row):
            print(f"invalid: {named(row.point)}: {reason}")
    for row in report.rows:
        if row.measurement is not None and row.measurement.operations is not None:
            for line in _operations(row.point, row.measurement.operations):
                print(line)
    for line in _explanation(report):
        print(line)
    for row in report.rows:
        for line in _captures(row):
            print(line)
    for line in _warnings(report):
        print(line)


def invalid(row: Row) -> tuple[str, ...]:
    """Why a row's figures must not be used."""
    return () if row.measurement is None else row.measurement.invalid


def _table_lines(report: Report) -> list[str]:
    """The measured rows under their headers, never cut; 80 columns are enough for what usually comes."""
    rows = [_cells(row, row.measurement) for row in report.rows if row.measurement is not None]
    if not rows:
        return []
    shown = {"tp": len({row.point.tp for row in report.rows}) > 1, "tokens": _sweeps_prompts(report)}
    shown |= dict.fromkeys(DRAFTS, _has_drafts(report))
    kept = [i for i, column in enumerate(COLUMNS) if shown.get(column, True)]
    return aligned([COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows], ["weights"])


def _sweeps_prompts(report: Report) -> bool:
    """Whether prompts have several lengths."""
    return len({row.point.prompt_tokens for row in report.rows}) > 1


def _has_drafts(report: Report) -> bool:
    return any(row.measurement is not None and row.measurement.speculation is not None for row in report.rows)


def _cells(row: Row, measured: Measurement) -> list[str]:
    speed, limit = measured.speed, measured.limit
    between, decode = speed.between_tokens_s, speed.decode_tokens_per_s
    share = limit.share_of_step_floor if limit else None
    return [
        str(row.point.batch),
        row.point.weights if row.point.weights != "native" else "+".join(measured.model.weight_kinds),
        str(row.point.tp),
        f"{len(measured.configuration.prompt_token_ids):,}",
        duration(speed.first_token_s.median),
        "-" if between is None else duration(between.median),
        "-" if between is None else duration(between.p95),
        rate(speed.prefill_tokens_per_s.median),
        "-" if decode is None else rate(decode.median),
        duration(speed.total_s.median),
        "-" if share is None else f"{share.median:.1%}",
        *_drafts(measured),
    ]


def _drafts(measured: Measurement) -> list[str]:
    found = measured.speculation
    if found is None:
        return ["-"] * len(DRAFTS)
    acceptance = "-" if found.acceptance is None else f"{found.acceptance.median:.1%}"
    return [acceptance, f"{found.drafted_tokens.median:,.0f}", f"{found.tokens_per_step.median:.2f}"]


def _operations(point: Point, kinds: tuple[OperationKind, ...]) -> list[str]:
    """Where a decode step's time goes, a line for each kind of operation."""
    from anthesis.bench.sweep import named

    total = sum(kind.step_s for kind in kinds)
    cells = [
        [
            kind.kind,
            f"x{kind.count}",
            amount(kind.memory_bytes, "B"),
            amount(kind.activation_bytes, "B"),
            duration(kind.step_s),
            f"{kind.memory_bytes / kind.step_s / 1e9:.1f}" if kind.memory_bytes else "-",
            f"{kind.flops / kind.step_s / 1e9:.1f}" if kind.flops else "-",
            f"{kind.step_s / total:.1%}",
        ]
        for kind in kinds
    ]
    head = ["operation", "", "memory", "activations", "time", "GB/s", "GFLOP/s", "share"]
    return [
        f"a decode step, {named(point)}: {duration(total)} with counters on",
        *aligned(head, cells, ["operation"]),
    ]


def _explanation(report: Report) -> list[str]:
    """What was measured, and what the columns mean; what differs from row to row is the first row's, and says so."""
    rows = [row.measurement for row in report.rows if row.measurement is not None]
    if not rows:
        return []
    peaks = [_peak_memory(row) for row in rows]
    if len(rows) == 1:
        lines = [_subject(rows[0]), f"{_counts(rows[0])}, peak memory {peaks[0]}"]
    else:
        lines = [
            *(_of_first(list(map(said, rows))) for said in (_subject, _counts)),
            f"peak memory, row by row, each a process of its own: {'; '.join(peaks)}",
        ]
    return [
        *lines,
        *(["tokens: of the prompt"] if _sweeps_prompts(report) else []),
        "first: until the first token; token: from one to the next; in all: the whole call",
        "prompt, decode: tokens/s of all sequences until the last of them had its first token, and from then on",
        *(_of_drafts(report) if _has_drafts(report) else []),
        *_limit(rows[0]),
    ]


def _of_drafts(report: Report) -> list[str]:
    """What the columns of drafts mean, and how the others are to be read beside them."""
    return [
        "accepted: the share of the drafted tokens that were right; per read: tokens that one reading of the weights",
        "gave a sequence, 1 without drafts; token: a step's time, shared by the tokens that it gave",
    ]


def _of_first(said: list[str]) -> str:
    """What is said of the first row, which it is marked as where it is not true of all."""
    return said[0] if len(set(said)) == 1 else f"{said[0]} (first row)"


def _subject(measured: Measurement) -> str:
    config, model = measured.configuration, measured.model
    size = f"{counted(len(config.prompt_token_ids), 'prompt token')}, {config.new_tokens} generated and counted"
    return f"{model.description}: {size}, greedy, device {measured.device.name}, cache {model.cache_dtype}"


def _counts(measured: Measurement) -> str:
    warmup = f"{len(measured.warmup.run_s)} to warm up"
    return f"medians of {counted(len(measured.runs), 'run')} after {warmup}; loading took {duration(measured.load_s)}"


def _peak_memory(measured: Measurement) -> str:
    peaks = measured.ranks_peak_memory_bytes or (measured.process_peak_memory_bytes,)
    held = measured.counted.peak_memory_bytes if measured.counted is not None else None
    of_device = "" if held is None else f", {amount(held, 'B')} of the device"
    return " + ".join(amount(nbytes, "B") for nbytes in peaks) + of_device


def _limit(measured: Measurement) -> list[str]:
    traffic = measured.traffic
    limit, bandwidth = measured.limit, None if traffic is None else traffic.read_bandwidth_bytes_per_s
    if traffic is not None and bandwidth is None:
        return [f"no limit: the read bandwidth was {traffic.read_bandwidth_note}"]
    if traffic is not None and bandwidth is not None and limit is not None and limit.step_floor_s is not None:
        bound = f", bound by {limit.step_bound}" if limit.step_bound else ""
        said = (
            "limit: the least possible time of a decode step, as a share of what it took (first row: "
            f"{duration(limit.step_floor_s)}{bound}; a token must read "
            f"{amount(traffic.bytes_per_token, 'B')}, and after each run memory was read at "
            f"{amount(bandwidth.median, 'B/s')})"
        )
        return [said]
    return []


def _captures(row: Row) -> list[str]:
    """What capturing took, where steps are captured."""
    from anthesis.bench.sweep import named

    found = None if row.measurement is None else row.measurement.counted
    if found is None or not found.captures:
        return []
    took = f"{counted(found.captures, 'step')} captured in {duration(found.capture_s)}, before the timed runs"
    return [f"{named(row.point)}: {took}"]


def _warnings(report: Report) -> list[str]:
    """What to beware of, each thing once, with the rows that it is about unless it is about all."""
    from anthesis.bench.sweep import named

    measured = [(row.point, row.measurement) for row in report.rows if row.measurement is not None]
    about: dict[str, list[str]] = {}
    for point, measurement in measured:
        for message in measurement.marks:
            about.setdefault(message, []).append(named(point))
    return [
        f"warning: {message}" if len(rows) == len(measured) else f"warning: {'; '.join(rows)}: {message}"
        for message, rows in about.items()
    ]
