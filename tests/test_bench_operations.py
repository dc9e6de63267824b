"""`bench --ops`: what the executor's counters say, beside what the operations cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from anthesis import LLM
from anthesis.bench import Report, Request, sweep
from anthesis.bench.operations import measure_operations
from anthesis.errors import RequestError, UnsupportedError
from anthesis.program.cost import cost
from anthesis.program.ir import Step
from command_line import anthesis, tiny_model


def test_the_parts_are_the_whole(tmp_path: Path) -> None:
    """Their bytes and flops are those of the program, their times those of a step."""
    with LLM(tiny_model(tmp_path), device="cpu") as llm:
        kinds = measure_operations(llm, [1, 2, 3], batch=2, new_tokens=9)
        program = llm.loaded.program("argmax")
        needed = cost(program, Step(rows=2, logit_rows=2, context=3 + 4, sequences=2))
    assert sum(kind.memory_bytes for kind in kinds) == needed.weight_bytes + needed.cache_bytes
    assert sum(kind.flops for kind in kinds) == needed.flops
    assert all(kind.step_s > 0 for kind in kinds)
    assert sum(kind.step_s for kind in kinds) < 1
    layers = llm.config.num_layers
    count = {kind.kind: kind.count for kind in kinds}
    assert count["attend"] == count["norm linear attention.q k v"] == layers
    assert count["argmax"] == count["embed"] == 1


def test_counting_does_not_change_what_is_generated(tmp_path: Path) -> None:
    request = {"model": tiny_model(tmp_path), "device": "cpu", "max_new_tokens": 5, "warmup": 0, "runs": 1}
    plain, counted = (sweep(Request(**request, operations=on)).rows[0].measurement for on in (False, True))
    assert plain is not None and counted is not None
    assert plain.operations is None
    assert counted.operations
    assert plain.tokens_sha256 == counted.tokens_sha256


def test_a_result_with_operations_is_read_again(tmp_path: Path) -> None:
    request = Request(model=tiny_model(tmp_path), device="cpu", max_new_tokens=3, warmup=0, runs=1, operations=True)
    report = sweep(request)
    assert Report.from_document(report.document()).rows == report.rows


def test_the_table(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--prompt-tokens", "3", "-n", "4", "--warmup", "0", "--runs", "1", "--ops")
    shown = anthesis("bench", tiny_model(tmp_path), *arguments)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("a decode step, batch 1"))
    assert lines[begin + 1].split() == ["operation", "memory", "activations", "time", "GB/s", "GFLOP/s", "share"]
    assert any("norm linear attention.q k v" in line and line.endswith("%") for line in lines[begin:])


def test_a_device_without_counters_says_so(tmp_path: Path) -> None:
    request = Request(
        model=tiny_model(tmp_path), device="reference", max_new_tokens=3, warmup=0, runs=1, operations=True
    )
    with pytest.raises(UnsupportedError, match="no counters of its operations; --device cpu has"):
        sweep(request)


def test_measuring_begins_after_a_first_step(tmp_path: Path) -> None:
    with (
        LLM(tiny_model(tmp_path), device="cpu") as llm,
        pytest.raises(RequestError, match="measure after a first step"),
    ):
        llm.measure(True)


def test_one_token_has_no_decode_step() -> None:
    with pytest.raises(RequestError, match="ask for 2 or more"):
        Request(max_new_tokens=1, operations=True)
