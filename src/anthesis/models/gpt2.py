"""GPT-2: layer norm, learned positions, a fused query-key-value matrix stored [in, out], GELU, tied head.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
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
from anthesis.program.ops import Activation

_ACTIVATIONS: dict[str, Activation] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_ACTIVATIONS |= {"relu": "relu", "silu": "silu"}


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(ModelConfig):
    """A GPT-2 model.

    Attributes:
        num_positions: rows of the position table, the longest context.
        norm_epsilon: of every layer norm.
        activation: of the MLP.
        tied_head: the output head is the embedding.
    """

    num_positions: int
    norm_epsilon: float
    activation: Activation
    tied_head: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_positions != self.max_context:
            raise ConfigError(f"a context of {self.max_context} needs as many positions, not {self.num_positions}")


def read_config(raw: Mapping[str, Any]) -> Gpt2Config:
    """Reads config.json.

    Raises:
        ConfigError: a missing size, a contradiction, or a variant that is not computed here; it is named.
    """
    read = ConfigReader(raw)
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if read.boolean(name, default=usual) is not usual:
            raise ConfigError(f"config.json has {name} = {not usual}, which is not computed here")
    activation = read.string("activation_function", default="gelu_new")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ConfigError(f"activation_function {activation!r:.60} is not computed here; known are: {known}")
    hidden_size = read.size("hidden_size", "n_embd", "hidden_size")
    return _config(
        hidden_size=hidden_size,
        num_layers=read.size("num_layers", "n_layer", "num_hidden_layers"),
        num_heads=read.size("num_heads", "n_head", "num_attention_heads"),
        ffn_size=read.size("ffn_size", "n_inner", default=4 * hidden_size),
        vocab_size=read.size("vocab_size", "vocab_size"),
        num_positions=read.size("max_context", "n_positions", "max_position_embeddings", default=1024),
        norm_epsilon=read.number("layer_norm_epsilon", default=1e-5, at_least=0),
        activation=_ACTIVATIONS[activation],
        tied_head=read.boolean("tie_word_embeddings", default=True),
        eos_token_ids=read.token_ids("eos_token_id"),
        bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
    )


def _config(*, hidden_size: int, num_heads: int, vocab_size: int, num_positions: int, **rest: Any) -> Gpt2Config:
    if hidden_size % num_heads:
        raise ConfigError(f"{num_heads} heads do not divide the hidden size {hidden_size}")
    return Gpt2Config(
        family="gpt2",
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=vocab_size,
        usable_vocab_size=vocab_size,
        max_context=num_positions,
        num_positions=num_positions,
        **rest,
    )


def trace(config: Gpt2Config, b: Builder) -> None:
    """Records one token step."""

    def norm(x: str, name: str) -> str:
        return b.norm(x, name, config.norm_epsilon, "layer", bias=True)

    positions = b.embed("position_embed", config.num_positions, ids=b.positions, axis=None)
    x = b.add(b.embed("embed", config.vocab_size), positions, "embedded")
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        a = norm(x, f"{layer}.attention_norm")
        q = b.linear(a, f"{layer}.attention.q", "heads", bias=True)
        k = b.linear(a, f"{layer}.attention.k", "kv_heads", bias=True)
        v = b.linear(a, f"{layer}.attention.v", "kv_heads", bias=True)
        attended = b.linear(b.attend(q, k, v, i), f"{layer}.attention.out", "hidden", bias=True)
        x = b.add(x, attended, f"{layer}.attention.sum")

        up = b.linear(norm(x, f"{layer}.mlp_norm"), f"{layer}.mlp.up", "ffn", bias=True)
        down = b.linear(b.activation(up, config.activation), f"{layer}.mlp.down", "hidden", bias=True)
        x = b.add(x, down, f"{layer}.mlp.sum")
    b.logits(norm(b.select_rows(x), "final_norm"), tied=config.tied_head)


def _pair(weight: str, name: str, transpose: bool = False, rows: NDArray[np.int64] | None = None) -> Sources:
    matrix = Source(f"{name}.weight", rows, transpose)
    return {f"{weight}.weight": matrix, f"{weight}.bias": Source(f"{name}.bias", rows)}


_SPELLINGS = {
    "attention_norm": ("ln_1", "attn_norm"),
    "attention.q": ("attn.c_attn", "attn_qkv"),
    "attention.k": ("attn.c_attn", "attn_qkv"),
    "attention.v": ("attn.c_attn", "attn_qkv"),
    "attention.out": ("attn.c_proj", "attn_output"),
    "mlp_norm": ("ln_2", "ffn_norm"),
    "mlp.up": ("mlp.c_fc", "ffn_up"),
    "mlp.down": ("mlp.c_proj", "ffn_down"),
}


def _layer_sources(config: Gpt2Config, prefix: str, gguf: bool) -> Sources:
    """The layers' weights. Hugging Face stores matrices [in, out], GGUF [out, in]; queries, keys, values follow."""
    found: Sources = {}
    fused = np.arange(3 * config.hidden_size).reshape(3, -1)
    rows_of = {f"attention.{part}": rows for part, rows in zip("qkv", fused, strict=True)}
    for i in range(config.num_layers):
        for name, spellings in _SPELLINGS.items():
            rows = rows_of.get(name)
            transpose = not gguf and "norm" not in name
            found |= _pair(f"layers.{i}.{name}", f"{prefix}.{i}.{spellings[gguf]}", transpose, rows)
    return found


def sources(config: Gpt2Config) -> Sources:
    """Where the weights stand in a Hugging Face checkpoint."""
    found = {"embed.weight": Source("wte.weight"), "position_embed.weight": Source("wpe.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("lm_head.weight")
    return found | _pair("final_norm", "ln_f") | _layer_sources(config, "h", gguf=False)


def _gguf_sources(config: Gpt2Config) -> Sources:
    found = {"embed.weight": Source("token_embd.weight"), "position_embed.weight": Source("position_embd.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("output.weight")
    return found | _pair("final_norm", "output_norm") | _layer_sources(config, "blk", gguf=True)


def _read_gguf_config(metadata: Mapping[str, Any], tensors: frozenset[str]) -> Gpt2Config:
    read = GgufReader(metadata, "gpt2")
    return _config(
        hidden_size=read.size("hidden_size", "embedding_length"),
        num_layers=read.size("num_layers", "block_count"),
        num_heads=read.size("num_heads", "attention.head_count"),
        ffn_size=read.size("ffn_size", "feed_forward_length"),
        vocab_size=read.vocab_size(),
        num_positions=read.size("max_context", "context_length"),
        norm_epsilon=read.number("attention.layer_norm_epsilon", at_least=0),
        activation="gelu_tanh",
        tied_head="output.weight" not in tensors,
        eos_token_ids=read.eos_token_ids(),
        bos_token_id=read.bos_token_id(),
    )


def _preset(hidden_size: int, layers: int, heads: int) -> Mapping[str, Any]:
    sizes = {"n_embd": hidden_size, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    return {"model_type": "gpt2", "eos_token_id": 50256, **sizes}


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    config_type=Gpt2Config,
    read_config=read_config,
    trace=trace,
    sources=sources,
    prefixes=("transformer.",),
    ignored=(r"lm_head\.weight", r"h\.\d+\.attn\.(masked_)?bias"),
    presets={
        "gpt2": _preset(768, 12, 12),
        "gpt2-medium": _preset(1024, 24, 16),
        "gpt2-large": _preset(1280, 36, 20),
        "gpt2-xl": _preset(1600, 48, 25),
    },
    gguf=GgufFamily(architectures=("gpt2",), read_config=_read_gguf_config, sources=_gguf_sources),
)
