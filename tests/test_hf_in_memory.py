"""A transformers model in memory as a checkpoint: the same logits, nothing shared with it, clear refusals."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
)

from anthesis.errors import CheckpointError, ConfigError, UnsupportedError
from anthesis.hf import AnthesisForCausalLM, accelerate
from hf_models import CONFIGS, TIE, VOCABULARY, padded, tiny
from parity.truth import random_model

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 64}
PROMPT = padded([9])["input_ids"]
IDS = PROMPT[0].tolist()


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT).logits[0].float()


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["bloom"],
        CONFIGS["llama"],
        LlamaConfig(**LLAMA, tie_word_embeddings=True),
        Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True),
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5, eos_token_id=2
        ),
    ],
    ids=lambda config: f"{config.model_type}-{'tied' if config.tie_word_embeddings else 'untied'}",
)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_model_in_memory_has_the_logits_of_transformers(config, device):
    make = random_model if config.model_type != "gpt2" else AutoModelForCausalLM.from_config
    theirs = make(config).float().eval()
    expected = logits_of(theirs)
    with accelerate(theirs, device=device) as ours:
        assert (ours.llm.source, ours.llm.path, ours.llm.is_random) == ("memory", None, False)
        torch.testing.assert_close(torch.from_numpy(ours.llm.logits(IDS)), expected, atol=TIE, rtol=1e-4)
        # trained on, or gone: nothing here is still theirs
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.zero_()
        weight = weakref.ref(next(theirs.parameters()))
        del theirs, parameter
        gc.collect()
        assert weight() is None, "the model is still held"
        torch.testing.assert_close(torch.from_numpy(ours.llm.logits(IDS)), expected, atol=TIE, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_weights_keep_their_dtype_unless_another_is_asked_for(dtype, kind):
    theirs = tiny("llama").to(dtype)
    with accelerate(theirs, device="reference") as ours:
        assert ours.llm.loaded.weight_kinds == (kind,)
        assert ours.dtype == dtype
        close = ours.llm.logits(IDS)
    with accelerate(theirs, device="reference", weights="int8") as ours:
        assert ours.llm.loaded.weight_kinds == ("int8",)
        assert ours.dtype == torch.float32
        assert 0 < np.abs(ours.llm.logits(IDS) - close).max() < 1
    exact = logits_of(theirs.float())
    assert (torch.from_numpy(close) - exact).abs().max() < 0.1


def test_a_head_that_was_tied_and_is_no_longer():
    theirs = random_model(LlamaConfig(**LLAMA, tie_word_embeddings=True)).float()
    theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().flip(0).clone())
    with accelerate(theirs, device="reference") as ours:
        torch.testing.assert_close(torch.from_numpy(ours.llm.logits(IDS)), logits_of(theirs), atol=TIE, rtol=1e-4)


def test_ends_are_those_of_the_generation_configuration():
    theirs = tiny("llama")
    theirs.generation_config.eos_token_id = [7, 9]
    with accelerate(theirs, device="reference") as ours:
        assert ours.llm.config.eos_token_ids == (7, 9)
        assert ours.generation_config.eos_token_id == [7, 9]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), UnsupportedError, "takes a transformers model .* and this is a Linear"),
        (lambda: tiny("llama").model, UnsupportedError, "this is a LlamaModel; of this family LlamaForCausalLM is one"),
        (
            lambda: AutoModelForSequenceClassification.from_config(LlamaConfig(**LLAMA, pad_token_id=0)),
            UnsupportedError,
            "this is a LlamaForSequenceClassification",
        ),
        (
            lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2)),
            ConfigError,
            "unknown architecture model_type = 'mixtral'",
        ),
        (lambda: tiny("llama").double(), CheckpointError, "is stored as float64, which is not read"),
        (lambda: tiny("llama").to("meta"), UnsupportedError, "is not all in memory: lm_head.weight"),
    ],
    ids=["module", "body", "classifier", "family", "float64", "meta"],
)
def test_what_can_not_be_accelerated_is_named(make, error, message):
    with pytest.raises(error, match=message):
        accelerate(make(), device="reference")


def test_a_quantised_model_is_named():
    theirs = tiny("llama")
    theirs.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UnsupportedError, match="the weights are quantised by awq"):
        accelerate(theirs, device="reference")


def test_a_model_with_weights_that_are_not_numbers_is_refused():
    theirs = tiny("llama")
    with torch.no_grad():
        theirs.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM in memory: lm_head.weight .* holds NaN"):
        accelerate(theirs, device="reference")


def test_several_ranks_can_not_read_this_process():
    for split in ({"tp": 2}, {"pp": 2}):
        with pytest.raises(UnsupportedError, match=r"in the memory of this process, where 2 ranks can't read it; save"):
            accelerate(tiny("llama"), device="cpu", **split)


def test_there_are_no_files_to_take_a_fingerprint_of():
    with (
        accelerate(tiny("llama"), device="reference") as ours,
        pytest.raises(UnsupportedError, match="has no files to take a fingerprint of"),
    ):
        _ = ours.llm.fingerprint


def test_a_directory_is_opened_as_transformers_opens_it(tmp_path):
    theirs = tiny("bloom")
    theirs.generation_config.update(eos_token_id=[5, 6], max_new_tokens=7)
    theirs.save_pretrained(tmp_path)
    with AnthesisForCausalLM.from_pretrained(tmp_path, device="cpu", threads=1, cache="fp32") as ours:
        assert type(ours).__name__ == "BloomForCausalLM"
        assert ours.config.model_type == "bloom"
        assert ours.config.hidden_size == 32
        assert ours.generation_config.max_new_tokens == 7
        assert ours.name_or_path == str(tmp_path)
        asked = padded([4, 2])
        assert torch.equal(theirs.generate(**asked), ours.generate(**asked))


@pytest.mark.parametrize("name", ["random:bloom-560m", "random:smollm2-135m", "random:gpt2"])
def test_random_weights_have_a_configuration_as_well(name):
    with AnthesisForCausalLM.from_pretrained(name, device="cpu", load=False) as ours:
        assert ours.config.vocab_size == ours.llm.config.vocab_size
        assert ours.config.num_hidden_layers == ours.llm.config.num_layers
