"""Random weights: the documented hash, slices, distribution."""

import json

import ml_dtypes
import numpy as np
import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.random import RandomWeight
from anthesis.errors import AnthesisError, RequestError
from anthesis.program.ir import Value
from anthesis.quantize import WEIGHT_KINDS, unpack_nibbles, weight_kind

MASK = 2**64 - 1


def mix(x):
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def stream(seed, name, row, count):
    """The bytes of a row, from the description alone."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    key = mix(h ^ mix(seed + 0x9E3779B97F4A7C15 & MASK))
    words = -(-count // 8)
    found = b"".join(
        mix(key + (i + 1) * 0x9E3779B97F4A7C15 & MASK).to_bytes(8, "little")
        for i in range(row * words, (row + 1) * words)
    )
    return np.frombuffer(found, np.uint8)[:count]


def signed(bytes_):
    values = bytes_.view(np.int8)
    return np.where(values == -128, 0, values).astype(np.float64)


def whole(name, shape, kind, seed=7):
    return RandomWeight(seed, name, shape, (0,) * len(shape), shape, weight_kind(kind)).on_host()


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "int8"])
def test_the_hash_is_as_described(kind):
    found = whole("layers.0.mlp.up.weight", (3, 45), kind).dequantize(np.float64)
    for row in range(3):
        expected = signed(stream(7, "layers.0.mlp.up.weight", row, 45)) * 2.0**-12
        np.testing.assert_array_equal(found[row], expected)


def test_four_bits_and_vectors_are_as_described():
    plain, with_minimum = whole("a.weight", (2, 64), "int4"), whole("a.weight", (2, 64), "int4m")
    for row in range(2):
        packed = stream(7, "a.weight", row, 32)
        np.testing.assert_array_equal(with_minimum.values[row], packed)
        values = unpack_nibbles(packed[None])[0].astype(np.float64)
        np.testing.assert_array_equal(with_minimum.dequantize(np.float64)[row], (values - 7.5) / 256)
        np.testing.assert_array_equal(plain.dequantize(np.float64)[row], (np.where(values == 0, 8, values) - 8) / 256)
    norm, bias = whole("final_norm.weight", (77,), "fp32"), whole("final_norm.bias", (77,), "fp32")
    np.testing.assert_array_equal(norm.values, 1 + signed(stream(7, "final_norm.weight", 0, 77)) * 2.0**-10)
    np.testing.assert_array_equal(bias.values, signed(stream(7, "final_norm.bias", 0, 77)) * 2.0**-13)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_a_share_is_that_part_of_the_whole(kind):
    shape = (70, 384)
    full = whole("w", shape, kind)
    share = RandomWeight(7, "w", shape, (11, 128), (50, 256), weight_kind(kind)).on_host()
    np.testing.assert_array_equal(share.dequantize(), full.dequantize()[11:61, 128:384])
    if WEIGHT_KINDS[kind].bits >= 8 and WEIGHT_KINDS[kind].group_size is None:
        odd = RandomWeight(7, "w", (70, 381), (3, 5), (4, 13), weight_kind(kind)).on_host()
        np.testing.assert_array_equal(odd.dequantize(), whole("w", (70, 381), kind).dequantize()[3:7, 5:18])


def test_long_rows_are_made_in_pieces_and_equal():
    width = 8 * (1 << 14) * 2 + 40
    found = whole("w", (2, width), "int8")
    np.testing.assert_array_equal(found.values[1], signed(stream(7, "w", 1, width)))


def test_distribution():
    for kind, deviation in (("bf16", 0.01804), ("int4", 0.0164), ("int4m", 0.0180), ("fp8", 0.01804)):
        found = whole("w", (1000, 1024), kind).dequantize()
        assert abs(found.mean()) < 1e-4
        assert found.std() == pytest.approx(deviation, rel=0.01)
        assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 5e-3
        assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 5e-3
    assert not np.array_equal(whole("w", (4, 64), "int8").values, whole("v", (4, 64), "int8").values)
    assert not np.array_equal(whole("w", (4, 64), "int8").values, whole("w", (4, 64), "int8", seed=8).values)


def test_open_a_preset_and_a_file(tmp_path):
    with open_checkpoint("random:bloomz-560m", seed=3) as checkpoint:
        assert checkpoint.is_random
        assert checkpoint.tokenizer_source is None
        assert checkpoint.description == "random weights in the shape of bloomz-560m (seed 3)"
        assert checkpoint.kind_of("embed.weight", (250880, 1024)) == "bf16"
        assert checkpoint.kind_of("embed_norm.weight", (1024,)) == "fp32"
        value = Value("layers.0.mlp.up.weight", (8, 1024), "bf16", "weight", (), (16, 0), (4096, 1024))
        loaded = checkpoint.load(value)
        assert loaded.values.dtype == ml_dtypes.bfloat16
        expected = RandomWeight(3, value.name, (4096, 1024), (16, 0), (8, 1024), weight_kind("bf16")).on_host()
        np.testing.assert_array_equal(loaded.dequantize(), expected.dequantize())
    config = {"model_type": "bloom", "n_layer": 1, "n_head": 2, "hidden_size": 64, "vocab_size": 96}
    path = tmp_path / "small" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config | {"torch_dtype": "float32"}))
    assert open_checkpoint(f"random:{path}").kind_of("embed.weight", (96, 64)) == "fp32"
    assert open_checkpoint(f"random:{path}", weights="int4").kind_of("embed.weight", (96, 64)) == "int4"
    assert "small" in open_checkpoint(f"random:{path}").description


@pytest.mark.parametrize("model", ["random:no-such-model", "random:/no/such/config.json"])
def test_what_can_not_be_opened(model):
    with pytest.raises(RequestError, match=r"no preset|no such file"):
        open_checkpoint(model)
    with pytest.raises(AnthesisError, match="seed"):
        open_checkpoint("random:bloomz-560m", seed=-1)
