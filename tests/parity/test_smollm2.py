"""The default model, SmolLM2-135M-Instruct out of its GGUF file, against transformers' reading of the same file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from anthesis import LLM
from anthesis.checkpoint.default import default_model
from parity.truth import MARGIN, true_logits

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 日本語のテキストです。",
    """Once upon a time there was a lighthouse keeper who counted ships. On Monday there were 3, on Tuesday there were
17, on Wednesday there were 20, and every one of them carried a cargo that nobody on the island had ever seen before,
except for the old woman who lived by the harbour.""",
]
TOKENS = 100


@pytest.fixture(scope="module", params=["reference", "cpu"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """On the CPU device with weights of float32, which are those of the file and take their inputs as they are."""
    weights = {"reference": "native", "cpu": "fp32"}[request.param]
    with LLM(None, device=request.param, weights=weights, cache="fp32") as llm:
        yield llm


@pytest.fixture(scope="module")
def truth() -> PreTrainedModel:
    """Transformers' reader of GGUF, without `from_pretrained`, which needs another package for it."""
    path = default_model()
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):  # random numbers for 135 million weights would take longer than everything else
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_logits(llm, truth, prompt):
    ids = llm.encode(prompt)
    found, true = llm.logits(ids), true_logits(truth, ids)
    assert len(ids) > 4
    assert np.abs(found - true).max() < 1e-3


def check_completion(llm: LLM, truth: PreTrainedModel, prompt: str) -> None:
    (completion,) = llm.generate(prompt, max_new_tokens=TOKENS, ignore_eos=True)
    ids = completion.prompt_token_ids + completion.token_ids
    true = true_logits(truth, ids)[len(completion.prompt_token_ids) - 1 : -1]
    assert len(completion.token_ids) == len(true) == TOKENS
    second, best = np.sort(true, axis=1)[:, -2:].T
    margins = best - second
    print(f"the truth's best token leads by at least {margins.min():.2e}")
    assert (margins > MARGIN).mean() > 0.95
    wrong = np.flatnonzero((true.argmax(axis=1) != completion.token_ids) & (margins > MARGIN))
    assert not wrong.size, f"other tokens than the truth's at {wrong.tolist()}"


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_completion(llm, truth, prompt):
    if llm.device_info.name == "reference" and prompt != PROMPTS[0]:
        pytest.skip("the others take ten seconds each there, and their logits are compared all the same")
    check_completion(llm, truth, prompt)
