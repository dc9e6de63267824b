"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3, SmolLM2. RMS norm, rotary positions, gated MLP.

Source: Touvron et al., arXiv:2307.09288; Grattafiori et al., arXiv:2407.21783; Jiang et al., arXiv:2310.06825; Yang et
al., arXiv:2407.10671 and arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from anthesis.config import ConfigReader, ModelConfig
from anthesis.errors import ConfigError
from anthesis.models.family import Family, GgufFamily, Source, Sources
from anthesis.models.metadata import GgufReader
from anthesis.models.rope import read_rope, rope_frequencies
from anthesis.program.builder import Builder
from anthesis.program.ops import Activation

_ACTIVATIONS: dict[str, Activation] = {name: name for name in get_args(Activation)}
_ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
_ABSENT: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": _QWEN,
}
"""What transformers takes a key to be that config.json leaves out; null means something else (no window)."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A model of the Llama family.

    Attributes:
        norm_epsilon: of every RMS norm.
        activation: of the gate.
        frequencies: of the rotary embedding, radians per position, D/2 of them.
        stored_rope_divisors: the checkpoint holds numbers that divide the frequencies (GGUF).
        qkv_bias, out_bias, mlp_bias: which linear operations have one.
        head_norm: queries and keys are normalised head by head before they are rotated (Qwen3).
        windows: for each layer how many keys a row may see, itself included, or None.
        tied_head: the output head is the embedding.
        permuted: query and key rows are stored in GGUF's order of rotary pairs, where they are stored as GGUF.
    """

    norm_epsilon: float
    activation: Activation
    frequencies: tuple[float, ...]
    stored_rope_divisors: bool = False
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norm: bool
    windows: tuple[int | None, ...]
    tied_head: bool
    permuted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * len(self.frequencies) != self.head_dim or len(self.windows) != self.num_layers:
            raise ConfigError(
                f"{len(self.frequencies)} frequencies and {len(self.windows)} windows don't fit {self.num_layers} "
                f"layers with heads of {self.head_dim} elements"
            )
        if not all(window is None or window >= 1 for window in self.windows):
            raise ConfigError("an attention window is below 1, so that a row would not see itself")


