"""What the decode steps of a run read, and how near to the memory's speed that came."""

from __future__ import annotations

from collections.abc import Sequence

from anthesis.bench.derive import decode_s
from anthesis.bench.limit import Work, average_step, bandwidth_of
from anthesis.bench.measurement import Run, Traffic
from anthesis.bench.statistic import summary, whole_summary
from anthesis.program.cost import cost
from anthesis.program.ir import Cost, Program


def traffic(
    works: Sequence[Work], programs: Sequence[Program], runs: Sequence[Run], bandwidth_note: str
) -> Traffic | None:
    """The bytes of a decode step, and its share of the bandwidth.

    Args:
        works: of each run.
        programs: of all ranks.
        runs: at least one.
        bandwidth_note: how the bandwidth was measured, or why not.

    Returns:
        None where there is no decode step.
    """
    step = average_step(works)
    if step is None:
        return None
    needed = sum((cost(program, step) for program in programs), Cost())
    done = list(zip(works, runs, strict=True))
    least_s = [work.least(work.decode, bandwidth_of(run), {}).memory_s for work, run in done]
    tokens_per_step = sum(work.tokens for work in works) / sum(len(work.decode) for work in works)
    return Traffic(
        weight_bytes_per_step=needed.weight_bytes,
        cache_bytes_per_step=needed.cache_bytes,
        bytes_per_token=(needed.weight_bytes + needed.cache_bytes) / tokens_per_step,
        mean_context_tokens=step.context,
        step_s=whole_summary(decode_s(run) / len(work.decode) for work, run in done),
        read_bandwidth_bytes_per_s=summary(sample for run in runs for sample in run.read_bytes_per_s),
        read_bandwidth_note=bandwidth_note,
        share_of_bandwidth=summary(
            least / decode_s(run) for run, least in zip(runs, least_s, strict=True) if least is not None
        ),
    )
