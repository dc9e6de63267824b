"""GPT-2, the family that was added as one file, against transformers in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anthesis import LLM
from anthesis.errors import ConfigError
from anthesis.models.gpt2 import read_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def saved(path: Path, **changes: Any) -> Any:
    """A random GPT-2 of awkward shape, saved; in float64 afterwards."""
    torch.manual_seed(1)
    sizes = {"n_embd": 60, "n_layer": 3, "n_head": 5, "n_positions": 160, "vocab_size": 301}
    config = transformers.GPT2Config(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, **changes})
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.eval().save_pretrained(path)
    return model.double()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 100},
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"tie_word_embeddings": False},
    ],
    ids=["plain", "inner", "relu", "gelu", "untied"],
)
def test_logits_and_greedy_tokens(tmp_path: Path, changes: dict[str, Any]) -> None:
    truth = saved(tmp_path, **changes)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 300, size).tolist() for size in (1, 7, 64, 70)]
    with LLM(str(tmp_path), device="reference", cache="fp32") as llm:
        for prompt in prompts:
            with torch.no_grad():
                expected = truth(torch.tensor([prompt])).logits[0].numpy()
            assert np.abs(llm.logits(prompt) - expected).max() < 5e-4
        compared = 0
        for prompt, completion in zip(prompts, llm.generate(prompts, max_new_tokens=64, ignore_eos=True), strict=True):
            with torch.no_grad():
                logits = truth(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
            best = logits.topk(2)
            clear = (best.values[:, 0] - best.values[:, 1]) > 1e-3
            assert torch.equal(best.indices[clear, 0], torch.tensor(completion.token_ids)[clear])
            compared += int(clear.sum())
        assert compared > 0.9 * 64 * len(prompts)


def test_variants_that_are_not_computed_are_refused_by_name() -> None:
    raw = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9}
    for key, value in (("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False)):
        with pytest.raises(ConfigError, match=key):
            read_config({**raw, key: value})
    with pytest.raises(ConfigError, match="quick_gelu"):
        read_config({**raw, "activation_function": "quick_gelu"})
