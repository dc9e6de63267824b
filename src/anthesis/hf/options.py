"""The fields of a `GenerationConfig`: which are carried out, which are refused, and which change nothing here.

Every field of the installed release is in one of these groups, or it is refused as unknown; a test goes over them, so
that a new release is noticed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from anthesis.errors import RequestError, UnsupportedError

SUPPORTED = frozenset(
    """
    max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams
    temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens sequence_bias watermarking_config num_return_sequences output_scores
    output_logits return_dict_in_generate pad_token_id bos_token_id eos_token_id
    """.split()  # noqa: SIM905
)

_OF_THE_CACHE = "Anthesis has its own cache: see cache= and cache_memory= of from_pretrained"
_OF_AN_ASSISTANT = "drafts are made beneath: open the model with speculate="
_REMOVED = "transformers has removed it as well"
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_mtp": ((False,), _OF_AN_ASSISTANT),
    "use_cache": ((True,), "the cache is always used"),
    "cache_implementation": ((), _OF_THE_CACHE),
    "cache_config": ((), _OF_THE_CACHE),
    "max_cache_len": ((), _OF_THE_CACHE),
    "token_healing": ((False,), "end the prompt before its last word instead, without a space behind it"),
    "guidance_scale": ((1, 1.0), "pass a logits_processor that computes the other prompt itself"),
    "output_attentions": ((False,), "attention weights never leave the device; ask the transformers model for them"),
    "output_hidden_states": ((False,), "hidden states never leave the device; ask the transformers model for them"),
    "decoder_start_token_id": ((), "it belongs to encoder-decoder models"),
    "is_assistant": ((False,), _OF_AN_ASSISTANT),
    "num_assistant_tokens": ((), _OF_AN_ASSISTANT),
    "num_assistant_tokens_schedule": ((), _OF_AN_ASSISTANT),
    "assistant_confidence_threshold": ((), _OF_AN_ASSISTANT),
    "prompt_lookup_num_tokens": ((), 'open the model with speculate="lookup"'),
    "max_matching_ngram_size": ((), 'open the model with speculate="lookup"'),
    "assistant_early_exit": ((), _OF_AN_ASSISTANT),
    "assistant_lookbehind": ((), _OF_AN_ASSISTANT),
    "target_lookbehind": ((), _OF_AN_ASSISTANT),
    "assistant_ensemble_weight": ((), "only drafts that change no result are made: see speculate="),
    "speculation_type": ((), _OF_AN_ASSISTANT),
    "compile_config": ((), "Anthesis compiles its own programs"),
    "continuous_batching_config": ((), "requests are batched as they come; call LLM.submit and LLM.step for more"),
    "low_memory": ((False,), _REMOVED),
    "penalty_alpha": ((0, 0.0), _REMOVED),
    "dola_layers": ((), _REMOVED),
    "diversity_penalty": ((0, 0.0), _REMOVED),
    "num_beam_groups": ((1,), _REMOVED),
    "constraints": ((), _REMOVED),
    "force_words_ids": ((), _REMOVED),
    "prefill_chunk_size": ((), "give prefill_chunk= to from_pretrained"),
}
"""Of each field the values, besides None, that ask for nothing, and what to do instead of the others."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "disable_compile": "nothing is compiled by transformers, as it asks",
    "transformers_version": "says which release wrote the configuration",
}
"""Fields that are true here whatever their value, and why."""

DEFAULTS: Mapping[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "remove_invalid_values": False,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""What transformers takes a field to be that neither the call nor the model sets."""

_SHARED = "prompts that begin alike share what was computed, by themselves: see reuse_prefixes= of from_pretrained"
ARGUMENTS: Mapping[str, str] = {
    "synced_gpus": "Anthesis splits a model over devices itself: see tp= of from_pretrained",
    "assistant_model": "open the model with speculate= the draft model's name",
    "assistant_tokenizer": "open the model with speculate= the draft model's name",
    "negative_prompt_ids": "pass a logits_processor that computes the other prompt itself",
    "negative_prompt_attention_mask": "pass a logits_processor that computes the other prompt itself",
    "custom_generate": "no other code is loaded; logits_processor and stopping_criteria shape each step",
    "trust_remote_code": "no other code is loaded",
    "inputs_embeds": "prompts are token ids; ask the transformers model for this",
    "past_key_values": _SHARED,
    "cache": _SHARED,
    "position_ids": "positions follow from the attention_mask",
    "token_type_ids": "decoder models have no token types; drop it (tokenizer(..., return_token_type_ids=False))",
    "cache_position": "positions follow from the attention_mask",
}
"""Arguments that are refused, and what to do instead."""

_OFF = frozenset({"synced_gpus", "trust_remote_code", "use_cache", "output_attentions", "output_hidden_states"})
"""Arguments that ask for nothing when they are False."""


def resolve(
    own: GenerationConfig, given: GenerationConfig | None, arguments: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """What a call asks for: its arguments, before the configuration it gives, before the model's, before the defaults.

    Args:
        own: the model's.
        given: to the call.
        arguments: of the call, by name.

    Returns:
        A configuration of its own with all fields that are carried out, and the arguments that are no fields of it.

    Raises:
        ValueError: of transformers, for a value that it refuses.
        UnsupportedError: a field that is not carried out here.
        RequestError: a field that no configuration has.
    """
    plain, inherited = GenerationConfig(), own.to_dict()
    strange = sorted(set(_fields(given)) - set(_fields(plain)) - set(inherited)) if given is not None else []
    if strange:
        raise RequestError(f"generation_config has {', '.join(strange)}, which transformers does not know")
    config = copy.deepcopy(given) if given is not None else plain
    config.update(**inherited, defaults_only=True, allow_custom_entries=True)
    config.update(**DEFAULTS, defaults_only=True)
    rest = config.update(**arguments)
    for name in _fields(GenerationConfig()):
        _check(name, getattr(config, name))
    return config, rest


def _fields(config: GenerationConfig | None) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_")]


def _check(name: str, value: Any) -> None:
    if value is None or name in SUPPORTED or name in WITHOUT_EFFECT:
        return
    idle, advice = REFUSED.get(name, ((), "this release of Anthesis does not know it"))
    if not any(type(value) is type(one) and value == one for one in idle):
        raise UnsupportedError(f"{name} = {value!r:.60} is not supported by anthesis.hf: {advice}")


def check_arguments(function: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that are not carried out; None is none, and so is what asks for nothing.

    Args:
        function: that was given them.
        arguments: those that are left once all others are known.

    Raises:
        UnsupportedError: one is known and not supported.
        RequestError: one is unknown.
    """
    for name, value in arguments.items():
        if value is None or (value is False and name in _OFF):
            continue
        advice = ARGUMENTS.get(name) or REFUSED.get(name, ((), ""))[1]
        if advice:
            raise UnsupportedError(f"{name} is not supported by anthesis.hf: {advice}")
        raise RequestError(f"{function} has no argument {name!r}; is it misspelt?")
