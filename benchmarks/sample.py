"""Times `sample` and `argmax` on one row of BLOOM's vocabulary: the reference, and the native sampler beside it.

python benchmarks/sample.py --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from anthesis import native
from anthesis.cores import usable_cores
from anthesis.program.sample import Argmax, Sample

VOCABULARY, USABLE = 250_880, 250_680
REPEATS = 31
NATIVE_ROWS = 100
"""Rows of a native call, all of the same logits at different positions: it also starts and ends its threads."""

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 3}
CASES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_k": 50},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"repetition_penalty": 1.2},
    {"top_k": 50, "top_p": 0.9},
]
VALUES = (*PLAIN, "logits", "positions", "logit_rows", "seen", "token")


def arrays_of(case: dict[str, Any]) -> dict[str, Any]:
    """The operation's inputs for one row: logits (1, V) float32, normal with a standard deviation of 2."""
    dtypes = {"top_k": np.int32, "seed": np.uint64}
    arrays = {name: np.array([value], dtypes.get(name, np.float32)) for name, value in {**PLAIN, **case}.items()}
    arrays["logits"] = np.random.default_rng(0).normal(0, 2, (1, VOCABULARY)).astype(np.float32)
    arrays["positions"], arrays["logit_rows"] = np.array([5], np.int32), np.array([0], np.int32)
    arrays["seen"] = np.zeros((1, VOCABULARY // 8), np.uint8)
    return arrays


def median_ms(op: Any, arrays: dict[str, Any]) -> float:
    """The median of `REPEATS` evaluations, in milliseconds."""
    samples = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        op.evaluate(arrays)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples) * 1e3


def native_ms(case: dict[str, Any], threads: int) -> float:
    """The median of `REPEATS` calls of the native sampler, in milliseconds a row."""
    one = arrays_of(case)
    arrays = {name: np.repeat(one[name], NATIVE_ROWS, axis=0) for name in (*PLAIN, "seen")}
    arrays["logits"] = np.broadcast_to(one["logits"], (NATIVE_ROWS, VOCABULARY))
    arrays["positions"] = np.arange(NATIVE_ROWS, dtype=np.int32)
    nothing = {
        "logprob": np.empty(0, np.float32),
        "top_tokens": np.empty((NATIVE_ROWS, 0), np.int32),
        "top_logprobs": np.empty((NATIVE_ROWS, 0), np.float32),
    }
    token = np.empty(NATIVE_ROWS, np.int32)
    samples = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        native.extension().sample(**arrays, **nothing, token=token, usable=USABLE, threads=threads)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples) * 1e3 / NATIVE_ROWS


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description="Times sampling by the reference and by the native code.")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of the native sampler")
    threads = parser.parse_args().threads
    argmax = Argmax(logits="logits", score="score", token="token", usable=USABLE)
    print(f"argmax: {median_ms(argmax, arrays_of({})):.2f} ms")
    sample = Sample(**{name: name for name in VALUES}, usable=USABLE)
    for case in CASES:
        shown = ", ".join(f"{name} {value}" for name, value in case.items()) or "temperature 1.0"
        reference_ms = median_ms(sample, arrays_of(case))
        print(
            f"sample, {shown}: {reference_ms:.2f} ms, native {native_ms(case, threads):.3f} ms with {threads} threads"
        )


if __name__ == "__main__":
    main()
