"""BLOOM and BLOOMZ: layer norm, ALiBi, a fused query-key-value matrix, GELU, tied head.

Source: Scao et al., arXiv:2211.05100; Muennighoff et al., arXiv:2211.01786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anthesis.config import ConfigReader, ModelConfig
from anthesis.errors import ConfigError
from anthesis.models.family import Family, GgufFamily, Source, Sources
from anthesis.models.metadata import GgufReader
from anthesis.program.builder import Builder

TOKENS = 250_680
"""Tokens of BLOOM's tokenizer; its embedding of 250,880 rows is padded with rows that mean nothing."""

PADDED_ROWS = 250_880


@dataclass(frozen=True, kw_only=True)
class BloomConfig(ModelConfig):
    """A BLOOM model.

    Attributes:
        norm_epsilon: of every layer norm.
        residual_after_norm: the residual is taken from after the layer norm instead of before it.
        tied_head: the output head is the embedding.
    """

    norm_epsilon: float
    residual_after_norm: bool
    tied_head: bool


def read_config(raw: Mapping[str, Any]) -> BloomConfig:
    """Reads config.json in any of the spellings that BLOOM checkpoints use.

    Raises:
        ConfigError: a missing size, a contradiction, or heads that do not divide the hidden size.
    """
    read = ConfigReader(raw)
    return _config(
        hidden_size=read.size("hidden_size", "hidden_size", "n_embed"),
        num_layers=read.size("num_layers", "n_layer", "num_hidden_layers"),
        num_heads=read.size("num_heads", "n_head", "num_attention_heads"),
        vocab_size=read.size("vocab_size", "vocab_size", default=PADDED_ROWS),
        norm_epsilon=read.number("layer_norm_epsilon", default=1e-5, at_least=0),
        residual_after_norm=read.boolean("apply_residual_connection_post_layernorm", default=False),
        tied_head=read.boolean("tie_word_embeddings", default=True),
        eos_token_ids=read.token_ids("eos_token_id") or (2,),
        bos_token_id=read.integer("bos_token_id", default=1),
    )


def _config(*, hidden_size: int, num_heads: int, vocab_size: int, **rest: Any) -> BloomConfig:
    if hidden_size % num_heads:
        raise ConfigError(f"{num_heads} heads do not divide the hidden size {hidden_size}")
    return BloomConfig(
        family="bloom",
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        ffn_size=4 * hidden_size,
        vocab_size=vocab_size,
        usable_vocab_size=TOKENS if vocab_size == PADDED_ROWS else vocab_size,
        max_context=None,
        **rest,
    )


def trace(config: BloomConfig, b: Builder) -> None:
    """Records one token step."""

    def norm(x: str, name: str) -> str:
        return b.norm(x, name, config.norm_epsilon, "layer", bias=True)

    x = norm(b.embed("embed", config.vocab_size), "embed_norm")
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        a = norm(x, f"{layer}.attention_norm")
        q = b.linear(a, f"{layer}.attention.q", "heads", bias=True)
        k = b.linear(a, f"{layer}.attention.k", "kv_heads", bias=True)
        v = b.linear(a, f"{layer}.attention.v", "kv_heads", bias=True)
        attended = b.linear(b.attend(q, k, v, i, alibi=True), f"{layer}.attention.out", "hidden", bias=True)
        x = b.add(a if config.residual_after_norm else x, attended, f"{layer}.attention.sum")

        m = norm(x, f"{layer}.mlp_norm")
        up = b.linear(m, f"{layer}.mlp.up", "ffn", bias=True)
        down = b.linear(b.activation(up, "gelu_tanh"), f"{layer}.mlp.down", "hidden", bias=True)
        x = b.add(m if config.residual_after_norm else x, down, f"{layer}.mlp.sum")
    b.logits(norm(b.select_rows(x), "final_norm"), tied=config.tied_head)


def _with_bias(weight: str, name: str, rows: NDArray[np.int64] | None = None) -> Sources:
    return {f"{weight}.{part}": Source(f"{name}.{part}", rows) for part in ("weight", "bias")}


