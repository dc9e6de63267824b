"""Two points measured in turns: what --against reads, the order of the runs, and that the idle side is idle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anthesis.bench import Report, Request, read_report
from anthesis.bench.against import measure_in_turns, side_b
from anthesis.bench.process import PointProcess
from anthesis.bench.sweep import Status, points_of
from anthesis.bench.verdict import compare
from anthesis.errors import RequestError
from anthesis.report.bench_line import line_of_row
from command_line import fail, succeed, tiny_model
from other_python import other_python

QUICK = {"max_new_tokens": 3, "warmup": 0, "runs": 9, "min_s": 0.0, "device": "reference"}


# --- what is different ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("same", {}),
        ("weights=int4", {"weights": ("int4",)}),
        ("tp=2, pp=2", {"tp": (2,), "pp": 2}),
        ("prompt-tokens=512,batch=8", {"prompt_tokens": (512,), "batch": (8,)}),
        ("--threads=1,device=cpu,cache=fp32", {"threads": 1, "device": "cpu", "cache": "fp32"}),
        ("invariant=true,prefill_chunk=7,max_context=64,seed=-1", {
            "invariant": True, "prefill_chunk": 7, "max_context": 64, "seed": -1
        }),
        ("cache_memory=4096,model=a=b", {"cache_memory": 4096, "model": "a=b"}),
        ("adapter=poet", {"adapter": "poet"}),
        ("speculate=lookup", {"speculate": "lookup"}),
    ],
)  # fmt: skip
def test_side_b_is_side_a_with_changes(text: str, changes: dict[str, object]) -> None:
    request = Request(model="m", batch=(4,))
    side = side_b(request, text)
    assert side.request == replace(request, **changes)
    assert (side.name, side.python) == ("B", sys.executable)
    assert bool(side.changed) == bool(changes)


def test_side_b_can_be_without_drafts() -> None:
    assert side_b(Request(speculate="lookup"), "speculate=none").request == Request()


def test_side_b_can_be_another_installation() -> None:
    side = side_b(Request(), "python=/opt/other/bin/python,threads=1")
    assert (side.python, side.request) == ("/opt/other/bin/python", Request(threads=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not NAME=VALUE, nor 'same'"),
        ("int4", "'int4' is not NAME=VALUE"),
        ("weights=", "'weights=' is not NAME=VALUE"),
        ("max_new_tokens=5", "names are: model, weights, batch, prompt-tokens, tp, "),
        ("threads=two", "'two' is no value of threads"),
        ("invariant=yes", "'yes' is no value of invariant"),
        ("batch=1", "is what side A has; 'same' compares a point with itself"),
        ("threads=1,threads=2", "names threads twice"),
        ("batch=0", "batch is 0"),
        ("prompt_tokens=5", "two prompts"),
        ("weights=int9", "int9"),
    ],
)
def test_what_is_no_change_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        side_b(Request(prompt="text"), text)


def test_several_points_are_refused() -> None:
    with pytest.raises(RequestError, match="takes one point, and 2 are asked for"):
        measure_in_turns(Request(batch=(1, 2)), "same")


def test_more_samples_of_both_than_a_result_can_hold_are_refused() -> None:
    request = Request(batch=(128,), max_new_tokens=1000)
    statuses: list[Status] = []
    with pytest.raises(RequestError, match=r"^2,560,000 times of tokens of both sides are more than the 2,097,152 "):
        measure_in_turns(request, "same", statuses.append)
    assert statuses == []


# --- a session --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[Status]]:
    request = Request(model=tiny_model(tmp_path_factory.mktemp("model")), **QUICK)
    statuses: list[Status] = []
    request = replace(request, warmup=1)
    return measure_in_turns(request, "weights=fp32,batch=2", statuses.append), statuses


def test_the_rows_know_of_each_other(session: tuple[Report, list[Status]]) -> None:
    report, _ = session
    a, b = report.rows
    assert a.turns is not None and b.turns is not None
    assert (a.turns.side, b.turns.side) == ("A", "B")
    assert a.turns.session == b.turns.session
    assert (a.turns.changed, b.turns.changed) == ("", "weights=fp32, batch=2")
    assert a.turns.version == b.turns.version == report.versions["anthesis"]
    assert a.turns.versions == b.turns.versions == report.versions
    assert a.turns.commit == b.turns.commit == report.commit
    assert (a.point.weights, b.point.weights, b.point.batch) == ("native", "fp32", 2)
    assert a.measurement is not None and b.measurement is not None
    assert (a.measurement.model.weight_kinds, b.measurement.model.weight_kinds) == (("bf16",), ("fp32",))
    assert report.request["against"] == "weights=fp32,batch=2"
    assert a.command is not None and b.command is not None
    assert ("--weights" in a.command, "--weights fp32" in b.command) == (False, True)
    assert Report.from_document(json.loads(json.dumps(report.document()))).rows == report.rows


def test_the_session_draws_who_is_first(session: tuple[Report, list[Status]]) -> None:
    """In loading, in warming up, and in each round, which has a run of each side."""
    report, statuses = session
    turns = [row.turns for row in report.rows if row.turns is not None]
    drawn = random.Random(turns[0].session)
    sides = ["side A (batch 1, weights native, tp 1)", "side B (batch 2, weights fp32, tp 1)"]
    phases = [f"{sides[i]}: {phase}" for phase in ("loading", "warming up") for i in drawn.sample((0, 1), 2)]
    assert list(dict.fromkeys(status.phase for status in statuses)) == [*phases, "timed runs in turns"]
    for number, places in enumerate(zip(*(side.order for side in turns), strict=True)):
        first, second = drawn.sample((0, 1), 2)
        assert (places[first], places[second]) == (2 * number, 2 * number + 1)
    assert all(len(row.measurement.runs) == QUICK["runs"] for row in report.rows if row.measurement is not None)


def test_the_software_of_a_side_is_its_own(tmp_path: Path) -> None:
    other = (
        "from anthesis.bench import machine\n"
        "machine.commit = lambda: 'c' * 40\n"
        "machine.versions = lambda: {'anthesis': '0.0.9', 'numpy': '9'}"
    )
    request = Request(model=tiny_model(tmp_path), **{**QUICK, "runs": 1})
    report = measure_in_turns(request, f"python={other_python(tmp_path, other)}")
    a, b = report.rows
    assert a.turns is not None and b.turns is not None
    assert (b.turns.commit, b.turns.versions) == ("c" * 40, {"anthesis": "0.0.9", "numpy": "9"})
    assert (a.turns.commit, a.turns.versions) == (report.commit, report.versions)
    assert report.versions["numpy"] != "9"
    first, second = (line_of_row(row, report, "result.json", "") for row in (a, b))
    assert (second.commit, second.versions) == ("c" * 40, "anthesis 0.0.9, numpy 9")
    assert first.commit == report.commit
    # of a file that does not tell them apart, and of one whose side B is no checkout
    old, unknown = (replace(b, turns=replace(b.turns, commit=None, **more)) for more in ({"versions": {}}, {}))
    assert line_of_row(old, report, "result.json", "").commit == report.commit
    assert line_of_row(unknown, report, "result.json", "").commit is None


def test_there_are_no_more_rounds_than_a_result_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anthesis.bench.against.MAX_RESULT_TIMES", 29)
    request = Request(model=tiny_model(tmp_path), **{**QUICK, "runs": 2, "min_s": 1000.0})
    report = measure_in_turns(request, "batch=2")  # with 9 times a round
    assert [len(row.measurement.runs) for row in report.rows if row.measurement is not None] == [3, 3]


def test_an_error_says_of_which_side_it_is(tmp_path: Path) -> None:
    request = Request(model=tiny_model(tmp_path), **QUICK)
    with pytest.raises(RequestError, match=r"^side B \(max_context=9\): 7 prompt tokens and 3 new ones do not fit"):
        measure_in_turns(request, "max_context=9")


def cpu_s(pid: int) -> float:
    """Seconds of processor time that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_idle_side_sleeps(tmp_path: Path) -> None:
    request = Request(model=tiny_model(tmp_path, hidden_size=256), **{**QUICK, "device": "cpu", "max_new_tokens": 50})
    (point,) = points_of(request)

    def tell(text: str, share: float) -> None: ...

    with PointProcess(request, point) as a, PointProcess(request, point) as b:
        for side in (a, b):
            side.load(tell)
            side.warm_up(tell)
            side.run(tell)
        idle, working = cpu_s(a._process.pid), cpu_s(b._process.pid)
        for _ in range(3):
            b.run(tell)
        assert cpu_s(b._process.pid) - working >= 0.2  # the bandwidth alone takes as much
        assert cpu_s(a._process.pid) - idle <= 0.03


