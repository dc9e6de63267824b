"""What speaks against a measurement: what can't be, what does not add up, and what to keep in mind.

A clock that stops too early, a token too many or too few, bytes counted wrongly: each makes a row look better than it
is. So what one part says is held against what another one knows; what contradicts itself is `invalid`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from anthesis.bench.derive import SETTLED_RUNS, SETTLED_SPREAD, decode_s, prefill_s
from anthesis.bench.limit import Work, bandwidth_of
from anthesis.bench.measurement import Run, Speed, Warmup
from anthesis.program.attend import Attend
from anthesis.program.cost import cost, kind_bytes
from anthesis.program.ir import BLOCK_TOKENS, Program, Step
from anthesis.units import amount, counted, duration

NOISE = 0.05
"""By how much the median of the runs may beat the limit: what runs may differ by that count as settled."""

SYNCHRONISE_SHARE = 0.01
SYNCHRONISE_S = 1e-3
"""Waiting for an idle device takes some microseconds; more than this share of a run and this time is work."""

MISSING_SHARE = 0.01
MISSING_S = 5e-3
"""Of the time of the timed runs, what may belong to no clock."""

TAIL_SHARE = 0.03
TAIL_S = 10e-3
"""Of a run, what may come after its last token: texts of small models with large batches take some milliseconds."""

MOVED_SHARE = 0.2
"""A bandwidth that moved by more marks a row."""

_LOOKED_UP = frozenset({"embed"})
"""How a table is used of which a step reads single rows."""


def too_fast(works: Sequence[Work], runs: Sequence[Run]) -> Iterator[str]:
    """What the runs can't have done: less time than the limit, by more than the noise.

    The limit is the one of the fastest pass and the highest peak of all runs, which hardly a run had all the time.

    Args:
        works: of each run.
        runs: at least one.
    """
    fastest = max((sample for run in runs for sample in run.read_bytes_per_s), default=None)
    peaks: dict[str, float] = {}
    for run in runs:
        for kind, peak in run.multiply_adds_per_s.items():
            peaks[kind] = max(peak, peaks.get(kind, 0.0))
    for what, steps, clock in (
        ("the prompts", [work.prefill for work in works], prefill_s),
        ("decoding", [work.decode for work in works], decode_s),
    ):
        least = [work.least(of_run, fastest, peaks) for work, of_run in zip(works, steps, strict=True)]
        found = sorted(
            (clock(run) / each.total_s, clock(run), each.total_s, each.read_bytes)
            for run, each in zip(runs, least, strict=True)
            if each.total_s
        )
        if found and statistics.median(ratio for ratio, *_ in found) < 1 / (1 + NOISE):
            _, took_s, least_s, read_bytes = found[len(found) // 2]
            yield (
                f"{what} took {duration(took_s)}, and {duration(least_s)} is the least possible "
                f"({amount(read_bytes, 'B')} at {amount(fastest or math.nan, 'B/s')}, the fastest that was measured, "
                "in the median run): a clock, the tokens or the bytes are wrong"
            )


def still_at_work(runs: Sequence[Run]) -> Iterator[str]:
    """Clocks that were stopped before the device had done its work: in most runs, since any process may wait once."""
    waited_s = statistics.median(run.synchronise_s for run in runs)
    if waited_s > SYNCHRONISE_S + SYNCHRONISE_SHARE * statistics.median(run.total_s for run in runs):
        yield (
            f"the device was still at work when the clock was stopped, for {duration(waited_s)} (median): times end "
            "too early"
        )


def unaccounted(runs: Sequence[Run], timed_s: float, between_s: float) -> Iterator[str]:
    """Time that passed during the timed runs and is in no clock.

    Args:
        runs: at least one.
        timed_s: from the beginning of the first to the end of the last.
        between_s: of that, what was done between them.
    """
    missing_s = timed_s - between_s - sum(run.total_s for run in runs)
    if abs(missing_s) > MISSING_S + MISSING_SHARE * (timed_s - between_s):
        yield (
            f"{duration(abs(missing_s))} of the {duration(timed_s)} from the first timed run to the last are "
            f"{'in no clock' if missing_s > 0 else 'in two clocks'}"
        )


def miscounted(runs: Sequence[Run], speed: Speed, batch: int, new_tokens: int) -> Iterator[str]:
    """Tokens and times that contradict each other.

    Args:
        runs: at least one.
        speed: derived from them.
        batch: sequences B.
        new_tokens: of each, asked for.
    """
    asked = batch * new_tokens
    for number, run in enumerate(runs, start=1):
        times = [len(times) for times in run.token_s]
        if times != [new_tokens] * batch:
            yield f"timed run {number} has times of {sum(times)} tokens, and {asked} were asked for"
        elif any(b < a for times_s in run.token_s for a, b in zip((0.0, *times_s), times_s, strict=False)):
            yield f"timed run {number} has a token before the one in front of it"
        elif max(times_s[-1] for times_s in run.token_s) > run.total_s:
            yield f"timed run {number} has tokens after its end"
    if speed.generated_tokens != asked:
        yield f"{counted(speed.generated_tokens, 'token')} were counted in a run, and {asked} were asked for"


def wrong_rates(runs: Sequence[Run], speed: Speed, prompt_tokens: int) -> Iterator[str]:
    """Rates that are not the tokens by the time they took.

    Args:
        runs: at least one, all with as many tokens as were asked for.
        speed: derived from them.
        prompt_tokens: of each sequence.
    """
    batch = len(runs[0].token_s)
    for what, found, tokens, clock in (
        ("in all", speed.tokens_per_s, lambda run: sum(map(len, run.token_s)), lambda run: run.total_s),
        ("of the prompts", speed.prefill_tokens_per_s, lambda run: batch * prompt_tokens, prefill_s),
        ("of the decoding", speed.decode_tokens_per_s, _tokens_after_prefill, decode_s),
    ):
        if found is not None:
            per_s = statistics.median(tokens(run) / clock(run) for run in runs)
            if not math.isclose(per_s, found.median, rel_tol=1e-6):
                yield f"{found.median:,.1f} tokens/s {what} are not the tokens by their time, {per_s:,.1f}"


def _tokens_after_prefill(run: Run) -> int:
    """All but those that came until the last sequence had its first."""
    begin = prefill_s(run)
    return sum(map(len, run.token_s)) - sum(time <= begin for times in run.token_s for time in times)


def idle_ends(runs: Sequence[Run]) -> Iterator[str]:
    """Runs in which much time passes after the last token: its clock was stopped too early, or started too late.

    What comes then are the texts of the completions and the results.
    """
    tails = [run.total_s - max(times[-1] for times in run.token_s) for run in runs]
    share = statistics.median(tail / run.total_s for tail, run in zip(tails, runs, strict=True))
    if share > TAIL_SHARE and statistics.median(tails) > TAIL_S:
        yield (
            f"{duration(statistics.median(tails))} of a run, {share:.0%} of it, come after its last token: the clock "
            "of tokens began too late or ended too early"
        )


def wrong_bytes(programs: Sequence[Program], batch: int) -> Iterator[str]:
    """A cost model that does not read each weight once in a step, and all that the cache holds of its sequences.

    Args:
        programs: of all ranks.
        batch: sequences B.
    """
    step = Step(rows=batch, logit_rows=batch, context=BLOCK_TOKENS, sequences=batch)
    for rank, program in enumerate(programs):
        found = cost(program, step)
        for what, counted_bytes, expected in (
            ("weights", found.weight_bytes, _weight_bytes(program, step)),
            ("the cache", found.cache_bytes, _cache_bytes(program, step)),
        ):
            if not math.isclose(expected, counted_bytes, rel_tol=0.01):
                yield (
                    f"rank {rank} counts {amount(counted_bytes, 'B')} of {what} for a step, and what there is of it to "
                    f"read are {amount(expected, 'B')}"
                )


def _weight_bytes(program: Program, step: Step) -> float:
    """Of all weights, and of a table that is looked up a row for each row of the step."""
    uses, weights = program.uses(), program.of_kind("weight")
    read = sum(kind_bytes(weight) for weight in weights if uses[weight.name] != _LOOKED_UP)
    return read + step.rows * sum(
        kind_bytes(weight) / weight.static_shape[0] for weight in weights if uses[weight.name] >= _LOOKED_UP
    )


def _cache_bytes(program: Program, step: Step) -> float:
    """Of each layer the tokens that are attended to, and those that are new."""
    attends = [op for op in program.ops if isinstance(op, Attend)]
    return sum(
        (step.sequences * min(step.context, op.window or step.context) + step.rows)
        * kind_bytes(program.values[op.cache])
        / BLOCK_TOKENS
        for op in attends
    )


def bandwidth_moved(runs: Sequence[Run]) -> float | None:
    """(greatest - least) / median of the bandwidths after the runs; None without two of them."""
    found = [bandwidth for run in runs if (bandwidth := bandwidth_of(run)) is not None]
    return (max(found) - min(found)) / statistics.median(found) if len(found) > 1 else None


def marks(warmup: Warmup, moved: float | None, runs_agree: bool, timed_s: float, min_s: float) -> tuple[str, ...]:
    """What to keep in mind with the figures.

    Args:
        warmup: the runs before.
        moved: the bandwidth, see `bandwidth_moved`.
        runs_agree: all generated the same tokens.
        timed_s: that the timed runs took together.
        min_s: that they were to take.
    """
    found = []
    count = len(warmup.run_s)
    if count < SETTLED_RUNS:
        found.append(f"too few warm-up runs to tell whether it settled: {count}, and {SETTLED_RUNS} must agree")
    elif not warmup.settled:
        found.append(f"no three runs in a row agreed within {SETTLED_SPREAD:.0%} in {count} warm-up runs")
    if moved is not None and moved > MOVED_SHARE:
        found.append(f"the read bandwidth moved by {moved:.0%} during the runs")
    if timed_s < min_s:
        found.append(f"all timed runs took {duration(timed_s)} together, and {duration(min_s)} were asked for")
    if not runs_agree:
        found.append("the runs did not all generate the same tokens")
    return tuple(found)