def sources(config: BloomConfig) -> Sources:
    """Where the weights stand; the rows of the fused matrix are [heads, 3, head_dim]."""
    fused = np.arange(3 * config.hidden_size).reshape(config.num_heads, 3, config.head_dim)
    rows = [fused[:, j].reshape(-1) for j in range(3)]
    found = {"embed.weight": Source("word_embeddings.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("lm_head.weight")
    found |= _with_bias("embed_norm", "word_embeddings_layernorm") | _with_bias("final_norm", "ln_f")
    for i in range(config.num_layers):
        layer, stored = f"layers.{i}", f"h.{i}"
        for j, part in enumerate("qkv"):
            found |= _with_bias(f"{layer}.attention.{part}", f"{stored}.self_attention.query_key_value", rows[j])
        found |= _with_bias(f"{layer}.attention_norm", f"{stored}.input_layernorm")
        found |= _with_bias(f"{layer}.attention.out", f"{stored}.self_attention.dense")
        found |= _with_bias(f"{layer}.mlp_norm", f"{stored}.post_attention_layernorm")
        found |= _with_bias(f"{layer}.mlp.up", f"{stored}.mlp.dense_h_to_4h")
        found |= _with_bias(f"{layer}.mlp.down", f"{stored}.mlp.dense_4h_to_h")
    return found


def _read_gguf_config(metadata: Mapping[str, Any], tensors: frozenset[str]) -> BloomConfig:
    read = GgufReader(metadata, "bloom")
    return _config(
        hidden_size=read.size("hidden_size", "embedding_length"),
        num_layers=read.size("num_layers", "block_count"),
        num_heads=read.size("num_heads", "attention.head_count"),
        vocab_size=read.vocab_size(),
        norm_epsilon=read.number("attention.layer_norm_epsilon", at_least=0),
        residual_after_norm=False,
        tied_head="output.weight" not in tensors,
        eos_token_ids=read.eos_token_ids() or (2,),
        bos_token_id=read.bos_token_id(),
    )


def _gguf_sources(config: BloomConfig) -> Sources:
    """As `sources`, for GGUF, whose fused rows are [3, heads, head_dim]."""
    found = {"embed.weight": Source("token_embd.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("output.weight")
    found |= _with_bias("embed_norm", "token_embd_norm") | _with_bias("final_norm", "output_norm")
    fused = np.arange(3 * config.hidden_size).reshape(3, -1)
    for i in range(config.num_layers):
        layer, stored = f"layers.{i}", f"blk.{i}"
        for part, rows in zip("qkv", fused, strict=True):
            found |= _with_bias(f"{layer}.attention.{part}", f"{stored}.attn_qkv", rows)
        found |= _with_bias(f"{layer}.attention_norm", f"{stored}.attn_norm")
        found |= _with_bias(f"{layer}.attention.out", f"{stored}.attn_output")
        found |= _with_bias(f"{layer}.mlp_norm", f"{stored}.ffn_norm")
        found |= _with_bias(f"{layer}.mlp.up", f"{stored}.ffn_up")
        found |= _with_bias(f"{layer}.mlp.down", f"{stored}.ffn_down")
    return found


def _preset(hidden_size: int, layers: int, heads: int) -> Mapping[str, Any]:
    sizes = {"hidden_size": hidden_size, "n_layer": layers, "n_head": heads, "vocab_size": PADDED_ROWS}
    return {"model_type": "bloom", **sizes}


_SIZES = {
    "-560m": _preset(1024, 24, 16),
    "-1b1": _preset(1536, 24, 16),
    "-1b7": _preset(2048, 24, 16),
    "-3b": _preset(2560, 30, 32),
    "-7b1": _preset(4096, 30, 32),
    "": _preset(14336, 70, 112),
    "-176b": _preset(14336, 70, 112),
}

FAMILY = Family(
    name="bloom",
    model_types=("bloom",),
    config_type=BloomConfig,
    read_config=read_config,
    trace=trace,
    sources=sources,
    prefixes=("transformer.",),
    ignored=(r"lm_head\.weight", r"h\.\d+\.self_attention\.scale_mask_softmax\.causal_mask"),
    presets={f"{name}{size}": raw for name in ("bloom", "bloomz") for size, raw in _SIZES.items()},
    gguf=GgufFamily(architectures=("bloom",), read_config=_read_gguf_config, sources=_gguf_sources),
)
