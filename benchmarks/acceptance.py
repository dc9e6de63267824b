"""Time per token against the share of drafted tokens that are right, beside the theory: BLOOM-560M shapes.

    python benchmarks/acceptance.py -o docs/benchmarks/acceptance.md

A scripted drafter knows the text that a plain greedy run gave, and spoils each token with probability 1 - a, by a seed.
Drafts have 1, 2, 4 or 8 tokens, or as many as `anthesis.engine.speculation` chooses. Of drafts of d tokens a step gives

    E = 1 + a + ... + a^d = (1 - a^(d + 1)) / (1 - a)

tokens and has 1 + d rows, so a token should take t(1 + d) / E, where t is what steps of so many rows take, measured
between the runs. Every text must be that of the plain run: the exit code is 1 if a token differs. Beside the page a
picture is written. Leave the machine alone meanwhile: it takes some 9 minutes on two cores.

Source:
    Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), equation 1.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anthesis import LLM, Completion
from anthesis.bench.machine import commit, now, this_machine
from anthesis.engine.sequence import Sequence as EngineSequence
from anthesis.engine.speculation import MAX_DRAFT, Speculation
from anthesis.engine.step_time import SIZES, StepTimes

MODEL = "random:bloom-560m"
KINDS = {"int8": 3, "bf16": 2}
"""Weights, and rounds of each."""

ACCEPTANCES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
ADAPTIVE = "adaptive"
LENGTHS: tuple[int | str, ...] = (1, 2, 4, 8, ADAPTIVE)
PROMPT_TOKENS, NEW_TOKENS = 16, 64


class Script:
    """A `Drafter` that is right with a known chance.

    Args:
        text: that the model will generate.
        acceptance: the chance that a token of a draft is right, if those before it are.
        vocabulary: tokens that there are.
        seed: of what is spoilt.
    """

    chances = (0.5,)  # the same at every place, and unknown to who decides how long drafts are

    def __init__(self, text: Sequence[int], acceptance: float, vocabulary: int, seed: int) -> None:
        self._text, self._acceptance, self._vocabulary = text, acceptance, vocabulary
        self._drawn = random.Random(seed)

    def evidence(self, sequence: EngineSequence) -> int | None:
        """Always the same: nothing speaks for one draft more than for another."""
        return 0

    def draft(self, wanted: dict[EngineSequence, int]) -> dict[EngineSequence, list[int]]:
        """What follows, with some tokens spoilt."""
        return {sequence: self._following(sequence, length) for sequence, length in wanted.items()}

    def cost_s(self, sequences: Sequence[EngineSequence], length: int) -> float:
        """Nothing that would count beside a step."""
        return 0.0

    def backlog_s(self, sequence: EngineSequence) -> float:
        """None: it reads nothing."""
        return 0.0

    def first_token(self, sequence: EngineSequence) -> int | None:
        """Of a draft that is not verified."""
        return next(iter(self._following(sequence, 1)), None)

    def forget(self, sequence: EngineSequence) -> None:
        """It keeps nothing."""

    def _following(self, sequence: EngineSequence, length: int) -> list[int]:
        begin = len(sequence.completion)
        return [self._spoilt(token) for token in self._text[begin : begin + length]]

    def _spoilt(self, token: int) -> int:
        return token if self._drawn.random() < self._acceptance else (token + 1) % self._vocabulary


class FixedLength(Speculation):
    """Drafts of always the same length, however little they gain."""

    def __init__(self, drafter: Script, times: StepTimes, length: int) -> None:
        super().__init__(drafter, times)
        self._length = length

    def propose(self, sequences: list[EngineSequence], num_rows: int) -> None:
        """Gives each sequence a draft."""
        wanted = {s: min(self._length, s.limit - len(s.tokens) - 1) for s in sequences}
        for sequence, draft in self.drafter.draft(wanted).items():
            sequence.drafts = draft


@dataclass
class Found:
    """What was measured with weights of one kind.

    Attributes:
        weights: their kind.
        step_s: of steps with so many rows, samples taken between the runs.
        token_s: of each acceptance and length (None: without drafts), a sample for each round.
        per_step: tokens that a step gave, likewise.
        tokens: that were held against the plain text.
        differing: texts that were not the plain one.
    """

    weights: str
    step_s: dict[int, list[float]] = field(default_factory=dict)
    token_s: dict[tuple[float, int | str | None], list[float]] = field(default_factory=dict)
    per_step: dict[tuple[float, int | str | None], list[float]] = field(default_factory=dict)
    tokens: int = 0
    differing: int = 0

    def measured_s(self, acceptance: float, length: int | str | None) -> float:
        """Of a token."""
        return statistics.median(self.token_s[acceptance, length])

    def theory_s(self, acceptance: float, length: int | str | None) -> float:
        """Of a token; adaptive: of the best length."""
        if length == ADAPTIVE:
            return min(self.theory_s(acceptance, d) for d in range(MAX_DRAFT + 1))
        rows = 1 + int(length or 0)
        return self._step_s(rows) / sum(acceptance**place for place in range(rows))

    def _step_s(self, rows: int) -> float:
        return StepTimes([statistics.median(self.step_s[size]) for size in SIZES]).seconds(rows)


def main() -> None:
    """Prints a line for each round, then the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("-n", "--max-new-tokens", type=int, default=NEW_TOKENS, dest="new_tokens")
    parser.add_argument("-o", "--output", type=Path, help="write the page to this .md file, and a .svg beside it")
    asked = parser.parse_args()
    begin = time.monotonic()
    found = []
    for weights, rounds in KINDS.items():
        with LLM(asked.model, weights=weights, reuse_prefixes=False) as llm:
            found.append(measure(llm, weights, rounds, asked.new_tokens))
            described = f"{llm.description}, device {llm.device_info.name}"
    picture = None if asked.output is None else asked.output.with_suffix(".svg")
    page = markdown(found, described, asked.new_tokens, time.monotonic() - begin, picture)
    print(page)
    if asked.output is not None and picture is not None:
        asked.output.write_text(page)
        picture.write_text(svg(found))
    sys.exit(any(each.differing for each in found))


