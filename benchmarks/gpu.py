"""Measures Anthesis on one NVIDIA card, beside transformers, in one command of less than ten minutes.

    PYTHONPATH=src python benchmarks/gpu.py
    python benchmarks/gpu.py --dry-run -o dry.json
    python benchmarks/gpu.py --page

It needs PyTorch with CUDA, Triton, and what anthesis needs but for its C++ extension; transformers for the comparison
with it. First small models are compared with the reference device; then the rows of the table are measured, the most
important ones first, as long as there is time. What fails or hangs is a line that says so, and takes nothing else
along: all that is known stands in the JSON file after every step. The page beside it has the tables.

    gpu/work.py         the rows, targets, published figures
    gpu/worker.py       the process that measures
    gpu/measure.py      the card, and a row of the table
    gpu/correctness.py  small models beside the reference device
    gpu/profile.py      launches and kernels of a step
    gpu/tiles.py        other tiles for the kernel of one row
    gpu/peer.py         transformers
    gpu/page.py         the page
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from anthesis.atomic import replace_file
from gpu.page import DryRunError, page
from gpu.work import JOBS, Job, tiny
from gpu.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 540
LIMIT = 3
"""A job is given up after so many times what it was thought to take."""

START_S = 30
"""More, for a process that starts, and imports PyTorch."""


def main() -> None:
    """Measures, or only writes the page."""
    asked = _arguments()
    if asked.page:
        write_page(asked.output)
        return
    with tempfile.TemporaryDirectory() as directory:
        jobs = tiny(Path(directory)) if asked.dry_run else JOBS
        run(jobs, asked.seconds, asked.output, dry=asked.dry_run)
    if not asked.dry_run:
        print(write_page(asked.output))


def write_page(results: Path) -> str:
    """Writes the page beside a file of results, or the page of what is yet to be measured where that is not there."""
    found = json.loads(results.read_text()) if results.is_file() else None
    try:
        text = page(found)
    except DryRunError as error:
        sys.exit(f"gpu: {results}: {error}")
    replace_file(results.with_suffix(".md"), text)
    print(f"gpu: wrote {results.with_suffix('.md')}", file=sys.stderr)
    return text


def run(jobs: Sequence[Job], seconds: float, output: Path, *, dry: bool) -> None:
    """Does the jobs in order while there is time, and writes the file after each.

    Args:
        jobs: to do.
        seconds: for all of them.
        output: the JSON file.
        dry: on the host, without a card.
    """
    begin = time.monotonic()
    outcomes: list[dict[str, Any]] = []
    document = {
        "kind": "gpu",
        "schema_version": 1,
        "dry_run": dry,
        "command": shlex.join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "began_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "budget_s": seconds,
        "jobs": outcomes,
    }
    with Worker(dry) as worker:
        for job in jobs:
            left = seconds - (time.monotonic() - begin)
            if job.seconds > left:
                why = f"skipped: it takes about {job.seconds:.0f} s, and {max(0.0, left):.0f} s were left"
                outcome = {"job": job.name, "result": None, "error": why, "took_s": 0.0}
            else:
                outcome = worker.do(job, min(left, LIMIT * job.seconds + START_S))
            if job.step == "environment" and outcome["result"] is None and outcome["took_s"]:
                print(f"gpu: nothing can be measured, and nothing was written: {outcome['error']}", file=sys.stderr)
                sys.exit(2)
            outcomes.append(outcome)
            said = outcome["error"] or "done"
            print(f"gpu: {job.name}: {said} ({outcome['took_s']:.1f} s)", file=sys.stderr, flush=True)
            document["took_s"] = time.monotonic() - begin
            replace_file(output, json.dumps(document, allow_nan=False) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "-o", "--output", type=Path, help="results, with the page beside them; docs/benchmarks/gpu.json unless given"
    )
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="for all; what has no time is skipped")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="tiny shapes on the host: does everything run?")
    what.add_argument("--page", action="store_true", help="measure nothing; write the page of the file that -o names")
    found = parser.parse_args()
    if found.output is None and found.dry_run:
        parser.error("a dry run is no result: say where to write it, by -o FILE")
    found.output = found.output or ROOT / "docs/benchmarks/gpu.json"
    if not found.output.resolve().parent.is_dir():
        parser.error(f"{found.output}: there is no such directory")
    return found


if __name__ == "__main__":
    main()
