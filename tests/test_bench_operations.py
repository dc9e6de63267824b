"""`bench --ops`: what the executor's counters say, beside what the operations cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from anthesis import LLM
from anthesis.bench import Report, Request, sweep
from anthesis.bench.operations import by_kind, measure_operations
from anthesis.errors import RequestError, UnsupportedError
from anthesis.models import trace
from anthesis.program.cost import cost
from anthesis.program.fuse import fuse
from anthesis.program.ir import Step
from command_line import anthesis, tiny_model
from cpu_variants import on_cpu
from programs import LLAMA, config_of, random_weights, step_inputs


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


@pytest.mark.parametrize("up", ["bf16", "fp32"])
def test_what_is_computed_on_the_way_counts(up: str) -> None:
    """Rotations within the attention, and gates that are taken apart since their kinds of weights differ."""

    def kind_of(name: str, shape: tuple[int, ...]) -> str:
        return "fp32" if len(shape) == 1 else up if name.endswith("up.weight") else "bf16"

    program = fuse(trace(config_of(LLAMA), kind_of=kind_of))
    executable = on_cpu(program, random_weights(program), blocks=5)
    executable.measure(True)
    executable.run(step_inputs([(0, 0, [1])]))
    step = Step(rows=1, logit_rows=1, context=1, sequences=1)
    kinds = by_kind(executable.measure(False), step, 1)
    needed = cost(program, step)
    assert sum(kind.memory_bytes for kind in kinds) == needed.weight_bytes + needed.cache_bytes
    assert any(kind.kind == "rope attend" for kind in kinds)
    apart = up != "bf16"
    assert apart == any(kind.kind == "mul" for kind in kinds)
    if not apart:
        assert sum(kind.flops for kind in kinds) == needed.flops
        assert sum(kind.activation_bytes for kind in kinds) == needed.activation_bytes


def test_only_steps_of_all_sequences_count(tmp_path: Path) -> None:
    """While the last prompt is read, the first sequence generates already."""
    with LLM(tiny_model(tmp_path), device="cpu", prefill_chunk=8) as llm:
        kinds = measure_operations(llm, list(range(8)), batch=4, new_tokens=6)
        needed = cost(llm.loaded.program("argmax"), Step(rows=4, logit_rows=4, context=8 + 3, sequences=4))
        assert sum(kind.flops for kind in kinds) == needed.flops
        with pytest.raises(RequestError, match="the first ends before all prompts of 8 are read; take more new tokens"):
            measure_operations(llm, list(range(8)), batch=4, new_tokens=3)


def test_counting_does_not_change_what_is_generated(tmp_path: Path) -> None:
    request = {"model": tiny_model(tmp_path), "device": "cpu", "max_new_tokens": 5, "warmup": 0, "runs": 1, "min_s": 0}
    plain, counted = (sweep(Request(**request, operations=on)).rows[0].measurement for on in (False, True))
    assert plain is not None and counted is not None
    assert plain.operations is None
    assert counted.operations
    assert plain.tokens_sha256 == counted.tokens_sha256


def test_a_result_with_operations_is_read_again(tmp_path: Path) -> None:
    request = Request(
        model=tiny_model(tmp_path), device="cpu", max_new_tokens=3, warmup=0, runs=1, min_s=0, operations=True
    )
    report = sweep(request)
    assert Report.from_document(report.document()).rows == report.rows


def test_the_table(tmp_path: Path) -> None:
    arguments = (
        "--device",
        "cpu",
        "--prompt-tokens",
        "3",
        "-n",
        "4",
        "--warmup",
        "0",
        "--seconds",
        "0",
        "--runs",
        "1",
        "--ops",
    )
    shown = anthesis("bench", tiny_model(tmp_path), *arguments)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("a decode step, batch 1"))
    assert lines[begin + 1].split() == ["operation", "memory", "activations", "time", "GB/s", "GFLOP/s", "share"]
    assert any("norm linear attention.q k v" in line and line.endswith("%") for line in lines[begin:])


def test_a_device_without_counters_says_so(tmp_path: Path) -> None:
    request = Request(
        model=tiny_model(tmp_path), device="reference", max_new_tokens=3, warmup=0, runs=1, min_s=0, operations=True
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


def test_a_misspelt_kind_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(RequestError, match="unknown weight kind 'int5'"):
        Request(weights=("int4", "int5"))
