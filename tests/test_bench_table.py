"""What `anthesis bench` prints of several rows: which is which, and whose a figure is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anthesis.bench import Measurement, Report, Request, sweep
from anthesis.bench.result import Row
from anthesis.cli.bench_table import _table_lines, _warnings, print_table
from command_line import tiny_model


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    return sweep(Request(model=model, max_new_tokens=3, warmup=0, runs=2, min_s=0, device="reference"))


@pytest.fixture(scope="module")
def measured(report: Report) -> Measurement:
    (row,) = report.rows
    assert row.measurement is not None
    return row.measurement


def of_prompt(row: Row, tokens: int) -> Row:
    """The row as if its prompt had so many tokens."""
    assert row.measurement is not None
    configuration = replace(row.measurement.configuration, prompt_token_ids=tuple(range(tokens)))
    point, measurement = replace(row.point, prompt_tokens=tokens), replace(row.measurement, configuration=configuration)
    return replace(row, point=point, measurement=measurement)


def printed(report: Report, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_table(report)
    return capsys.readouterr().out.splitlines()


def test_tp_is_a_column_where_it_is_swept(report: Report) -> None:
    (row,) = report.rows
    two = replace(report, rows=(row, replace(row, point=replace(row.point, tp=2))))
    assert [line.split()[2] for line in _table_lines(two)] == ["tp", "1", "2"]


def test_the_length_of_the_prompt_is_a_column_where_it_is_swept(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = report.rows
    short, long = of_prompt(row, 7), of_prompt(row, 1024)
    failed = replace(of_prompt(row, 99), measurement=None, error="out of memory: 1 GB")
    lines = printed(replace(report, rows=(short, long, failed)), capsys)
    assert [line.split()[2] for line in lines[:3]] == ["tokens", "7", "1,024"]
    assert lines[3] == "failed: batch 1, weights native, tp 1, prompt tokens 99: out of memory: 1 GB"
    assert "tokens: of the prompt" in lines
    for alike in ((short,), (short, short)):
        lines = printed(replace(report, rows=alike), capsys)
        assert "tokens" not in lines[0].split()
        assert "tokens: of the prompt" not in lines


def test_a_figure_of_the_first_row_says_so_and_each_row_has_its_memory(
    report: Report, measured: Measurement, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = report.rows
    first = replace(measured, load_s=1.0, ranks_peak_memory_bytes=(297_000_000,))
    second = replace(first, load_s=2.0, ranks_peak_memory_bytes=(3_000_000_000, 1_000_000_000))

    def explained(*measurements: Measurement) -> list[str]:
        rows = tuple(replace(row, measurement=measurement) for measurement in measurements)
        return printed(replace(report, rows=rows), capsys)[1 + len(rows) :]

    subject, counts, memory = explained(first, second)[:3]
    assert subject.endswith("cache bf16")
    assert counts == "medians of 2 runs after 0 to warm up; loading took 1.00 s (first row)"
    assert memory == "peak memory, row by row, each a process of its own: 297 MB; 3.00 GB + 1.00 GB"
    other = replace(second, model=replace(second.model, cache_dtype="fp32"))
    assert explained(first, other)[0] == f"{subject} (first row)"
    assert explained(first)[:2] == [
        subject,
        "medians of 2 runs after 0 to warm up; loading took 1.00 s, peak memory 297 MB",
    ]


def test_equal_warnings_are_one_with_the_rows_they_are_about(report: Report, measured: Measurement) -> None:
    def rows(*marks: tuple[str, ...]) -> Report:
        (row,) = report.rows
        return replace(
            report,
            rows=tuple(
                replace(row, point=replace(row.point, batch=i), measurement=replace(measured, marks=found))
                for i, found in enumerate(marks, start=1)
            ),
        )

    assert _warnings(rows(("odd",), ("odd",))) == ["warning: odd"]
    assert _warnings(rows(("odd",), ())) == ["warning: batch 1, weights native, tp 1: odd"]
    assert _warnings(rows((), ())) == []
