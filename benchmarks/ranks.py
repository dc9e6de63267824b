"""Several ranks, measured: what their sums cost, and two ranks of one thread beside one rank of two threads.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --only sums -o docs/benchmarks/ranks.json

Both need two idle cores. Sums go through memory that two processes share and through gloo, in turns in the same
processes. The models take turns of a few steps; BLOOM's shapes have random weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from anthesis import LLM
from anthesis.bench.machine import this_machine, versions
from anthesis.completion import Handle
from anthesis.native import handovers
from anthesis.parallel.binding import bound_to, shares_of_cores
from anthesis.parallel.communicator import Communicator
from anthesis.parallel.process_groups import ProcessGroups
from anthesis.parallel.shared_memory import SharedMemory, join_shared_memory

SIZES = [1 << power for power in range(10, 21)]
"""Bytes of a sum: 1 KiB to 1 MiB."""

REPEATS, ROUNDS = 50, 20
MODEL = "random:bloom-560m"
KINDS = ("bf16", "int8", "int4")
STEPS, TURNS = 10, 40


def main() -> None:
    """Prints what is measured, and writes it where asked."""
    parts: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {"sums": sums, "models": models}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(parts), help=f"of {','.join(parts)}")
    parser.add_argument("-o", "--output", type=Path, help="write the samples there as JSON")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--only {','.join(unknown)}: choose of {', '.join(parts)}")
    document: dict[str, Any] = {"machine": vars(this_machine()), "versions": versions()}
    for name in chosen:
        document[name] = []
        for line, samples in parts[name]():
            print(f"{name}: {line}", flush=True)
            document[name].append(samples)
    if arguments.output:
        arguments.output.write_text(json.dumps(document, default=str) + "\n")


# --- sums of two ranks ------------------------------------------------------------------------------------------------


def sums() -> Iterator[tuple[str, Any]]:
    """The median time of one sum of two ranks, by its size."""
    yield f"cores hand over in {_handover_ns():.0f} ns", {"handover_ns": _handover_ns()}
    memory = SharedMemory(2)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_other_rank, args=(theirs, memory.name))
    other.start()
    groups = ProcessGroups(2, "127.0.0.1", None)
    ours.send(groups.port)
    gloo = groups.connect([[0, 1]], 0, "127.0.0.1")
    assert gloo is not None
    shared = memory.communicator()
    memory.close()
    shares = shares_of_cores(2)
    with bound_to(None if shares is None else shares[0]):
        found = _time_sums(shared, gloo)
    other.join()
    groups.close()
    for nbytes in SIZES:
        times = {name: statistics.median(by_size[nbytes]) for name, by_size in found.items()}
        yield (
            f"{nbytes >> 10:6} KiB: shared memory {1e6 * times['shared']:8.1f} us, gloo {1e6 * times['gloo']:8.1f} us",
            {"nbytes": nbytes, **{f"{name}_s": by_size[nbytes] for name, by_size in found.items()}},
        )


def _other_rank(connection: Connection, name: str) -> None:
    shared = join_shared_memory(name, 1, 2)
    groups = ProcessGroups(2, "127.0.0.1", connection.recv())
    gloo = groups.connect([[0, 1]], 1, "127.0.0.1")
    assert shared is not None
    assert gloo is not None
    shares = shares_of_cores(2)
    with bound_to(None if shares is None else shares[1]):
        _time_sums(shared, gloo)
    groups.close()


def _time_sums(shared: Communicator, gloo: Communicator) -> dict[str, dict[int, list[float]]]:
    """Seconds of every sum, by what it went through and its size."""
    found: dict[str, dict[int, list[float]]] = {name: {size: [] for size in SIZES} for name in ("shared", "gloo")}
    for _ in range(ROUNDS):
        for nbytes in SIZES:
            x = np.ones(nbytes // 4, np.float32)
            for name, communicator in (("shared", shared), ("gloo", gloo)):
                for _ in range(REPEATS):
                    begin = time.perf_counter()
                    communicator.all_reduce(x)
                    found[name][nbytes].append(round(time.perf_counter() - begin, 8))
                    x[...] = 1
    return found


# --- models -----------------------------------------------------------------------------------------------------------


def models() -> Iterator[tuple[str, Any]]:
    """Time per token of two ranks of one thread, and of one rank of two threads, one sequence."""
    for kind in KINDS:
        with (
            LLM(MODEL, weights=kind, device="cpu", threads=2) as alone,
            LLM(MODEL, weights=kind, device="cpu", threads=1, tp=2) as split,
        ):
            token_s: dict[str, list[float]] = {"alone": [], "split": []}
            handles = {name: _start(llm) for name, llm in (("alone", alone), ("split", split))}
            for turn in range(TURNS):
                order = [("alone", alone), ("split", split)]
                for name, llm in order if turn % 2 else reversed(order):
                    llm.step()  # after the other's turn its weights have to come back into the caches
                    begin = time.perf_counter()
                    for _ in range(STEPS):
                        llm.step()
                    token_s[name].append((time.perf_counter() - begin) / STEPS)
            for handle in handles.values():
                handle.close()
        ratios = [b / a for a, b in zip(token_s["alone"], token_s["split"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = {name: 1e3 * statistics.median(samples) for name, samples in token_s.items()}
        line = (
            f"{kind}: tp 1 x 2 threads {medians['alone']:.2f} ms, tp 2 x 1 thread {medians['split']:.2f} ms; "
            f"ratio {middle:.3f} ({low:.3f} to {high:.3f}); cores hand over in {_handover_ns():.0f} ns"
        )
        yield line, {"weights": kind, **{f"{name}_token_s": samples for name, samples in token_s.items()}}


def _start(llm: LLM) -> Handle:
    tokens = (STEPS + 1) * TURNS + 8
    handle = llm.submit(llm.made_up_prompt(7), max_new_tokens=tokens, ignore_eos=True)
    while handle.num_tokens == 0:
        llm.step()
    return handle


def _handover_ns() -> float:
    return 1e9 * handovers(sorted(os.sched_getaffinity(0))[:2])[0]


if __name__ == "__main__":
    main()
