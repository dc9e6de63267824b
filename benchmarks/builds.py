"""Two or more builds of the C++ extension against each other: what does a change of the kernels gain?

    cmake --build build/native && cp build/native/_native*.so build/before.so
    (change something, build again)
    python benchmarks/builds.py build/before.so build/native/_native*.so --model random:bloom-560m --weights int4
    python benchmarks/builds.py build/before.so build/native/_native*.so --model random:bloom-560m --prompt-tokens 512

Each build has a process of its own that loads the model once. They take turns of a few steps (or of a whole prompt,
with --prompt-tokens) in an order drawn anew each time. A turn of all builds counts if the host left the cores where
they were, near each other or apart, and the two kinds stand apart from each other: docs/log.md says why. Printed are
means without the slowest fifth, and what they are of the first build's. The same build named twice shows the noise.
All builds run below these Python sources, which must fit them.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import anthesis
from anthesis import LLM
from anthesis.cores import usable_cores
from anthesis.native import handovers
from peers.measure import NEAR_S

EXTENSION = "anthesis._native"
STEPS = 10
CONTEXT = 7
TURNS_OF_A_SEQUENCE = 12
KEPT = 0.8


def main() -> None:
    """Prints a line for each build and place of the cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("builds", nargs="+", help="shared libraries")
    parser.add_argument("--model", help="as `anthesis generate` takes it; left out: the default one")
    parser.add_argument("--weights", default="native")
    parser.add_argument("--prompt-tokens", type=int, help="time the reading of a prompt instead of decode steps")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked)
    else:
        compare(asked)


def serve(asked: argparse.Namespace) -> None:
    """Runs one build: loads the model with it, and answers each line on stdin with the seconds of a turn."""
    loader = ExtensionFileLoader(EXTENSION, asked.serve)
    spec = spec_from_file_location(EXTENSION, asked.serve, loader=loader)
    assert spec is not None
    sys.modules[EXTENSION] = native = module_from_spec(spec)
    loader.exec_module(native)
    anthesis._native = native  # type: ignore[attr-defined]
    with LLM(asked.model, weights=asked.weights, device="cpu", threads=asked.threads) as llm:
        turn = decode_turn(llm) if asked.prompt_tokens is None else prompt_turn(llm, asked.prompt_tokens)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(next(turn), flush=True)


def decode_turn(llm: LLM) -> Iterator[float]:
    """Seconds a step, of some steps of one sequence after two that wake everything up; again and again."""
    while True:
        most = (STEPS + 3) * TURNS_OF_A_SEQUENCE
        handle = llm.submit(llm.made_up_prompt(CONTEXT), max_new_tokens=most, ignore_eos=True)
        for _ in range(TURNS_OF_A_SEQUENCE):
            while handle.num_tokens == 0:
                llm.step()
            llm.step()
            llm.step()
            begin = time.perf_counter()
            for _ in range(STEPS):
                llm.step()
            yield (time.perf_counter() - begin) / STEPS
        handle.close()


def prompt_turn(llm: LLM, num_tokens: int) -> Iterator[float]:
    """Seconds until a prompt's first token is known; again and again."""
    while True:
        handle = llm.submit(llm.made_up_prompt(num_tokens), max_new_tokens=1, ignore_eos=True)
        begin = time.perf_counter()
        while handle.num_tokens == 0:
            llm.step()
        yield time.perf_counter() - begin
        handle.close()


def compare(asked: argparse.Namespace) -> None:
    """Starts a process for each build and lets them take turns."""
    processes = [start(build) for build in asked.builds]
    try:
        for process in processes:
            answer(process)
        cores = sorted(os.sched_getaffinity(0))[: asked.threads]
        found: dict[str, list[list[float]]] = {"near": [], "apart": []}
        for number in range(asked.turns + 1):
            places = [is_near(cores)]
            seconds = [0.0] * len(processes)
            for place in random.sample(range(len(processes)), len(processes)):
                process = processes[place]
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                seconds[place] = float(answer(process))
            places.append(is_near(cores))
            if number > 0 and len(set(places)) == 1:
                found["near" if places[0] else "apart"].append(seconds)
    finally:
        for process in processes:
            process.kill()
    for place, turns in found.items():
        means = [kept_mean([turn[i] for turn in turns]) for i in range(len(processes))] if turns else []
        for build, mean in zip(asked.builds, means, strict=False):
            print(f"{place:5} {len(turns):4} turns  {1e3 * mean:9.3f} ms  {mean / means[0]:.3f}  {build}")


def start(build: str) -> subprocess.Popen[str]:
    """A process that serves a build."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--serve", str(Path(build).resolve())]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise SystemExit("a build failed; its message is above")
    return line


def is_near(cores: Sequence[int]) -> bool:
    """Whether the cores are near each other now; one core is."""
    return len(cores) < 2 or max(handovers(cores)) < NEAR_S


def kept_mean(values: Sequence[float]) -> float:
    """The mean without the slowest fifth, which something else disturbed."""
    kept = sorted(values)[: max(1, int(len(values) * KEPT))]
    return sum(kept) / len(kept)


if __name__ == "__main__":
    main()
