"""Quantised weights against transformers on the same weights dequantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BloomConfig, DynamicCache, PreTrainedModel, Qwen2Config

from anthesis.quantize import WEIGHT_KINDS, quantize, weight_kind
from parity.truth import (
    TOLERANCE,
    VOCABULARY,
    change_weights,
    check_greedy,
    check_parity,
    difference,
    open_llm,
    prompts,
    random_model,
    save,
    true_logits,
)

CONFIGS = {
    "bloom": BloomConfig(hidden_size=128, n_head=4, n_layer=2, vocab_size=VOCABULARY),
    "qwen2": Qwen2Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=256,
    ),
}  # fmt: skip


def quantized_model(name: str, weights: str, directory: Path) -> PreTrainedModel:
    """Saves a model in float32 and gives what is left of it after quantisation."""
    model = random_model(CONFIGS[name])
    save(model, directory)

    def rounded(_: str, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.ndim < 2:
            return parameter
        held = quantize(parameter.numpy().astype(np.float32), weight_kind(weights))
        return torch.from_numpy(held.dequantize(np.float64))

    change_weights(model, rounded)
    return model


@pytest.mark.parametrize(
    ("name", "weights"), [*(("qwen2", kind) for kind in WEIGHT_KINDS), ("bloom", "int8"), ("bloom", "int4m")]
)
def test_kinds(tmp_path, name, weights):
    model = quantized_model(name, weights, tmp_path)
    check_parity(model, tmp_path, weights=weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_rounded_cache(tmp_path, name):
    """Without a word about it, bf16 weights come with a bf16 cache: keys and values are rounded, nothing else."""

    class RoundedCache(DynamicCache):
        def update(self, keys, values, *args, **kwargs):
            keys, values = (x.to(torch.bfloat16).to(x.dtype) for x in (keys, values))
            return super().update(keys, values, *args, **kwargs)

    model = quantized_model(name, "bf16", tmp_path)
    (text,) = prompts((130,))
    true = true_logits(model, text, past_key_values=RoundedCache(), use_cache=True)
    assert difference(true, true_logits(model, text)) > 0.02
    with open_llm(tmp_path, weights="bf16", cache="auto") as llm, open_llm(tmp_path, weights="bf16") as unrounded:
        assert llm.loaded.cache_dtype == "bf16"
        # a key at the border between two bf16 numbers may fall to the other side
        assert np.median(np.abs(llm.logits(text) - true).max(axis=1)) < TOLERANCE
        assert difference(llm.logits(text), true) < 0.02
        assert difference(unrounded.logits(text), true_logits(model, text)) < TOLERANCE
        (completion,) = unrounded.generate(text, max_new_tokens=8, ignore_eos=True)
        check_greedy(model, text, completion.token_ids, compared=0.5)
