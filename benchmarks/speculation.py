"""What prompt look-up gains on texts that repeat their input, and what it costs on texts that don't: SmolLM2, greedy.

    python benchmarks/speculation.py -o docs/benchmarks/speculation.md

benchmarks/prompts/ has 20 prompts of either kind. In each round a model with drafts and one without are opened in
this process, in an order drawn anew, since the first one gets the better pages; then both complete each prompt, all in
orders that are drawn, too. Neither reuses prefixes. A prompt's figure is the median of the rounds' ratios. The texts
must be the same: the exit code is 1 if a token differs, or a goal is missed. Leave the machine alone meanwhile: 9
rounds take some 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anthesis import LLM, Completion
from anthesis.bench.machine import commit, now, this_machine

PROMPTS = Path(__file__).with_name("prompts")
GOALS = {"repeating": 1.5, "open": 0.95}
"""How many times as fast the whole request must be: of the repeating ones on average, of the open ones each, too."""

NEW_TOKENS = 128
RUN = 6
"""Tokens of a run that counts as repeated where the prompt has it."""

IDLE_S = 0.01
"""Before each request: the other model's threads look for work for a while before they sleep."""


@dataclass
class Prompt:
    """A prompt and what came of it.

    Attributes:
        kind: "repeating" or "open".
        name: of it.
        text: of it.
        chat: it goes through the chat template.
        plain, drafted: completions without and with drafts, and the seconds of the whole request, a pair for a round.
    """

    kind: str
    name: str
    text: str
    chat: bool
    plain: list[tuple[float, Completion]] = field(default_factory=list)
    drafted: list[tuple[float, Completion]] = field(default_factory=list)

    @property
    def request_ratio(self) -> float:
        """How many times as fast the whole request is with drafts."""
        return statistics.median(a / b for (a, _), (b, _) in zip(self.plain, self.drafted, strict=True))

    @property
    def decode_ratio(self) -> float:
        """How many times as many tokens per second come after the first one."""
        return statistics.median(
            decode_s(a) / decode_s(b) for (_, a), (_, b) in zip(self.plain, self.drafted, strict=True)
        )

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted tokens of all rounds."""
        drafted = sum(completion.drafted_tokens for _, completion in self.drafted)
        return sum(completion.accepted_tokens for _, completion in self.drafted) / drafted if drafted else None

    @property
    def tokens_per_step(self) -> float:
        """Of all rounds: what one reading of the weights gave."""
        completions = [completion for _, completion in self.drafted]
        return sum(len(c.token_ids) for c in completions) / sum(c.steps for c in completions)

    @property
    def repeated(self) -> float:
        """The share of the completion's runs of `RUN` tokens that are in the prompt."""
        completion = self.plain[0][1]
        known = set(runs(completion.prompt_token_ids))
        own = list(runs(completion.token_ids))
        return sum(run in known for run in own) / len(own) if own else 0.0

    @property
    def differing(self) -> int:
        """Completions that are not the same with drafts."""
        return sum(a.token_ids != b.token_ids for (_, a), (_, b) in zip(self.plain, self.drafted, strict=True))

    @property
    def num_tokens(self) -> int:
        """Of all completions with drafts, each held against one without."""
        return sum(len(completion.token_ids) for _, completion in self.drafted)


def main() -> None:
    """Prints a line for each round, then the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-n", "--max-new-tokens", type=int, default=NEW_TOKENS, dest="new_tokens")
    parser.add_argument("-o", "--output", type=Path, help="write the page to this file, as Markdown")
    asked = parser.parse_args()
    prompts = [*read("repeating"), *read("open")]
    drawn = random.Random(0)
    begin = time.monotonic()
    for number in range(1, asked.rounds + 1):
        with ExitStack() as opened:
            llms: dict[str | None, LLM] = {}
            for speculate in drawn.sample((None, "lookup"), 2):
                llms[speculate] = opened.enter_context(LLM(reuse_prefixes=False, speculate=speculate))
                request(llms[speculate], prompts[0], asked.new_tokens)  # which sets things up
            for prompt in drawn.sample(prompts, len(prompts)):
                for speculate in drawn.sample((None, "lookup"), 2):
                    found = prompt.plain if speculate is None else prompt.drafted
                    found.append(request(llms[speculate], prompt, asked.new_tokens))
            made_by = f"{llms[None].description}, device {llms[None].device_info.name}"
        gains = {kind: f"{mean([p.request_ratio for p in prompts if p.kind == kind]):.3f}x" for kind in GOALS}
        print(f"round {number} of {asked.rounds}: {gains}", file=sys.stderr, flush=True)
    page = markdown(prompts, made_by, time.monotonic() - begin)
    print(page)
    if asked.output is not None:
        asked.output.write_text(page)
    sys.exit(any(True for _ in misses(prompts)))


def read(kind: str) -> Iterator[Prompt]:
    """The prompts of a kind."""
    for entry in json.loads((PROMPTS / f"{kind}.json").read_text()):
        yield Prompt(kind=kind, name=entry["name"], text="\n".join(entry["lines"]), chat=entry["chat"])


def request(llm: LLM, prompt: Prompt, new_tokens: int) -> tuple[float, Completion]:
    """Seconds of the whole request, and its completion."""
    time.sleep(IDLE_S)
    begin = time.perf_counter()
    (completion,) = llm.generate(prompt.text, chat=prompt.chat, max_new_tokens=new_tokens)
    return time.perf_counter() - begin, completion


def decode_s(completion: Completion) -> float:
    """Seconds from the first token to the last; where there is but one, nothing can differ."""
    return completion.timing.total_s - completion.timing.first_token_s or 1.0


def runs(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All runs of `RUN` tokens."""
    return (tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1))


def mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return statistics.geometric_mean(ratios)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Where the geometric mean of other prompts like these would be, 95 times of 100: percentiles of the bootstrap.

    Source:
        Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
    """
    logs = np.log(ratios)
    again = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    low, high = np.exp(np.percentile(again, [2.5, 97.5]))
    return float(low), float(high)


def misses(prompts: Sequence[Prompt]) -> Iterator[str]:
    """Tokens that differ, and goals that were missed."""
    if differing := sum(prompt.differing for prompt in prompts):
        yield f"{differing} completions are not the same with drafts"
    for kind, goal in GOALS.items():
        ratios = [prompt.request_ratio for prompt in prompts if prompt.kind == kind]
        if mean(ratios) < goal:
            yield f"{kind}: {mean(ratios):.3f} times as fast, and {goal} was the goal"
    for prompt in prompts:
        if prompt.kind == "open" and prompt.request_ratio < GOALS["open"]:
            yield f"{prompt.name}: {prompt.request_ratio:.3f} times as fast, and {GOALS['open']} was the goal"


def markdown(prompts: Sequence[Prompt], made_by: str, took_s: float) -> str:
    """The page."""
    machine = this_machine()
    where = f"{machine.processor}, {machine.usable_cores} usable cores; {now()[:10]}, commit {commit()}"
    rounds = len(prompts[0].plain)
    lines = [
        "# What prompt look-up gains",
        "",
        f"{made_by}, {where}, {took_s / 60:.0f} minutes.",
        "",
        f"Made by `{' '.join(['python', 'benchmarks/speculation.py', *sys.argv[1:]])}`.",
        "",
        f"Greedy; rounds in turns: {rounds}; neither side reuses prefixes. Times as fast as without drafts: the whole",
        "request, its prompt included, and the decoding, the tokens after the first; the median of the rounds.",
        f"*repeated*: the share of the completion's runs of {RUN} tokens that are in the prompt. *per reading*: tokens",
        "that one reading of the weights gave, on average.",
        "",
        "| prompts | whole request | 95 % interval | least | decoding | 95 % interval | least | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, goal in GOALS.items():
        cells = [f"{sum(p.kind == kind for p in prompts)} {kind}"]
        for name in ("request_ratio", "decode_ratio"):
            ratios = [getattr(prompt, name) for prompt in prompts if prompt.kind == kind]
            low, high = interval(ratios)
            cells += [f"{mean(ratios):.2f}x", f"{low:.2f} to {high:.2f}", f"{min(ratios):.2f}x"]
        lines.append(f"| {' | '.join([*cells, f'{goal}x'])} |")
    total = sum(prompt.num_tokens for prompt in prompts)
    differing = sum(prompt.differing for prompt in prompts)
    lines += ["", f"Tokens held against those without drafts: {total:,}; completions that differ: {differing}.", ""]
    lines += [f"- {miss}" for miss in misses(prompts)]
    for kind in GOALS:
        lines += ["", f"## {kind}", "", "| prompt | in | out | repeated | drafted | accepted | per reading |"]
        lines[-1] += " request without | request | decoding |"
        lines.append("|---" + "|---:" * 9 + "|")
        lines += [row(prompt) for prompt in prompts if prompt.kind == kind]
    return "\n".join(lines) + "\n"


def row(prompt: Prompt) -> str:
    """A prompt in its table."""
    completion = prompt.plain[0][1]
    drafted = statistics.median(completion.drafted_tokens for _, completion in prompt.drafted)
    cells = [
        prompt.name,
        str(len(completion.prompt_token_ids)),
        str(len(completion.token_ids)),
        f"{prompt.repeated:.0%}",
        f"{drafted:.0f}",
        "-" if prompt.acceptance is None else f"{prompt.acceptance:.0%}",
        f"{prompt.tokens_per_step:.2f}",
        f"{statistics.median(seconds for seconds, _ in prompt.plain) * 1e3:.0f} ms",
        f"{prompt.request_ratio:.2f}x",
        f"{prompt.decode_ratio:.2f}x",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
