"""BLOOM against transformers in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import BloomConfig

from anthesis import LLM
from anthesis.errors import CheckpointError, ConfigError, UnsupportedError
from parity.truth import (
    VOCABULARY,
    check_greedy,
    check_parity,
    edit_config,
    edit_tensors,
    open_llm,
    prompts,
    random_model,
    save,
)


def config(**changes: Any) -> BloomConfig:
    sizes = {"hidden_size": 60, "n_head": 12, "n_layer": 2, "vocab_size": VOCABULARY}
    return BloomConfig(**(sizes | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_head": 7, "hidden_size": 56},
        {"n_head": 1, "hidden_size": 24},
        {"n_head": 16, "hidden_size": 64},
        {"n_head": 20},
        {"apply_residual_connection_post_layernorm": True},
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 0.1},
    ],
    ids=str,
)
def test_variants(tmp_path, changes):
    model = random_model(config(**changes))
    check_parity(model, save(model, tmp_path))


@pytest.mark.parametrize(
    ("dtype", "shard_size"), [("fp32", "40KB"), ("bf16", "40KB"), ("bf16", "50GB"), ("fp16", "50GB")]
)
def test_stored(tmp_path, dtype, shard_size):
    model = random_model(config())
    save(model, tmp_path, dtype, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard_size == "40KB")
    check_parity(model, tmp_path)


def _respell(raw):
    raw["n_embed"] = raw.pop("hidden_size")
    raw["num_attention_heads"] = raw.pop("n_head")
    raw["num_hidden_layers"] = raw.pop("n_layer")


def _respell_all(raw):
    """Both spellings of everything, as some of the original files have them."""
    raw |= {"n_embed": raw["hidden_size"], "num_attention_heads": raw["n_head"], "num_hidden_layers": raw["n_layer"]}


def _leave_defaults_out(raw):
    for key in ("layer_norm_epsilon", "apply_residual_connection_post_layernorm", "tie_word_embeddings"):
        del raw[key]


@pytest.mark.parametrize("edit", [_respell, _respell_all, _leave_defaults_out])
def test_spellings_of_the_configuration(tmp_path, edit):
    model = random_model(config())
    edit_config(save(model, tmp_path), edit)
    check_parity(model, tmp_path)


def _without_prefix(tensors):
    assert all(name.startswith("transformer.") for name in tensors)
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _with_copied_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}


def _with_causal_mask(tensors):
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    names = [f"transformer.h.{i}.self_attention.scale_mask_softmax.causal_mask" for i in range(2)]
    return tensors | {name: mask.clone() for name in names}


@pytest.mark.parametrize("edit", [_without_prefix, _with_copied_head, _with_causal_mask])
def test_spellings_of_the_tensors(tmp_path, edit):
    model = random_model(config())
    edit_tensors(save(model, tmp_path), edit)
    check_parity(model, tmp_path)


def test_more_sequences_than_fit(tmp_path):
    model = random_model(config())
    save(model, tmp_path)
    texts = prompts((70, 1, 64, 7, 65, 2, 63, 33, 128, 5, 91))
    block_bytes = 2 * 2 * 60 * 64 * 4
    with open_llm(tmp_path) as llm:
        plenty = [c.token_ids for c in llm.generate(texts, max_new_tokens=64, ignore_eos=True)]
    with open_llm(tmp_path, cache_memory=(5 + 1) * block_bytes) as llm:
        assert llm.loaded.block_bytes == block_bytes
        scarce = [c.token_ids for c in llm.generate(texts, max_new_tokens=64, ignore_eos=True)]
        assert llm._blocks.num_blocks == 5
        assert llm._blocks.num_used == 0
    assert scarce == plenty
    for prompt, completion in zip(texts, scarce, strict=True):
        check_greedy(model, prompt, completion)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embed": 64}, "hidden_size = 60, n_embed = 64"),
        ({"num_attention_heads": 6}, "n_head = 12, num_attention_heads = 6"),
        ({"num_hidden_layers": 4}, "n_layer = 2, num_hidden_layers = 4"),
        ({"n_head": 11}, "11 heads do not divide the hidden size 60"),
        ({"n_head": None}, "lacks n_head | num_attention_heads"),
        ({"model_type": "bloop"}, "'bloop'; known are: bloom, "),
        ({"n_layer": "3"}, "n_layer = '3'; an integer is needed"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(tmp_path, change, message):
    save(random_model(config()), tmp_path)
    edit_config(tmp_path, lambda raw: raw.update(change))
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(str(tmp_path), device="reference")


def test_quantized_checkpoints_are_refused(tmp_path):
    save(random_model(config()), tmp_path)
    edit_config(tmp_path, lambda raw: raw.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    with pytest.raises(UnsupportedError, match="gptq"):
        LLM(str(tmp_path), device="reference")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "h.1.mlp.dense_h_to_4h.bias" not in k}, "h.1.mlp.dense_h_to_4h.bias"),
        (lambda t: t | {"transformer.h.2.ln.weight": torch.ones(60)}, "transformer.h.2.ln.weight"),
        (lambda t: t | {"transformer.ln_f.bias": torch.ones(61)}, "transformer.ln_f.bias has the shape [61]"),
        (lambda t: t | {"ln_f.bias": t["transformer.ln_f.bias"].clone()}, "ln_f.bias"),
    ],
    ids=["missing", "unexpected", "misshapen", "twice"],
)
def test_damaged_checkpoints_are_refused(tmp_path, edit, message):
    save(random_model(config()), tmp_path)
    edit_tensors(tmp_path, edit)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        LLM(str(tmp_path), device="reference")
