"""Every kernel of the CUDA device compiles for cards, though there may be none here, and keeps within its registers.

Each run is a process of its own, since Triton's kernels are either interpreted or compiled in one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "compile_cuda.py"
ALL_KINDS = "fp32,bf16,fp16,fp8,int8,int8-g32,int4,int4-g64,int4-g128,int4m,int4m-g64,int4m-g128"

FEW_WORDS = 8
"""Bytes: seen of fp32 weights for capability 8.0, and of int8-g32 with 32 rows."""


def compiled(cache: Path, *arguments: str) -> str:
    """What the script says."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(text: str) -> list[tuple[str, int]]:
    """(kernel, registers) of each; none spills more than a few words, which stand outside its loops."""
    found = re.findall(r"x (\w+) .*?: (\d+) registers, (\d+) bytes spilled", text)
    assert found
    for kernel, _, spilled in found:
        assert int(spilled) <= FEW_WORDS, f"{kernel} spills:\n{text}"
    return [(kernel, int(registers)) for kernel, registers, _ in found]


@pytest.mark.slow
def test_a_step_of_one_row(tmp_path: Path) -> None:
    """5 launches for each of 24 layers, and 4 more; products leave room for three programs on a multiprocessor."""
    text = compiled(tmp_path, "random:bloomz-560m", "--weights", "bf16,int4-g128")
    assert "random:bloomz-560m bf16, 1 rows: 124 launches" in text
    kernels = check(text)
    assert {name for name, _ in kernels} == {"look_up", "normalise", "one_row", "attend_rows", "best_of_row"}
    assert max(registers for name, registers in kernels if name == "one_row") <= 168


BLOOM, LLAMA, SOME = "random:bloomz-7b1", "random:llama-3.1-8b", "bf16,int8-g32,int4m-g64"
STEPS = (
    ("--rows", "4", "--sample"),
    ("--rows", "8", "--blocks", "8"),
    ("--rows", "32", "--prompt"),
    ("--rows", "16", "--prompt", "--invariant", "--blocks", "8"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "kinds", "capability", "step"),
    [
        (BLOOM, ALL_KINDS, "90", ("--rows", "1")),
        (BLOOM, ALL_KINDS.replace("fp8,", ""), "80", ("--rows", "1")),
        (LLAMA, SOME, "90", ("--rows", "1")),
        *((LLAMA, SOME, "90", step) for step in STEPS),
        *((BLOOM, SOME, "80", step) for step in STEPS),
    ],
)
def test_every_kernel_compiles(tmp_path: Path, model: str, kinds: str, capability: str, step: tuple[str, ...]) -> None:
    check(compiled(tmp_path, model, "--weights", kinds, "--capability", capability, *step))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", [("--tp", "8"), ("--rows", "8", "--prompt")], ids=" ".join)
def test_the_largest_model(tmp_path: Path, step: tuple[str, ...]) -> None:
    check(compiled(tmp_path, "random:bloomz-176b", "--weights", "bf16,int4-g128", *step))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", ["random:bloomz-1b1", "random:bloomz-3b", "random:qwen3-0.6b"])
def test_sizes_that_are_no_powers_of_two(tmp_path: Path, model: str) -> None:
    check(compiled(tmp_path, model, "--weights", "bf16,int8,int4-g128"))


@pytest.mark.slow
def test_a_step_that_draws(tmp_path: Path) -> None:
    text = compiled(tmp_path, "random:bloomz-560m", "--sample")
    kernels = {name for name, _ in check(text)}
    assert {"scores_of_row", "draw_of_row"} <= kernels
    assert "best_of_row" not in kernels
