"""The least time that what was run can take on this machine, and how near the runs came to it: a roofline.

The speeds are those measured between the runs, so a limit is one of the minutes in which the work was done.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from anthesis.bench.derive import decode_s, prefill_s
from anthesis.bench.measurement import Limit, Run
from anthesis.bench.statistic import summary
from anthesis.llm import LLM
from anthesis.plan.floor import Floor, Ranks, floor
from anthesis.plan.hardware import Hardware
from anthesis.plan.plan import Job
from anthesis.program.ir import Step


@dataclass(frozen=True)
class Work:
    """What a run of B sequences does, and on what.

    Attributes:
        stages: of each stage of layers the programs of all its ranks.
        weight_kinds: kinds of the matrices.
        hardware: without the speeds, which are measured after each run.
        prefill: all prompts in one step: the weights are read once.
        decode: one of the `new_tokens` - 1 steps after the prompts, as an average; None with a single token.
        new_tokens: of each sequence.
    """

    stages: Sequence[Ranks]
    weight_kinds: tuple[str, ...]
    hardware: Hardware
    prefill: Step
    decode: Step | None
    new_tokens: int

    @property
    def bytes_of_step(self) -> int:
        """That a decode step reads of the memory that has to be fastest; without one, the prompts'."""
        prefill, decode = self.floors(None, {})
        return (decode or prefill).read_bytes

    def floors(self, read_bytes_per_s: float | None, peaks: dict[str, float]) -> tuple[Floor, Floor | None]:
        """The least time of the prompts, and of a decode step, at these speeds."""
        hardware = self.hardware.at_speeds(read_bytes_per_s, peaks)
        prefill = floor(self.stages, self.prefill, hardware, self.weight_kinds)
        decode = None if self.decode is None else floor(self.stages, self.decode, hardware, self.weight_kinds)
        return prefill, decode


def work_of(llm: LLM, run: Run, prompt_tokens: int, new_tokens: int) -> Work:
    """What the runs of a point do.

    Args:
        llm: that did it.
        run: one of them: which sequences ran beside each other shows in the times of their tokens.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
    """
    programs, layout = llm.loaded.programs("argmax"), llm.layout
    stages = [[(program, 1) for program in programs[i : i + layout.tp]] for i in range(0, layout.size, layout.tp)]
    job = Job(
        batch=len(run.token_s), context_tokens=prompt_tokens + new_tokens, prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )  # fmt: skip
    return Work(
        stages=stages,
        weight_kinds=llm.loaded.weight_kinds,
        hardware=Hardware.of_device(llm.device_info),
        prefill=job.prefill_step(),
        decode=_decode_step(run, prompt_tokens, new_tokens),
        new_tokens=new_tokens,
    )


def _decode_step(run: Run, prompt_tokens: int, new_tokens: int) -> Step | None:
    """The average step from the last sequence's first token on.

    With long prompts the first sequences are at their end by then, so their tokens are counted; both averages are
    rounded down, so that a limit stays one.
    """
    if new_tokens == 1:
        return None
    begin = prefill_s(run)
    # the step that gives token j attends to the prompt and the j tokens before it, counted from 0
    contexts = [prompt_tokens + j for times in run.token_s for j, time in enumerate(times) if j and time > begin]
    rows = len(contexts) // (new_tokens - 1)
    return Step(rows, rows, sum(contexts) // len(contexts), rows)


def limit(work: Work, runs: Sequence[Run]) -> Limit:
    """How near runs came to the least time of their work.

    Args:
        work: that each did.
        runs: at least one.
    """
    pairs = [(run, *work.floors(bandwidth_of(run), run.multiply_adds_per_s)) for run in runs]
    kinds = sorted({kind for run in runs for kind in run.multiply_adds_per_s})
    peaks = {
        kind: statistics.median(run.multiply_adds_per_s[kind] for run in runs if kind in run.multiply_adds_per_s)
        for kind in kinds
    }
    known = [bandwidth for run in runs if (bandwidth := bandwidth_of(run)) is not None]
    prefill, decode = work.floors(statistics.median(known) if known else None, peaks)
    return Limit(
        multiply_adds_per_s=peaks,
        step_bytes=None if decode is None else decode.read_bytes,
        step_flops=None if decode is None else decode.flops,
        step_floor_s=None if decode is None else decode.total_s,
        step_bound=None if decode is None else decode.bound,
        share_of_step_floor=summary(
            step.total_s / step_s(run, work.new_tokens)
            for run, _, step in pairs
            if step is not None and step.total_s is not None
        ),
        prefill_bytes=prefill.read_bytes,
        prefill_flops=prefill.flops,
        prefill_floor_s=prefill.total_s,
        prefill_bound=prefill.bound,
        share_of_prefill_floor=summary(
            prompts.total_s / prefill_s(run) for run, prompts, _ in pairs if prompts.total_s is not None
        ),
    )


def step_s(run: Run, new_tokens: int) -> float:
    """Seconds of a decode step of this run, on average."""
    return decode_s(run) / (new_tokens - 1)


def bandwidth_of(run: Run) -> float | None:
    """The bandwidth measured after a run: the median ignores the few passes that were disturbed."""
    return statistics.median(run.read_bytes_per_s) if run.read_bytes_per_s else None