def read_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """Reads config.json of any member of the family, as transformers 4 or 5 writes it.

    Raises:
        ConfigError: a missing size, a contradiction, or a variant that is not computed here; it is named.
    """
    model_type = raw["model_type"]
    read = ConfigReader({**_ABSENT.get(model_type, {}), **raw})
    hidden_size = read.size("hidden_size", "hidden_size")
    num_heads = read.size("num_heads", "num_attention_heads")
    num_layers = read.size("num_layers", "num_hidden_layers")
    head_dim = read.size("head_dim", "head_dim", default=128 if model_type == "qwen3" else hidden_size // num_heads)
    if head_dim % 2:
        raise ConfigError(f"config.json leads to a head_dim of {head_dim}; rotary positions need an even one")
    activation = read.string("hidden_act", default="silu")
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"hidden_act {activation!r:.60} is not computed here; known are: {', '.join(_ACTIVATIONS)}")
    # Mistral has no biases; Qwen2's are fixed; elsewhere the configuration decides
    attention_bias = model_type != "mistral" and read.boolean("attention_bias", default=model_type == "qwen2")
    vocab_size = read.size("vocab_size", "vocab_size")
    return LlamaConfig(
        family="llama",
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=read.size("num_kv_heads", "num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        hidden_size=hidden_size,
        ffn_size=read.size("ffn_size", "intermediate_size"),
        vocab_size=vocab_size,
        usable_vocab_size=vocab_size,
        max_context=read.size("max_context", "max_position_embeddings", default=2048),
        eos_token_ids=read.token_ids("eos_token_id"),
        bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
        norm_epsilon=read.number("rms_norm_eps", default=1e-6, at_least=0),
        activation=_ACTIVATIONS[activation],
        frequencies=read_rope(raw, head_dim),
        qkv_bias=attention_bias or model_type == "qwen2",
        out_bias=attention_bias and model_type != "qwen2",
        mlp_bias=model_type == "llama" and read.boolean("mlp_bias", default=False),
        head_norm=model_type == "qwen3",
        windows=_windows(read, model_type, num_layers),
        tied_head=read.boolean("tie_word_embeddings", default=False),
    )


def _windows(read: ConfigReader, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """How many keys each layer's rows may see. Llama: all; Mistral: in all layers alike; Qwen: as `layer_types` says.

    Where `layer_types` has no say, as transformers has it, one that says something else is refused. (There a window of
    0 hides all keys, the row's own too; null is what means none.)
    """
    is_qwen = model_type in ("qwen2", "qwen3")
    on = read.boolean("use_sliding_window", default=model_type == "mistral")
    if on and model_type == "llama":
        raise ConfigError("config.json has use_sliding_window = True, and a model_type llama has no window")
    if not on and model_type == "mistral" and read.raw.get("sliding_window") is not None:
        raise ConfigError("config.json has use_sliding_window = False and a sliding_window, which mistral always uses")
    window = read.size("max_context", "sliding_window") if read.raw.get("sliding_window") is not None else None
    window = window if on else None
    layer_types = read.raw.get("layer_types")
    if layer_types is None:
        first = read.integer("max_window_layers", default=28) if is_qwen else 0
        return tuple(window if i >= first else None for i in range(num_layers))
    allowed = ["full_attention"] if window is None else ["full_attention", "sliding_attention"]
    if window is not None and not is_qwen:
        allowed = ["sliding_attention"]
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ConfigError(f"config.json has layer_types that are not a list of {num_layers}, one for each layer")
    for kind in layer_types:
        if kind not in allowed:
            without = "" if window else " without a sliding window"
            raise ConfigError(
                f"config.json has {kind!r:.60} among its layer_types; computed for {model_type}{without}: "
                f"{' and '.join(allowed)}"
            )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def trace(config: LlamaConfig, b: Builder) -> None:
    """Records one token step."""

    def norm(x: str, name: str, width: int | None = None) -> str:
        return b.norm(x, name, config.norm_epsilon, "rms", width=width)

    def rotate(x: str) -> str:
        return b.rope(x, config.frequencies, "rope_divisors.weight" if config.stored_rope_divisors else None)

    x = b.embed("embed", config.vocab_size)
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        a = norm(x, f"{layer}.attention_norm")
        q = b.linear(a, f"{layer}.attention.q", "heads", bias=config.qkv_bias)
        k = b.linear(a, f"{layer}.attention.k", "kv_heads", bias=config.qkv_bias)
        v = b.linear(a, f"{layer}.attention.v", "kv_heads", bias=config.qkv_bias)
        if config.head_norm:
            q = norm(q, f"{layer}.attention.q_norm", config.head_dim)
            k = norm(k, f"{layer}.attention.k_norm", config.head_dim)
        attended = b.attend(rotate(q), rotate(k), v, i, window=config.windows[i])
        x = b.add(x, b.linear(attended, f"{layer}.attention.out", "hidden", config.out_bias), f"{layer}.attention.sum")

        m = norm(x, f"{layer}.mlp_norm")
        gate = b.linear(m, f"{layer}.mlp.gate", "ffn", bias=config.mlp_bias)
        up = b.linear(m, f"{layer}.mlp.up", "ffn", bias=config.mlp_bias)
        gated = b.mul(b.activation(gate, config.activation), up, f"{layer}.mlp.gated")
        x = b.add(x, b.linear(gated, f"{layer}.mlp.down", "hidden", config.mlp_bias), f"{layer}.mlp.sum")
    b.logits(norm(b.select_rows(x), "final_norm"), tied=config.tied_head)


_LINEARS = {
    "attention.q": ("self_attn.q_proj", "attn_q"),
    "attention.k": ("self_attn.k_proj", "attn_k"),
    "attention.v": ("self_attn.v_proj", "attn_v"),
    "attention.out": ("self_attn.o_proj", "attn_output"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}
_NORMS = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}
_HEAD_NORMS = {
    "attention.q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.k_norm": ("self_attn.k_norm", "attn_k_norm"),
}


def _layer_sources(config: LlamaConfig, prefix: str, column: int) -> Sources:
    """The layers' weights; `column` chooses the spelling: 0 Hugging Face's, 1 GGUF's."""
    biased = {"attention.out": config.out_bias} | dict.fromkeys(("mlp.gate", "mlp.up", "mlp.down"), config.mlp_bias)
    norms = _NORMS | (_HEAD_NORMS if config.head_norm else {})
    order: dict[str, NDArray[np.int64]] = {}
    if config.permuted and column:
        order = {"attention.q": _pair_order(config.num_heads, config.head_dim)}
        order["attention.k"] = _pair_order(config.num_kv_heads, config.head_dim)
    found: Sources = {}
    for i in range(config.num_layers):
        layer, stored = f"layers.{i}", f"{prefix}.{i}"
        for name, spellings in norms.items():
            found[f"{layer}.{name}.weight"] = Source(f"{stored}.{spellings[column]}.weight")
        for name, spellings in _LINEARS.items():
            parts = ("weight", "bias") if biased.get(name, config.qkv_bias) else ("weight",)
            for part in parts:
                found[f"{layer}.{name}.{part}"] = Source(f"{stored}.{spellings[column]}.{part}", order.get(name))
    return found


def _pair_order(heads: int, head_dim: int) -> NDArray[np.int64]:
    """GGUF keeps the elements of a rotary pair side by side: (heads, pairs, 2), not (heads, 2, pairs)."""
    order = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return order.transpose(0, 2, 1).reshape(-1)


def sources(config: LlamaConfig) -> Sources:
    """Where the weights stand in a Hugging Face checkpoint."""
    found = {"embed.weight": Source("embed_tokens.weight"), "final_norm.weight": Source("norm.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("lm_head.weight")
    return found | _layer_sources(config, "layers", 0)


def _gguf_sources(config: LlamaConfig) -> Sources:
    found = {"embed.weight": Source("token_embd.weight"), "final_norm.weight": Source("output_norm.weight")}
    if not config.tied_head:
        found["head.weight"] = Source("output.weight")
    if config.stored_rope_divisors:
        found["rope_divisors.weight"] = Source("rope_freqs.weight")
    return found | _layer_sources(config, "blk", 1)


def _read_gguf_config(metadata: Mapping[str, Any], tensors: frozenset[str]) -> LlamaConfig:
    architecture = str(metadata["general.architecture"])
    read = GgufReader(metadata, architecture)
    if read.has("expert_count") and read.integer("expert_count") > 0:
        raise ConfigError(f"this {architecture} GGUF is a mixture of experts, which is not computed here")
    hidden_size = read.size("hidden_size", "embedding_length")
    num_heads = read.size("num_heads", "attention.head_count")
    head_dim = read.size("head_dim", "attention.key_length", default=hidden_size // num_heads)
    rotated = read.integer("rope.dimension_count", default=head_dim)
    if rotated != head_dim or head_dim % 2:
        raise ConfigError(
            f"this GGUF rotates {rotated} of {head_dim} elements of a head; only whole heads are rotated here"
        )
    scaling = read.string("rope.scaling.type", default="none")
    if scaling not in ("none", "linear"):
        raise ConfigError(
            f"rope scaling {scaling!r:.60} is not computed here; known are: none, linear, stored divisors"
        )
    factor = read.number("rope.scaling.factor", above=0) if scaling == "linear" else 1.0
    frequencies = rope_frequencies(head_dim, read.number("rope.freq_base", default=10_000.0, above=0))
    num_layers, vocab_size = read.size("num_layers", "block_count"), read.vocab_size()
    window = read.integer("attention.sliding_window", default=0)
    if window < 0:
        raise ConfigError(f"GGUF metadata has {architecture}.attention.sliding_window = {window}; 0 or more is needed")
    return LlamaConfig(
        family="llama",
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=read.size("num_kv_heads", "attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        hidden_size=hidden_size,
        ffn_size=read.size("ffn_size", "feed_forward_length"),
        vocab_size=vocab_size,
        usable_vocab_size=vocab_size,
        max_context=read.size("max_context", "context_length"),
        eos_token_ids=read.eos_token_ids(),
        bos_token_id=read.bos_token_id(),
        norm_epsilon=read.number("attention.layer_norm_rms_epsilon", at_least=0),
        activation="silu",
        frequencies=tuple(frequency / factor for frequency in frequencies),
        stored_rope_divisors="rope_freqs.weight" in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        head_norm="blk.0.attn_q_norm.weight" in tensors,
        windows=(window or None,) * num_layers,
        tied_head="output.weight" not in tensors,
        permuted=architecture == "llama",
    )


def _preset(
    kind: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, context: int, **rest: Any
) -> Mapping[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "vocab_size": vocab}
    attention = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": context}
    return {"model_type": kind, "rms_norm_eps": 1e-5, **sizes, **attention, **rest}


def _llama31(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_theta": 5e5, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}


_TIED = {"tie_word_embeddings": True}
_PRESETS = {
    "llama-2-7b": _preset("llama", 4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": _preset("llama", 5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-2-70b": _preset("llama", 8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3.1-8b": _preset("llama", 4096, 14336, 32, 32, 8, 128256, 131072, **_llama31(8.0)),
    "llama-3.1-70b": _preset("llama", 8192, 28672, 80, 64, 8, 128256, 131072, **_llama31(8.0)),
    "llama-3.2-1b": _preset("llama", 2048, 8192, 16, 32, 8, 128256, 131072, **_llama31(32.0), **_TIED),
    "mistral-7b": _preset("mistral", 4096, 14336, 32, 32, 8, 32768, 32768, rope_theta=1e6, sliding_window=None),
    "qwen2.5-0.5b": _preset("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, rope_theta=1e6, **_TIED),
    "qwen2.5-7b": _preset("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, rope_theta=1e6),
    "qwen3-0.6b": _preset("qwen3", 1024, 3072, 28, 16, 8, 151936, 40960, rope_theta=1e6, head_dim=128, **_TIED),
    "qwen3-8b": _preset("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, rope_theta=1e6, head_dim=128),
    "smollm2-135m": _preset("llama", 576, 1536, 30, 9, 3, 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-360m": _preset("llama", 960, 2560, 32, 15, 5, 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-1.7b": _preset("llama", 2048, 8192, 24, 32, 32, 49152, 8192, rope_theta=1.3e5, **_TIED),
}

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    config_type=LlamaConfig,
    read_config=read_config,
    trace=trace,
    sources=sources,
    prefixes=("model.",),
    ignored=(r"lm_head\.weight", r".*\.rotary_emb\.inv_freq"),
    presets=_PRESETS,
    gguf=GgufFamily(
        architectures=("llama", "qwen2", "qwen3"),
        read_config=_read_gguf_config,
        sources=_gguf_sources,
        ignored=(r"rope_freqs\.weight",),
    ),
)
