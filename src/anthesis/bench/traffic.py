"""What the decode steps of a run read, and how near to the memory's speed that came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anthesis.bench.derive import decode_s
from anthesis.bench.limit import Work, all_steps, bandwidth_of
from anthesis.bench.measurement import Run, Traffic
from anthesis.bench.statistic import summary, whole_summary
from anthesis.program.cost import cost
from anthesis.program.ir import Program


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
    together = all_steps(works)
    if together is None:
        return None
    steps = sum(len(work.decode) for work in works)
    rows = together.rows // steps
    average = replace(together, rows=rows, logit_rows=rows)
    weight_bytes = sum(cost(program, average).weight_bytes for program in programs)
    cache_bytes = sum(cost(program, together).cache_bytes for program in programs) // steps
    done = list(zip(works, runs, strict=True))
    least_s = [work.least(work.decode, bandwidth_of(run), {}).memory_s for work, run in done]
    return Traffic(
        weight_bytes_per_step=weight_bytes,
        cache_bytes_per_step=cache_bytes,
        bytes_per_token=(weight_bytes + cache_bytes) * steps / sum(work.tokens for work in works),
        mean_context_tokens=together.context,
        step_s=whole_summary(decode_s(run) / len(work.decode) for work, run in done),
        read_bandwidth_bytes_per_s=summary(sample for run in runs for sample in run.read_bytes_per_s),
        read_bandwidth_note=bandwidth_note,
        share_of_bandwidth=summary(
            least / decode_s(run) for run, least in zip(runs, least_s, strict=True) if least is not None
        ),
    )
