"""Adapters merged here against peft: its merged weights in float64, rounded once, and its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedModel, Qwen2Config

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.convert import write_packed
from anthesis.models import family_named, trace
from anthesis.program.partition import partition
from anthesis.quantize import weight_kind
from parity.adapters import TENSORS, Adapted, adapt, edit_adapter
from parity.test_gguf import write as write_gguf
from parity.truth import TOLERANCE, VOCABULARY, difference, open_llm, prompts, random_model, save, true_logits

LLAMA = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": VOCABULARY,
}  # fmt: skip
CONFIGS = {
    "bloom": BloomConfig(hidden_size=60, n_head=6, n_layer=2, vocab_size=VOCABULARY),
    "llama": LlamaConfig(**LLAMA),
    "llama-biased": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "llama-tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**LLAMA),
    "gpt2": GPT2Config(n_embd=48, n_head=4, n_layer=2, n_positions=128, vocab_size=VOCABULARY),
}
LLAMA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOOM_MODULES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
TEXT = prompts((40,))[0]


def random_gpt2() -> PreTrainedModel:
    """Its biases and norms are called unlike those that `random_model` knows."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(CONFIGS["gpt2"]).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model.double()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """model name -> (model in float64, where it is saved), each made once."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def base(name: str) -> tuple[PreTrainedModel, Path]:
        if name not in made:
            model = random_gpt2() if name == "gpt2" else random_model(CONFIGS[name])
            made[name] = model, save(model, tmp_path_factory.mktemp(name))
        return made[name]

    return base


def check_weights(directory: Path | str, adapted: Adapted) -> None:
    """Every weight is that of peft's merged model in float64, rounded to float32."""
    merged = adapted.merged().state_dict()
    truth = merged | {name.partition(".")[2]: tensor for name, tensor in merged.items() if "lm_head" not in name}
    with open_checkpoint(str(directory), weights="fp32", adapter=str(adapted.directory)) as checkpoint:
        places = family_named(checkpoint.config.family).sources(checkpoint.config)
        values = trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
        checkpoint.check(values)
        for value in values:
            place = places[value.name]
            expected = truth[place.name].numpy()
            expected = expected.T if place.transpose else expected
            expected = expected if place.rows is None else expected[place.rows]
            np.testing.assert_array_equal(checkpoint.load(value).values, expected.astype(np.float32), value.name)


