"""What the decode steps of a run read, and how near to the memory's speed that came."""

from __future__ import annotations

from collections.abc import Sequence

from anthesis.bench.limit import Work, bandwidth_of, step_s
from anthesis.bench.measurement import Run, Traffic
from anthesis.bench.statistic import summary, whole_summary
from anthesis.program.cost import cost
from anthesis.program.ir import Cost


def traffic(work: Work, runs: Sequence[Run], bandwidth_note: str) -> Traffic | None:
    """The bytes of a decode step, and its share of the bandwidth.

    Args:
        work: that each run did.
        runs: at least one.
        bandwidth_note: how the bandwidth was measured, or why not.

    Returns:
        None where there is no decode step.
    """
    step = work.decode
    if step is None:
        return None
    needed = sum((cost(program, step) for ranks in work.stages for program, _ in ranks), Cost())
    seconds = [step_s(run, work.new_tokens) for run in runs]
    shares = []
    for run, took in zip(runs, seconds, strict=True):
        _, least = work.floors(bandwidth_of(run), {})
        if least is not None and least.memory_s is not None:
            shares.append(least.memory_s / took)
    return Traffic(
        weight_bytes_per_step=needed.weight_bytes,
        cache_bytes_per_step=needed.cache_bytes,
        bytes_per_token=(needed.weight_bytes + needed.cache_bytes) / step.sequences,
        mean_context_tokens=step.context,
        step_s=whole_summary(seconds),
        read_bandwidth_bytes_per_s=summary(sample for run in runs for sample in run.read_bytes_per_s),
        read_bandwidth_note=bandwidth_note,
        share_of_bandwidth=summary(shares),
    )
