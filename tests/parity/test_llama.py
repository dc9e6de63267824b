"""The Llama family - Llama, Mistral, Qwen2, Qwen3 - against transformers in float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from anthesis import LLM
from anthesis.errors import ConfigError, UnsupportedError
from parity.truth import (
    VOCABULARY,
    check_greedy,
    check_parity,
    edit_config,
    open_llm,
    prompts,
    random_model,
    save,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config(kind: type[PretrainedConfig] = LlamaConfig, **changes: Any) -> PretrainedConfig:
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "eos_token_id": 2,
    }
    if kind is Qwen3Config:
        sizes["head_dim"] = 12
    return kind(**(sizes | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 6},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 10},
        {"head_dim": 2},
        {"rms_norm_eps": 0.1},
        {"hidden_size": 72, "num_attention_heads": 9, "tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu"},
        {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}},
    ],
    ids=str,
)
def test_llama(tmp_path, changes):
    model = random_model(config(**changes))
    check_parity(model, save(model, tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"sliding_window": None}, {"sliding_window": 1}, {"sliding_window": 20}, {"sliding_window": 64}, {"head_dim": 6}],
    ids=str,
)
def test_mistral(tmp_path, changes):
    model = random_model(config(MistralConfig, **changes))
    check_parity(model, save(model, tmp_path))


WINDOW = {"use_sliding_window": True, "sliding_window": 17}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"use_sliding_window": False, "sliding_window": 17, "max_window_layers": 0},
        {**WINDOW, "max_window_layers": 1},
        {**WINDOW, "max_window_layers": 28},
        {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_qwen(tmp_path, kind, changes):
    model = random_model(config(kind, **changes))
    names = [name for name, _ in model.named_parameters()]
    assert any("q_proj.bias" in name for name in names) == (kind is Qwen2Config)
    assert any("q_norm" in name for name in names) == (kind is Qwen3Config)
    check_parity(model, save(model, tmp_path))


@pytest.mark.parametrize("changes", [{"head_dim": 128}, {"attention_bias": True}, {"head_dim": 16}], ids=str)
def test_qwen3(tmp_path, changes):
    model = random_model(config(Qwen3Config, **changes))
    check_parity(model, save(model, tmp_path))


def test_the_window_by_its_layers(tmp_path):
    """As transformers 4 writes it: no layer_types, the window named also where it is not used."""
    changes = {**WINDOW, "max_window_layers": 1}
    model = random_model(config(Qwen2Config, **changes))
    edit_config(save(model, tmp_path), lambda raw: raw.pop("layer_types"))
    check_parity(model, tmp_path)


def _in_transformers_4(theta: float | None, scaling: dict[str, Any] | None) -> Any:
    def edit(raw: dict[str, Any]) -> None:
        del raw["rope_parameters"]
        if theta is not None:
            raw["rope_theta"] = theta
        raw["rope_scaling"] = scaling

    return edit


@pytest.mark.parametrize(
    ("parameters", "theta", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 10_000.0}, None, None),
        ({"rope_type": "default", "rope_theta": 300.0}, 300, None),
        ({"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0}, 300.0, {"type": "linear", "factor": 2}),
        ({"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0}, 300.0, {"rope_type": "linear", "factor": 2.0}),
        ({**LLAMA3, "rope_theta": 300.0}, 300.0, LLAMA3),
        ({**LLAMA3, "rope_theta": 300.0}, 300.0, {**LLAMA3, "type": "llama3"}),
        ({"rope_type": "default", "rope_theta": 300.0}, 300.0, {"type": "default"}),
    ],
    ids=str,
)
def test_rope_in_the_spelling_of_transformers_4(tmp_path, parameters, theta, scaling):
    model = random_model(config(rope_parameters=parameters))
    edit_config(save(model, tmp_path), _in_transformers_4(theta, scaling))
    check_parity(model, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "shard_size"), [("fp32", "20KB"), ("bf16", "20KB"), ("bf16", "50GB"), ("fp16", "50GB")]
)
def test_stored(tmp_path, dtype, shard_size):
    model = random_model(config(Qwen2Config))
    save(model, tmp_path, dtype, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard_size == "20KB")
    check_parity(model, tmp_path)


def test_the_shapes_of_smollm2(tmp_path):
    model = random_model(
        config(hidden_size=576, num_attention_heads=9, intermediate_size=1536, tie_word_embeddings=True)
    )
    check_parity(model, save(model, tmp_path))


def test_more_sequences_than_fit(tmp_path):
    model = random_model(config(MistralConfig, sliding_window=50))
    save(model, tmp_path)
    texts = prompts((70, 1, 64, 7, 65, 2, 63, 33, 128, 5, 91))
    with open_llm(tmp_path) as llm:
        plenty = [c.token_ids for c in llm.generate(texts, max_new_tokens=64, ignore_eos=True)]
        block_bytes = llm.loaded.block_bytes
    with open_llm(tmp_path, cache_memory=(4 + 1) * block_bytes) as llm:
        scarce = [c.token_ids for c in llm.generate(texts, max_new_tokens=64, ignore_eos=True)]
        assert llm._blocks.num_blocks == 4
        assert llm._blocks.num_used == 0
    assert scarce == plenty
    for prompt, completion in zip(texts, scarce, strict=True):
        check_greedy(model, prompt, completion)


def test_what_a_configuration_leaves_out(tmp_path):
    """A key that is absent means the default of its kind of model, which null does not."""
    left_out = ("num_key_value_heads", "sliding_window", "max_position_embeddings", "rms_norm_eps", "hidden_act")
    model = random_model(MistralConfig(hidden_size=64, intermediate_size=80, num_hidden_layers=2,
                                       num_attention_heads=16, vocab_size=VOCABULARY))  # fmt: skip
    edit_config(save(model, tmp_path), lambda raw: [raw.pop(key) for key in left_out])
    with open_llm(tmp_path) as llm:
        assert llm.config.num_kv_heads == model.config.num_key_value_heads
        assert llm.config.max_context == model.config.max_position_embeddings
        assert set(llm.config.windows) == {model.config.sliding_window}
    check_parity(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not computed"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope scaling 'dynamic' is not computed"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope scaling 'longrope' is not computed"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "contradicts itself"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "full_attention"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu' is not computed here; known are: gelu"),
        ({"model_type": "mamba"}, "'mamba'; known are: bloom, "),
        ({"model_type": None}, "model_type = None"),
        ({"num_key_value_heads": 4}, "6 query heads and 4 key-value heads"),
        ({"head_dim": 7}, "head_dim of 7"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
        ({"rope_scaling": "linear"}, "'linear'; an object is needed"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(tmp_path, change, message):
    save(random_model(config()), tmp_path)

    def edit(raw: dict[str, Any]) -> None:
        if "rope_scaling" in change:
            del raw["rope_parameters"]
        raw.update(change)

    edit_config(tmp_path, edit)
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(str(tmp_path), device="reference")


def test_two_rope_scalings_are_refused(tmp_path):
    save(random_model(config()), tmp_path)
    edit_config(tmp_path, lambda raw: raw.update(rope_scaling={"type": "linear", "factor": 2.0}))
    with pytest.raises(ConfigError, match="rope_scaling"):
        LLM(str(tmp_path), device="reference")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantized_checkpoints_are_refused(tmp_path, method):
    save(random_model(config()), tmp_path)
    edit_config(tmp_path, lambda raw: raw.update(quantization_config={"quant_method": method, "bits": 4}))
    with pytest.raises(UnsupportedError, match=method):
        LLM(str(tmp_path), device="reference")
