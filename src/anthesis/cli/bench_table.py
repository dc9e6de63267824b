"""What `anthesis bench` prints: the rows as a table, what its figures mean, and what to beware of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anthesis.columns import aligned
from anthesis.units import amount, counted, duration, rate

if TYPE_CHECKING:
    from anthesis.bench import Measurement, Report
    from anthesis.bench.operations import OperationKind
    from anthesis.bench.result import Point, Row

COLUMNS = ("batch", "weights", "tp", "first", "token", "p95", "prompt", "decode", "in all", "limit")


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
    speed, limit = measured.speed, measured.limit
    between, decode = speed.between_tokens_s, speed.decode_tokens_per_s
    share = limit.share_of_step_floor if limit else None
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
    limit, bandwidth = measured.limit, None if traffic is None else traffic.read_bandwidth_bytes_per_s
    if traffic is not None and bandwidth is None:
        lines.append(f"no limit: the read bandwidth was {traffic.read_bandwidth_note}")
    elif traffic is not None and bandwidth is not None and limit is not None and limit.step_floor_s is not None:
        bound = f", bound by {limit.step_bound}" if limit.step_bound else ""
        lines.append(
            f"limit: the least possible time of a decode step, as a share of what it took (first row: "
            f"{duration(limit.step_floor_s)}{bound}; a token must read "
            f"{amount(traffic.bytes_per_token, 'B')}, and after each run memory was read at "
            f"{amount(bandwidth.median, 'B/s')})"
        )
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
        for message in measurement.marks:
            about.setdefault(message, []).append(_named(point))
    return [
        f"warning: {message}" if len(rows) == len(measured) else f"warning: {'; '.join(rows)}: {message}"
        for message, rows in about.items()
    ]
