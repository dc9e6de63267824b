"""Requests that the engine carries out by itself: no scores come out, so nothing waits for Python between two steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from anthesis.engine.admission import NO_ROOM
from anthesis.engine.sampling import LARGE, SMALL
from anthesis.errors import RequestError
from anthesis.hf.release import PADDING_IS_NOT_REPEATED, release
from anthesis.hf.request import Request
from anthesis.llm import LLM

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "max_time": (),
    "stop_strings": (),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "watermarking_config": (),
}
"""Fields that only transformers' processors and criteria carry out, and the values, besides None, that need none."""

_WHEN_SAMPLING = frozenset({"top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"})


@dataclass(frozen=True)
class Plan:
    """How the engine carries out a request.

    Attributes:
        params: keyword arguments of `LLM.submit`, the same for all rows.
        draws: tokens are drawn, so each row needs its own seed.
    """

    params: dict[str, Any]
    draws: bool


def plan(llm: LLM, request: Request) -> Plan | None:
    """How the engine would do exactly what transformers does; None where it would not.

    Args:
        llm: the model.
        request: of the call.
    """
    config, extras = request.config, request.extras
    sampled = bool(config.do_sample)
    if any(
        getattr(config, name) is not None and getattr(config, name) not in neutral
        for name, neutral in _NEUTRAL.items()
        if sampled or name not in _WHEN_SAMPLING
    ):
        return None
    if extras.logits_processor or extras.stopping_criteria or extras.prefix_allowed_tokens_fn is not None:
        return None
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        return None
    if (config.num_beams or 1) > 1 or (extras.streamer is not None and len(request.rows) > 1):
        return None  # a streamer sees the tokens of all rows together
    ends = {token for token in request.ends if 0 <= token < llm.config.vocab_size}
    if ends and ends != set(llm.config.eos_token_ids):
        return None
    if ends and request.min_length > request.ids.shape[1]:
        return None
    params: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "ignore_eos": not ends}
    penalty = config.repetition_penalty
    if penalty not in (None, 1.0):
        if not isinstance(penalty, float) or not SMALL <= penalty <= LARGE:
            return None  # transformers says what it thinks of it, here and below
        if request.is_padded and release() < PADDING_IS_NOT_REPEATED:
            return None
        params["repetition_penalty"] = penalty
    if sampled:
        temperature = 1.0 if config.temperature is None else config.temperature
        params["temperature"] = temperature
        params["top_k"] = config.top_k or None
        params["top_p"] = config.top_p if config.top_p is not None and config.top_p < 1 else None
        params["min_p"] = config.min_p
        if not _is_within(temperature, params["top_k"], params["top_p"], params["min_p"]):
            return None
    return Plan(params, sampled)


def _is_within(temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> bool:
    """Whether these are numbers as both sides understand them."""
    return (
        isinstance(temperature, float)
        and SMALL <= temperature <= LARGE
        and (top_k is None or (isinstance(top_k, int) and top_k > 0))
        and (top_p is None or (isinstance(top_p, float) and top_p > 0))
        and (min_p is None or (isinstance(min_p, float) and 0 <= min_p <= 1))
    )


def run(llm: LLM, request: Request, how: Plan) -> torch.Tensor:
    """Prompts and completions, (N, T) int64.

    Args:
        llm: the model.
        request: of the call.
        how: what `plan` gave.

    Raises:
        RequestError: other requests of the model hold the memory that this one needs.
        AnthesisError: the model computed numbers that are not finite.
    """
    streamer = request.extras.streamer
    prompts = [prompt for prompt in request.prompts for _ in range(request.width)]
    # torch's generator decides, so that torch.manual_seed makes sampling reproducible
    seeds = torch.randint(2**63 - 1, (len(prompts),)).tolist() if how.draws else [None] * len(prompts)
    handles: list[Any] = []
    try:
        for prompt, seed in zip(prompts, seeds, strict=True):
            handles.append(llm.submit(prompt, seed=seed, **how.params))
        shown = 0
        while not all(handle.finished for handle in handles):
            if not llm.step():
                raise RequestError(NO_ROOM)
            if streamer is not None:
                tokens = handles[0].token_ids
                for token in tokens[shown:]:
                    streamer.put(torch.tensor([token]))
                shown = len(tokens)
        completions = [handle.completion.token_ids for handle in handles]
    finally:
        for handle in handles:
            handle.close()
    longest = max(map(len, completions))
    found = torch.full((len(prompts), longest), 0 if request.pad is None else request.pad)
    for row, tokens in enumerate(completions):
        found[row, : len(tokens)] = torch.tensor(tokens)
    return torch.cat([request.rows, found.to(request.ids.device)], dim=1)
