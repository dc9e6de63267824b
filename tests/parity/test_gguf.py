"""GGUF files, laid out as llama.cpp's converter lays them out, against transformers on the same dequantised weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BloomConfig, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from parity.truth import VOCABULARY, change_weights, check_parity, random_model

TYPES = gguf.GGMLQuantizationType
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

_LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip
_BLOOM_NAMES = {
    "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "word_embeddings": "token_embd", "word_embeddings_layernorm": "token_embd_norm", "ln_f": "output_norm",
    "lm_head": "output",
}  # fmt: skip


def _gguf_name(name: str, names: dict[str, str]) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    parts = name.split(".")
    if parts[0] in ("model", "transformer"):
        parts = parts[1:]
    *stem, kind = parts
    block = f"blk.{stem[1]}." if stem[0] in ("layers", "h") else ""
    return f"{block}{names['.'.join(stem[2:] if block else stem)]}.{kind}"


def _rows(model: PreTrainedModel, name: str, count: int) -> NDArray[np.int64]:
    """For each row that is written the row of the model's own tensor that stands there."""
    config, rows = model.config, np.arange(count)
    if ".query_key_value." in name:  # from [heads, 3, D] to [3, heads, D]
        return rows.reshape(config.n_head, 3, -1).transpose(1, 0, 2).reshape(-1)
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return rows.reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
    return rows


def _rope_divisors(head_dim: int, theta: float) -> NDArray[np.float32]:
    """What the converter stores for Llama 3.1's scaling: by how much each frequency is divided."""
    divisors = []
    for i in range(head_dim // 2):
        turns = LLAMA3["original_max_position_embeddings"] * theta ** (-2 * i / head_dim) / (2 * math.pi)
        smooth = (turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        smooth = min(max(smooth, 0), 1)
        divisors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(divisors, np.float32)


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level vocabulary whose ids beyond the bytes are unused words."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet())]
    merges = [f"{a} {b}" for a in "abcdefgh" for b in "ijklmnopq"]
    tokens += [merge.replace(" ", "") for merge in merges]
    assert len(tokens) == size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (size - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(model: PreTrainedModel, path: Path, type_name: str, *, copy_head: bool = False) -> Path:
    """Writes the model with matrices of this type, and rounds its own weights to what the file holds."""
    config = model.config
    architecture, quantization = config.model_type, TYPES[type_name]
    names = _BLOOM_NAMES if architecture == "bloom" else _LLAMA_NAMES

    def rounded(_: str, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.ndim < 2:
            return parameter
        stored = gguf.quants.quantize(parameter.numpy().astype(np.float32), quantization)
        return torch.from_numpy(gguf.quants.dequantize(stored, quantization).astype(np.float64))

    writer = gguf.GGUFWriter(path, architecture)
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy().astype(np.float32)
        array = array[_rows(model, name, len(array))]
        if array.ndim < 2:
            writer.add_tensor(_gguf_name(name, names), array)
            continue
        stored = gguf.quants.quantize(array, quantization)
        writer.add_tensor(_gguf_name(name, names), stored, raw_dtype=quantization)
        if copy_head and "embed" in name:
            writer.add_tensor("output.weight", stored.copy(), raw_dtype=quantization)
    change_weights(model, rounded)

    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    _vocabulary(writer, config.vocab_size)
    if architecture == "bloom":
        writer.add_context_length(2048)
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_head_count_kv(config.num_attention_heads)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        rope: dict[str, Any] = config.rope_parameters
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_context_length(config.max_position_embeddings)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope["rope_theta"])
        if architecture != "qwen2":
            writer.add_rope_dimension_count(head_dim)
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", _rope_divisors(head_dim, rope["rope_theta"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


MODELS = {
    "bloom": BloomConfig(hidden_size=96, n_head=6, n_layer=2, vocab_size=VOCABULARY),
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=24, tie_word_embeddings=True),
}


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_types(tmp_path, name, type_name):
    model = random_model(MODELS[name])
    check_parity(model, write(model, tmp_path / "a.gguf", type_name))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_families(tmp_path, name):
    model = random_model(MODELS[name])
    check_parity(model, write(model, tmp_path / "a.gguf", "Q8_0"))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {"head_dim": 24},
        {"num_attention_heads": 8, "num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
    ],
    ids=str,
)
def test_llama_variants(tmp_path, changes):
    model = random_model(LlamaConfig(**(SIZES | changes)))
    check_parity(model, write(model, tmp_path / "a.gguf", "F32"))


@pytest.mark.parametrize("changes", [{"n_head": 12}, {"n_head": 3}, {"tie_word_embeddings": False}], ids=str)
def test_bloom_variants(tmp_path, changes):
    sizes = {"hidden_size": 96, "n_head": 6, "n_layer": 2, "vocab_size": VOCABULARY}
    model = random_model(BloomConfig(**(sizes | changes)))
    check_parity(model, write(model, tmp_path / "a.gguf", "F16"))


@pytest.mark.parametrize("name", ["bloom", "qwen3"])
def test_a_tied_head_that_is_stored_twice(tmp_path, name):
    model = random_model(MODELS[name])
    check_parity(model, write(model, tmp_path / "a.gguf", "F16", copy_head=True))
