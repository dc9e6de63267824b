"""Hostile files of every kind: damaged ones, and well-formed ones that lie. `hostile.check` holds the promise."""

from __future__ import annotations

import json
import struct
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import KINDS, check, sample
from lies import ARRAY, LIES, STRING, gguf, gguf_value

quick = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
SLOW_EXAMPLES = 2000


def damage(data: bytes, cuts: list[tuple[float, float, bytes]]) -> bytes:
    """Replaces pieces, each from one share of the length on, by other bytes."""
    for start, length, piece in cuts:
        at = int(start * len(data))
        data = data[:at] + piece + data[at + int(length * 16) :]
    return data


damages = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=4)


def check_damaged(kind: str, examples: int) -> None:
    @settings(quick, max_examples=examples)
    @given(damages)
    def one(cuts: list[tuple[float, float, bytes]]) -> None:
        check(kind, damage(sample(kind), cuts))

    one()


def check_lies(kind: str, examples: int) -> None:
    @settings(quick, max_examples=examples)
    @given(st.integers(0, 2**32))
    def one(seed: int) -> None:
        check(kind, LIES[kind](Random(seed)))

    one()


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_valid(kind: str) -> None:
    assert check(kind, sample(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str) -> None:
    check_damaged(kind, 20 if kind == "bin" else 40)


@pytest.mark.parametrize("kind", LIES)
def test_lies(kind: str) -> None:
    check_lies(kind, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_many_more(kind: str) -> None:
    check_damaged(kind, SLOW_EXAMPLES)
    if kind in LIES:
        check_lies(kind, 2 * SLOW_EXAMPLES)


BOMBS = {
    "deep": b"[" * 1_000_000,
    "wide": b"[" + b"[]," * 4_000_000 + b"[]]",
    "long": b'{"a": "' + b"x" * 20_000_000 + b'"}',
    "digits": b'{"vocab_size": ' + b"9" * 1_000_000 + b"}",
}
JSON_KINDS = ("config", "random config", "generation", "index", "tokenizer", "tokenizer config", "packed", "result")
HEADED = ("safetensors", "weights")


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", [*JSON_KINDS, *HEADED, "jsonl"])
def test_json_bombs(kind: str, bomb: str) -> None:
    data = BOMBS[bomb]
    if kind in HEADED:
        data = struct.pack("<Q", len(data)) + data
    if (kind, bomb) in {("jsonl", "long")}:
        data = data[:1_000_000]
    assert not check(kind, data)


# --- what once went wrong --------------------------------------------------------------------------------------------


def tokenizer_with(**changes: object) -> bytes:
    return json.dumps({**json.loads(sample("tokenizer")), **changes}).encode()


def safetensors_of_scalars() -> bytes:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def config_of(key: str, value: object) -> bytes:
    return json.dumps({key: value}).encode()


UNKNOWN_TOKEN = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "z"}
NO_CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
WIDTH = b"llama.embedding_length" + struct.pack("<I", 4)  # a uint32 follows
REGRESSIONS = {
    "a width that cuts a group": ("gguf", sample("gguf").replace(WIDTH + b"\x20", WIDTH + b"\x30")),
    "a weight without dimensions": ("safetensors", safetensors_of_scalars()),
    "a rust panic": ("tokenizer", tokenizer_with(normalizer=NO_CHARSMAP)),
    "a text that can't be encoded": ("tokenizer", tokenizer_with(model=UNKNOWN_TOKEN, added_tokens=[])),
    "half a character": ("tokenizer config", config_of("eos_token", "\ud800")),
    "a number of tokens": ("tokenizer config", config_of("additional_special_tokens", 5)),
    "a text of tokens": ("tokenizer config", config_of("added_tokens_decoder", "a")),
    "a template by no name": ("tokenizer config", config_of("chat_template", [{"name": {}, "template": "a"}])),
    "a name of a column that is no text": ("parquet", sample("parquet").replace(b"text", b"te\x85t")),
    "two wide columns of one name": ("csv", b",".join([b"x" * 5000] * 2)),
    "wide columns of numbers": ("csv", b"a" * 5000 + b"," + b"b" * 5000 + b"\n1,2"),
    "an integer that no float holds": (
        "summary",
        sample("summary").replace(b'"run_s": 1.0', b'"run_s": 1' + b"0" * 400),
    ),
    "a time that is no number": ("result", sample("result").replace(b'"median": 1.0', b'"median": NaN')),
    "an integer beyond all counting": ("summary", sample("summary").replace(b'"rows": 1', b'"rows": 1' + b"0" * 400)),
}
GGUF_REGRESSIONS = {
    "split.count": (ARRAY, [1, 2], 4),
    "general.architecture": (ARRAY, [1, 2], 4),
    "tokenizer.ggml.model": (ARRAY, [1, 2], 4),
    "tokenizer.ggml.pre": (ARRAY, [1, 2], 4),
    "tokenizer.ggml.tokens": (4, 1, 0),
    "tokenizer.ggml.token_type": (ARRAY, ["a", "b", "c", "d"], STRING),
    "tokenizer.ggml.merges": (4, 1, 0),
    "tokenizer.ggml.bos_token_id": (ARRAY, [1, 2], 4),
    "tokenizer.ggml.add_eos_token": (ARRAY, [1, 2], 4),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_once_went_wrong(name: str) -> None:
    check(*REGRESSIONS[name])


@pytest.mark.parametrize("value", [1, 204])  # which make a dictionary of texts shorter, or places in it that it lacks
def test_any_byte_of_a_parquet_file(value: int) -> None:
    data = sample("parquet")
    for at in range(len(data)):
        check("parquet", data[:at] + bytes([value]) + data[at + 1 :])


@pytest.mark.parametrize("key", GGUF_REGRESSIONS)
def test_gguf_values_of_another_type(key: str) -> None:
    assert not check("gguf", gguf(Random(0), {key: GGUF_REGRESSIONS[key]}))


@pytest.mark.parametrize("scores", [(ARRAY, ["a"] * 4, STRING), (4, 1, 0)])
def test_gguf_scores_of_another_type(scores: tuple[int, object, int]) -> None:
    assert not check("gguf", gguf(Random(0), {"tokenizer.ggml.scores": scores}, spaced=True))


def test_a_long_sentencepiece_token_takes_no_time_by_the_square() -> None:
    tokens = (ARRAY, ["<unk>", "\u2581", "a", "a" * 300_000], STRING)
    assert not check("gguf", gguf(Random(0), {"tokenizer.ggml.tokens": tokens}, spaced=True))
    assert gguf_value(*tokens)
