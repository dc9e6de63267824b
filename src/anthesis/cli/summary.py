"""What is said of completions besides their text: a few lines for people, a document for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from anthesis.cli.prompts import Prompt
from anthesis.json_text import number_or_text
from anthesis.units import counted

if TYPE_CHECKING:
    from anthesis import LLM, Completion


def completions_document(
    llm: LLM, request: Mapping[str, Any], prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> dict[str, Any]:
    """The JSON document of `generate --json`; times in seconds from when the request was submitted.

    Args:
        llm: the model.
        request: what it was asked, by the names of the arguments.
        prompts: each with as many completions as `num_return_sequences` says.
        completions: of one prompt behind those of another.
    """
    biases = {str(token): number_or_text(bias) for token, bias in request["logit_bias"].items()}
    return {
        **_model_facts(llm),
        "load_s": llm.load_s,
        "request": {**request, "logit_bias": biases},
        "completions": [
            _completion_document(prompts[i // request["num_return_sequences"]], completion)
            for i, completion in enumerate(completions)
        ],
    }


def summary_lines(llm: LLM, completions: Sequence[Completion], speculate: str | None) -> list[str]:
    """How many tokens there are, how fast they came, what was saved, and what made them."""
    tokens = sum(len(completion.token_ids) for completion in completions)
    reasons = Counter(completion.finish_reason for completion in completions)
    ends = ", ".join(reason if len(completions) == 1 else f"{n} {reason}" for reason, n in reasons.items())
    firsts = [completion.timing.first_token_s for completion in completions]
    between = [interval for completion in completions for interval in completion.timing.per_token_s]
    total_s = max(completion.timing.total_s for completion in completions)
    speed = [
        f"{counted(tokens, 'token')} ({ends})",
        "first after " + (f"{_ms(min(firsts))} to {_ms(max(firsts))}" if len(firsts) > 1 else _ms(firsts[0])),
        *([f"then {_interval(completions, between)}"] if between else []),
        f"{tokens / total_s:.1f} tokens/s in all",
    ]
    if len(completions) == 1 and completions[0].score is not None:
        speed.append(f"score {completions[0].score:.4f}")
    saved = [*_reuse(completions), *([] if speculate is None else _drafts(completions))]
    facts = _model_facts(llm)
    made_by = [
        facts["model"],
        f"device {facts['device']}",
        f"weights {facts['weights']}",
        f"cache {facts['cache']}",
        f"loaded in {llm.load_s:.1f} s",
    ]
    return [" · ".join(parts) for parts in (speed, saved, made_by) if parts]


def _interval(completions: Sequence[Completion], between: Sequence[float]) -> str:
    """Time per token. The tokens of a right draft come at once, so most intervals may be 0."""
    if any(completion.accepted_tokens for completion in completions):
        return f"{_ms(mean(between))} per token (mean)"
    return f"{_ms(median(between))} per token (median)"


def _reuse(completions: Sequence[Completion]) -> list[str]:
    reused = sum(completion.reused_tokens for completion in completions)
    prompt_tokens = sum(len(completion.prompt_token_ids) for completion in completions)
    return [f"{reused:,} of {counted(prompt_tokens, 'prompt token')} reused"] if reused else []


def _drafts(completions: Sequence[Completion]) -> list[str]:
    tokens = sum(len(completion.token_ids) for completion in completions)
    steps = sum(completion.steps for completion in completions)
    drafted = sum(completion.drafted_tokens for completion in completions)
    right = sum(completion.accepted_tokens for completion in completions)
    told = f"{right:,} of {counted(drafted, 'drafted token')} right" if drafted else "no draft was worth its time"
    return [told, f"{tokens / steps:.2f} tokens per reading of the weights"]


def _model_facts(llm: LLM) -> dict[str, str]:
    return {
        "model": llm.description,
        "device": llm.device_info.name,
        "weights": "+".join(llm.loaded.weight_kinds),
        "cache": llm.loaded.cache_dtype,
    }


def _completion_document(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    timing = completion.timing
    return {
        "prompt": prompt if isinstance(prompt, str) else None,
        "prompt_token_ids": completion.prompt_token_ids,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "score": completion.score,
        "reused_tokens": completion.reused_tokens,
        "steps": completion.steps,
        "drafted_tokens": completion.drafted_tokens,
        "accepted_tokens": completion.accepted_tokens,
        "logprobs": [
            {
                "logprob": _number(place.logprob),
                "top": [{"token_id": token, "logprob": _number(logprob)} for token, logprob in place.top],
            }
            for place in completion.logprobs
        ],
        "timing": {
            "first_token_s": timing.first_token_s,
            "total_s": timing.total_s,
            "token_s": list(timing.token_s),
        },
    }


def _number(logprob: float) -> float | None:
    """JSON has no infinity: a token that can't come at all has no log-probability."""
    return logprob if math.isfinite(logprob) else None


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
