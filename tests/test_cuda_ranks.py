"""The CUDA device's code on several ranks, each a thread with tensors of the host: the partitioned program's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BloomConfig, LlamaConfig

from anthesis import LLM, devices
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.cuda import CudaDevice
from parity.truth import VOCABULARY, prompts, random_model, save
from rank_threads import spread

CONFIGS = {
    # 12 heads over 2, 3 and 5 ranks: whole shares, and uneven ones; ALiBi slopes are those of the rank's own heads
    "bloom": BloomConfig(hidden_size=96, n_head=12, n_layer=2, vocab_size=VOCABULARY),
    # 3 key-value heads over 2 ranks: both hold the one in the middle
    "llama": LlamaConfig(
        hidden_size=96, intermediate_size=224, num_attention_heads=6, num_key_value_heads=3, head_dim=16,
        num_hidden_layers=2, vocab_size=VOCABULARY, attention_bias=True, mlp_bias=True,
    ),
}  # fmt: skip


DRAWN: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(random_model(config), root / name) for name, config in CONFIGS.items()}


@pytest.fixture(params=[False, True], ids=["", "invariant"])
def cuda_on_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name "cuda" opens the device's code over the host's tensors."""

    def opened(threads: Any, seat: Any, invariant: bool) -> CudaDevice:
        return CudaDevice(torch.device("cpu"), Operations(), seat, request.param)

    monkeypatch.setitem(devices.OPENERS, "cuda", opened)


@pytest.mark.parametrize(("name", "tp"), [("bloom", 2), ("bloom", 3), ("bloom", 5), ("llama", 2), ("llama", 3)])
def test_ranks_give_the_tokens_of_one(cuda_on_host: None, models: dict[str, Path], name: str, tp: int) -> None:
    """Greedy, drawn and with log-probabilities; all ranks the same."""
    texts = prompts((5, 70, 33))
    with LLM(str(models[name]), device="reference-fp64") as llm:
        true = [llm.logits(text) for text in texts]
        drawn = [one.token_ids for one in llm.generate(texts, max_new_tokens=8, ignore_eos=True, **DRAWN)]
        greedy = [one.token_ids for one in llm.generate(texts, max_new_tokens=8, ignore_eos=True)]

    def work(rank: Any) -> tuple[Any, ...]:
        logits = [rank.logits(text) for text in texts]
        return (
            logits,
            [one.completion for one in rank.generate(texts, max_new_tokens=8)],
            [one.completion for one in rank.generate(texts, max_new_tokens=8, **DRAWN)],
        )

    found = spread(models[name], tp, work, device="cuda", weights="fp32")
    for logits, own_greedy, own_drawn in found:
        for one, other, exact in zip(logits, found[0][0], true, strict=True):
            assert one.tobytes() == other.tobytes()
            assert np.abs(one - exact).max() < 5e-4
        assert own_greedy == greedy
        assert own_drawn == drawn
