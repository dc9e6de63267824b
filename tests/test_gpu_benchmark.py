"""benchmarks/gpu.py without a card: a dry run of all of it, the page's figures, and what becomes of jobs that fail."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anthesis.bench.measurement import Measurement
from anthesis.devices.accelerator.bandwidth import MIN_BUFFER_BYTES, of_card
from anthesis.devices.cuda.device import driver_version
from anthesis.records import from_document
from gpu.measure import do
from gpu.page import DryRunError, page, step_bytes
from gpu.profile import STEPS, Event, summarise
from gpu.work import JOBS, LARGE, Job, tiny
from gpu.worker import Worker, on_host

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NO_TILES = {"rows": 8, "columns": 1024, "warps": 4}
TILES = {**NO_TILES, "bytes_per_s": 1.5e12}
WITHOUT_EXTENSION = 'import sys\nsys.modules["anthesis._native"] = None\n'


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env={**os.environ, **variables}
    )


@pytest.fixture(scope="module")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found of a row: of tiny shapes, on the host."""
    tiny_row = next(job for job in tiny(tmp_path_factory.mktemp("tiny")) if job.step == "row")
    with on_host():
        *_, found = do(tiny_row)
    return found


@pytest.fixture
def measured(one_row: dict[str, Any]) -> dict[str, Any]:
    """A document as if all had been measured on a card that reads 2 TB/s; every row is the same one."""
    way = {"warmup_s": [1.0], "total_s": [1.0], "error": None}
    ways = {"anthesis": way, "growing cache, eager": way, "static cache, compiled": way}
    bandwidth = {"samples": [2e12], "note": "made up", "median_bytes_per_s": 2e12}
    device = {"description": "a card", "memory_bytes": 80 * 10**9}
    results = {
        "environment": {"versions": {"torch": "2.11"}, "device": device, "read_bandwidth": bandwidth},
        "correctness": {"random_weights": [{"kind": "bf16", "equal": True}], "models": []},
        "row": one_row,
        "profile": {},
        "tiles": {"bf16": [TILES, {**TILES, "bytes_per_s": 1e12, "rows": 4}, {"error": "too | large", **NO_TILES}]},
        "peer": {"transformers": "5.17", "ways": ways},
    }
    jobs = [{"job": job.name, "result": results[job.step], "error": None, "took_s": 1.0} for job in JOBS]
    document = {"dry_run": False, "command": "gpu.py", "began_at": "2026-01-01T00:00", "took_s": 500, "jobs": jobs}
    return copy.deepcopy(json.loads(json.dumps(document)))


def outcome(document: dict[str, Any], job: str) -> dict[str, Any]:
    (found,) = (one for one in document["jobs"] if one["job"] == job)
    return found