def test_the_command_prints_the_verdict(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ("-n", "3", "--warmup", "0", "--runs", "8", "--seconds", "0", "--device", "reference")
    printed = succeed("bench", tiny_model(tmp_path), *options, "--against", "same", "-o", str(output)).splitlines()
    begin = printed.index("A, the first row, and B, the second (the same):")
    assert [line[2:14].strip() for line in printed[begin + 1 :]] == ["in all", "first token", "per token"]
    (comparison,) = compare([("file", read_report(output))])
    for verdict, line in zip(comparison.verdicts, printed[begin + 1 :], strict=True):
        assert line.endswith(verdict.text)
    assert comparison.verdicts[0].pairs == 8


def test_the_command_refuses_a_sweep(tmp_path: Path) -> None:
    line = fail("bench", tiny_model(tmp_path), "--batch", "1,2", "--against", "same")
    assert line == "anthesis: --against takes one point, and 2 are asked for; sweep without it"


@pytest.mark.slow
@pytest.mark.timed
def test_a_planted_slow_down_is_seen_and_nothing_where_nothing_is(tmp_path: Path) -> None:
    """By half, so that it is seen on a busy machine, too; benchmarks/verdicts.py plants a tenth, on one left alone."""
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "verdicts.py"
    options = (
        "--repeats",
        "1",
        "--slower",
        "0.5",
        "--",
        "-n",
        "16",
        "--runs",
        "12",
        "--seconds",
        "1",
        "--threads",
        "1",
    )
    result = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    printed = result.stdout
    assert "| the same | 1 | 1 | 0 | 0 |" in printed
    assert "| 50% slower | 1 | 0 | 1 | 0 |" in printed
