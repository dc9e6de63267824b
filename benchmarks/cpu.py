"""What else is claimed of the CPU device, measured: sampling, long contexts, starting, a model of 7 billion weights.

    python benchmarks/cpu.py
    python benchmarks/cpu.py --only sampling,context

What is compared takes turns of a few steps in one process. Of shares of the read bandwidth, memory is read between the
turns. BLOOM shapes have random weights.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anthesis import LLM
from anthesis.checkpoint.default import default_model
from anthesis.completion import Handle
from anthesis.cores import usable_cores
from anthesis.native import read_bandwidth
from anthesis.program.cost import cost
from anthesis.program.ir import Step

BLOOM, LARGE = "random:bloom-560m", "random:bloomz-7b1"
KINDS = ("bf16", "int8", "int4")
STEPS, TURNS = 10, 30
SAMPLED: Mapping[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1}
CONTEXTS = (128, 2048)
STARTS = 9


def main() -> None:
    """Prints a line for each figure."""
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "sampling": sampling,
        "context": context,
        "start": start,
        "large": large,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(parts), help=f"of {','.join(parts)}")
    chosen = parser.parse_args().only.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--only {','.join(unknown)}: choose of {', '.join(parts)}")
    for name in chosen:
        for line in parts[name]():
            print(f"{name}: {line}", flush=True)


def sampling() -> Iterator[str]:
    """Drawing from 250,880 tokens over taking the best one, one sequence."""
    for kind in KINDS:
        with LLM(BLOOM, weights=kind, device="cpu") as llm:
            times: dict[str, list[float]] = {"greedy": [], "sampled": []}
            for _ in range(TURNS):
                for name, params in ("greedy", {}), ("sampled", SAMPLED):
                    handle = submit(llm, 7, **params)
                    times[name].append(step_s(llm, handle))
                    handle.close()
        greedy, sampled = (statistics.median(times[name]) for name in ("greedy", "sampled"))
        yield f"{kind}: greedy {1e3 * greedy:.2f} ms, top-k 50 with top-p 0.9 {sampled / greedy - 1:+.1%}"


def context() -> Iterator[str]:
    """A step behind 2,048 tokens over one behind 128, by what the bytes explain."""
    for model, kind in [*((BLOOM, kind) for kind in KINDS), (None, "native")]:
        with ExitStack() as stack:
            llms = [stack.enter_context(LLM(model, weights=kind, device="cpu")) for _ in CONTEXTS]
            handles = [submit(llm, length, (STEPS + 2) * TURNS + 1) for llm, length in zip(llms, CONTEXTS, strict=True)]
            turns = [[step_s(llm, handle) for llm, handle in zip(llms, handles, strict=True)] for _ in range(TURNS)]
            short, long = (statistics.median(times) for times in zip(*turns, strict=True))
            middle = (STEPS + 2) * TURNS // 2
            few, many = (step_bytes(llms[0], length + middle) for length in CONTEXTS)
        yield (
            f"{model or 'SmolLM2'} {kind}: {1e3 * short:.2f} and {1e3 * long:.2f} ms, {long / short:.3f} times as long "
            f"for {many / few:.3f} times the bytes: {long / short / (many / few) - 1:+.1%}"
        )


def start() -> Iterator[str]:
    """From the start of a process to the first byte of the first token, from packed weights in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model, kind, prompt in [
            ("SmolLM2", str(default_model()), "native", ["-p", "The"]),
            ("bloomz-560m shapes in int8", "random:bloomz-560m", "int8", ["--prompt-ids", "1,2,3"]),
        ]:
            packed = Path(folder) / name.split()[0]
            convert = ["convert", model, str(packed), "--weights", kind]
            subprocess.run([sys.executable, "-m", "anthesis", *convert], check=True, capture_output=True)
            command = [sys.executable, "-m", "anthesis", "generate", str(packed), *prompt, "-n", "2", "--ignore-eos"]
            times = sorted(first_byte_s(command) for _ in range(STARTS))
            yield f"{name}: {statistics.median(times):.2f} s (median of {STARTS}, {times[0]:.2f} to {times[-1]:.2f})"


def large() -> Iterator[str]:
    """A model of 7 billion weights in four bits: loading, and its share of the read bandwidth."""
    with LLM(LARGE, weights="int4", device="cpu") as llm:
        yield f"{LARGE} int4: loads in {llm.load_s:.1f} s"
        handle = submit(llm, 7, (STEPS + 2) * TURNS + 1)
        nbytes, steps, passes = step_bytes(llm, 7 + (STEPS + 2) * TURNS // 2), [], []
        for _ in range(TURNS):
            passes += [1 / rate for rate in read_bandwidth(1 << 30, usable_cores(), 0.2)]
            steps.append(step_s(llm, handle))
    achieved, possible = nbytes * len(steps) / sum(steps), len(passes) / sum(passes)
    yield (
        f"{LARGE} int4: {1e3 * statistics.fmean(steps):.1f} ms a token, {achieved / 1e9:.1f} GB/s of "
        f"{possible / 1e9:.1f}: {achieved / possible:.0%} of the read bandwidth"
    )


def submit(llm: LLM, prompt_tokens: int, new_tokens: int = STEPS + 3, **params: Any) -> Handle:
    """A sequence that has its first token."""
    handle = llm.submit(llm.made_up_prompt(prompt_tokens), max_new_tokens=new_tokens, ignore_eos=True, **params)
    while handle.num_tokens == 0:
        llm.step()
    return handle


def step_s(llm: LLM, handle: Handle) -> float:
    """Seconds of a step, the mean of some after two that wake everything up."""
    before = handle.num_tokens
    llm.step()
    llm.step()
    begin = time.perf_counter()
    for _ in range(STEPS):
        llm.step()
    seconds = (time.perf_counter() - begin) / STEPS
    assert handle.num_tokens == before + STEPS + 2
    return seconds


def step_bytes(llm: LLM, tokens: int) -> int:
    """Bytes of weights and cache that a step of one sequence needs behind so many tokens."""
    needed = cost(llm.loaded.program("argmax"), Step(rows=1, logit_rows=1, context=tokens, sequences=1))
    return needed.weight_bytes + needed.cache_bytes


def first_byte_s(command: list[str]) -> float:
    """Seconds until a process has written something."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds


if __name__ == "__main__":
    main()
