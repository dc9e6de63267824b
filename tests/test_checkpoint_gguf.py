"""GGUF: equal numbers, damaged files, the default model."""

import re
import struct
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.default import default_model
from anthesis.checkpoint.gguf import _EXACT, GgufStore
from anthesis.checkpoint.gguf_header import BLOCKS
from anthesis.checkpoint.stored import StoredWeights
from anthesis.errors import AnthesisError, CheckpointError, RequestError, UnsupportedError
from anthesis.models.family import Source
from anthesis.program.ir import Value
from anthesis.quantize import quantize, weight_kind

N, K = 24, 512
TYPES = gguf.GGMLQuantizationType


def random_blocks(name, rows=N, width=K, seed=0):
    """Random bytes with sensible scales: (rows, bytes of a row) uint8."""
    size, nbytes = gguf.GGML_QUANT_SIZES[TYPES[name]]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, width // size, nbytes), np.uint8)
    places = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82],
              "Q3_K": [108], "IQ1_M": [], "NVFP4": []}.get(name, [0])  # fmt: skip
    for at in places:
        scales = rng.uniform(-1e-2, 1e-2, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    if name == "IQ1_M":  # whose scale is in the high halves of four bytes
        bits = np.float16(0.01).view(np.uint16)
        for i, at in enumerate((49, 51, 53, 55)):
            blocks[:, :, at] = blocks[:, :, at] & 15 | (bits >> (4 * i) & 15) << 4
    if name == "NVFP4":  # four scales of eight bits, of which some stand for NaN
        blocks[:, :, :4] &= 63
    return blocks.reshape(rows, -1)


def write(path, tensors, **metadata):
    """tensors: name -> float array, or (type name, bytes)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[1], raw_dtype=TYPES[tensor[0]])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def true_numbers(name, blocks):
    return gguf.quants.dequantize(blocks, TYPES[name])


@pytest.mark.parametrize(("name", "kind"), [("Q8_0", "int8-g32"), ("Q4_0", "int4"), ("Q4_1", "int4m")])
def test_lossless_types(tmp_path, name, kind):
    blocks = random_blocks(name)
    store = GgufStore(write(tmp_path / "a.gguf", {"w": (name, blocks)}))
    assert store.tensors["w"].kind == kind
    true = true_numbers(name, blocks)
    for rows in (slice(0, N), slice(5, 9), np.array([7, 3, 3, 20])):
        for columns in (slice(0, K), slice(64, 320)):
            found = store.read("w", rows, columns, transpose=False, exact=False)
            assert found.kind.name == kind
            np.testing.assert_array_equal(found.dequantize(), true[rows][:, columns])
    with pytest.raises(RequestError, match="blocks of 32"):
        store.read("w", slice(0, N), slice(0, 48), transpose=False, exact=False)


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [("Q4_K", "int4m", 5e-4), ("Q5_K", "int8-g32", 6e-3), ("Q6_K", "int8-g32", 6e-3), ("Q2_K", "bf16", 2e-3),
     ("Q5_1", "bf16", 2e-3)],
)  # fmt: skip
def test_nearly_held_types(tmp_path, name, kind, error):
    blocks = random_blocks(name)
    store = GgufStore(write(tmp_path / "a.gguf", {"w": (name, blocks)}))
    true = true_numbers(name, blocks)
    found = store.read("w", np.array([3, 1]), slice(256, 512), transpose=False, exact=False)
    expected = true[[3, 1], 256:]
    assert found.kind.name == kind
    assert np.sqrt(np.mean((found.dequantize() - expected) ** 2) / np.mean(expected**2)) < error
    exact = store.read("w", slice(0, N), slice(0, K), transpose=False, exact=True)
    np.testing.assert_array_equal(exact.values, true)


def stored_blocks(name):
    """Normal numbers, quantised where the gguf package can do it, else random blocks: (N, bytes of a row) uint8."""
    numbers = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    try:
        return gguf.quants.quantize(numbers, TYPES[name]).view(np.uint8)
    except NotImplementedError:
        return random_blocks(name)


UNREAD = ("I8", "I16", "I32", "I64", "F64")
ERRORS = {"Q4_K": 5e-4, "Q5_K": 6e-3, "Q6_K": 6e-3}
"""Largest relative error, in the mean over squares, of what is not held exactly; of bf16 it is 2e-3."""


def test_the_list_of_types_is_that_of_the_gguf_package():
    known = {number: (name, *gguf.GGML_QUANT_SIZES[TYPES[name]]) for number, (name, _, _) in BLOCKS.items()}
    assert known == BLOCKS
    assert all(TYPES[name] == number for number, (name, _, _) in BLOCKS.items())


@pytest.mark.parametrize("name", [name for name, _, _ in BLOCKS.values() if name not in UNREAD])
def test_every_type(tmp_path, name):
    blocks = stored_blocks(name)
    store = GgufStore(write(tmp_path / "a.gguf", {"w": (name, blocks), "v": (name, blocks[0])}))
    whole = slice(0, N), slice(0, K)
    try:
        true = true_numbers(name, blocks)
    except NotImplementedError:
        for tensor_name in ("w", "v"):
            with pytest.raises(CheckpointError, match=rf"tensor {tensor_name} is of type {name}, .*another quantis"):
                store.read(tensor_name, *whole, transpose=False, exact=True)
        return
    assert np.isfinite(true).all()
    assert true.std() > 0
    exact = store.read("w", *whole, transpose=False, exact=True)
    np.testing.assert_array_equal(exact.dequantize().view(np.uint32), true.view(np.uint32))
    native = store.read("w", *whole, transpose=False, exact=False)
    assert native.kind.name == store.tensors["w"].kind
    if name in _EXACT:
        np.testing.assert_array_equal(native.dequantize().view(np.uint32), true.view(np.uint32))
    else:
        error = np.sqrt(np.mean((native.dequantize() - true) ** 2) / np.mean(true**2))
        assert error < ERRORS.get(name, 2e-3)
    vector = store.read("v", slice(3, 100), slice(None), transpose=False, exact=False)
    np.testing.assert_array_equal(vector.dequantize(), true[0, 3:100])
    assert vector.kind.name == (store.tensors["w"].kind if name in ("F16", "BF16") else "fp32")


@pytest.mark.parametrize("name", UNREAD)
def test_types_that_are_no_weights(tmp_path, name):
    size = gguf.GGML_QUANT_SIZES[TYPES[name]][1]
    store = GgufStore(write(tmp_path / "a.gguf", {"w": (name, np.zeros((N, K * size), np.uint8))}))
    assert store.tensors["w"].kind is None


def load(store, weights, shape=(N, K), start=(0, 0), full=(N, K), rows=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = StoredWeights("x", store, {"weight": Source("w", rows)}, (), (), weights)
    return found.load(Value("weight", shape, found.kind_of("weight", full), "weight", (), start, full))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("weights", ["native", "bf16", "int8", "int4", "fp32"])
def test_a_share_is_that_part_of_the_whole(tmp_path, name, weights):
    store = GgufStore(write(tmp_path / "a.gguf", {"w": (name, random_blocks(name))}))
    order = np.random.default_rng(1).permutation(N)
    whole = load(store, weights, rows=order).dequantize()
    share = load(store, weights, (10, 96), (4, 128), rows=order)  # cuts Q4_K's blocks of 256, but no group
    np.testing.assert_array_equal(share.dequantize(), whole[4:14, 128:224])
    if weights == "fp32":
        np.testing.assert_array_equal(whole, true_numbers(name, random_blocks(name))[order])
    if weights == "int8":
        direct = quantize(true_numbers(name, random_blocks(name))[order], weight_kind("int8"))
        np.testing.assert_array_equal(whole, direct.dequantize())


def test_a_warning_says_what_is_not_exact(tmp_path):
    tensors = {"w": ("Q6_K", random_blocks("Q6_K")), "v": ("Q2_K", random_blocks("Q2_K"))}
    store = GgufStore(write(tmp_path / "a.gguf", tensors))
    sources = {"a": Source("w"), "b": Source("v")}
    with pytest.warns(UserWarning, match="Q2_K as bf16, Q6_K as int8-g32") as caught:
        StoredWeights("x", store, sources, (), (), "native")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StoredWeights("x", store, sources, (), (), "fp32")


@pytest.mark.parametrize(("stored", "weights", "warned"), [
    ("Q4_1", "int8", True), ("Q6_K", "int4", True), ("Q4_1", "int4m", False), ("F16", "int8", False),
    ("Q4_1", "bf16", False),
])  # fmt: skip
def test_a_warning_says_what_is_quantised_twice(tmp_path, stored, weights, warned):
    blocks = (stored, random_blocks(stored)) if stored != "F16" else None
    store = GgufStore(write(tmp_path / "x.gguf", {"w": blocks if stored != "F16" else np.ones((N, K), np.float16)}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        StoredWeights("here", store, {"w": Source("w")}, (), (), weights)
    assert [f"stored as {stored} and quantised once more, to {weights}" in str(w.message) for w in caught] == [
        True
    ] * warned


def test_metadata(tmp_path):
    strings = ["", "Ġa", "漢", "x" * 300]
    store = GgufStore(write(tmp_path / "a.gguf", {"v": np.ones(3, np.float32)}, words=strings, numbers=[1, -2, 3]))
    assert store.metadata["general.architecture"] == "llama"
    assert store.metadata["words"] == strings
    np.testing.assert_array_equal(store.metadata["numbers"], [1, -2, 3])
    np.testing.assert_array_equal(store.read("v", slice(1, 3), slice(None), transpose=False, exact=False).values, 1)


def test_the_default_model_is_read_as_gguf_reads_it():
    path = default_model()
    reader, store = gguf.GGUFReader(path), GgufStore(path)
    assert set(store.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors[:30]:
        columns = slice(0, int(tensor.shape[0]))
        found = store.read(tensor.name, slice(0, 4096), columns, transpose=False, exact=False)
        true = gguf.quants.dequantize(tensor.data[:4096], tensor.tensor_type)
        np.testing.assert_array_equal(found.dequantize(), true)
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert store.metadata["tokenizer.ggml.tokens"][1000] == bytes(tokens.parts[tokens.data[1000]]).decode()
    for key in ("llama.block_count", "llama.rope.freq_base", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"):
        assert store.metadata[key] == reader.fields[key].contents()


def test_open_the_default_model():
    with open_checkpoint(None) as checkpoint:
        assert checkpoint.description == "SmolLM2-135M-Instruct.Q4_1.gguf"
        assert not checkpoint.is_random
        assert "tokenizer.ggml.tokens" in checkpoint.tokenizer_source
        assert checkpoint.kind_of("embed.weight", (49152, 576)) == "int8-g32"
        assert checkpoint.kind_of("layers.0.mlp.down.weight", (576, 1536)) == "int4m"


def test_every_truncation_is_an_error(tmp_path):
    path = write(tmp_path / "a.gguf", {"w": ("Q4_0", random_blocks("Q4_0", 2, 64))}, words=["a", "bc"])
    data = path.read_bytes()
    end = len(data) - 28  # padding up to the alignment is not missed
    for size in range(end):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            GgufStore(path)


def test_random_damage_is_an_error_or_harmless(tmp_path):
    path = write(tmp_path / "a.gguf", {"w": ("Q4_0", random_blocks("Q4_0", 2, 64))}, words=["a", "bc"], n=[1, 2])
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        broken = bytearray(data)
        for at in rng.integers(0, len(data) - 80, 2):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            store = GgufStore(path)
        except AnthesisError:
            refused += 1
        else:
            assert store.tensors
    assert refused > 500


def header(tensors=0, keys=0, version=3, body=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(shape=(32,), type_number=0, offset=0, rank=None):
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    rank = len(shape) if rank is None else rank
    return string("the.tensor") + struct.pack("<I", rank) + dims + struct.pack("<IQ", type_number, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04" * 20, "not a GGUF file"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "big-endian"),
        (header(tensors=2**63), "9,223,372,036,854,775,808 tensors, at most"),
        (header(tensors=1 << 15), "32768 tensors can't fit"),
        (header(tensors=(1 << 15) + 1), "32,769 tensors, at most"),
        (header(keys=2**63), "keys, at most"),
        (header(keys=1 << 16), "65536 keys and .* can't fit"),
        (header(keys=(1 << 16) + 1), "65,537 keys, at most"),
        (header(keys=1, body=struct.pack("<Q", 2**62) + bytes(50)), "bytes in a key's name, at most 512"),
        (header(keys=1, body=struct.pack("<Q", 513) + bytes(1000)), "513 bytes in a key's name"),
        (header(keys=1, body=struct.pack("<Q", 512) + bytes(50)), "a key's name.* ends after the file"),
        (header(tensors=1, body=struct.pack("<Q", 513) + bytes(1000)), "513 bytes in a tensor's name"),
        (header(keys=1, body=string("k" * 129) + bytes(50)), "name of a key has 129 characters, 'kkk"),
        (header(keys=1, body=string("a\x1b[2J") + bytes(50)), r"a key has 5 characters, 'a\\x1b\[2J'; .*printable"),
        (header(tensors=1, body=string("") + bytes(50)), "name of a tensor has 0 characters"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 8, 1 << 20)), "k .1048576 strings. can't fit"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 8, (1 << 20) + 1)), "1,048,577 strings up to k"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 0, 1 << 21)), "2097152 values of k can't fit"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 0, (1 << 21) + 1)), "2,097,153 values up to k"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 8, 2**60)), "strings up to k"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 10, 2**61)), "values up to k"),
        (header(keys=1, body=string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)), "type 9"),
        (header(tensors=1, body=tensor(shape=(2**47, 2**47)) + bytes(64)), "the.tensor"),
        (header(tensors=1, body=tensor(shape=(0, 4)) + bytes(64)), "the.tensor"),
        (header(tensors=1, body=tensor(rank=2**31) + bytes(64)), "the.tensor has 2147483648 dimensions"),
        (header(tensors=1, body=tensor(type_number=99) + bytes(256)), "type 99"),
        (header(tensors=1, body=tensor(shape=(31,), type_number=2) + bytes(256)), "31 wide"),
        (header(tensors=1, body=tensor(offset=2**60) + bytes(256)), "the.tensor"),
        (header(tensors=1, body=tensor(offset=1) + bytes(256)), "the.tensor"),
        (header(tensors=2, body=tensor() * 2 + bytes(512)), "occurs twice"),
    ],
)
def test_lies(tmp_path, data, message):
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(AnthesisError, match=message) as caught:
        GgufStore(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<IIQ", 9, 8, 1 << 19) + bytes(8 << 19), "1,572,864 strings up to k2, at most 1,048,576"),
        (struct.pack("<IIQ", 9, 10, 1 << 20) + bytes(8 << 20), "3,145,728 values up to k2, at most 2,097,152"),
        (struct.pack("<IQ", 8, 12_000_000) + b"x" * 12_000_000, r"36,000,00\d bytes of text up to the value of k2"),
    ],
)
def test_what_many_keys_hold_is_bounded_together(tmp_path, value, message):
    (tmp_path / "lie.gguf").write_bytes(header(keys=3, body=b"".join(string(f"k{i}") + value for i in range(3))))
    with pytest.raises(CheckpointError, match=message):
        GgufStore(tmp_path / "lie.gguf")


def test_a_vocabulary_as_large_as_gemma_s_is_read(tmp_path):
    tokens, merges = [f"t{i}" for i in range(262_144)], [f"t{i} x" for i in range(514_906)]
    sizes = {"scores": [0.0] * len(tokens), "token_type": [1] * len(tokens)}
    store = GgufStore(write(tmp_path / "a.gguf", {"w": np.ones(32, np.float32)}, tokens=tokens, merges=merges, **sizes))
    assert store.metadata["tokens"] == tokens
    assert store.metadata["merges"] == merges


def test_files_that_are_no_model(tmp_path):
    split = write(tmp_path / "split.gguf", {"v": np.ones(32, np.float32)})
    writer = gguf.GGUFWriter(split, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"3 parts.*merge"):
        open_checkpoint(str(split))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RequestError, match="not a model"):
        open_checkpoint(str(tmp_path / "notes.txt"))
    with pytest.raises(RequestError, match="no such file"):
        open_checkpoint(str(Path(tmp_path) / "none.gguf"))
