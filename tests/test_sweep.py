"""Sweeps: a process for each point, failures as rows, going on after an interruption, and what is shown meanwhile."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

from anthesis.bench import Report, Request, read_report, sweep
from anthesis.bench.against import measure_in_turns
from anthesis.bench.command import command_of, request_of_point
from anthesis.bench.failure import failure
from anthesis.bench.partial import Partial
from anthesis.bench.sweep import Status, points_of
from anthesis.cli.app import app
from anthesis.errors import (
    AnthesisError,
    CheckpointError,
    ConfigError,
    DeviceMemoryError,
    RankError,
    RequestError,
    UnsupportedError,
)
from command_line import TIMEOUT_S, Terminal, anthesis, command, fail, tiny_model

QUICK = {"max_new_tokens": 3, "warmup": 0, "runs": 1, "min_s": 0.0, "device": "reference"}
QUICK_OPTIONS = ("-n", "3", "--warmup", "0", "--runs", "1", "--seconds", "0", "--device", "reference")


def test_every_point_has_a_process_and_failing_ones_do_not_stop_the_others(tmp_path: Path) -> None:
    request = Request(model=tiny_model(tmp_path), weights=("int4-g128", "bf16"), **QUICK)
    of_this_process = bytearray(256 << 20)  # no row may hold what this process does
    of_this_process[:: 1 << 12] = b"1" * (1 << 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > len(of_this_process)
    report = sweep(request)
    assert report.finished
    failed, row = report.rows
    assert (failed.point.weights, failed.measurement) == ("int4-g128", None)
    assert failed.error is not None
    assert failed.error.startswith("refused: ")
    assert "multiple of its group of 128" in failed.error
    assert (row.point.weights, row.error) == ("bf16", None)
    assert row.measurement is not None
    assert row.measurement.speed.generated_tokens == 3
    assert row.measurement.process_peak_memory_bytes < len(of_this_process)
    assert [row.command for row in report.rows] == [command_of(request, point) for point in points_of(request)]
    assert all(report.started_at <= str(row.started_at) for row in report.rows)
    assert {"anthesis", "python", "numpy"} <= set(report.versions)


def test_the_ranks_of_a_launcher_serve_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="ranks that a launcher has started serve one model; measure one point"):
        sweep(Request(tp=(2,), batch=(1, 2), **QUICK))
    with pytest.raises(RequestError, match="--against starts ranks of its own; run it without the launcher"):
        measure_in_turns(Request(**QUICK), "tp=2")


# --- why a point failed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 1 GiB"), "out of memory: Unable to allocate 1 GiB"),
        (MemoryError(), "out of memory: no more could be taken"),
        (DeviceMemoryError("the cuda device ran out\nof memory"), "out of memory: the cuda device ran out of memory"),
        (RankError("rank 1 has ended: it was killed by SIGKILL"), "out of memory: rank 1 has ended: it was killed by "),
        (UnsupportedError("no card"), "unsupported: no card"),
        (ConfigError("no such family"), "unsupported: no such family"),
        (RequestError("too long"), "refused: too long"),
        (CheckpointError("damaged"), "failed: damaged"),
        (RankError("rank 1 did not come"), "failed: rank 1 did not come"),
    ],
)
def test_a_failure_has_a_kind_and_a_reason(error: AnthesisError | MemoryError, line: str) -> None:
    assert failure(error).startswith(line)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Path]:
    """A sweep of three points that was interrupted in the second one, and where its rows are."""
    directory = tmp_path_factory.mktemp("sweep")
    request = Request(model=tiny_model(directory), batch=(1, 2, 3), **QUICK)
    partial = Partial(directory / "result.json.partial")

    def interrupt(status: Status) -> None:
        if status.row == 2 and status.phase.endswith("timed runs"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(request, interrupt, partial)
    return request, partial.path


def test_an_interrupted_sweep_goes_on_with_what_is_missing(interrupted: tuple[Request, Path]) -> None:
    request, path = interrupted
    before = read_report(path)
    assert (len(before.rows), before.finished) == (1, False)
    resumed: list[tuple[Path, int, int]] = []
    statuses: list[Status] = []
    report = sweep(request, statuses.append, Partial(path), lambda *found: resumed.append(found))
    assert resumed == [(path, 1, 3)]
    assert {status.row for status in statuses} == {2, 3}
    shares = [status.share for status in statuses]
    assert (shares[0], shares == sorted(shares), shares[-1] > 0.5) == (0.0, True, True)
    assert report.rows[0] == before.rows[0]
    assert report.started_at == before.started_at
    assert [row.point.batch for row in report.rows] == [1, 2, 3]
    assert report.finished
    kept = read_report(path)
    assert (kept.rows, kept.finished) == (report.rows, False)  # until the caller has the whole result elsewhere


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": {"seed": 7}}, "seed was 7, and is 0"),
        ({"machine": {"processor": "Another"}}, "processor was 'Another', and is "),
        ({"machine": {"usable_cores": 999}}, "usable cores was 999, and is "),
        ({"versions": {"anthesis": "0.0.1"}}, "anthesis was '0.0.1', and is "),
        ({"commit": "0" * 40}, "commit was '000"),
    ],
)
def test_rows_of_another_sweep_are_refused(
    interrupted: tuple[Request, Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    request, path = interrupted
    document = read_report(path).document()
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    other = Partial(tmp_path / "other.partial")
    other.save(Report.from_document(document))
    with pytest.raises(RequestError, match="has rows of another sweep: ") as raised:
        sweep(request, partial=other)
    assert message in str(raised.value)
    assert str(raised.value).endswith("remove it, or take another -o")
    assert other.path.exists()


def test_a_damaged_file_of_rows_is_refused(interrupted: tuple[Request, Path], tmp_path: Path) -> None:
    path = tmp_path / "damaged.partial"
    path.write_text("{")
    with pytest.raises(RequestError, match="remove it, or take another -o"):
        sweep(interrupted[0], partial=Partial(path))
    assert path.read_text() == "{"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_sweeps_and_writes_the_file(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    output.write_text("what was there before")
    sweeping = ("--batch", "1,2", "--weights", "bf16,int4-g128")
    result = anthesis("bench", tiny_model(tmp_path), *sweeping, *QUICK_OPTIONS, "-o", str(output))
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["batch", "weights", "first"]
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "bf16"], ["2", "bf16"]]
    assert sum(line.startswith("failed: ") for line in lines) == 2
    assert "medians of 1 run after 0" in result.stdout
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: too few warm-up runs to tell whether it settled: 0, and 3 must agree"
    ]
    assert "bench: 2 of 4: batch 2, weights bf16, tp 1: timed runs" in result.stderr.splitlines()
    assert [row.error is None for row in read_report(output).rows] == [True, True, False, False]
    assert list(tmp_path.glob("*.partial")) == []


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            found += [child, *descendants(child)]
    return found


def wait_until(done: Callable[[], bool], what: str, within_s: float = TIMEOUT_S) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def begun_second_row(directory: Path, *options: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A sweep that goes on with its second row, which takes long; and all processes below it."""
    output, tp = directory / "result.json", 2 if options else 1
    request = Request(model=tiny_model(directory), batch=(1, 2), tp=(tp,), **{**QUICK, "min_s": 1000.0})
    first = sweep(Request(model=request.model, **QUICK))
    row = replace(first.rows[0], point=points_of(request)[0])
    Partial(output.with_name("result.json.partial")).save(replace(first, request=asdict(request), rows=(row,)))
    arguments = command("bench", str(request.model), "--batch", "1,2", *options, *QUICK_OPTIONS, "--seconds", "1000")
    process = subprocess.Popen(
        [*arguments, "-o", str(output)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    said = []
    while not said or "timed runs" not in said[-1]:
        said.append(process.stderr.readline())
        assert said[-1], said
    assert any("result.json.partial has 1 of 2 rows; going on with the others" in line for line in said)
    return process, descendants(process.pid)


WITH_RANKS = [(), pytest.param(("--tp", "2"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("options", WITH_RANKS)
def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(tmp_path: Path, options: tuple[str, ...]) -> None:
    process, below = begun_second_row(tmp_path, *options)
    assert len(below) >= (3 if options else 1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert all(map(is_gone, below))
    (line,) = [line for line in said.splitlines() if "interrupted" in line]
    assert line.endswith("result.json.partial, and the same command goes on from there")
    assert "Traceback" not in said
    assert len(read_report(tmp_path / "result.json.partial").rows) == 1
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_ctrl_c_without_a_file_shows_the_rows_so_far(tmp_path: Path, option: tuple[str, ...]) -> None:
    arguments = command("bench", tiny_model(tmp_path), "--batch", "1,2,3", *QUICK_OPTIONS, *option)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    while "2 of 3" not in (said := process.stderr.readline()):
        assert said
    os.killpg(process.pid, signal.SIGINT)
    printed, last = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert last.splitlines()[-1] == "bench: interrupted after 1 of 3 rows; with -o FILE it could go on later"
    if option:
        report = Report.from_document(json.loads(printed))
        assert ([row.point.batch for row in report.rows], report.finished) == ([1], False)
    else:
        assert [line.split()[0] for line in printed.splitlines()[:2]] == ["batch", "1"]


@pytest.mark.parametrize("options", WITH_RANKS)
def test_the_processes_end_with_the_command_even_if_that_is_killed(tmp_path: Path, options: tuple[str, ...]) -> None:
    process, below = begun_second_row(tmp_path, *options)
    process.kill()
    process.wait()
    wait_until(lambda: all(map(is_gone, below)), f"still there: {below}", 15)
    assert len(read_report(tmp_path / "result.json.partial").rows) == 1


def test_a_terminal_shows_a_bar_that_is_gone_in_the_end(tmp_path: Path) -> None:
    terminal = Terminal(command("bench", tiny_model(tmp_path), "--batch", "1,2", *QUICK_OPTIONS), COLUMNS="100")
    assert terminal.finish() == 0
    shown = terminal.output
    assert "1/2 batch 1, weights native, tp 1: run 1" in shown
    assert "2/2 batch 2, weights native, tp 1: loading" in shown
    assert " left" in shown
    assert "bench: " not in shown
    assert shown.splitlines()[-1].startswith("warning: ")


@pytest.mark.parametrize("arguments", [("--batch", "1,2")])
def test_a_place_that_can_not_be_written_is_refused_at_once(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    line = fail("bench", tiny_model(tmp_path), *arguments, "-o", str(tmp_path / "missing" / "result.json"))
    assert "there is no directory" in line


# --- the command of a row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_made",
    [
        Request(),
        Request(model="random:bloom-560m", prompt_tokens=(7, 512), batch=(1, 8), weights=("bf16", "int8"), tp=(1, 2)),
        Request(prompt='it\'s $HOME; `ls` -- "quoted"\nand more', pp=2, threads=1, seed=-3),
        Request(model="-odd", max_new_tokens=5, device="reference", max_context=64, cache="fp32", cache_memory=1 << 20),
        Request(prefill_chunk=8, invariant=True, warmup=0, runs=3, min_s=0.25, operations=True, prompt="-p"),
    ],
)
def test_the_command_of_a_row_asks_for_it_alone(request_made: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    class Asked(Exception):  # noqa: N818
        pass

    def take(request: Request, *_: object) -> None:
        asked.append(request)
        raise Asked

    monkeypatch.setattr(sys.modules["anthesis.bench.sweep"], "sweep", take)
    for point in points_of(request_made):
        words = shlex.split(command_of(request_made, point))
        assert words[:2] == ["anthesis", "bench"]
        cli = typer.main.get_command(app)
        with pytest.raises(Asked), cli.make_context("anthesis", words[1:]) as context:
            cli.invoke(context)
        assert asked.pop() == request_of_point(request_made, point)