def measure(llm: LLM, weights: str, rounds: int, new_tokens: int) -> Found:
    """All acceptances and lengths, in an order drawn for each round."""
    found = Found(weights)
    prompt = llm.made_up_prompt(PROMPT_TOKENS)
    text = complete(llm, prompt, new_tokens).token_ids
    points: list[tuple[float, int | str | None]] = [(0.0, None), *((a, d) for a in ACCEPTANCES for d in LENGTHS)]
    drawn = random.Random(0)
    engine = llm._engine
    for number in range(rounds):
        times = engine.step_times()
        for place, (acceptance, length) in enumerate(drawn.sample(points, len(points))):
            script = Script(text, acceptance, llm.config.usable_vocab_size, seed=number * len(points) + place)
            if length is None:
                engine._speculation = None
            elif isinstance(length, int):
                engine._speculation = FixedLength(script, times, length)
            else:
                engine.speculate(script)  # which measures steps
                assert engine._speculation is not None
                for size in SIZES:
                    found.step_s.setdefault(size, []).append(engine._speculation.times.seconds(size))
            completion = complete(llm, prompt, new_tokens)
            found.tokens += new_tokens
            found.differing += completion.token_ids != text
            timing = completion.timing
            seconds = (timing.total_s - timing.first_token_s) / (new_tokens - 1)
            found.token_s.setdefault((acceptance, length), []).append(seconds)
            found.per_step.setdefault((acceptance, length), []).append((new_tokens - 1) / (completion.steps - 1))
        print(f"{weights}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def complete(llm: LLM, prompt: list[int], new_tokens: int) -> Completion:
    """One request, greedy."""
    (completion,) = llm.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)
    return completion


# --- the page ---------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Found], described: str, new_tokens: int, took_s: float, picture: Path | None) -> str:
    """The page."""
    machine = this_machine()
    where = f"{machine.processor}, {machine.usable_cores} usable cores; {now()[:10]}, commit {commit()}"
    lines = [
        "# Time per token against acceptance",
        "",
        f"{described}, {where}, {took_s / 60:.0f} minutes.",
        "",
        f"Made by `{' '.join(['python', 'benchmarks/acceptance.py', *sys.argv[1:]])}`.",
        "",
        f"A drafter that knows the text spoils each token with probability 1 - a; {new_tokens} tokens, one sequence.",
        "d: tokens of a draft.",
        "Each cell: milliseconds per token as measured, the median of the rounds, and in brackets the theory, t(1 + d)",
        "/ (1 + a + ... + a^d), with t as measured between the runs. *adaptive*: drafts as long as the engine chooses,",
        "which does not know a; its theory is that of the best length at this a.",
    ]
    if picture is not None:
        lines += ["", f"![time per token against acceptance]({picture.name})"]
    for each in found:
        rounds = len(each.token_s[0.0, None])
        titles = [f"d = {length}" if isinstance(length, int) else length for length in LENGTHS]
        lines += [
            "",
            f"## {each.weights}",
            "",
            f"Without drafts {ms(each.measured_s(0.0, None))} ms per token, {rounds} rounds. A step of "
            + ", ".join(f"{size} rows: {ms(statistics.median(each.step_s[size]))} ms" for size in SIZES[:8])
            + ".",
            "",
            f"| a | {' | '.join(titles)} | adaptive: tokens per step |",
            "|---" + "|---:" * (len(LENGTHS) + 1) + "|",
        ]
        for acceptance in ACCEPTANCES:
            cells = [
                f"{ms(each.measured_s(acceptance, length))} ({ms(each.theory_s(acceptance, length))})"
                for length in LENGTHS
            ]
            per_step = statistics.mean(each.per_step[acceptance, ADAPTIVE])
            lines.append(f"| {acceptance:g} | {' | '.join(cells)} | {per_step:.2f} |")
        lines += [
            "",
            f"Measured / theory over all fixed lengths: {ratios(each)}.",
            f"Tokens held against the plain text: {each.tokens:,}; texts that differ: {each.differing}.",
        ]
    return "\n".join(lines) + "\n"


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{seconds * 1e3:.1f}"


