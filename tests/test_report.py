"""`anthesis report`: one schema in every format, of results of `bench` and summaries of `complete`."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import os
import re
import shlex
import statistics
from dataclasses import fields, replace
from pathlib import Path

import pytest

from anthesis.bench.machine import commit
from anthesis.dataset import read_summary
from anthesis.errors import RequestError
from anthesis.report import Contents, Line, ResultFile, compose, read_result, read_results, render
from anthesis.report.result_file import Entry
from anthesis.units import duration
from command_line import Terminal, anthesis, command, fail, obey_permissions, succeed, tiny_model
from hostile import forget_peak_kib, peak_kib, sample
from report_files import CUDA, FIXTURES, HPU, document, write
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
    lines = read_result(bench).lines
    assert [(line.batch, line.weights) for line in lines] == [(1, "fp32"), (2, "fp32"), (1, "int4"), (2, "int4")]
    for line, row in zip(lines[:2], document["rows"], strict=False):
        speed = row["measurement"]["speed"]
        assert line.first_token_s == speed["first_token_s"]["median"]
        assert line.tokens_per_s == speed["tokens_per_s"]["median"]
        assert (line.generated_tokens, line.new_tokens, line.is_random) == (3 * (line.batch or 0), 3, True)
        assert line.error is None
    assert all("int4" in (line.error or "") and line.tokens_per_s is None for line in lines[2:])
    (line,) = read_result(rows).lines
    summary = read_summary(rows.with_name("rows.jsonl.summary.json"))
    assert read_result(Path(line.source)).lines == [line]
    assert (line.kind, line.rows, line.failed_rows, line.finished) == ("complete", 4, 1, True)
    assert line.generated_tokens == summary.counts.completion_tokens > 0
    assert line.rows_per_s == pytest.approx(4 / summary.sessions[0].run_s)
    assert (summary.sessions[0].ranks, line.tp, line.pp, line.devices) == (1, 1, 1, 1)
    assert line.commit == summary.commit == commit()
    directory = rows.parent
    words = ["anthesis", "complete", str(directory / "m"), str(directory / "data.jsonl"), "-o", str(rows), "-n", "4"]
    assert shlex.split(line.command or "") == [*words, *DEVICE]


def test_csv_and_json_hold_the_same_in_full(results: tuple[Path, Path]) -> None:
    contents = compose(read_results([*results, CUDA]), published=True, baseline="1")
    document = json.loads(render(contents, "json"))
    assert (document["kind"], document["schema_version"]) == ("report", 1)
    assert [Line(**line) for line in document["lines"]] == contents.lines
    assert [line.number for line in contents.lines] == list(range(1, len(contents.lines) + 1))
    table = list(csv.DictReader(io.StringIO(render(contents, "csv"))))
    assert list(table[0]) == [field.name for field in fields(Line)]
    for found, line in zip(table, document["lines"], strict=True):
        assert found == {key: _csv_cell(value) for key, value in line.items()}


def _csv_cell(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)


def test_the_table_and_markdown_say_once_what_is_the_same(results: tuple[Path, Path]) -> None:
    table = succeed("report", *map(str, results))
    assert table.startswith("Fastest: #")
    heads = [i for i, line in enumerate(table.splitlines()) if line.split()[:1] == ["#"]]
    rows = [[line.split()[0] for line in table.splitlines()[i + 1 :] if line.strip().startswith("#")] for i in heads]
    assert rows[0][:4] == ["#1", "#2", "#3", "#4"]
    assert rows[1][0] == "#5"
    assert "rows/s" in table.splitlines()[heads[1]]
    assert table.splitlines().count("kind: bench") == table.splitlines().count("kind: complete") == 1
    assert "random weights" in table
    markdown = succeed("report", str(results[0]), "--format", "md")
    assert re.search(r"^- kind: bench$", markdown, re.MULTILINE)
    grid = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(grid) == 6
    assert grid[0].startswith("| # | weights |")
    assert len({line.replace("\\|", "").count("|") for line in grid}) == 1


def test_names_reach_a_terminal_in_one_line_without_its_control_characters(results: tuple[Path, Path]) -> None:
    (line,) = read_result(results[1]).lines
    contents = _of([replace(line, model="a\x1b[31m\nb"), replace(line, model="c", error="d\x9be")])
    assert json.loads(render(contents, "json"))["lines"][0]["model"] == "a\x1b[31m\nb"
    for form in ("table", "md"):
        text = render(contents, form)
        assert all(c.isprintable() for c in text.replace("\n", ""))
        assert "a\\x1b[31m b" in text.replace("\\\\", "\\").replace("\\[", "[")
        plain = render(_of([line, replace(line, model="c", error="d")]), form)
        assert len(text.splitlines()) == len(plain.splitlines())


def _of(lines: list[Line]) -> Contents:
    """A report of these lines."""
    return compose([ResultFile(path="x", sha256="0", document={}, entries=tuple(Entry(line, {}) for line in lines))])


def test_a_data_set_is_shown_once(results: tuple[Path, Path]) -> None:
    rows = results[1]
    both = succeed("report", str(rows), f"{rows}.summary.json", "--format", "json")
    assert both == succeed("report", str(rows), "--format", "json")


def test_a_file_is_written_in_the_format_it_ends_in(results: tuple[Path, Path], tmp_path: Path) -> None:
    contents = compose([read_result(results[1])])
    for name, form in (("a.md", "md"), ("a.csv", "csv"), ("a.json", "json"), ("a.html", "html"), ("a.txt", "table")):
        assert succeed("report", str(results[1]), "-o", str(tmp_path / name)) == ""
        assert (tmp_path / name).read_text() == render(contents, form)
    succeed("report", str(results[1]), "-o", str(tmp_path / "b.md"), "--format", "table")
    assert (tmp_path / "b.md").read_text() == render(contents, "table")
    (tmp_path / "closed").mkdir(mode=0o555)
    refused = fail("report", str(results[1]), "-o", str(tmp_path / "closed" / "c.md"), before=obey_permissions)
    assert "can't be written to; name another file" in refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        ("{", "not valid JSON"),
        ('{"kind": "report"}', "neither a result of `anthesis bench -o` or `anthesis evaluate -o` nor a summary"),
        ('{"kind": "evaluate", "schema_version": 1}', "the result lacks started_at, request, command"),
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
        read_result(tmp_path / "pipe")


def test_no_more_of_a_file_is_read_than_a_result_may_have(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as sparse:
        sparse.truncate(3 << 30)
    before = forget_peak_kib()
    with pytest.raises(RequestError, match=r"x\.json is no result: too long: more than 67,108,864 bytes"):
        read_result(path)
    assert peak_kib() - before < 200_000  # the file as it comes, and once more in one piece


def test_keys_and_versions_are_shown_in_part(tmp_path: Path) -> None:
    path, summary = tmp_path / "x.json", json.loads(sample("summary"))
    for change in ({"schema_version": "\x1b" * 100_000}, {"versions": {"\x1b" * 100_000: 5}}):
        path.write_text(json.dumps(summary | change))
        with pytest.raises(RequestError) as caught:
            read_result(path)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    assert "known are: table, md, csv, json, html" in fail("report", str(tmp_path / "x"), "--format", "xml")


# --- what old files and other devices hold ----------------------------------------------------------------------------


def test_figures_are_those_of_the_samples() -> None:
    lines = read_result(CUDA).lines
    for line, row in zip(lines, document(CUDA)["rows"], strict=True):
        if row["measurement"] is None:
            assert (line.error, line.total_s) == (row["error"], None)
            continue
        runs, new = row["measurement"]["runs"], row["measurement"]["configuration"]["new_tokens"]
        total_s = sorted(run["total_s"] for run in runs)
        assert line.total_s == pytest.approx(statistics.median(total_s), rel=1e-4)
        assert line.latency_s == pytest.approx(statistics.median(total_s) / new, rel=1e-4)
        low, high = total_s  # two runs: percentiles are linear between them
        assert line.total_p5_s == pytest.approx(low + 0.05 * (high - low))
        assert line.total_p95_s == pytest.approx(low + 0.95 * (high - low))
        assert line.total_standard_deviation_s == pytest.approx(statistics.stdev(total_s), rel=1e-2)
        gaps = [b - a for run in runs for times in run["token_s"] for a, b in itertools.pairwise(times)]
        assert line.token_s == pytest.approx(statistics.median(gaps), rel=1e-2)
        prefill_s = [max(times[0] for times in run["token_s"]) for run in runs]
        assert line.prefill_s == pytest.approx(statistics.median(prefill_s), rel=1e-2)
        assert line.share_of_step_floor == row["measurement"]["limit"]["share_of_step_floor"]["median"]
        assert line.first_run_s == row["measurement"]["warmup"]["run_s"][0]
        assert (line.captures, line.capture_s) == (6, 1.84)
        assert line.device_peak_memory_bytes == 2_310_000_000


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_results_of_other_devices_are_rendered(form: str) -> None:
    text = render(compose(read_results([CUDA, HPU])), form)
    shown = html.unescape(text) if form == "html" else text
    for words in (
        "made up: for tests of the report",
        "NVIDIA H100",
        "GAUDI2",
        "out of memory: ",
        "unsupported: the hpu",
    ):
        assert words in shown
    assert "a timed run captured a step" in shown
    assert "the read bandwidth moved by 31 %" in shown


def test_the_first_run_of_all_is_the_one_that_a_result_names(tmp_path: Path) -> None:
    changed = document(CUDA)
    changed["rows"][0]["measurement"]["first_run_s"] = 7.25
    assert read_result(write(tmp_path / "x.json", changed)).lines[0].first_run_s == 7.25


def test_rows_of_a_sweep_that_is_not_finished_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json.partial", {**document(CUDA), "finished": False})
    whole, lines = read_result(CUDA).lines, read_result(path).lines
    said = "of a sweep that is not finished"
    assert [line.marks for line in lines] == ["; ".join(filter(None, (line.marks, said))) for line in whole]
    for form in ("table", "md", "html"):
        assert said in render(compose(read_results([path])), form)
        assert said not in render(compose(read_results([CUDA])), form)
    assert succeed("compare", str(path)).count(f"{path}, {said}\n") >= 2


@pytest.mark.parametrize("form", ["table", "md", "html"])
def test_a_limit_may_be_known_and_not_what_bounds_it(tmp_path: Path, form: str) -> None:
    """As where the arithmetic peak of a card is not known."""
    changed = document(CUDA)
    changed["rows"] = changed["rows"][:1]
    limit = changed["rows"][0]["measurement"]["limit"]
    with_bound = render(compose(read_results([write(tmp_path / "x.json", changed)])), form)
    limit |= {"step_bound": None, "prefill_bound": None, "multiply_adds_per_s": {}}
    without = render(compose(read_results([write(tmp_path / "x.json", changed)])), form)
    shown = f"{limit['share_of_step_floor']['median']:.1%}"
    for text, bounds in ((with_bound, True), (without, False)):
        assert shown in text
        assert (
            bool(re.search(rf"{shown}[^%]*\bmemory\b", text.partition("<script")[0].partition("## Commands")[0]))
            is bounds
        )
        assert "None" not in text.partition("<script")[0]


def test_memory_is_that_of_all_ranks() -> None:
    row = document(HPU)["rows"][1]
    assert row["point"]["tp"] == 8
    line = read_result(HPU).lines[1]
    assert line.peak_memory_bytes == sum(row["measurement"]["ranks_peak_memory_bytes"])
    assert (line.tp, line.pp, line.devices) == (8, 1, 8)


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_results_of_the_first_version_are_shown(form: str) -> None:
    files = read_results([FIXTURES / "bench-0.1-old.json", FIXTURES / "complete-0.1-old.json"])
    contents = compose(files)
    measured, data_set = contents.lines[0], contents.lines[-1]
    assert (measured.share_of_step_floor, measured.marks, measured.commit) == (None, "warming up did not settle", None)
    assert measured.started_at == files[0].document["started_at"]
    assert measured.command == "anthesis bench -n 3 --warmup 1 --runs 2"
    assert data_set.share_of_limit is None
    text = render(contents, form)
    assert all(file.path in html.unescape(text) for file in files)


def test_a_rebuilt_command_is_that_of_the_row_alone(tmp_path: Path) -> None:
    changed = document(HPU)
    changed["request"] |= {"prompt": "a $(reboot) 'b'\n", "invariant": True}
    commands = [line.command or "" for line in read_result(write(tmp_path / "x.json", changed)).lines]
    words = shlex.split(commands[1])
    assert words[words.index("--prompt") + 1] == "a $(reboot) 'b'\n"
    assert "--invariant" in words
    assert [shlex.split(command)[shlex.split(command).index("--weights") + 1] for command in commands] == [
        "bf16", "bf16", "int8",
    ]  # fmt: skip
    assert [words[words.index("--tp") + 1] for words in map(shlex.split, commands) if "--tp" in words] == ["8", "8"]


def test_a_command_is_not_rebuilt_from_what_is_no_request(tmp_path: Path) -> None:
    changed = document(HPU)
    changed["request"] = {"cache": 7}
    assert read_result(write(tmp_path / "x.json", changed)).lines[0].command is None


def test_one_number_of_prompt_tokens_stays_one_prompt(tmp_path: Path) -> None:
    changed = document(CUDA)
    changed["request"]["prompt_tokens"] = 7  # before it could be swept
    for row in changed["rows"]:
        del row["command"], row["point"]["prompt_tokens"]
    words = shlex.split(read_result(write(tmp_path / "x.json", changed)).lines[0].command or "")
    assert words[words.index("--prompt-tokens") + 1] == "7"


# --- a terminal -------------------------------------------------------------------------------------------------------


def test_tables_fit_a_terminal_and_lose_nothing() -> None:
    contents = compose(read_results([CUDA, HPU]), published=True)
    narrow = render(contents, "table", width=80)
    styled = render(contents, "table", width=80, is_styled=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", styled)
    assert [line.rstrip() for line in plain.splitlines()] == narrow.splitlines()
    assert plain != styled
    assert max(map(len, narrow.splitlines())) <= 80
    for line in contents.lines:
        if line.token_s is not None:
            assert duration(line.token_s) in narrow
            assert duration(line.total_s or 0) in narrow


def test_bars_are_as_long_as_latencies() -> None:
    contents = compose([read_result(HPU)])
    rows = [line for line in render(contents, "table").splitlines() if "█" in line]
    one, eight = (line.latency_s or 0 for line in contents.lines[:2])
    lengths = [row.count("█") for row in rows]
    assert lengths[0] == 32
    assert lengths[1] == pytest.approx(32 * eight / one, abs=1)


@pytest.mark.parametrize(("before", "styled"), [((), True), (("env", "NO_COLOR=1"), False)])
def test_a_terminal_gets_colours_unless_it_refuses(before: tuple[str, ...], styled: bool) -> None:
    terminal = Terminal([*before, *command("report", str(HPU), "--published")])
    assert terminal.finish() == 0
    assert ("\x1b[" in terminal.output) is styled
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", terminal.output).splitlines())) <= 100
