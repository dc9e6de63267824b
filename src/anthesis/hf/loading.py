"""What is said of a model when it is loaded: arguments by their names here, configurations as transformers has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, GenerationConfig

from anthesis.errors import RequestError, UnsupportedError, few
from anthesis.llm import LLM

_ELSEWHERE: Mapping[str, str] = {
    "dtype": 'choose weights= ("bf16", "fp32", "int8", ...)',
    "torch_dtype": 'choose weights= ("bf16", "fp32", "int8", ...)',
    "quantization_config": 'choose weights= ("int8", "int4", ...)',
    "load_in_8bit": 'choose weights="int8"',
    "load_in_4bit": 'choose weights="int4"',
    "device_map": "choose device=, and tp= to split the model",
    "attn_implementation": "Anthesis has its own attention",
    "revision": "download it with huggingface_hub.snapshot_download and give the directory",
    "cache_dir": "download it with huggingface_hub.snapshot_download and give the directory",
    "gguf_file": "give the path of the .gguf file as the model",
}
"""Arguments of transformers' `from_pretrained`, and what to say instead."""


def check_llm_arguments(given: Mapping[str, Any]) -> None:
    """Refuses arguments that `LLM` does not have.

    Args:
        given: by name.

    Raises:
        UnsupportedError: one of transformers, which has another name here.
        RequestError: any other.
    """
    known = [name for name in inspect.signature(LLM).parameters if name != "model"]
    for name in given:
        if name in known:
            continue
        if name in _ELSEWHERE:
            raise UnsupportedError(f"{name} is an argument of transformers; here {_ELSEWHERE[name]}")
        raise RequestError(f"there is no argument {name!r}; known are those of anthesis.LLM: {few(known, len(known))}")


def configurations(llm: LLM) -> tuple[Any, GenerationConfig]:
    """Transformers' two configurations of a model: what its directory says, or else its sizes and ends."""
    if llm.path is None or not (llm.path / "config.json").is_file():
        config = _of_sizes(llm)
        return config, GenerationConfig.from_model_config(config)
    config = AutoConfig.from_pretrained(llm.path)
    if (llm.path / "generation_config.json").is_file():
        return config, GenerationConfig.from_pretrained(llm.path)
    return config, GenerationConfig.from_model_config(config)


def _of_sizes(llm: LLM) -> Any:
    """Of a GGUF file, which transformers takes seconds to read, of a packed directory, or of random weights."""
    ours = llm.config
    ends = list(ours.eos_token_ids)
    sizes = {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.hidden_size,
        "intermediate_size": ours.ffn_size,
        "num_hidden_layers": ours.num_layers,
        "num_attention_heads": ours.num_heads,
        "num_key_value_heads": ours.num_kv_heads,
        "head_dim": ours.head_dim,
        "max_position_embeddings": ours.max_context,
        "bos_token_id": ours.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
    }
    config = AutoConfig.for_model(ours.family)
    for name, size in sizes.items():
        if hasattr(config, name):
            setattr(config, name, size)
    return config
