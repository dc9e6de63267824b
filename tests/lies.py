# ruff: noqa: SIM905 - names are easier to read without quotes
"""Well-formed files that lie: made by kind from a source of random choices, Hypothesis's or a seeded one."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from anthesis.checkpoint.gguf_header import BLOCKS
from hostile import sample

EXTREMES: list[Any] = [
    0, -1, 1, 2, 7, 32, 2**16, 2**24, 2**31, 2**53, 2**62, 2**64, -(2**70), 10**400, 1e308, 5e-324, 0.5, math.nan,
    -math.inf, True, False, None, "", "a", "x" * 300, "\ud800", "a\nb", "\0", [], {}, [[]], [1], [2**70], ["a"],
    [None], [{}], {"a": 1}, {"content": 5}, {"content": "\ud800"},
]  # fmt: skip


def anything(r: Random, depth: int = 0) -> Any:
    """A JSON value, mostly an extreme one."""
    share = r.random()
    if share < 0.75 or depth > 3:
        return r.choice(EXTREMES)
    if share < 0.9:
        return [anything(r, depth + 1) for _ in range(r.randint(0, 4))]
    return {f"k{i}": anything(r, depth + 1) for i in range(r.randint(0, 3))}


def changed(r: Random, document: Any) -> Any:
    """The document with up to four of its values lost, doubled elsewhere, or replaced."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(document)
    copies = [json.loads(json.dumps(node[key])) for node, key in (r.choice(places) for _ in range(2))]
    for _ in range(r.randint(1, 4)):
        node, key = r.choice(places)
        how = r.randint(0, 9)
        if how == 0 and isinstance(node, dict):
            node.pop(key, None)
        else:
            node[key] = r.choice(copies) if how == 1 else anything(r)
    return document


def changed_sample(kind: str) -> Callable[[Random], bytes]:
    """A lie about one of the values of a valid JSON file."""
    return lambda r: json.dumps(changed(r, json.loads(sample(kind)))).encode()


CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"model_type": "bloom", "n_layer": 1, "n_head": 2, "hidden_size": 32, "vocab_size": 64},
    "gpt2": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 64, "n_positions": 32},
}
CONFIG_KEYS = """num_hidden_layers num_attention_heads num_key_value_heads hidden_size intermediate_size
    rms_norm_eps dtype max_position_embeddings eos_token_id bos_token_id tie_word_embeddings vocab_size
    head_dim rope_theta hidden_act sliding_window use_sliding_window max_window_layers layer_types
    attention_bias mlp_bias torch_dtype n_layer n_head n_embd n_inner n_positions activation_function
    layer_norm_epsilon scale_attn_weights quantization_config scale_attn_by_inverse_layer_idx
    add_cross_attention apply_residual_connection_post_layernorm model_type partial_rotary_factor
    pretraining_tp rope_scaling""".split()
ROPE_KEYS = """type factor low_freq_factor high_freq_factor original_max_position_embeddings rope_theta short_factor
    long_factor attention_factor""".split()


def config(r: Random) -> bytes:
    """A config.json of any family."""
    kind = r.choice(["llama", "mistral", "qwen2", "qwen3", "bloom", "gpt2"])
    raw = {**json.loads(sample("config")), **CONFIGS.get(kind, {"model_type": kind})}
    for key in r.sample(CONFIG_KEYS, r.randint(0, 4)):
        raw[key] = r.choice([1, 2, 4, 8, 32, 64, 96]) if r.random() < 0.3 else anything(r)
    if r.random() < 0.4:
        rope = {key: r.choice([1.0, 8, anything(r)]) for key in r.sample(ROPE_KEYS, r.randint(1, 6))}
        kinds = ["llama3", "linear", "default", "yarn", "dynamic", "longrope", anything(r)]
        raw[r.choice(["rope_scaling", "rope_parameters"])] = {"rope_type": r.choice(kinds), **rope}
    return json.dumps(raw).encode()


