"""The least time that what was run can take on this machine, and how near the runs came to it: a roofline.

The speeds are those measured between the runs, so a limit is one of the minutes in which the work was done.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from anthesis.bench.derive import decode_s, decode_tokens, prefill_s
from anthesis.bench.measurement import Limit, Run
from anthesis.bench.statistic import summary
from anthesis.llm import LLM
from anthesis.plan.counted import Sequences, StepCost, StepCosts
from anthesis.plan.hardware import Hardware
from anthesis.program.ir import Step


@dataclass(frozen=True)
class Least:
    """The least time of some steps.

    Attributes:
        read_bytes: weights and cache that all of them read; of ranks with memory of their own the most of any.
        flops: that they compute.
        memory_s: for reading; None where the bandwidth is unknown.
        total_s: of each step and stage the longer of reading and computing; None where the bandwidth is unknown.
        bound: which of the two takes longer in all; None where one of the speeds is unknown.
    """

    read_bytes: int
    flops: int
    memory_s: float | None
    total_s: float | None
    bound: str | None


@dataclass(frozen=True)
class Work:
    """What a run of B sequences does, and on what.

    Attributes:
        prefill: the steps of the prompts: all in one, so that the weights are read once.
        decode: those after the last sequence's first token; none with a single token.
        steps: the same, as (tokens in the cache, rows) of each sequence.
        tokens: that they give.
        costs: of steps.
        hardware: without the speeds, which are measured after each run.
        machines: over which ranks are spread that share the memory of theirs.
        weight_kinds: kinds of the matrices.
    """

    prefill: Sequence[StepCost]
    decode: Sequence[StepCost]
    steps: Sequence[Sequences]
    tokens: int
    costs: StepCosts
    hardware: Hardware
    machines: int
    weight_kinds: tuple[str, ...]

    def with_decode(self, steps: Sequence[Sequences], tokens: int) -> Work:
        """The same prompts with other decode steps: those of a run whose drafts came out differently."""
        decode = [self.costs.of("argmax", step, sum(rows for _, rows in step)) for step in steps]
        return replace(self, decode=decode, steps=steps, tokens=tokens)

    def least(self, steps: Sequence[StepCost], read_bytes_per_s: float | None, peaks: Mapping[str, float]) -> Least:
        """The least time of `prefill` or `decode`.

        Args:
            steps: of them.
            read_bytes_per_s: of the memory, measured, or None.
            peaks: multiply-adds per second by the kind of the inputs, measured; empty where they are unknown.
        """
        hardware = self.hardware.at_speeds(read_bytes_per_s, peaks, self.machines)
        bandwidth, peak = hardware.read_bytes_per_s, hardware.flops_per_s(self.weight_kinds)
        stages = [stage for step in steps for stage in step]
        read_bytes, flops = (sum(stage[i] for stage in stages) for i in (0, 1))
        if bandwidth is None:
            return Least(read_bytes, flops, None, None, None)
        memory_s = read_bytes / bandwidth
        if peak is None:
            return Least(read_bytes, flops, memory_s, memory_s, None)
        total_s = sum(max(nbytes / bandwidth, count / peak) for nbytes, count in stages)
        return Least(read_bytes, flops, memory_s, total_s, "memory" if memory_s >= flops / peak else "compute")

    @property
    def bytes_of_step(self) -> int:
        """That a decode step reads of the memory that has to be fastest; without one, the prompts'."""
        steps = self.decode or self.prefill
        return sum(nbytes for step in steps for nbytes, _ in step) // (len(steps) * self.machines)


