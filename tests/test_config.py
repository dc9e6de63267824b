"""Configurations that no model can have: config.json and GGUF metadata are refused by name, at once."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.config import MAX_SIZES
from anthesis.errors import CheckpointError, ConfigError
from anthesis.models import families, family_of_config, family_of_gguf

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
    "eos_token_id": 2,
}
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "eos_token_id": 2}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NAN, INFINITY = float("nan"), float("inf")
HUGE_MEMORY = 20 << 20


def read(raw: dict[str, Any]) -> Any:
    return family_of_config(raw).read_config(raw)


def refusal(read: Any, *arguments: Any) -> str:
    """The message of a ConfigError that comes without much memory being taken."""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            read(*arguments)
        assert tracemalloc.get_traced_memory()[1] < HUGE_MEMORY
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({"rope_theta": theta}, "rope_theta") for theta in (0, -1, NAN, INFINITY, -INFINITY, 10**400, 1e-310, "x")),
        *(({"rope_parameters": {"rope_theta": theta}}, "rope_theta") for theta in (0, -1, NAN)),
        *(({"rope_scaling": {"type": "linear", "factor": x}}, "factor = ") for x in (0, -2, NAN, INFINITY)),
        *(({"rope_scaling": {**LLAMA3, "factor": x}}, "factor = ") for x in (0, -2, NAN)),
        *(({"rope_scaling": {**LLAMA3, "low_freq_factor": x}}, "low_freq_factor") for x in (0, -1, NAN, 4.0, 5.0)),
        *(({"rope_scaling": {**LLAMA3, "high_freq_factor": x}}, "high_freq_factor") for x in (0, -1, INFINITY, 1.0)),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        *(({"rms_norm_eps": x}, "rms_norm_eps") for x in (-1e-5, NAN, INFINITY)),
        *(({"max_position_embeddings": x}, "max_position_embeddings") for x in (0, -1, 2**40)),
        *(({"sliding_window": x}, "sliding_window") for x in (-1, 0)),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        *(({"head_dim": x}, "head_dim") for x in (0, -2, 2**40)),
        *(({"num_hidden_layers": x}, "num_hidden_layers") for x in (0, -1, 10**9, 10**400)),
        *(({"hidden_size": x}, "hidden_size") for x in (0, -64, 2**40)),
        *(({"num_attention_heads": x}, "num_attention_heads") for x in (0, 2**40)),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"intermediate_size": 2**40}, "intermediate_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"num_attention_heads": 2**16, "head_dim": 2**16}, "65536 heads of 65536"),
    ],
    ids=str,
)
def test_a_llama_that_can_not_be(changes: dict[str, Any], named: str) -> None:
    assert named in refusal(read, {**LLAMA, **changes})


@pytest.mark.parametrize("raw", [BLOOM, GPT2], ids=lambda raw: raw["model_type"])
@pytest.mark.parametrize("epsilon", [-1, NAN, INFINITY])
def test_an_epsilon_that_can_not_be(raw: dict[str, Any], epsilon: float) -> None:
    assert "layer_norm_epsilon" in refusal(read, {**raw, "layer_norm_epsilon": epsilon})


@pytest.mark.parametrize("raw", [BLOOM, GPT2], ids=lambda raw: raw["model_type"])
@pytest.mark.parametrize("size", [0, -1, 2**40])
def test_sizes_that_can_not_be(raw: dict[str, Any], size: int) -> None:
    for key in raw:
        if key not in ("model_type", "eos_token_id"):
            assert key in refusal(read, {**raw, key: size})


def test_the_bounds_are_generous() -> None:
    """Every preset is at least eight times below each of them."""
    for family in families():
        for raw in family.presets.values():
            config = family.read_config(raw)
            assert all((getattr(config, name) or 1) * 8 <= bound for name, bound in MAX_SIZES.items())


def test_what_is_odd_but_can_be() -> None:
    plain = read(LLAMA).frequencies
    assert read({**LLAMA, "rms_norm_eps": 0}).norm_epsilon == 0
    assert read({**LLAMA, "rope_theta": 10_000}).frequencies == plain
    assert read({**LLAMA, "rope_theta": 0.5}).frequencies[1] > 1
    halved = {"rope_scaling": {"type": "linear", "factor": 0.5}}
    assert read({**LLAMA, **halved}).frequencies == tuple(2 * frequency for frequency in plain)
    assert read({**LLAMA, "sliding_window": None}).windows == (None,) * 4


# --- windows ---------------------------------------------------------------------------------------------------------

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"sliding_window": 17, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("llama", {"layer_types": [FULL, FULL, FULL, SLIDING]}, SLIDING),
        ("llama", {"layer_types": [FULL, SLIDING, FULL, SLIDING], "sliding_window": 17}, SLIDING),
        ("llama", {"layer_types": [FULL] * 3}, "layer_types that are not a list of 4"),
        ("llama", {"layer_types": FULL}, "layer_types that are not a list of 4"),
        ("llama", {"layer_types": [FULL, FULL, FULL, ["x"]]}, "['x']"),
        ("llama", WINDOW, "use_sliding_window"),
        ("mistral", {"layer_types": [FULL, SLIDING, FULL, SLIDING], "sliding_window": 17}, FULL),
        ("mistral", {"layer_types": [SLIDING] * 4, "sliding_window": None}, SLIDING),
        ("mistral", {"use_sliding_window": False, "sliding_window": 17}, "use_sliding_window"),
        ("qwen2", {"layer_types": [FULL, FULL, FULL, "chunked_attention"]}, "chunked_attention"),
        ("qwen3", {"layer_types": [FULL, FULL, FULL, "linear_attention"], **WINDOW}, "linear_attention"),
        ("qwen2", {"layer_types": [FULL, FULL, FULL, SLIDING], "use_sliding_window": False}, SLIDING),
        ("qwen3", {"layer_types": [FULL] * 5, **WINDOW}, "layer_types that are not a list of 4"),
    ],
)
def test_windows_that_are_not_computed(model_type: str, changes: dict[str, Any], named: str) -> None:
    assert named in refusal(read, {**LLAMA, "model_type": model_type, **changes})


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("llama", {"layer_types": [FULL] * 4}, (None,) * 4),
        ("llama", {"use_sliding_window": False, "sliding_window": 17}, (None,) * 4),
        ("mistral", {"layer_types": [SLIDING] * 4, "sliding_window": 17}, (17,) * 4),
        ("mistral", {"layer_types": [FULL] * 4, "sliding_window": None}, (None,) * 4),
        ("qwen2", {"layer_types": [FULL] * 4, "use_sliding_window": False}, (None,) * 4),
        ("qwen2", {"layer_types": [FULL, SLIDING, FULL, SLIDING], **WINDOW}, (None, 17, None, 17)),
        ("qwen3", {"max_window_layers": 3, **WINDOW}, (None, None, None, 17)),
    ],
)
def test_windows_by_layer(model_type: str, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    raw = {**LLAMA, "model_type": model_type, "num_key_value_heads": 4, **changes}
    assert read(raw).windows == windows


# --- end-of-sequence ids ---------------------------------------------------------------------------------------------


def test_an_end_that_never_comes_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "eos_token_id": [2, 100, 50256]}))
    with pytest.warns(UserWarning, match="eos_token_id 100, 50256 is outside the vocabulary of 100"):
        assert open_checkpoint(f"random:{path}").config.eos_token_ids == (2,)
    path.write_text(json.dumps({**LLAMA, "eos_token_id": 50256}))
    with pytest.warns(UserWarning, match="nothing ends a sequence"):
        assert open_checkpoint(f"random:{path}").config.eos_token_ids == ()


# --- GGUF ------------------------------------------------------------------------------------------------------------

GGUF_LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.feed_forward_length": 96,
    "llama.context_length": 128,
    "llama.vocab_size": 100,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def read_gguf(metadata: dict[str, Any]) -> Any:
    family = family_of_gguf(metadata["general.architecture"])
    assert family.gguf is not None
    return family.gguf.read_config(metadata, frozenset())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"llama.{key}", value) for key in ("block_count", "embedding_length", "context_length", "vocab_size",
          "attention.head_count", "feed_forward_length", "attention.head_count_kv", "attention.key_length")
          for value in (0, -1, 2**40, 1.5)),
        *(("llama.attention.layer_norm_rms_epsilon", value) for value in (-1.0, NAN, INFINITY)),
        *(("llama.rope.freq_base", value) for value in (0.0, -1.0, NAN, INFINITY)),
        ("llama.attention.sliding_window", -1),
        ("tokenizer.ggml.eos_token_id", -1),
        ("tokenizer.ggml.eos_token_id", "</s>"),
        ("tokenizer.ggml.bos_token_id", 1.5),
    ],
)  # fmt: skip
def test_gguf_metadata_that_can_not_be(key: str, value: Any) -> None:
    assert key in refusal(read_gguf, {**GGUF_LLAMA, key: value})


@pytest.mark.parametrize("factor", [0.0, -1.0, NAN])
def test_a_gguf_scaling_that_can_not_be(factor: float) -> None:
    metadata = {**GGUF_LLAMA, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}
    assert "llama.rope.scaling.factor" in refusal(read_gguf, metadata)


@pytest.mark.parametrize("architecture", ["bloom", "gpt2"])
@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count"])
def test_gguf_sizes_that_can_not_be(architecture: str, key: str) -> None:
    metadata = {name.replace("llama", architecture): value for name, value in GGUF_LLAMA.items()}
    metadata |= {"general.architecture": architecture, f"{architecture}.attention.layer_norm_epsilon": 1e-5}
    assert read_gguf(metadata).num_layers == 2
    assert f"{architecture}.{key}" in refusal(read_gguf, {**metadata, f"{architecture}.{key}": 2**31})


# --- layers that are not stored --------------------------------------------------------------------------------------


def test_layers_that_can_not_be_stored(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    layers = MAX_SIZES["num_layers"]
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": layers}))
    save_file({f"w{i}": np.zeros(1, np.float32) for i in range(7)}, tmp_path / "model.safetensors")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in GGUF_LLAMA.items():
        if isinstance(value, int):
            writer.add_uint32(key, layers if key == "llama.block_count" else value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for i in range(7):
        writer.add_tensor(f"w{i}", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for model in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(CheckpointError, match=f"{layers} layers, and no more than 7 tensors"):
            open_checkpoint(str(model))