def ratios(found: Found) -> str:
    """The median, the least and the greatest."""
    all_of_them = [
        found.measured_s(a, length) / found.theory_s(a, length)
        for a in ACCEPTANCES
        for length in LENGTHS
        if length != ADAPTIVE
    ]
    return f"median {statistics.median(all_of_them):.2f}, {min(all_of_them):.2f} to {max(all_of_them):.2f}"


# --- the picture ------------------------------------------------------------------------------------------------------

COLOURS = dict(zip(LENGTHS, ("#4477aa", "#228833", "#ccbb44", "#ee6677", "#000000"), strict=True))
"""Of Paul Tol's schemes, which people with any colour vision can tell apart."""

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 380, 300, 52, 34, 40


def svg(found: Sequence[Found]) -> str:
    """A panel for each kind of weights: theory as lines, what was measured as points."""
    size = f'width="{WIDTH * len(found)}" height="{HEIGHT + 30}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect {size} fill="#ffffff"/>',
    ]
    for i, each in enumerate(found):
        parts += [f'<g transform="translate({i * WIDTH} 0)">', *panel(each), "</g>"]
    x = LEFT
    for length, colour in COLOURS.items():
        name = f"d = {length}" if isinstance(length, int) else "adaptive"
        parts.append(f'<circle cx="{x}" cy="{HEIGHT + 14}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 9}" y="{HEIGHT + 18}">{name}</text>')
        x += 75
    parts.append(f'<text x="{x}" y="{HEIGHT + 18}" fill="#555555">points: measured; lines: theory</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(found: Found) -> Iterator[str]:
    """One kind of weights."""
    plain_s = found.measured_s(0.0, None)
    shown = [found.measured_s(a, length) for a in ACCEPTANCES for length in LENGTHS]
    shown += [found.theory_s(a, length) for a in ACCEPTANCES for length in LENGTHS]
    most = 1.05 * max(*shown, plain_s)
    right, low = WIDTH - 14, HEIGHT - BOTTOM

    def x(acceptance: float) -> float:
        return LEFT + acceptance * (right - LEFT)

    def y(seconds: float) -> float:
        return low - seconds / most * (low - TOP)

    yield f'<text x="{LEFT}" y="20" font-weight="bold">{found.weights}: ms per token</text>'
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500) if most * 1e3 / each <= 8)
    for tick in range(0, int(most * 1e3) + 1, step):
        at = y(tick / 1e3)
        yield f'<line x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="#555555">{tick}</text>'
    for a in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<text x="{x(a):.1f}" y="{low + 16}" text-anchor="middle" fill="#555555">{a:g}</text>'
    middle = (LEFT + right) / 2
    yield f'<text x="{middle}" y="{low + 32}" text-anchor="middle">share of drafted tokens that are right</text>'
    at = y(plain_s)
    yield f'<line x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#555555" stroke-dasharray="5 4"/>'
    yield f'<text x="{right}" y="{at - 5:.1f}" text-anchor="end" fill="#555555">without drafts</text>'
    for length, colour in COLOURS.items():
        curve = " ".join(f"{x(a / 50):.1f},{y(found.theory_s(a / 50, length)):.1f}" for a in range(51))
        yield f'<polyline points="{curve}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.7"/>'
        for a in ACCEPTANCES:
            yield f'<circle cx="{x(a):.1f}" cy="{y(found.measured_s(a, length)):.1f}" r="3.5" fill="{colour}"/>'


if __name__ == "__main__":
    main()