def work_of(
    llm: LLM, run: Run, prompt_tokens: int, new_tokens: int, observed: Sequence[Sequences] | None = None
) -> Work:
    """What a run does.

    Args:
        llm: that did it.
        run: of which, without drafts, the times of the tokens show which sequences ran beside each other.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
        observed: the decode steps, as `OnStep` told of them; None: every step gave each of its sequences one token.
    """
    shares_memory = llm.device_info.uses_host_memory
    costs = StepCosts(llm.loaded.programs, llm.layout, shares_memory=shares_memory)
    batch = len(run.token_s)
    steps = _decode_steps(run, prompt_tokens, new_tokens) if observed is None else observed
    tokens = sum(map(len, steps)) if observed is None else decode_tokens(run)
    prompts = Work(
        prefill=[costs.of("argmax", [(0, prompt_tokens)] * batch, batch)],
        decode=(),
        steps=(),
        tokens=0,
        costs=costs,
        hardware=Hardware.of_device(llm.device_info),
        machines=llm.loaded.machines,
        weight_kinds=llm.loaded.weight_kinds,
    )
    return prompts.with_decode(steps, tokens)


def _decode_steps(run: Run, prompt_tokens: int, new_tokens: int) -> list[list[tuple[int, int]]]:
    """(Tokens in the cache, rows) of each sequence in each step after the last sequence's first token.

    With long prompts the first sequences are at their end when the last one begins, so their tokens are counted.
    """
    begin = prefill_s(run)
    # the step that gives token j, from 0 on, has the prompt and j - 1 tokens in the cache
    coming = [[j for j, time in enumerate(times) if j and time > begin] for times in run.token_s]
    return [[(prompt_tokens + tokens[i] - 1, 1) for tokens in coming if i < len(tokens)] for i in range(new_tokens - 1)]


def all_steps(works: Sequence[Work]) -> Step | None:
    """The decode steps of all runs as one, at their mean context, rounded down; None where there is none."""
    sequences = [sequence for work in works for step in work.steps for sequence in step]
    if not sequences:
        return None
    rows = sum(count for _, count in sequences)
    context = sum(before + count for before, count in sequences) // len(sequences)
    return Step(rows, rows, context, len(sequences))


def limit(works: Sequence[Work], runs: Sequence[Run]) -> Limit:
    """How near runs came to the least time of their work.

    Args:
        works: of each run.
        runs: at least one.
    """
    kinds = sorted({kind for run in runs for kind in run.multiply_adds_per_s})
    peaks = {
        kind: statistics.median(run.multiply_adds_per_s[kind] for run in runs if kind in run.multiply_adds_per_s)
        for kind in kinds
    }
    known = [bandwidth for run in runs if (bandwidth := bandwidth_of(run)) is not None]
    bandwidth, steps = statistics.median(known) if known else None, sum(len(work.decode) for work in works)
    prefill = works[0].least(works[0].prefill, bandwidth, peaks)
    decode = works[0].least([step for work in works for step in work.decode], bandwidth, peaks)
    return Limit(
        multiply_adds_per_s=peaks,
        step_bytes=decode.read_bytes // steps if steps else None,
        step_flops=decode.flops // steps if steps else None,
        step_floor_s=decode.total_s / steps if steps and decode.total_s is not None else None,
        step_bound=decode.bound if steps else None,
        share_of_step_floor=summary(_shares(works, [work.decode for work in works], runs, decode_s)),
        prefill_bytes=prefill.read_bytes,
        prefill_flops=prefill.flops,
        prefill_floor_s=prefill.total_s,
        prefill_bound=prefill.bound,
        share_of_prefill_floor=summary(_shares(works, [work.prefill for work in works], runs, prefill_s)),
    )


def _shares(
    works: Sequence[Work], steps: Sequence[Sequence[StepCost]], runs: Sequence[Run], clock: Callable[[Run], float]
) -> list[float]:
    """Of the least time of each run's steps in what they took, by the speeds measured after it."""
    found = []
    for work, of_run, run in zip(works, steps, runs, strict=True):
        least = work.least(of_run, bandwidth_of(run), run.multiply_adds_per_s)
        if of_run and least.total_s is not None:
            found.append(least.total_s / clock(run))
    return found


def bandwidth_of(run: Run) -> float | None:
    """The bandwidth measured after a run: the median ignores the few passes that were disturbed."""
    return statistics.median(run.read_bytes_per_s) if run.read_bytes_per_s else None
