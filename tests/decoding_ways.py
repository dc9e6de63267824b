"""Every way of decoding in one go, for tests of what computes it: devices, kernels, ranks."""

from __future__ import annotations

from typing import Any

from anthesis import LLM

COMMON = [13, 7, 22, 9, 41, 5, 17, 30] * 9  # more than a block, and it repeats itself
TEXTS = [[*COMMON, 12], [*COMMON, 40, 41], [20, 21, 22] * 4, [5]]


def decoded(llm: LLM, max_new_tokens: int = 24) -> list[Any]:
    """What this model gives: greedy, drawn, constrained, several completions, beams.

    With shared prefixes and with drafts it must be the same as without.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "ignore_eos": True}
    found = [
        llm.generate(TEXTS, **options),
        llm.generate(TEXTS, **options, temperature=0.9, top_p=0.95, seed=4, repetition_penalty=1.1),
        llm.generate(TEXTS, **options, no_repeat_ngram_size=3, bad_words=[[20], [21, 22]], forced_prefix=[7, 8, 9]),
        llm.generate(TEXTS[:2], **options, temperature=1.0, seed=1, num_return_sequences=3),
        llm.generate(TEXTS, **options, num_beams=3, num_return_sequences=2),
    ]
    return [[completion.token_ids for completion in completions] for completions in found]


def reused(llm: LLM) -> int:
    """Prompt tokens that a second call need not compute."""
    return sum(completion.reused_tokens for completion in llm.generate(TEXTS, max_new_tokens=1))
