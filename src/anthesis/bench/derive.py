"""The figures of a measurement, computed from its samples. docs/measuring.md explains each."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from anthesis.bench.measurement import Run, Speed, Traffic
from anthesis.bench.statistic import Statistic, summary
from anthesis.program.cost import cost
from anthesis.program.ir import Cost, Program, Step

SETTLED_RUNS = 3
SETTLED_SPREAD = 0.05


def has_settled(run_s: Sequence[float]) -> bool:
    """Whether the last three runs agree: their spread is at most 5 % of their median.

    Args:
        run_s: seconds of all runs so far, in order.
    """
    last = run_s[-SETTLED_RUNS:]
    return len(last) == SETTLED_RUNS and max(last) - min(last) <= SETTLED_SPREAD * statistics.median(last)


def prefill_s(run: Run) -> float:
    """Seconds until the last sequence had its first token."""
    return max(times[0] for times in run.token_s)


def decode_s(run: Run) -> float:
    """Seconds from then until the last token."""
    return max(times[-1] for times in run.token_s) - prefill_s(run)


def decode_tokens(run: Run) -> int:
    """Tokens that came during `decode_s`, counted."""
    begin = prefill_s(run)
    # within one step tokens come one after the other: those of the step that ended the prefill are first tokens
    return sum(time > begin for times in run.token_s for time in times[1:])


def speed(runs: Sequence[Run], prompt_tokens: int) -> Speed:
    """How fast the tokens came.

    Args:
        runs: at least one, all with the same number of tokens.
        prompt_tokens: of each sequence.
    """
    generated = sum(len(times) for times in runs[0].token_s)
    gaps = [b - a for run in runs for times in run.token_s for a, b in pairwise(times)]
    return Speed(
        generated_tokens=generated,
        total_s=_summary([run.total_s for run in runs]),
        first_token_s=_summary([times[0] for run in runs for times in run.token_s]),
        between_tokens_s=summary(gaps),
        tokens_per_s=_summary([generated / run.total_s for run in runs]),
        prefill_tokens_per_s=_summary([prompt_tokens * len(run.token_s) / prefill_s(run) for run in runs]),
        decode_tokens_per_s=summary(decode_tokens(run) / decode_s(run) for run in runs) if gaps else None,
    )


def traffic(
    runs: Sequence[Run], programs: Sequence[Program], prompt_tokens: int, new_tokens: int, bandwidth_note: str
) -> Traffic | None:
    """What the decode steps read, and how near to the memory's speed that came.

    The steps after the first token attend to prompt + 1, ..., prompt + new - 1 tokens: prompt + new / 2 on average.

    Args:
        runs: at least one.
        programs: that ran, of all ranks: they share the memory.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
        bandwidth_note: how the bandwidth was measured, or why not.

    Returns:
        None where there is no decode step.
    """
    if new_tokens == 1:
        return None
    batch = len(runs[0].token_s)
    context = prompt_tokens + new_tokens // 2
    step = Step(rows=batch, logit_rows=batch, context=context, sequences=batch)
    needed = sum((cost(program, step) for program in programs), Cost())
    step_bytes = needed.weight_bytes + needed.cache_bytes
    step_s = [decode_s(run) / (new_tokens - 1) for run in runs]
    shares = [
        step_bytes / seconds / statistics.median(run.read_bytes_per_s)
        for run, seconds in zip(runs, step_s, strict=True)
        if run.read_bytes_per_s
    ]
    return Traffic(
        weight_bytes_per_step=needed.weight_bytes,
        cache_bytes_per_step=needed.cache_bytes,
        bytes_per_token=step_bytes / batch,
        mean_context_tokens=context,
        step_s=_summary(step_s),
        read_bandwidth_bytes_per_s=summary(sample for run in runs for sample in run.read_bytes_per_s),
        read_bandwidth_note=bandwidth_note,
        share_of_bandwidth=summary(shares),
    )


def tokens_sha256(sequences: Sequence[Sequence[int]]) -> str:
    """A fingerprint of generated tokens: their ids as little-endian int32, sequence after sequence."""
    digest = hashlib.sha256()
    for tokens in sequences:
        digest.update(np.array(tokens, "<i4").tobytes())
    return digest.hexdigest()


def _summary(samples: Sequence[float]) -> Statistic:
    found = summary(samples)
    assert found is not None, "no samples"
    return found
