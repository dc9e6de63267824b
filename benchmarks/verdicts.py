"""Are verdicts right? The same point against itself, and against itself 10 % slower, again and again.

    python benchmarks/verdicts.py -o docs/benchmarks/verdicts.md

Each repeat is a whole `anthesis bench --against`, once with `same` and once with `python=` and a Python that plants the
slow-down: after every decode step it spins for a tenth of the step's time. The package knows nothing of it. Of 20
repeats 19 must see no difference, and 19 the slow-down; the exit code is 1 if they don't. Leave the machine alone
meanwhile; 20 repeats of the default model take some 18 minutes on two cores.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anthesis.bench import Report, read_report
from anthesis.bench.verdict import Verdict, compare

NEEDED = 0.95
"""Of the repeats, that must come out right."""

SLOWER = """#!{python}
import sys, time
from anthesis.devices.cpu.device import CpuExecutable

step = CpuExecutable.run

def slower_step(self, inputs):
    begin = time.perf_counter()
    outputs = step(self, inputs)
    if len(inputs["tokens"]) == len(inputs["logit_rows"]):  # a decode step; a prompt has rows without logits
        end = begin + {factor} * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
    return outputs

CpuExecutable.run = slower_step
option, code = sys.argv[1], sys.argv[2]
assert option == "-c"
sys.argv[:3] = [option]
exec(code)
"""


def main() -> None:
    """Prints a line for each session, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--slower", type=float, default=0.1, help="part of a decode step's time that is added to it")
    parser.add_argument("-o", "--output", type=Path, help="write the page to this file, as Markdown")
    parser.add_argument("bench", nargs="*", help="after --: arguments of `anthesis bench` instead of these")
    asked = parser.parse_args()
    arguments = asked.bench or ["-n", "32", "--runs", "40", "--seconds", "0"]
    begin = time.monotonic()
    sessions: dict[str, list[Report]] = {"the same": [], f"{asked.slower:.0%} slower": []}
    with tempfile.TemporaryDirectory() as directory:
        python = Path(directory) / "slower_python"
        python.write_text(SLOWER.format(python=sys.executable, factor=1 + asked.slower))
        python.chmod(0o755)
        for repeat in range(asked.repeats):
            for name, against in zip(sessions, ("same", f"python={python}"), strict=True):
                report = session(arguments, against, Path(directory) / "result.json")
                sessions[name].append(report)
                print(f"{repeat + 1:3} {name:12} {said(report)}", flush=True)
    page = markdown(sessions, arguments, time.monotonic() - begin)
    print(page)
    if asked.output is not None:
        asked.output.write_text(page)
    right = [count(reports)[outcome] for reports, outcome in zip(sessions.values(), WANTED, strict=True)]
    sys.exit(min(right) < NEEDED * asked.repeats)


WANTED = ("no difference seen", "slower")


def session(arguments: Sequence[str], against: str, result: Path) -> Report:
    """One session in turns."""
    command = [sys.executable, "-m", "anthesis", "bench", *arguments, "--against", against, "-o", str(result)]
    result.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if not result.exists():  # an invalid row is written, too
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return read_report(result)


def in_all(report: Report) -> Verdict | None:
    """The verdict on the whole call; None where the rows are not comparable."""
    (comparison,) = compare([("the session", report)])
    return comparison.verdicts[0] if comparison.verdicts else None


def said(report: Report) -> str:
    """The verdict in words, or why there is none."""
    (comparison,) = compare([("the session", report)])
    return comparison.not_comparable or comparison.verdicts[0].text


def count(reports: Sequence[Report]) -> Counter[str]:
    """How many sessions came to which outcome."""
    return Counter(verdict.outcome for verdict in map(in_all, reports) if verdict is not None)


def markdown(sessions: dict[str, list[Report]], arguments: Sequence[str], took_s: float) -> str:
    """The page."""
    first = next(iter(sessions.values()))[0]
    (measured, _) = (row.measurement for row in first.rows)
    assert measured is not None
    page = shlex.join(["python", "benchmarks/verdicts.py", *sys.argv[1:]])
    machine = f"device {measured.device.name}, {first.machine.processor}, {first.machine.usable_cores} usable cores"
    lines = [
        "# Are verdicts right?",
        "",
        f"{measured.model.description}, {machine}; {first.started_at[:10]}, {took_s / 60:.0f} minutes.",
        "",
        f"Made by `{page}`; each session is `anthesis bench {shlex.join(arguments)} --against ...`.",
        "",
        "Side B against side A, the whole call, at p < 0.01:",
        "",
        "| side B is | sessions | no difference seen | slower | faster | ratios seen | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, reports in sessions.items():
        found, verdicts = count(reports), [verdict for verdict in map(in_all, reports) if verdict is not None]
        outcomes = [str(found[outcome]) for outcome in ("no difference seen", "slower", "faster")]
        ratios, rounds = [verdict.ratio for verdict in verdicts], [verdict.pairs for verdict in verdicts]
        ends = (
            [f"{min(ratios):.3f} to {max(ratios):.3f}", f"{min(rounds)} to {max(rounds)}"] if verdicts else ["-", "-"]
        )
        lines.append(f"| {' | '.join([name, str(len(reports)), *outcomes, *ends])} |")
    lines += ["", "Every session: how many times as fast B is as A, with the 99 % interval.", ""]
    lines += [f"| session | {' | '.join(sessions)} |", "|---|---|---|"]
    for number, both in enumerate(zip(*sessions.values(), strict=True), start=1):
        lines.append(f"| {number} | {' | '.join(map(cell, both))} |")
    return "\n".join(lines) + "\n"


def cell(report: Report) -> str:
    """A session in the table."""
    verdict = in_all(report)
    if verdict is None:
        return said(report)
    return f"{verdict.ratio:.3f} ({verdict.low:.3f} to {verdict.high:.3f})"


if __name__ == "__main__":
    main()
