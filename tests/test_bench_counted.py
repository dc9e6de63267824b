"""What a device counts: apart from the timed runs where it warms up, and a reason against them where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from anthesis.bench import Report, Request, read_report, sweep
from anthesis.cli.bench import bench
from anthesis.cli.bench_table import print_table
from anthesis.devices.bandwidth import ReadBandwidth
from anthesis.report import compose, read_result, render
from command_line import tiny_model
from counting_device import CAPTURE_S, CountingDevice, opened_as_reference

NEW = 4
"""Steps of a run: one for the prompt, then one for each further token."""


def measured(directory: Path, device: CountingDevice) -> Report:
    request = Request(model=tiny_model(directory), device="reference", max_new_tokens=NEW, warmup=2, runs=2, min_s=0)
    with opened_as_reference(device):
        return sweep(request)


def test_captures_while_warming_up_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = measured(tmp_path, CountingDevice(captures=(0, 1, 5)))
    (row,) = report.rows
    assert row.measurement is not None
    found = row.measurement.counted
    assert found is not None
    assert (found.captures, found.capture_s, found.compilations, found.cpu_fallbacks) == (3, 3 * CAPTURE_S, 6, 0)
    assert found.peak_memory_bytes == 1000 * 3 * NEW  # after two runs to warm up and a timed one
    assert row.measurement.invalid == ()
    print_table(report)
    printed = capsys.readouterr().out
    assert "batch 1, weights native, tp 1: 3 steps captured in 750 ms, before the timed runs" in printed
    assert "invalid" not in printed
    assert report.versions["counting"] == "1.0"


def test_a_timed_run_that_holds_a_capture_is_invalid_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = measured(tmp_path, CountingDevice(captures=(0, 2 * NEW + 1, 3 * NEW), fallbacks=(3 * NEW + 2,)))
    (row,) = report.rows
    assert row.error is None
    assert row.measurement is not None
    reasons = row.measurement.invalid
    assert reasons == (
        "2 graph captures in timed runs 1, 2; take more --warmup",
        "4 compilations in timed runs 1, 2; take more --warmup",
        "1 operation done by the host's processor in timed run 2; the time is not the device's alone",
    )
    assert row.measurement.counted is not None
    assert row.measurement.counted.captures == 1
    assert len(row.measurement.runs) == 2
    print_table(report)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("invalid: batch 1, weights native, tp 1: ")] == [
        f"invalid: batch 1, weights native, tp 1: {reason}" for reason in reasons
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(report.document()))
    assert read_report(path).rows == report.rows
    file = read_result(path)
    (line,) = file.lines
    assert line.invalid == "; ".join(reasons)
    assert line.tokens_per_s is not None
    assert "graph captures in timed runs 1, 2" in render(compose([file]), "table")


def test_the_command_fails_where_a_row_is_invalid(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = {"max_new_tokens": NEW, "warmup": 2, "runs": 1, "seconds": 0.0, "device": "reference", "output": output}
    with opened_as_reference(CountingDevice(captures=(2 * NEW,))), pytest.raises(typer.Exit) as ended:
        bench(tiny_model(tmp_path), **options)
    assert ended.value.exit_code == 1
    (row,) = read_report(output).rows
    assert row.measurement is not None
    assert row.measurement.invalid == (
        "1 graph capture in timed run 1; take more --warmup",
        "2 compilations in timed run 1; take more --warmup",
    )


def test_a_result_of_before_has_neither(tmp_path: Path) -> None:
    document = measured(tmp_path, CountingDevice()).document()
    for row in document["rows"]:
        del row["measurement"]["counted"], row["measurement"]["invalid"]
    (row,) = Report.from_document(document).rows
    assert row.measurement is not None
    assert (row.measurement.counted, row.measurement.invalid) == (None, ())


def test_a_bandwidth_without_samples_has_no_median() -> None:
    assert ReadBandwidth((), "not measured: why").median is None
    assert ReadBandwidth((1.0, 3.0, 2.0), "how").median == 2.0