def headed(kind: str) -> Callable[[Random], bytes]:
    """A safetensors file with a header that lies."""

    def make(r: Random) -> bytes:
        data = sample(kind)
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        names = list(header)
        for _ in range(r.randint(0, 3)):
            entry = header[r.choice(names)]
            how = r.randint(0, 5)
            if how == 0:
                shapes = [[], [0], [1], [2**62, 4], [0, 2**61], [1] * 40, entry.get("shape", [])[::-1], anything(r)]
                entry["shape"] = r.choice(shapes)
            elif how == 1:
                entry["dtype"] = r.choice(["F32", "F16", "BF16", "F64", "F8_E4M3", "", anything(r)])
            elif how == 2:
                entry["data_offsets"] = r.choice([[0, 0], [4, 0], [-4, 0], [0, 2**62], [len(body)] * 2, anything(r)])
            elif how == 3:
                shape = r.choice([[], [1], [1, 1, 1], [0, 32]])
                entry |= {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
            elif how == 4:
                header[r.choice(["x", "", "model.norm.weight", "lm_head.weight", "\ud800", "__metadata__"])] = entry
            else:
                changed(r, header)
                break
        text = json.dumps(header).encode()
        odd = [0, 1, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1, len(text) + len(body)]
        length = r.choice(odd) if r.random() < 0.05 else len(text)
        return struct.pack("<Q", length) + text + (b"\xff" * len(body) if r.random() < 0.1 else body)

    return make


SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, UNKNOWN = 8, 9, 13
TEXTS = ["", "a", "b", "a b", " ", "\u2581a", "x" * 500, "llama", "gpt2", "gpt-2", "{% for", "<0x00>", "\0"]
GGUF_KEYS = """general.architecture tokenizer.ggml.model tokenizer.ggml.tokens tokenizer.ggml.token_type
    llama.block_count llama.embedding_length llama.attention.head_count llama.context_length llama.feed_forward_length
    llama.attention.layer_norm_rms_epsilon general.alignment split.count tokenizer.chat_template tokenizer.ggml.scores
    tokenizer.ggml.merges x tokenizer.ggml.pre tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token
    tokenizer.ggml.bos_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.unknown_token_id
    tokenizer.ggml.remove_extra_whitespaces tokenizer.ggml.precompiled_charsmap tokenizer.ggml.add_space_prefix
    llama.rope.scaling.type llama.expert_count llama.rope.scaling.factor llama.rope.freq_base
    llama.rope.dimension_count llama.attention.sliding_window llama.vocab_size llama.attention.key_length
    llama.attention.head_count_kv""".split()


def gguf_value(kind: int, value: Any, inner: int = STRING) -> bytes:
    """A value as GGUF writes it."""
    if kind == STRING:
        return struct.pack("<Q", len(value.encode())) + value.encode()
    if kind == ARRAY:
        return struct.pack("<IQ", inner, len(value)) + b"".join(gguf_value(inner, item) for item in value)
    return struct.pack(f"<{SCALARS[kind]}", value) if kind in SCALARS else b""


def gguf_anything(r: Random) -> tuple[int, Any, int]:
    """Type, value, and type of the elements."""

    def scalar(kind: int) -> Any:
        if kind == STRING:
            return r.choice(TEXTS)
        if SCALARS[kind] in "fd":
            return r.choice([0.0, 1.0, math.nan, -math.inf, 1e30])
        bits = 8 * struct.calcsize(SCALARS[kind])
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if SCALARS[kind].islower() else (0, (1 << bits) - 1)
        return r.choice([0, 1, 2, 32, low, high])

    kind = r.choice([*SCALARS, STRING, STRING, ARRAY, ARRAY, ARRAY, UNKNOWN])
    if kind == ARRAY:
        inner = r.choice([*SCALARS, STRING, STRING, ARRAY, UNKNOWN])
        known = inner == STRING or inner in SCALARS
        return kind, [scalar(inner) for _ in range(r.choice([0, 1, 3, 4, 100]))] if known else [], inner
    return kind, None if kind == UNKNOWN else scalar(kind), 0


Keys = dict[str, tuple[int, Any, int]]


def random_gguf(r: Random) -> bytes:
    """A small model with either tokenizer, with other values for some keys, and other tensors."""
    architecture = r.choice(["llama", "llama", "llama", "qwen2", "bloom", "gpt2"])
    changes = {key: gguf_anything(r) for key in r.sample(GGUF_KEYS, r.randint(0, 3))}
    return gguf(r, changes, spaced=r.random() < 0.5, architecture=architecture, lies=r.choice([0, 0, 1, 2]))


def gguf(r: Random, changes: Keys, *, spaced: bool = False, architecture: str = "llama", lies: int = 0) -> bytes:
    """A small model with such keys, each with type, value and type of the elements, and lies about tensors.

    Args:
        r: chooses the lies.
        changes: to the keys.
        spaced: with SentencePiece tokens.
        architecture: its name.
        lies: how many.
    """
    keys: Keys = {"general.architecture": (STRING, architecture, 0)}
    sizes = {"block_count": 1, "embedding_length": 32, "attention.head_count": 2, "context_length": 64}
    for key, size in {**sizes, "feed_forward_length": 64}.items():
        keys[f"{architecture}.{key}"] = (4, size, 0)
    keys[f"{architecture}.attention.layer_norm_rms_epsilon"] = (6, 1e-5, 0)
    tokens = ["<unk>", "\u2581", "a", "\u2581a"] if spaced else ["a", "b", "ab", "</s>"]
    keys |= {
        "tokenizer.ggml.model": (STRING, "llama" if spaced else "gpt2", 0),
        "tokenizer.ggml.tokens": (ARRAY, tokens, STRING),
        "tokenizer.ggml.token_type": (ARRAY, [2, 1, 1, 1] if spaced else [1, 1, 1, 3], 5),
        "tokenizer.ggml.scores": (ARRAY, [0.0, -1.0, -2.0, -3.0], 6),
        "tokenizer.ggml.bos_token_id": (4, 0, 0),
        "tokenizer.ggml.pre": (STRING, "gpt-2", 0),
        "tokenizer.ggml.merges": (ARRAY, ["a b"], STRING),
    }
    keys |= changes
    widths = {"token_embd": [32, 4], "output_norm": [32], "blk.0.attn_norm": [32], "blk.0.ffn_norm": [32]}
    widths |= {f"blk.0.attn_{part}": [32, 32] for part in ("q", "k", "v", "output")}
    widths |= {"blk.0.ffn_gate": [32, 64], "blk.0.ffn_up": [32, 64], "blk.0.ffn_down": [64, 32]}
    tensors = [(f"{name}.weight", shape, 0) for name, shape in widths.items()]
    for _ in range(lies):
        i, how = r.randrange(len(tensors)), r.randint(0, 3)
        name, shape, kind = tensors[i]
        if how == 0:
            shape = r.choice([[], [1], [0], [1] * 4, [1] * 5, [2**63], [32, 4, 1], [2**47, 2**47], shape[::-1]])
        elif how == 1:
            kind = r.choice([*BLOCKS, 99])
        elif how == 2:
            name = r.choice(["", "rope_freqs.weight", "output.weight", "blk.0.attn_q.bias", "token_embd.weight"])
        else:
            tensors.append((r.choice(["rope_freqs.weight", "output.weight", "x"]), r.choice([[16], [8], [32, 4]]), 0))
        tensors[i] = (name, shape, kind)
    counts = [len(tensors), len(keys)]
    if lies and r.random() < 0.1:
        counts[r.randint(0, 1)] = r.choice([0, 1, 2**16, 2**17, 2**40, 2**64 - 1])
    head = b"GGUF" + struct.pack("<IQQ", r.choice([3] * 9 + [2, 1]) if lies else 3, *counts)
    for key, (kind, value, inner) in keys.items():
        head += gguf_value(STRING, key) + struct.pack("<I", kind) + gguf_value(kind, value, inner)
    at = 0
    for name, shape, kind in tensors:
        _, block, nbytes = BLOCKS.get(kind, ("", 1, 4))
        offset = at if not lies or r.random() < 0.97 else r.choice([0, 1, 2**63])
        head += gguf_value(STRING, name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        at += min(1 << 16, -(-math.prod(shape) // block * nbytes // 32) * 32)
    return head + bytes(-len(head) % 32) + bytes([r.choice([0, 0x3C]) if lies else 0]) * at


def tokenizer_config(r: Random) -> bytes:
    """A tokenizer_config.json."""

    def token() -> Any:
        return r.choice(["</s>", "a", {"content": "</s>", "special": True}, "{{ x }}", anything(r)])

    keys = (
        "bos_token eos_token additional_special_tokens extra_special_tokens added_tokens_decoder chat_template".split()
    )
    raw: dict[str, Any] = {}
    for key in r.sample(keys, r.randint(1, 4)):
        several = [token() for _ in range(3)]
        named = [{"name": r.choice(["default", token()]), "template": token()}, token()]
        raw[key] = r.choice([token(), several, dict(zip("012", several, strict=True)), named])
    return json.dumps(raw).encode()


PARTS = """Split Replace Prepend Strip ByteLevel Metaspace Punctuation Digits Precompiled NFC ByteFallback Fuse
    WordPiece BPEDecoder CTC TemplateProcessing BertProcessing CharDelimiterSplit FixedLength UnicodeScripts""".split()


def tokenizer_part(r: Random) -> dict[str, Any]:
    """A normaliser, pre-tokeniser, decoder or post-processor; each takes the keys that it knows."""
    return {
        "type": r.choice(PARTS),
        "pattern": r.choice([{"String": ""}, {"String": "a"}, {"Regex": "("}, {"Regex": "(?<!a)b"}, {"Regex": ""}]),
        "behavior": r.choice(["Isolated", "Removed", "MergedWithNext"]), "invert": r.choice([True, False]),
        "content": r.choice(["", "a", "x" * 1000]), "prepend": r.choice(["", "a"]), "add_prefix_space": True,
        "trim_offsets": True, "use_regex": True, "replacement": r.choice(["a", "ab", "\u2581"]), "strip_left": True,
        "prepend_scheme": r.choice(["always", "first"]), "strip_right": True, "start": r.choice([0, 5, 2**63]),
        "stop": r.choice([0, 1, 2**62]), "prefix": "", "cleanup": True, "suffix": "", "individual_digits": True,
        "length": r.choice([0, 1]), "precompiled_charsmap": r.choice(["", "AAAA", "//8="]), "pad_token": "x",
        "single": [{"SpecialToken": {"id": "z", "type_id": 0}}], "pair": [], "special_tokens": {}, "cls": ["a", 2**31],
        "sep": ["b", 1], "word_delimiter_token": "|", "delimiter": "a",
    }  # fmt: skip


def tokenizer(r: Random) -> bytes:
    """A tokenizer.json."""
    raw = json.loads(sample("tokenizer"))
    lists = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    for key in r.sample([*lists, "post_processor", "added_tokens", "model"], r.randint(0, 2)):
        if key == "model":
            high = r.choice([1, 2**31, 2**32 - 1, 2**32])
            raw[key] = r.choice([
                {"type": "BPE", "vocab": {"a": 0, "b": high}, "merges": r.choice([[], ["a b"], [["a"]]]),
                 "dropout": r.choice([None, 2]), "unk_token": "z", "continuing_subword_prefix": r.choice([None, "##"])},
                {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "z", "continuing_subword_prefix": "##",
                 "max_input_chars_per_word": r.choice([0, 2**63])},
                {"type": "WordLevel", "vocab": {"a": high}, "unk_token": "z"},
                {"type": "Unigram", "unk_id": r.choice([None, 0, 5]), "vocab": r.choice([[], [["", -1]], [["a", 0]]])},
            ])  # fmt: skip
        elif key == "added_tokens":
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), r.choice([True, False]))
            texts = ["", "a", "<s>", "z", " ", "x" * 1000]
            raw[key] = [{"id": r.choice([0, 1, 300, 2**31, 2**32 - 1]), "content": r.choice(texts), **flags}]
        else:
            part = tokenizer_part(r)
            raw[key] = r.choice([part, {"type": "Sequence", lists.get(key, "processors"): [part, tokenizer_part(r)]}])
    return json.dumps(changed(r, raw) if r.random() < 0.5 else raw).encode()


def json_lines(r: Random) -> bytes:
    """Lines, few of which are rows."""
    odd = [b"", b"\xff", b"{", b"[" * 10_000, b'\xef\xbb\xbf{"text": "a"}', b"9" * 5000, b'{"text": 1e999999}']

    def line() -> bytes:
        return r.choice([json.dumps({"text": anything(r)}).encode(), json.dumps(anything(r)).encode(), r.choice(odd)])

    return r.choice([b"\n", b"\r\n", b"\r"]).join(line() for _ in range(r.randint(1, 6)))


def table(r: Random) -> bytes:
    """Cells and what ends them."""
    pieces = ["a", "1", '"', '""', '"a', 'a"b', ",", "\t", ";", "|", "\n", "\r", "\0", "\ufeff", "x" * 1000, "é", " "]
    return "".join(r.choice(pieces) for _ in range(r.randint(0, 40))).encode() + r.choice([b"", b"\xff", b"\n\xff,a"])


LIES: dict[str, Callable[[Random], bytes]] = {
    "safetensors": headed("safetensors"),
    "weights": headed("weights"),
    "index": changed_sample("index"),
    "config": config,
    "random config": config,
    "generation": lambda r: json.dumps({"eos_token_id": r.choice([anything(r), [1, anything(r)]])}).encode(),
    "tokenizer": tokenizer,
    "tokenizer config": tokenizer_config,
    "gguf": random_gguf,
    "packed": changed_sample("packed"),
    "jsonl": json_lines,
    "csv": table,
    "tsv": table,
    "result": changed_sample("result"),
    "summary": changed_sample("summary"),
}