def cells(text: str, first: str) -> list[list[str]]:
    """The lines of tables that begin with this cell."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0] == first]


@pytest.mark.slow
def test_a_dry_run_does_every_job_without_the_extension(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_EXTENSION)
    output = tmp_path / "dry.json"
    result = script("--dry-run", "-o", str(output), PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    dry: dict[str, Any] = json.loads(output.read_text())
    assert dry["dry_run"] is True
    assert [(one["job"], one["error"]) for one in dry["jobs"]] == [(job.name, None) for job in JOBS]
    environment, correctness = (outcome(dry, name)["result"] for name in ("environment", "correctness"))
    assert environment["device"]["description"] == "the code of the cuda device on the host"
    assert environment["versions"]["torch"] == torch.__version__
    assert "the native extension of anthesis can't be loaded" in environment["read_bandwidth"]["note"]
    assert all(one["equal"] for one in correctness["random_weights"])
    assert len(correctness["models"]) >= 16
    assert all(one["fine"] for one in correctness["models"])
    for job in JOBS:
        found = outcome(dry, job.name)["result"]
        if job.step == "row":
            (row,) = job.rows
            measurement = from_document(Measurement, found["measurement"], job.name)
            assert measurement.model.weight_kinds == (row.weights,)
            assert measurement.device.batch_invariant is row.invariant
            assert [len(run.token_s) for run in measurement.runs] == [row.batch]
        elif job.step == "profile":
            assert [found[row.name]["steps"] for row in job.rows] == [STEPS] * len(job.rows)
        elif job.step == "tiles":
            assert set(found) == {row.weights for row in job.rows}
            assert all(one["bytes_per_s"] > 0 for tried in found.values() for one in tried)
        elif job.step == "peer":
            assert set(found["ways"]) == {"anthesis", "growing cache, eager", "static cache, compiled"}
            assert all(len(way["total_s"]) == 5 and way["error"] is None for way in found["ways"].values())


def test_a_dry_run_is_not_published(measured: dict[str, Any], tmp_path: Path) -> None:
    measured["dry_run"] = True
    with pytest.raises(DryRunError, match="measure on a card"):
        page(measured)
    results = tmp_path / "dry.json"
    results.write_text(json.dumps(measured))
    refused = script("--page", "-o", str(results))
    assert refused.returncode == 1
    assert "this file is of a dry run" in refused.stderr
    assert not results.with_suffix(".md").exists()


def test_the_page_in_the_repository_is_that_of_its_results() -> None:
    path = ROOT / "docs" / "benchmarks" / "gpu.json"
    found = json.loads(path.read_text()) if path.is_file() else None
    assert path.with_suffix(".md").read_text() == page(found)


def test_the_figures_of_the_page(measured: dict[str, Any]) -> None:
    row = outcome(measured, "row bloomz-7b1 bf16")["result"]
    speed = row["measurement"]["speed"]
    speed["total_s"]["median"], speed["tokens_per_s"]["median"] = 0.5, 200.0
    row["measurement"]["counted"] |= {"captures": 3, "capture_s": 1.25, "peak_memory_bytes": 15 * 10**9}
    top = [{"name": "matvec_kernel", "count": 121.0, "step_s": 0.004}]
    first, last = (job.name for job in JOBS if job.step == "profile")
    launches = {"graph_launches": 1.0, "kernel_launches": 2.0, "kernels": 300.0, "busy_s": 0.0045}
    outcome(measured, first)["result"] = {"bloomz-7b1 bf16": {**launches, "top": top}}
    outcome(measured, last)["error"] = "given up after 5 s"
    peers = outcome(measured, "peer bloomz-7b1 bf16")["result"]["ways"]
    peers["anthesis"]["total_s"], peers["growing cache, eager"]["total_s"] = [0.5, 0.6, 0.4], [2.0, 2.0, 2.0]
    peers["static cache, compiled"] |= {"total_s": [], "error": "no\ncompiler | here"}
    text = page(measured)
    latency, made_of = cells(text, "bloomz-7b1 bf16")[0], cells(text, "bloomz-7b1 bf16")[2]
    floor = 100 * step_bytes(LARGE) / 2e12
    assert (latency[1], latency[3], latency[5], latency[6]) == ("0.500", "200", f"{floor:.3f}", "0.54")
    assert latency[7] == "1.066 (1 Gaudi2)"
    assert 0.70 < floor < 0.72
    assert cells(text, "bloomz-7b1 bf16")[1] == ["bloomz-7b1 bf16", "0.500", "2.000", "growing cache, eager", "4.00"]
    assert "static cache, compiled: no compiler / here" in text
    assert made_of[2:] == ["3", "1.25", "15.0 GB", "1.0", "2.0", "300", "4.50"]
    assert cells(text, "bloomz-3b bf16")[1][5] == "not measured: given up after 5 s"
    assert cells(text, "`matvec_kernel`") == [["`matvec_kernel`", "121.0", "4000.0"]]
    assert cells(text, "bloomz-7b1")[0] == ["bloomz-7b1", "1 Gaudi2", "1.066"]
    assert cells(text, "bf16") == [
        ["bf16", "8", "1024", "4", "75%", "1.50 TB/s", "as it is"],
        ["bf16", "4", "1024", "4", "50%", "1.00 TB/s", ""],
        ["bf16", "8", "1024", "4", "not measured", "", "too / large"],
    ]


def test_the_page_says_why_there_is_no_figure(measured: dict[str, Any]) -> None:
    measurement = outcome(measured, "row bloomz-7b1 fp8")["result"]["measurement"]
    measurement["invalid"] = ["1 graph capture in timed run 1"]
    outcome(measured, "row bloomz-176b int4-g128")["result"] = {"refused": "the weights take 91.2 GB on cuda, and 78.1"}
    outcome(measured, "row bloomz-3b bf16").update(result=None, error="skipped: 5 s were left")
    outcome(measured, "correctness").update(result=None, error="the process ended with code -6")
    text = page(measured)
    assert "(invalid: 1 graph capture in timed run 1)" in cells(text, "bloomz-7b1 fp8")[0][1]
    assert cells(text, "bloomz-176b int4-g128")[0][1] == "not measured: the weights take 91.2 GB on cuda, and 78.1"
    assert cells(text, "bloomz-3b bf16")[0][1] == "not measured: skipped: 5 s were left"
    assert "not measured: the process ended with code -6." in text


def test_without_a_card_nothing_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a card is there")
    output = tmp_path / "gpu.json"
    found = script("-o", str(output))
    assert found.returncode == 2
    assert "nothing can be measured, and nothing was written: UnsupportedError: the cuda device" in found.stderr
    assert not list(tmp_path.iterdir())
    assert "by -o FILE" in script("--dry-run").stderr
    assert "there is no such directory" in script("-o", str(tmp_path / "none" / "x.json")).stderr


def test_without_time_every_job_is_skipped(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert script("--dry-run", "--seconds", "0", "-o", str(output)).returncode == 0
    found = json.loads(output.read_text())
    assert [one["error"] for one in found["jobs"]] == ["skipped: it takes about 1 s, and 0 s were left"] * len(JOBS)


def test_a_job_that_fails_or_hangs_leaves_the_next_a_fresh_process() -> None:
    row = Job(step="row", seconds=1, rows=(replace(LARGE, weights="int5"),))
    with Worker(dry=True) as worker:
        failed = worker.do(row, 120)
        assert "int5" in failed["error"]
        assert failed["result"] is None
        hung = worker.do(Job(step="environment", seconds=1), 0.01)
        assert hung["error"] == "given up after 0 s"
        assert hung["took_s"] < 60


def test_the_figures_of_a_profile() -> None:
    step = [
        Event("cudaGraphLaunch", False, 1e-5),
        Event("cuLaunchKernelEx", False, 1e-5),
        Event("aten::copy_", False, 1e-5),
        Event("Memcpy HtoD (Pinned -> Device)", True, 2e-6),
        *[Event("matvec", True, 3e-5)] * 4,
        Event("attend", True, 4e-5),
    ]
    found = summarise(step * 2, 2)
    assert (found.graph_launches, found.kernel_launches, found.kernels, found.transfers) == (1, 1, 5, 1)
    assert found.busy_s == pytest.approx(2e-6 + 12e-5 + 4e-5)
    assert [(kernel.name, kernel.count) for kernel in found.top] == [("matvec", 4), ("attend", 1)]
    assert found.top[0].step_s == pytest.approx(12e-5)


def test_a_card_is_read_in_the_faster_of_two_ways() -> None:
    asked: list[Any] = []

    def seconds_of(call: Any) -> float:
        asked.append(call)
        return 0.5 if call is asked[0] else 0.25

    found = of_card(torch.device("cpu"), 4 * MIN_BUFFER_BYTES, seconds_of)
    assert set(found.samples) == {MIN_BUFFER_BYTES / 0.25}
    assert "256 MiB" in found.note
    little = of_card(torch.device("cpu"), MIN_BUFFER_BYTES, seconds_of)
    assert little.samples == ()
    assert "too little" in little.note


def test_the_version_of_the_driver() -> None:
    proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023"
    is_open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 13"
    assert [driver_version(text) for text in (proprietary, is_open, "")] == ["535.129.03", "580.95.05", None]
