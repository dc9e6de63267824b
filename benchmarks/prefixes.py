"""What is saved where the rows of a data set begin alike: 100 rows with one instruction of 400 tokens, SmolLM2.

    python benchmarks/prefixes.py -o docs/benchmarks/prefixes.md

The rows are completed by what `anthesis complete` runs, with and without reuse of prefixes, in an order drawn for each
round. The output files must be the same byte for byte, and at least 4 times fewer prompt tokens be computed: the exit
code is 1 otherwise. Leave the machine alone meanwhile: 3 rounds take some 4 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anthesis import LLM
from anthesis.bench.machine import commit, now, this_machine
from anthesis.dataset import Request, complete, open_dataset
from anthesis.dataset.summary import Summary

ROWS, NEW_TOKENS = 100, 16
GOAL = 4.0
"""How many times fewer tokens must be computed."""

INSTRUCTION = """\
You work for the repair desk of a shop that sells bicycles, and you sort the messages that customers send. Read the
message at the end, and answer with one line that has three parts, with a semicolon between them: the part of the
bicycle that the message is about, how urgent it is, and what the desk should do first.

The part is one of these: brakes, gears, chain, wheels, tyres, lights, battery, motor, frame, saddle, handlebar, other.
Where a message is about several parts, name the first one.

How urgent it is, is one of these: at once, this week, when there is time. A message is urgent at once if somebody was
hurt, or could be: brakes that do not hold, a crack in the frame, a battery that grows hot, a wheel that is loose. It is
for this week if the bicycle can't be ridden, or if the customer needs it every day. All else is for when there is time.

What the desk should do first is one of these: call back, send a part, arrange a visit, write an answer. Call back where
it is urgent at once, whatever else is to be done. Send a part only if the message says which one is needed and the
customer can change it alone. Arrange a visit where a mechanic has to look at the bicycle. Write an answer otherwise.

Do not explain your choice, and do not answer the customer. Here are two examples.

Message: The back light of my city bike is dim since the rain on Friday. Which bulb do I need?
Answer: lights; when there is time; write an answer

Message: My front brake squeals, and yesterday the lever went all the way to the bar when I rode down the hill.
Answer: brakes; at once; call back

Message: """

PARTS = [
    "chain",
    "saddle",
    "left pedal",
    "rear tyre",
    "battery",
    "gear lever",
    "front wheel",
    "bell",
    "mudguard",
    "rack",
]
TROUBLES = [
    "makes a noise when I ride uphill",
    "came loose on the way to work",
    "is not the one that I ordered",
    "broke after only three weeks",
    "has been rubbing since the last service",
    "was missing from the parcel",
    "gets stuck when it is cold",
    "shows a crack near the bolt",
    "no longer stays where I put it",
    "needs to be replaced, I think",
]


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        summary: of the data set.
        output: the bytes of its file.
    """

    summary: Summary
    output: bytes

    @property
    def run_s(self) -> float:
        """Seconds from the first row to the last."""
        return self.summary.sessions[-1].run_s

    @property
    def prefilled(self) -> int:
        """Prompt tokens that were computed."""
        return self.summary.sessions[-1].prefilled_tokens


def main() -> None:
    """Prints a line for each run, then the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the page to this file, as Markdown")
    asked = parser.parse_args()
    drawn = random.Random(0)
    begin = time.monotonic()
    found: dict[bool, list[Outcome]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": INSTRUCTION + text}) + "\n" for text in messages()))
        for number in range(1, asked.rounds + 1):
            for reuse in drawn.sample((False, True), 2):
                outcome = run(rows, Path(directory) / f"{number}-{reuse}.jsonl", reuse)
                found[reuse].append(outcome)
                told = f"{outcome.prefilled:,} prompt tokens computed in {outcome.run_s:.1f} s"
                print(f"round {number}, {'with' if reuse else 'without'} reuse: {told}", file=sys.stderr, flush=True)
    page = markdown(found[False], found[True], time.monotonic() - begin)
    print(page)
    if asked.output is not None:
        asked.output.write_text(page)
    sys.exit(fewer(found[False], found[True]) < GOAL or not all_same([*found[False], *found[True]]))


def messages() -> list[str]:
    """What is different from row to row."""
    texts = [f"The {part} of my bicycle {trouble}.\nAnswer:" for trouble in TROUBLES for part in PARTS]
    assert len(texts) == ROWS
    return texts


def run(rows: Path, output: Path, reuse: bool) -> Outcome:
    """Completes the rows, as the command does."""
    request = Request(prompt_tokens=1000, max_new_tokens=NEW_TOKENS)
    dataset = open_dataset(name=str(rows))
    outcome = complete(request, dataset, output, lambda: LLM(reuse_prefixes=reuse, load=False))
    return Outcome(outcome.summary, output.read_bytes())


def fewer(without: Sequence[Outcome], reused: Sequence[Outcome]) -> float:
    """How many times fewer prompt tokens were computed, at least."""
    return min(a.prefilled / b.prefilled for a, b in zip(without, reused, strict=True))


def all_same(outcomes: Sequence[Outcome]) -> bool:
    """Whether all wrote the same bytes."""
    return len({outcome.output for outcome in outcomes}) == 1


def markdown(without: Sequence[Outcome], reused: Sequence[Outcome], took_s: float) -> str:
    """The page."""
    machine, summary = this_machine(), reused[0].summary
    with LLM(load=False) as llm:
        instruction = len(llm.encode(INSTRUCTION))
    where = f"{machine.processor}, {machine.usable_cores} usable cores; {now()[:10]}, commit {commit()}"
    ratios = [a.run_s / b.run_s for a, b in zip(without, reused, strict=True)]
    total = summary.counts.prompt_tokens
    own = total // summary.counts.rows - instruction
    lines = [
        "# What reuse of prefixes saves",
        "",
        f"{summary.model.description}, device {summary.device.name}, {where}, {took_s / 60:.0f} minutes.",
        "",
        f"Made by `{' '.join(['python', 'benchmarks/prefixes.py', *sys.argv[1:]])}`.",
        "",
        f"{summary.counts.rows} rows of one instruction of {instruction} tokens and a message of some {own}, up to",
        f"{NEW_TOKENS} new tokens each; batch {summary.sessions[-1].batch}, rounds in turns: {len(reused)}.",
        "",
        "| | prompt tokens | computed | reused | seconds (median) | rows/s | of the limit |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, outcomes in (("without reuse", without), ("with reuse", reused)):
        session = outcomes[0].summary.sessions[-1]
        run_s = statistics.median(outcome.run_s for outcome in outcomes)
        shares = [share for o in outcomes if (share := o.summary.share_of_limit) is not None]
        near = f"{statistics.median(shares):.1%}" if shares else "-"
        cells = [f"{total:,}", f"{session.prefilled_tokens:,}", f"{session.reused_tokens:,}", f"{run_s:.1f}"]
        lines.append(f"| {' | '.join([name, *cells, f'{summary.counts.rows / run_s:.1f}', near])} |")
    files = [*without, *reused]
    lines += [
        "",
        f"Computed: {fewer(without, reused):.1f} times fewer; the goal is {GOAL:g}.",
        f"Time: {statistics.median(ratios):.2f} times as fast, {min(ratios):.2f} to {max(ratios):.2f}.",
        f"All {len(files)} output files are the same, byte for byte: {'yes' if all_same(files) else 'NO'}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
