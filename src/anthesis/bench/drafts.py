"""What came of the drafts of a run, as its completions and the steps that were observed tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anthesis.bench.measurement import Drafts, Run, Speculation
from anthesis.bench.statistic import summary, whole_summary
from anthesis.completion import Completion
from anthesis.plan.counted import Sequences


def drafts_of(completions: Sequence[Completion], steps: Sequence[Sequences], prompt_tokens: int) -> Drafts:
    """Of a run.

    Args:
        completions: of all sequences.
        steps: of the run, as `OnStep` tells of them.
        prompt_tokens: of each sequence.
    """
    return Drafts(
        steps=sum(completion.steps for completion in completions),
        drafted_tokens=sum(completion.drafted_tokens for completion in completions),
        accepted_tokens=sum(completion.accepted_tokens for completion in completions),
        decode_steps=len(decode_steps(steps, prompt_tokens)),
    )


def decode_steps(steps: Sequence[Sequences], prompt_tokens: int) -> Sequence[Sequences]:
    """Those of a run after the last sequence's first token.

    Args:
        steps: of the run, as `OnStep` tells of them.
        prompt_tokens: of each sequence.
    """
    of_prompts = [i for i, step in enumerate(steps) if any(before < prompt_tokens for before, _ in step)]
    return steps[of_prompts[-1] + 1 :]


def speculation(runs: Sequence[Run]) -> Speculation | None:
    """What drafts gained; None of runs without.

    Args:
        runs: at least one.
    """
    found = [run.drafts for run in runs if run.drafts is not None]
    if not found:
        return None
    return Speculation(
        acceptance=summary(each.accepted_tokens / each.drafted_tokens for each in found if each.drafted_tokens),
        drafted_tokens=whole_summary(float(each.drafted_tokens) for each in found),
        tokens_per_step=whole_summary(
            sum(map(len, run.token_s)) / run.drafts.steps for run in runs if run.drafts is not None
        ),
    )


def unverified(runs: Sequence[Run], steps: Sequence[Sequence[Sequences]], prompt_tokens: int) -> Iterator[str]:
    """Tokens that no row of a step can have given: each needs one of its own, a right token of a draft included.

    Args:
        runs: at least one.
        steps: of each run, as `OnStep` tells of them; empty where nobody observed them.
        prompt_tokens: of each sequence.
    """
    for number, (run, observed) in enumerate(zip(runs, steps, strict=True), start=1):
        said = run.drafts
        if said is None:
            continue
        tokens, batch = sum(map(len, run.token_s)), len(run.token_s)
        rows = [count for step in observed for before, count in step if before >= prompt_tokens]
        if said.steps + said.accepted_tokens != tokens or said.accepted_tokens > said.drafted_tokens:
            yield (
                f"timed run {number} has {tokens} tokens, and {said.steps} steps gave one each, and "
                f"{said.accepted_tokens} more of {said.drafted_tokens} that were drafted"
            )
        elif (len(rows), sum(rows)) != (said.steps - batch, said.steps - batch + said.drafted_tokens):
            yield (
                f"timed run {number} is said to have verified {said.drafted_tokens} drafted tokens in "
                f"{said.steps - batch} steps, and there were {sum(rows) - len(rows)} rows for them in {len(rows)}"
            )
