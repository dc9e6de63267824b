"""The figures of a measurement, computed from its samples. docs/measuring.md explains each."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence

import numpy as np

from anthesis.bench.measurement import Run, Speed
from anthesis.bench.statistic import summary, whole_summary
from anthesis.engine.sequence import per_token_s

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
    gaps = [gap for run in runs for times in run.token_s for gap in per_token_s(times)]
    return Speed(
        generated_tokens=generated,
        total_s=whole_summary([run.total_s for run in runs]),
        first_token_s=whole_summary([times[0] for run in runs for times in run.token_s]),
        between_tokens_s=summary(gaps),
        tokens_per_s=whole_summary([generated / run.total_s for run in runs]),
        prefill_tokens_per_s=whole_summary([prompt_tokens * len(run.token_s) / prefill_s(run) for run in runs]),
        decode_tokens_per_s=summary(decode_tokens(run) / decode_s(run) for run in runs) if gaps else None,
    )


def tokens_sha256(sequences: Sequence[Sequence[int]]) -> str:
    """A fingerprint of generated tokens: their ids as little-endian int32, sequence after sequence."""
    digest = hashlib.sha256()
    for tokens in sequences:
        digest.update(np.array(tokens, "<i4").tobytes())
    return digest.hexdigest()
