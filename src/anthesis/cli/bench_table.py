"""What `anthesis bench` prints: the rows as a table, what its figures mean, and what to beware of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anthesis.columns import aligned
from anthesis.units import amount, counted, duration, rate

if TYPE_CHECKING:
    from anthesis.bench import Measurement, Report
    from anthesis.bench.operations import OperationKind
    from anthesis.bench.result import Point, Row

COLUMNS = ("batch", "weights", "tp", "first", "token", "p95", "prompt", "decode", "in all", "share")


def print_table(report: Report) -> None:
    """Prints the measured rows, what failed, where steps spend their time, and what the figures mean."""
    for line in _table_lines(report):
        print(line)
    for row in report.rows:
        if row.error is not None:
            print(f"failed: {_named(row.point)}: {row.error}")
        for reason in invalid(row):
            print(f"invalid: {_named(row.point)}: {reason}")
    for row in report.rows:
        if row.measurement is not None and row.measurement.operations is not None:
            for line in _operations(row.point, row.measurement.operations):
                print(line)
    measured = [row.measurement for row in report.rows if row.measurement is not None]
    for line in _explanation(measured[0]) if measured else []:
        print(line)
    for row in report.rows:
        for line in _captures(row):
            print(line)
    for line in _warnings(report):
        print(line)


def _named(point: Point) -> str:
    return f"batch {point.batch}, weights {point.weights}, tp {point.tp}"


def invalid(row: Row) -> tuple[str, ...]:
    """Why a row's figures must not be used."""
    return () if row.measurement is None else row.measurement.invalid


def _table_lines(report: Report) -> list[str]:
    """The measured rows under their headers, never cut; 80 columns are enough for what usually comes."""
    rows = [_cells(row, row.measurement) for row in report.rows if row.measurement is not None]
    if not rows:
        return []
    left_out = set() if len({row.point.tp for row in report.rows}) > 1 else {COLUMNS.index("tp")}
    kept = [i for i in range(len(COLUMNS)) if i not in left_out]
    return aligned([COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows], ["weights"])


def _cells(row: Row, measured: Measurement) -> list[str]:
    speed, traffic = measured.speed, measured.traffic
    between, decode = speed.between_tokens_s, speed.decode_tokens_per_s
    share = traffic.share_of_bandwidth if traffic else None
    return [
        str(row.point.batch),
        row.point.weights if row.point.weights != "native" else "+".join(measured.model.weight_kinds),
        str(row.point.tp),
        duration(speed.first_token_s.median),
        "-" if between is None else duration(between.median),
        "-" if between is None else duration(between.p95),
        rate(speed.prefill_tokens_per_s.median),
        "-" if decode is None else rate(decode.median),
        duration(speed.total_s.median),
        "-" if share is None else f"{share.median:.1%}",
    ]


def _operations(point: Point, kinds: tuple[OperationKind, ...]) -> list[str]:
    """Where a decode step's time goes, a line for each kind of operation."""
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
        f"a decode step, batch {point.batch}, weights {point.weights}: {duration(total)} with counters on",
        *aligned(head, cells, ["operation"]),
    ]


def _explanation(measured: Measurement) -> list[str]:
    config, model, traffic = measured.configuration, measured.model, measured.traffic
    size = f"{counted(len(config.prompt_token_ids), 'prompt token')}, {config.new_tokens} generated and counted"
    warmup = f"{len(measured.warmup.run_s)} to warm up"
    loading = f"loading took {duration(measured.load_s)}"
    peaks = measured.ranks_peak_memory_bytes or (measured.process_peak_memory_bytes,)
    peak = f"peak memory {' + '.join(amount(nbytes, 'B') for nbytes in peaks)}"
    held = measured.counted.peak_memory_bytes if measured.counted is not None else None
    if held is not None:
        peak += f", {amount(held, 'B')} of the device"
    lines = [
        f"{model.description}: {size}, greedy, device {measured.device.name}, cache {model.cache_dtype}",
        f"medians of {counted(len(measured.runs), 'run')} after {warmup}; {loading}, {peak}",
        "first: until the first token; token: from one to the next; in all: the whole call",
        "prompt, decode: tokens/s of all sequences until the last of them had its first token, and from then on",
    ]
    if traffic is not None and traffic.read_bandwidth_bytes_per_s is not None:
        lines.append(
            f"share: of the read bandwidth, {amount(traffic.read_bandwidth_bytes_per_s.median, 'B/s')} measured after "
            f"each run; a token must read {amount(traffic.bytes_per_token, 'B')} (first row)"
        )
    elif traffic is not None:
        lines.append(f"share of the read bandwidth: {traffic.read_bandwidth_note}")
    return lines


def _captures(row: Row) -> list[str]:
    """What capturing took, where steps are captured."""
    found = None if row.measurement is None else row.measurement.counted
    if found is None or not found.captures:
        return []
    took = f"{counted(found.captures, 'step')} captured in {duration(found.capture_s)}, before the timed runs"
    return [f"{_named(row.point)}: {took}"]


def _warnings(report: Report) -> list[str]:
    """What to beware of, each thing once, with the rows that it is about unless it is about all."""
    measured = [(row.point, row.measurement) for row in report.rows if row.measurement is not None]
    about: dict[str, list[str]] = {}
    for point, measurement in measured:
        for message in _doubts(measurement):
            about.setdefault(message, []).append(_named(point))
    return [
        f"warning: {message}" if len(rows) == len(measured) else f"warning: {'; '.join(rows)}: {message}"
        for message, rows in about.items()
    ]


def _doubts(measured: Measurement) -> list[str]:
    from anthesis.bench.derive import SETTLED_RUNS, SETTLED_SPREAD

    doubts = []
    count = len(measured.warmup.run_s)
    if count < SETTLED_RUNS:
        doubts.append(f"too few warm-up runs to tell whether it settled: {count}, and {SETTLED_RUNS} must agree")
    elif not measured.warmup.settled:
        doubts.append(f"no three runs in a row agreed within {SETTLED_SPREAD:.0%} in {count} warm-up runs")
    if not measured.runs_agree:
        doubts.append("the runs did not all generate the same tokens")
    return doubts
