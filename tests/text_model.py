"""A model of a few thousand weights that reads and writes text, as a directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import pre_tokenizers

from anthesis.models import family_of_config, trace
from trained_tokenizers import train_byte_level

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def text_model(directory: Path, **changes: object) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json."""
    directory.mkdir(exist_ok=True)
    tokenizer = train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    raw = {**CONFIG, "vocab_size": tokenizer.get_vocab_size(), **changes}
    family = family_of_config(raw)
    config = family.read_config(raw)
    sources, rng = family.sources(config), np.random.default_rng(0)
    tensors = {
        f"model.{sources[value.name].name}": rng.standard_normal(value.static_shape, np.float32)
        for value in trace(config).of_kind("weight")
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(raw))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
