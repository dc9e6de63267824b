"""Tiny float32 models that transformers and anthesis.hf both run, and how their answers are compared."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from transformers import BloomConfig, LlamaConfig, PreTrainedModel

from anthesis.hf import AnthesisForCausalLM
from parity.truth import random_model

VOCABULARY = 48
PAD = 3
TIE = 1e-4
"""Scores in float32 that differ by less may fall either way."""

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "eos_token_id": 2, "pad_token_id": PAD}
CONFIGS = {
    "bloom": BloomConfig(n_layer=2, n_head=4, **SIZES),
    "llama": LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        **SIZES,
    ),
}


def tiny(family: str) -> PreTrainedModel:
    """A transformers model with weights that matter."""
    return random_model(copy.deepcopy(CONFIGS[family])).float()


def padded(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (B, T) of random prompts, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(PAD + 1, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask.long()}


def both(theirs: PreTrainedModel, ours: AnthesisForCausalLM, **arguments: Any) -> tuple[Any, Any]:
    """What each generates, drawing from torch's generator in the same state."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (theirs, ours):
            torch.manual_seed(0)
            found.append(model.generate(**arguments))
    return found[0], found[1]


def same(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two tensors of ids are equal in all respects."""
    return expected.dtype == found.dtype and torch.equal(expected, found)
