"""Measures Anthesis beside transformers, llama.cpp and vLLM for CPU: the same work, in turns, in one run.

    make bench-peers
    python benchmarks/peers.py --only decode --turns 3 --peers llama.cpp

Every peer is installed into an environment of its own under .venv-peers (llama.cpp is compiled: ten minutes and more),
and the model files are written there too, once. A peer that can't be installed, or does not run on this processor, is
a row that says why. Prints the tables, and writes all samples as JSON and, beside it, a page that has the tables too
and says what was done.

    peers/systems.py       what is compared: systems, weights, work
    peers/environments.py  how each peer is installed
    peers/models.py        the model files
    peers/worker.py        what a worker is asked, and answers; peers/*_worker.py: one for each system
    peers/process.py       starts a worker, asks it, and stops it while others compute
    peers/measure.py       turns, and the read bandwidth between them
    peers/page.py          the tables
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from anthesis.atomic import replace_file
from anthesis.bench.machine import this_machine
from anthesis.cores import usable_cores
from anthesis.native import cpu_features
from peers.environments import ENVIRONMENTS, ROOT, PeerError, packages, python_of, variables_of
from peers.measure import Measured, as_json, measure
from peers.models import PRESET, SEED, multiply_adds, path_of, tensor_bytes, vocab_size
from peers.page import page, tables
from peers.process import Worker
from peers.systems import Comparison, Entry, comparisons

KINDS = ("decode", "prefill", "batch", "data-set")


def main() -> None:
    """Measures what the command line asks for, and writes both files after each comparison."""
    asked = _arguments()
    # Fewer threads than cores have the same cores in every system, and where the bandwidth is measured.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    document = _document(asked)
    chosen = [comparison for comparison in comparisons(asked.rows) if comparison.kind in asked.only]
    if asked.quick:
        chosen = [comparison.quick() for comparison in chosen]
    results: list[tuple[Comparison, list[Measured]]] = []
    pythons = _install(asked)
    document["packages"] = {name: packages(python) for name, python in pythons.items() if isinstance(python, Path)}
    # As many models at once as are compared with each other, and no more.
    for vocabulary, together in groupby(chosen, lambda comparison: vocab_size(comparison.entries[0].model)):
        side_by_side = list(together)
        with _running(asked, pythons, side_by_side) as (loaded, workers):
            for comparison in side_by_side:
                work = multiply_adds(comparison.entries[0].model, comparison)
                rows = [
                    replace(loaded[entry], turns=[], warmup_s=[], multiply_adds=work)
                    for entry in _entries(asked, comparison)
                ]
                measure(comparison, rows, workers, vocabulary, asked.turns, asked.threads)
                results.append((comparison, rows))
                print(tables(comparison, rows), flush=True)
                _write(asked.output, document, results)
    print(f"{asked.output} and {asked.output.with_suffix('.md')}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    folder = ROOT / ".venv-peers"
    peers = tuple(ENVIRONMENTS)
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "docs/benchmarks/peers.json", help="samples; the page is beside it"
    )
    parser.add_argument("--only", type=partial(_chosen, KINDS), default=KINDS, help=f"of {','.join(KINDS)}")
    parser.add_argument("--peers", type=partial(_chosen, peers), default=peers, help=f"of {','.join(peers)}")
    parser.add_argument("--turns", type=int, default=5, help="of each system in each comparison (data-set: 2 at most)")
    parser.add_argument("--rows", type=int, default=500, help="of the data set")
    parser.add_argument("--device", default="cpu", help="of Anthesis")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every system")
    parser.add_argument("--environments", type=Path, default=folder, help="where the peers are installed")
    parser.add_argument("--models", type=Path, default=folder / "models", help="where model files are written")
    parser.add_argument("--quick", action="store_true", help="tiny counts and one turn: does everything run?")
    asked = parser.parse_args()
    if min(asked.turns, asked.rows, asked.threads) < 1 or asked.threads > usable_cores():
        parser.error(f"turns and rows are at least 1, threads from 1 to {usable_cores()}")
    if asked.quick:
        asked.turns = 1
    return asked


def _chosen(choices: Sequence[str], text: str) -> tuple[str, ...]:
    """The parts of a comma list, each one of the choices."""
    parts = tuple(text.split(","))
    for part in parts:
        if part not in choices:
            raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(choices)}")
    return parts


def _document(asked: argparse.Namespace) -> dict[str, Any]:
    """What the JSON file says besides the comparisons."""
    return {
        "schema_version": 1,
        "command": shlex.join(["benchmarks/peers.py", *sys.argv[1:]]),
        "began_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": asdict(this_machine()),
        "features": [name for name, is_there in cpu_features().items() if is_there],
        "threads": asked.threads,
        "device": asked.device,
        "quick": asked.quick,
        "random": f"the weights of the BLOOM-560M shapes: {PRESET}, seed {SEED}; the prompts are made up",
    }


def _entries(asked: argparse.Namespace, comparison: Comparison) -> list[Entry]:
    """Those that were asked for."""
    return [entry for entry in comparison.entries if entry.system in ("Anthesis", *asked.peers)]


def _install(asked: argparse.Namespace) -> dict[str, Path | PeerError]:
    """The interpreter of every system, or why it has none."""
    pythons: dict[str, Path | PeerError] = {}
    (asked.environments / "logs").mkdir(parents=True, exist_ok=True)
    for system in ("Anthesis", *asked.peers):
        try:
            pythons[system] = python_of(system, asked.environments, asked.environments / "logs" / f"{system}.pip.log")
        except PeerError as error:
            pythons[system] = error
            print(f"peers: {system}: {error}", file=sys.stderr)
    return pythons


@contextmanager
def _running(
    asked: argparse.Namespace, pythons: Mapping[str, Path | PeerError], together: Sequence[Comparison]
) -> Iterator[tuple[dict[Entry, Measured], dict[Entry, Worker]]]:
    """A loaded, stopped worker for every entry of some comparisons; one that does not load is an error in its row."""
    loaded: dict[Entry, Measured] = {}
    workers: dict[Entry, Worker] = {}
    try:
        for entry in dict.fromkeys(entry for comparison in together for entry in _entries(asked, comparison)):
            loaded[entry] = row = Measured(entry)
            print(f"peers: loading {entry.name}", file=sys.stderr)
            try:
                workers[entry] = worker = _start(asked, pythons[entry.system], entry)
            except PeerError as error:
                row.error = str(error)
                print(f"peers: {entry.name}: {error}", file=sys.stderr)
                continue
            row.about = worker.about
            row.weight_bytes = worker.about.get("weight_bytes") or tensor_bytes(path_of(entry.model, asked.models))
        yield loaded, workers
    finally:
        for worker in workers.values():
            worker.close()


def _start(asked: argparse.Namespace, python: Path | PeerError, entry: Entry) -> Worker:
    if isinstance(python, PeerError):
        raise python
    options = {
        "model": str(path_of(entry.model, asked.models)),
        "weights": entry.weights if entry.model else "native",
        "device": asked.device,
        "threads": asked.threads,
    }
    variables = variables_of(entry.system, python, asked.threads)
    return Worker(entry, python, options, variables, asked.environments / "logs" / f"{entry.name}.log")


def _write(output: Path, document: dict[str, Any], results: Sequence[tuple[Comparison, list[Measured]]]) -> None:
    """Both files, with what there is so far."""
    document["comparisons"] = [
        {**asdict(comparison), "entries": [as_json(row) for row in rows]} for comparison, rows in results
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, json.dumps(document, indent=1) + "\n")
    replace_file(output.with_suffix(".md"), page(document, results))


if __name__ == "__main__":
    main()
