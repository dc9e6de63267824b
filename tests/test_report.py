"""`anthesis report`: one schema in four formats, of results of `bench` and summaries of `complete`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from anthesis.dataset import read_summary
from anthesis.errors import RequestError
from anthesis.report import Line, read_lines, render
from command_line import anthesis, fail, obey_permissions, succeed, tiny_model
from hostile import forget_peak_kib, peak_kib, sample
from text_model import text_model

DEVICE = ("--device", "reference")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A result of `bench` with a row that failed, and the output of `complete` with rows that failed."""
    directory = tmp_path_factory.mktemp("results")
    bench, rows, data = directory / "bench.json", directory / "rows.jsonl", directory / "data.jsonl"
    measured = (
        "bench",
        tiny_model(directory),
        "--batch",
        "1,2",
        "--weights",
        "fp32,int4",
        "-n",
        "3",
        "--seconds",
        "0",
        "--runs",
        "2",
    )
    text = (directory / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 24')
    (directory / "config.json").write_text(text)  # a width that int4's groups don't divide
    assert anthesis(*measured, "--warmup", "1", "-o", str(bench), *DEVICE).returncode == 1
    data.write_text("".join(json.dumps({"t": text}) + "\n" for text in ("the fox", "", "a|dog", "x y z")))
    succeed("complete", str(text_model(directory / "m")), str(data), "-o", str(rows), "-n", "4", *DEVICE)
    return bench, rows


def test_lines_hold_what_the_files_say(results: tuple[Path, Path]) -> None:
    bench, rows = results
    document = json.loads(bench.read_text())
    lines = read_lines(bench)
    assert [(line.batch, line.weights) for line in lines] == [(1, "fp32"), (2, "fp32"), (1, "int4"), (2, "int4")]
    for line, row in zip(lines[:2], document["rows"], strict=False):
        speed = row["measurement"]["speed"]
        assert line.first_token_s == speed["first_token_s"]["median"]
        assert line.tokens_per_s == speed["tokens_per_s"]["median"]
        assert (line.generated_tokens, line.new_tokens, line.is_random) == (3 * (line.batch or 0), 3, True)
        assert line.error is None
    assert all("int4" in (line.error or "") and line.tokens_per_s is None for line in lines[2:])
    (line,) = read_lines(rows)
    summary = read_summary(rows.with_name("rows.jsonl.summary.json"))
    assert read_lines(Path(line.source)) == [line]
    assert (line.kind, line.rows, line.failed_rows, line.finished) == ("complete", 4, 1, True)
    assert line.generated_tokens == summary.counts.completion_tokens > 0
    assert line.rows_per_s == pytest.approx(4 / summary.sessions[0].run_s)


def test_csv_and_json_hold_the_same_in_full(results: tuple[Path, Path]) -> None:
    lines = [line for path in results for line in read_lines(path)]
    document = json.loads(render(lines, "json"))
    assert (document["kind"], document["schema_version"]) == ("report", 1)
    assert [Line(**line) for line in document["lines"]] == lines
    table = list(csv.DictReader(io.StringIO(render(lines, "csv"))))
    assert list(table[0]) == [field.name for field in fields(Line)]
    for found, line in zip(table, document["lines"], strict=True):
        assert found == {key: "" if value is None else str(value) for key, value in line.items()}


def test_the_table_and_markdown_say_once_what_is_the_same(results: tuple[Path, Path]) -> None:
    table = succeed("report", *map(str, results))
    assert table.startswith("processor: ")
    heading = next(line for line in table.splitlines() if line.startswith("kind"))
    at = table.splitlines().index(heading)
    assert "rows/s" in heading
    assert [line.split()[0] for line in table.splitlines()[at + 1 : at + 6]] == ["bench"] * 4 + ["complete"]
    assert "random weights" in table
    markdown = succeed("report", str(results[0]), "--format", "md")
    assert re.search(r"^- kind: bench$", markdown, re.MULTILINE)
    grid = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(grid) == 6
    assert len({line.replace("\\|", "").count("|") for line in grid}) == 1


def test_names_reach_a_terminal_in_one_line_without_its_control_characters(results: tuple[Path, Path]) -> None:
    (line,) = read_lines(results[1])
    lines = [replace(line, model="a\x1b[31m\nb"), replace(line, model="c", error="d\x9be")]
    assert json.loads(render(lines, "json"))["lines"][0]["model"] == "a\x1b[31m\nb"
    for form in ("table", "md"):
        text = render(lines, form)
        assert all(c.isprintable() for c in text.replace("\n", ""))
        assert "a\\x1b[31m b" in text.replace("\\\\", "\\")
        assert len(text.splitlines()) == len(render([line, replace(line, model="c", error="d")], form).splitlines())


def test_a_data_set_is_shown_once(results: tuple[Path, Path]) -> None:
    rows = results[1]
    both = succeed("report", str(rows), f"{rows}.summary.json", "--format", "json")
    assert both == succeed("report", str(rows), "--format", "json")


def test_a_file_is_written_in_the_format_it_ends_in(results: tuple[Path, Path], tmp_path: Path) -> None:
    lines = read_lines(results[1])
    for name, form in (("a.md", "md"), ("a.csv", "csv"), ("a.json", "json"), ("a.txt", "table")):
        assert succeed("report", str(results[1]), "-o", str(tmp_path / name)) == ""
        assert (tmp_path / name).read_text() == render(lines, form)
    succeed("report", str(results[1]), "-o", str(tmp_path / "b.md"), "--format", "table")
    assert (tmp_path / "b.md").read_text() == render(lines, "table")
    (tmp_path / "closed").mkdir(mode=0o555)
    refused = fail("report", str(results[1]), "-o", str(tmp_path / "closed" / "c.md"), before=obey_permissions)
    assert "can't be written to; name another file" in refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        ("{", "not valid JSON"),
        ('{"kind": "report"}', "neither a result of `anthesis bench -o` nor a summary"),
        ("[1]", "a JSON object is needed, not an array"),
        ('{"kind": "bench", "schema_version": 7}', "schema_version 7"),
        ('{"kind": "complete", "schema_version": 1}', "the summary lacks request, limit"),
        ('{"kind": "bench", "schema_version": 1, "rows": 3}', "the result lacks started_at"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_result(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    line = fail("report", str(path))
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize("place", [".", "..", "", "/", "made"])
def test_a_directory_is_no_result(tmp_path: Path, place: str) -> None:
    name = str(tmp_path / "made") if place == "made" else place
    Path(name).mkdir(exist_ok=True)
    assert f"{Path(name)} is a directory; name a file" in fail("report", name)


def test_a_pipe_is_no_result(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to: to open it would be to wait forever
    with pytest.raises(RequestError, match=r"pipe can't be read: a directory, pipe or device"):
        read_lines(tmp_path / "pipe")


def test_no_more_of_a_file_is_read_than_a_result_may_have(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as sparse:
        sparse.truncate(3 << 30)
    before = forget_peak_kib()
    with pytest.raises(RequestError, match=r"x\.json is no result: too long: more than 16,777,216 bytes"):
        read_lines(path)
    assert peak_kib() - before < 100_000


def test_keys_and_versions_are_shown_in_part(tmp_path: Path) -> None:
    path, summary = tmp_path / "x.json", json.loads(sample("summary"))
    for change in ({"schema_version": "\x1b" * 100_000}, {"versions": {"\x1b" * 100_000: 5}}):
        path.write_text(json.dumps(summary | change))
        with pytest.raises(RequestError) as caught:
            read_lines(path)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    assert "known are: table, md, csv, json" in fail("report", str(tmp_path / "x"), "--format", "xml")