def check_logits(directory: Path | str, adapted: Adapted, expected: np.ndarray, **options: Any) -> None:
    for device in ("reference", "cpu"):
        with open_llm(directory, device, weights="fp32", adapter=str(adapted.directory), **options) as llm:
            assert difference(llm.logits(TEXT), expected) < TOLERANCE


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"target_modules": BLOOM_MODULES, "lora_alpha": 16}),
    "bloom-fused": ("bloom", {"target_modules": ["query_key_value"], "r": 3, "lora_alpha": 7}),
    "bloom-regex": ("bloom", {"target_modules": r".*\.h\.1\.mlp\.dense_.*", "use_rslora": True}),
    "bloom-biases": ("bloom", {"target_modules": ["query_key_value"], "bias": "all"}),
    "bloom-own-biases": (
        "bloom",
        {"target_modules": ["query_key_value", "dense"], "bias": "lora_only", "lora_bias": True, "lora_alpha": 3},
    ),
    "bloom-dora": ("bloom", {"target_modules": BLOOM_MODULES, "use_dora": True, "lora_alpha": 5}),
    "bloom-saved": ("bloom", {"target_modules": ["dense"], "modules_to_save": ["query_key_value", "ln_f"]}),
    "llama": ("llama", {"target_modules": LLAMA_MODULES, "lora_alpha": 32, "lora_dropout": 0.1}),
    "llama-patterns": (
        "llama",
        {
            "target_modules": LLAMA_MODULES,
            "rank_pattern": {"k_proj": 2, r"layers\.1\.self_attn\.q_proj": 7, "^model.layers.0.mlp.up_proj": 5},
            "alpha_pattern": {"model.layers.1.self_attn.v_proj": 9, r".*\.0\.mlp\..*_proj": 1.5},
            "lora_alpha": 3,
        },
    ),
    "llama-rslora": ("llama", {"target_modules": LLAMA_MODULES, "use_rslora": True, "rank_pattern": {"o_proj": 9}}),
    "llama-dora": ("llama", {"target_modules": LLAMA_MODULES, "use_dora": True}),
    "llama-ends": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "llama-saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "llama-some-layers": ("llama", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "llama-gaussian": ("llama", {"target_modules": ["v_proj"], "init_lora_weights": "gaussian"}),
    "llama-lora-bias": ("llama-biased", {"target_modules": LLAMA_MODULES, "lora_bias": True, "bias": "lora_only"}),
    "llama-tied": ("llama-tied", {"target_modules": LLAMA_MODULES}),
    "qwen2": ("qwen2", {"target_modules": "all-linear", "bias": "all"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2-dora": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "gpt2-saved": ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "modules_to_save": ["c_attn"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_what_peft_merges(bases, tmp_path, case):
    name, lora = CASES[case]
    model, directory = bases(name)
    adapted = adapt(model, tmp_path, **lora)
    check_weights(directory, adapted)
    expected = true_logits(adapted.merged(), TEXT)
    assert np.abs(expected - true_logits(model, TEXT)).max() > 0.05, "an adapter that changes nothing proves nothing"
    check_logits(directory, adapted, expected)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_a_head_that_is_the_embedding_becomes_its_own(bases, tmp_path, lora):
    """As in peft before it merges: where it merges into the one matrix that both are, another model comes out."""
    model, directory = bases("llama-tied")
    adapted = adapt(model, tmp_path, **lora)
    with pytest.warns(UserWarning, match="which are one matrix"):
        check_logits(directory, adapted, adapted.logits(TEXT))


def test_tied_ends_of_bloom(bases, tmp_path):
    model, directory = bases("bloom")
    adapted = adapt(model, tmp_path, target_modules=["word_embeddings"], lora_alpha=16)
    with pytest.warns(UserWarning, match="which are one matrix"):
        check_logits(directory, adapted, adapted.logits(TEXT))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_factors_of_sixteen_bits_are_widened_first(bases, tmp_path, dtype):
    """(peft rounds their product to the sixteen bits again where they are not widened.)"""
    model, directory = bases("llama")
    check_weights(directory, adapt(model, tmp_path, dtype, target_modules=LLAMA_MODULES))


def test_weights_of_bf16_are_widened_and_rounded_once(tmp_path):
    model = random_model(CONFIGS["bloom"])
    save(model, tmp_path / "base", "bf16")
    adapted = adapt(model, tmp_path / "adapter", "bf16", target_modules=BLOOM_MODULES)
    check_weights(tmp_path / "base", adapted)
    merged = adapted.merged().state_dict()["transformer.h.1.mlp.dense_4h_to_h.weight"].float().numpy()
    with open_checkpoint(str(tmp_path / "base"), adapter=str(tmp_path / "adapter")) as checkpoint:
        values = trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
        (value,) = (value for value in values if value.name == "layers.1.mlp.down.weight")
        assert value.dtype == "bf16"
        np.testing.assert_array_equal(checkpoint.load(value).values, merged.astype(weight_kind("bf16").dtype))


def test_files_of_pytorch(bases, tmp_path):
    model, directory = bases("llama")
    adapted = adapt(model, tmp_path, "bf16", target_modules=LLAMA_MODULES)
    torch.save(load_file(tmp_path / TENSORS), tmp_path / "adapter_model.bin")
    (tmp_path / TENSORS).unlink()
    check_weights(directory, adapted)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_models_as_gguf(tmp_path, name):
    """Whose rows stand in another order."""
    model = random_model(CONFIGS[name])
    path = write_gguf(model, tmp_path / "model.gguf", "F32")
    ends = (
        ["word_embeddings", "query_key_value"] if name == "bloom" else ["q_proj", "k_proj", "embed_tokens", "lm_head"]
    )
    adapted = adapt(model, tmp_path / "adapter", target_modules=ends, use_rslora=True)
    check_logits(path, adapted, adapted.logits(TEXT))


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int8-g32", "int4", "int4m", "fp8"])
@pytest.mark.parametrize("name", ["bloom-384", "llama-288"])
def test_a_share_is_that_part_of_the_whole(tmp_path, name, weights):
    config = (
        BloomConfig(hidden_size=384, n_head=12, n_layer=1, vocab_size=VOCABULARY)
        if name == "bloom-384"
        else LlamaConfig(**{**LLAMA, "hidden_size": 288, "intermediate_size": 576, "num_attention_heads": 9,
                            "num_key_value_heads": 3, "num_hidden_layers": 1})
    )  # fmt: skip
    model = random_model(config)
    save(model, tmp_path / "base")
    modules = BLOOM_MODULES if name == "bloom-384" else LLAMA_MODULES
    adapt(model, tmp_path / "adapter", target_modules=modules, r=5, use_dora=True)
    with open_checkpoint(str(tmp_path / "base"), weights=weights, adapter=str(tmp_path / "adapter")) as checkpoint:
        program = trace(checkpoint.config, "argmax", checkpoint.kind_of)
        whole = {value.name: checkpoint.load(value) for value in program.of_kind("weight")}
        cut = 0
        for tp in (2, 3):
            for rank in range(tp):
                for value in partition(program, rank, tp).of_kind("weight"):
                    share, expected = checkpoint.load(value), whole[value.name]
                    if value.start:
                        cut += value.static_shape != expected.shape
                        expected = expected.rows(slice(value.start[0], value.start[0] + value.static_shape[0]))
                        if len(value.start) == 2:
                            expected = expected.columns(value.start[1], value.start[1] + value.static_shape[1])
                    for part in ("values", "scales", "minimums"):
                        a, b = getattr(share, part), getattr(expected, part)
                        assert (a is None) == (b is None)
                        assert a is None or np.array_equal(a.view(np.uint8), np.ascontiguousarray(b).view(np.uint8))
        assert cut > 10


@pytest.mark.slow
def test_several_ranks(bases, tmp_path):
    model, directory = bases("llama")
    adapted = adapt(model, tmp_path, target_modules=LLAMA_MODULES)
    with open_llm(directory, "cpu", weights="fp32", adapter=str(tmp_path), tp=2) as llm:
        assert difference(llm.logits(TEXT), true_logits(adapted.merged(), TEXT)) < TOLERANCE


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_packed_directory_holds_the_merged_weights(bases, tmp_path, weights):
    model, directory = bases("llama-tied")
    adapted = adapt(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with open_checkpoint(str(directory), weights=weights, adapter=str(tmp_path / "adapter")) as checkpoint:
        write_packed(checkpoint, tmp_path / "packed", weights)
    with (
        open_llm(directory, weights=weights, adapter=str(adapted.directory)) as merged,
        open_llm(tmp_path / "packed") as packed,
    ):
        assert packed.description == merged.description == f"{directory.name} + adapter adapter"
        np.testing.assert_array_equal(packed.logits(TEXT), merged.logits(TEXT))


def test_a_packed_directory_takes_an_adapter(bases, tmp_path):
    model, directory = bases("bloom")
    with open_checkpoint(str(directory), weights="fp32") as checkpoint:
        write_packed(checkpoint, tmp_path / "packed", "fp32")
    adapted = adapt(model, tmp_path / "adapter", target_modules=BLOOM_MODULES)
    check_logits(tmp_path / "packed", adapted, true_logits(adapted.merged(), TEXT))


def test_a_quantised_model_is_quantised_anew_and_says_so(tmp_path):
    config = LlamaConfig(**{**LLAMA, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96})
    model = random_model(config)
    save(model, tmp_path / "base")
    with open_checkpoint(str(tmp_path / "base"), weights="int8-g32") as checkpoint:
        write_packed(checkpoint, tmp_path / "packed", "int8-g32")
    adapt(model, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=16)
    with pytest.warns(
        UserWarning, match="holds weights as int8-g32: those that the adapter changes are quantised once"
    ):
        native = open_checkpoint(str(tmp_path / "packed"), adapter=str(tmp_path / "adapter"))
    exact = open_checkpoint(str(tmp_path / "packed"), weights="fp32", adapter=str(tmp_path / "adapter"))
    plain = open_checkpoint(str(tmp_path / "packed"))
    for name in ("layers.0.attention.q.weight", "layers.0.attention.k.weight"):
        found, true, old = (
            checkpoint.load(next(v for v in trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight")
                                 if v.name == name))
            for checkpoint in (native, exact, plain)
        )  # fmt: skip
        assert found.kind.name == "int8-g32"
        step = np.repeat(found.scales.astype(np.float32), 32, axis=1)
        assert (np.abs(found.dequantize() - true.values) <= 0.51 * step).all()
        assert np.array_equal(found.values, old.values) == name.endswith("k.weight")


def test_an_odd_adapter_is_told_apart(bases, tmp_path):
    model, directory = bases("llama")
    adapted = adapt(model, tmp_path, target_modules=["q_proj"])
    with open_llm(directory) as plain, open_llm(directory, adapter=str(tmp_path)) as llm:
        assert llm.source == f"{plain.source} + adapter {tmp_path.name}"
        before = llm.fingerprint
        assert before != plain.fingerprint
        edit_adapter(adapted.directory, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
        changed = llm.fingerprint
        assert changed not in (before, plain.fingerprint)
        raw = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**raw, "lora_alpha": 77}))
        assert llm.fingerprint not in (before, changed, plain.fingerprint)
