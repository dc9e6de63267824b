"""Small models for tests of the program: configurations, random weights, and step inputs, without any checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anthesis.config import ModelConfig
from anthesis.models import family_of_config
from anthesis.program.ir import BLOCK_TOKENS, Program

Array = NDArray[Any]

BLOOM = {"model_type": "bloom", "hidden_size": 84, "n_layer": 2, "n_head": 7, "vocab_size": 101}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 103,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 97,
}
GPT2 = {"model_type": "gpt2", "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 256, "vocab_size": 89}
ALL = {"bloom": BLOOM, "llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}


def config_of(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a config.json dictionary."""
    return family_of_config(raw).read_config(raw)


def random_weights(program: Program, dtype: type = np.float64, seed: int = 0) -> dict[str, Array]:
    """Whole weights by name, lively enough that no two tokens tie."""
    rng = np.random.default_rng(seed)
    return {w.name: rng.normal(0, 0.4, w.full_shape).astype(dtype) for w in program.of_kind("weight")}


def shares(program: Program, weights: Mapping[str, Array]) -> dict[str, Array]:
    """This rank's part of each weight."""
    return {
        w.name: weights[w.name][tuple(slice(a, a + n) for a, n in zip(w.start, w.static_shape, strict=True))]
        for w in program.of_kind("weight")
    }


def caches(program: Program, blocks: int, dtype: type = np.float64) -> dict[str, Array]:
    """An empty pool for each layer."""
    return {c.name: np.zeros((blocks, *map(int, c.shape[1:])), dtype) for c in program.of_kind("cache")}


def step_inputs(rows: list[tuple[int, int, list[int]]], blocks_each: int = 4) -> dict[str, Array]:
    """Inputs for runs of rows (slot, first position, tokens); logits are wanted for every row."""
    counts = [len(tokens) for _, _, tokens in rows]
    slots = max(slot for slot, _, _ in rows) + 1
    starts = np.cumsum([0, *counts[:-1]])
    return {
        "tokens": np.concatenate([tokens for _, _, tokens in rows]).astype(np.int32),
        "positions": np.concatenate([np.arange(p, p + len(t)) for _, p, t in rows]).astype(np.int32),
        "slots": np.repeat([slot for slot, _, _ in rows], counts).astype(np.int32),
        "segments": np.array(
            [(a, n, p) for a, n, (_, p, _) in zip(starts, counts, rows, strict=True)] + [(0, 0, 0)], np.int32
        ),
        "block_table": (1 + np.arange(slots * blocks_each, dtype=np.int32)).reshape(slots, blocks_each),
        "logit_rows": np.arange(sum(counts), dtype=np.int32),
    }


def blocks_of(inputs: Mapping[str, Array]) -> int:
    """Blocks that the inputs' table refers to, the scratch block included."""
    return int(inputs["block_table"].max()) + 1


assert BLOCK_TOKENS == 64
