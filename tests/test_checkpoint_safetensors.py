"""Directories with safetensors: every slice, completeness, damage, what is refused."""

import json
import os
import struct
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.safetensors import SafetensorsStore, read_json
from anthesis.checkpoint.store import map_file
from anthesis.checkpoint.stored import StoredWeights
from anthesis.errors import AnthesisError, CheckpointError, RequestError, UnsupportedError
from anthesis.models import family_of_config
from anthesis.models.family import Source
from anthesis.program.builder import Builder
from anthesis.program.ir import Value
from anthesis.program.partition import partition
from anthesis.quantize import quantize, weight_kind

CONFIGS = {
    "bloom": {
        "model_type": "bloom", "n_layer": 2, "n_head": 4, "hidden_size": 128, "vocab_size": 96, "eos_token_id": 2,
    },
    "llama": {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_size": 128, "intermediate_size": 256, "vocab_size": 96, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip


def program_of(raw, kind_of=None):
    family = family_of_config(raw)
    config = family.read_config(raw)
    builder = Builder(config, **({} if kind_of is None else {"kind_of": kind_of}))
    family.trace(config, builder)
    return builder.program()


def tensors_of(raw, dtype=ml_dtypes.bfloat16):
    """Random tensors under the stored names that the family expects."""
    family = family_of_config(raw)
    sources = family.sources(family.read_config(raw))
    shapes: dict[str, tuple[int, ...]] = {}
    for value in program_of(raw).of_kind("weight"):
        source = sources[value.name]
        rows = value.static_shape[0] if source.rows is None else int(source.rows.max()) + 1
        before = shapes.get(source.name, (0,))[0]
        shapes[source.name] = (max(rows, before), *value.static_shape[1:])
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(directory, raw, tensors, shards=1):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture(params=CONFIGS)
def raw(request):
    return CONFIGS[request.param]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("weights", ["native", "fp32", "int8", "int4"])
def test_every_weight_is_what_is_stored(tmp_path, raw, shards, weights):
    tensors = tensors_of(raw)
    directory = write(tmp_path / "m", raw, tensors, shards)
    with open_checkpoint(str(directory), weights=weights) as checkpoint:
        program = program_of(raw, checkpoint.kind_of)
        values = program.of_kind("weight")
        checkpoint.check(values)
        sources = checkpoint.family.sources(checkpoint.config)
        for value in values:
            source = sources[value.name]
            true = tensors[source.name].astype(np.float32)
            true = true if source.rows is None else true[source.rows]
            found = checkpoint.load(value)
            assert found.kind.name == value.dtype
            if value.dtype in ("fp32", "bf16"):
                np.testing.assert_array_equal(found.dequantize(), true)
            else:
                np.testing.assert_array_equal(found.dequantize(), quantize(true, found.kind).dequantize())


@pytest.mark.parametrize("weights", ["native", "int8", "int4m"])
def test_ranks_have_their_part_of_the_whole(tmp_path, raw, weights):
    directory = write(tmp_path / "m", raw, tensors_of(raw))
    with open_checkpoint(str(directory), weights=weights) as checkpoint:
        program = program_of(raw, checkpoint.kind_of)
        whole = {value.name: checkpoint.load(value).dequantize() for value in program.of_kind("weight")}
        for rank in range(2):
            share = partition(program, rank, 2).of_kind("weight")
            checkpoint.check(share)
            assert any(value.shape != value.full_shape for value in share)
            for value in share:
                part = tuple(
                    slice(first, first + size) for first, size in zip(value.start, value.static_shape, strict=True)
                )
                np.testing.assert_array_equal(checkpoint.load(value).dequantize(), whole[value.name][part])


def test_transposed_and_gathered(tmp_path):
    true = np.arange(12 * 8, dtype=np.float32).reshape(12, 8)
    save_file({"w": true, "b": true[:, 0].copy()}, tmp_path / "model.safetensors")
    store = SafetensorsStore(tmp_path)
    rows = np.array([6, 1, 1])
    for name, expected, transpose in (("w", true, False), ("w", true.T, True)):
        for index in (slice(2, 5), rows):
            found = store.read(name, index, slice(3, 7), transpose=transpose, exact=False)
            np.testing.assert_array_equal(found.values, expected[index][:, 3:7])
            assert found.values.flags.c_contiguous
    np.testing.assert_array_equal(
        store.read("b", rows, slice(None), transpose=False, exact=False).values, true[rows, 0]
    )
    weights = StoredWeights("x", store, {"p": Source("w", transpose=True), "b": Source("b")}, (), (), "native")
    value = Value("p", (4, 5), "fp32", "weight", (), (2, 1), (8, 12))
    weights.check([value])
    np.testing.assert_array_equal(weights.load(value).values, true.T[2:6, 1:6])


def test_reading_a_part_does_not_read_the_rest(tmp_path):
    name, size = tmp_path / "model.safetensors", 1 << 36  # 64 GiB, a hole in the file
    head = json.dumps({"w": {"dtype": "BF16", "shape": [1 << 20, 1 << 15], "data_offsets": [0, size]}}).encode()
    with name.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)
    found = SafetensorsStore(tmp_path).read(
        "w", slice(1 << 19, (1 << 19) + 4), slice(5, 9), transpose=False, exact=False
    )
    assert found.shape == (4, 4)
    assert not found.dequantize().any()


def test_prefix_extra_end_tokens_and_tokenizer(tmp_path, raw):
    family = family_of_config(raw)
    tensors = {family.prefixes[0] + name.removeprefix(family.prefixes[0]): t for name, t in tensors_of(raw).items()}
    directory = write(tmp_path / "m", raw, tensors)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    checkpoint = open_checkpoint(str(directory))
    checkpoint.check(program_of(raw).of_kind("weight"))
    assert checkpoint.config.eos_token_ids == (2, 7)
    assert checkpoint.description == "m"
    assert checkpoint.tokenizer_source is None
    (directory / "tokenizer.json").write_text("{}")
    assert open_checkpoint(str(directory)).tokenizer_source == directory


def check(directory, raw):
    with open_checkpoint(str(directory)) as checkpoint:
        checkpoint.check(program_of(raw, checkpoint.kind_of).of_kind("weight"))


def test_incomplete_and_misfitting(tmp_path, raw):
    tensors = tensors_of(raw)
    matrix = next(name for name in tensors if name.endswith(("down_proj.weight", "4h_to_h.weight")))
    without = {name: tensor for name, tensor in tensors.items() if name != matrix}
    with pytest.raises(CheckpointError, match=f"does not hold .*{matrix}"):
        check(write(tmp_path / "a", raw, without), raw)
    with pytest.raises(CheckpointError, match=r"does not have: surprise.weight"):
        check(write(tmp_path / "b", raw, tensors | {"surprise.weight": np.ones(3, np.float32)}), raw)
    for i, wrong in enumerate((tensors[matrix][:-1], tensors[matrix].T.copy(), tensors[matrix][:, 0].copy())):
        with pytest.raises(CheckpointError, match=rf"{matrix} has the shape"):
            check(write(tmp_path / f"c{i}", raw, tensors | {matrix: wrong}), raw)
    longer = np.concatenate((tensors[matrix], tensors[matrix]))
    with pytest.raises(CheckpointError, match=rf"{matrix} has the shape .* rows"):
        check(write(tmp_path / "d", raw, tensors | {matrix: longer}), raw)
    with pytest.raises(CheckpointError, match=rf"{matrix} is stored as F64"):
        check(write(tmp_path / "e", raw, tensors | {matrix: tensors[matrix].astype(np.float64)}), raw)


def test_what_is_refused(tmp_path, raw):
    directory = write(tmp_path / "m", raw | {"quantization_config": {"quant_method": "gptq"}}, tensors_of(raw))
    with pytest.raises(UnsupportedError, match="gptq"):
        open_checkpoint(str(directory))
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(str(directory))
    (directory / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"there are pytorch_model-00001-of-00002.bin, without an index"):
        open_checkpoint(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither config.json"):
        open_checkpoint(str(directory))
    with pytest.raises(RequestError, match="unknown weight kind"):
        open_checkpoint(str(directory), weights="int3")


def test_damaged_index(tmp_path, raw):
    directory = write(tmp_path / "m", raw, tensors_of(raw), 2)
    index = directory / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(good.items()))
    other = next(f for f in good.values() if f != file)
    for weight_map, message in (
        (good | {name: "../evil.safetensors"}, "evil"),
        (good | {name: "x" * 100_000 + ".safetensors"}, "a file has 100,012 characters"),
        (good | {"x" * 100_000: file}, "a tensor has 100,000 characters"),
        (good | {name: "model-00009-of-00002.safetensors"}, "1 of 3 shards are missing"),
        (good | {name: other}, f"lacks the tensor {name}"),
        ({}, "lacks a weight_map"),
        ([1], "lacks a weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(directory))
    index.write_text("[")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(str(directory))


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"w": ENTRY | {"data_offsets": [0, 20]}}, "w is at 0 to 20 of 16"),
        ({"w": ENTRY | {"data_offsets": [8, 0]}}, "w is at"),
        ({"w": ENTRY | {"data_offsets": [-4, 12]}}, "w has the data_offsets"),
        ({"w": ENTRY | {"shape": [3, 2]}}, "16 bytes"),
        ({"w": ENTRY | {"shape": [2**40, 2**40]}}, "16 bytes"),
        ({"w": ENTRY | {"shape": [2**70]}}, "w has the shape"),
        ({"w": ENTRY | {"shape": "22"}}, "w has the shape"),
        ({"w": ENTRY | {"dtype": 5}}, "w has the dtype"),
        ({"w": 3}, "entry for w"),
        ({"w": ["\x1b[2J" * 100_000]}, r"entry for w is \['\\x1b"),
        ({"w": ENTRY | {"dtype": "\x1b[2J"}}, r"w has the dtype '\\x1b"),
        ({"w": ENTRY | {"dtype": "F" * 100_000}}, "w has the dtype 'FFF"),
        ({"w": ENTRY | {"shape": [2**61] * 32}}, "w of shape .* has 16 bytes"),
        ({"w" * 3_000_000: 5}, "3,000,000 characters, 'www"),
        ({"\x1b[2J": ENTRY}, r"a tensor has 4 characters, '\\x1b\[2J'"),
        ({"": ENTRY}, "a tensor has 0 characters"),
        ({"w": ENTRY, "v": ENTRY}, "overlap"),
    ],
)
def test_headers_that_lie(tmp_path, entries, message):
    head = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsStore(tmp_path)
    assert len(str(caught.value)) < 500


def headed(**tensors):
    head = json.dumps(tensors, separators=(",", ":")).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.timed
def test_tensors_are_counted_before_they_are_looked_at(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "model.safetensors"
    path.write_bytes(headed(**{f"t{i}": empty for i in range(150_000)}))
    begin = time.process_time()
    with pytest.raises(CheckpointError, match="149,999 tensors, at most 32,768"):
        SafetensorsStore(tmp_path)
    assert time.process_time() - begin < 0.5
    path.write_bytes(headed(__metadata__={"format": "pt"}, **{f"t{i}": empty for i in range(32_768)}))
    assert len(SafetensorsStore(tmp_path).tensors) == 32_768


def test_tensors_of_all_shards_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("anthesis.checkpoint.store.MAX_TENSORS", 3)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for i in range(2):
        (tmp_path / f"{i}.safetensors").write_bytes(headed(**{f"{i}.{j}": empty for j in range(2)}))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.0": "0.safetensors", "1.0": "1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"1\.safetensors: .* 4 tensors"):
        SafetensorsStore(tmp_path)
    index.write_text(json.dumps({"weight_map": {f"{i}": "0.safetensors" for i in range(4)}}))
    with pytest.raises(CheckpointError, match=r"index\.json: .* 4 tensors"):
        SafetensorsStore(tmp_path)


def test_hostile_json(tmp_path):
    path, file = tmp_path / "config.json", tmp_path / "model.safetensors"
    for data, message in (
        (b"[" * 100_000, "JSON"),
        (b'{"a": [' + b"0," * (1 << 20) + b"0]}", "too many values"),
        (b'{"a": "' + bytes(1 << 24), "too long"),
        (b"[1]", "a JSON object is needed, not an array"),
        (b'{"a": "\xff"}', "UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            read_json(path)
        file.write_bytes(struct.pack("<Q", len(data)) + data)
        with pytest.raises(CheckpointError, match=message.replace("too long", "at most 16,777,216")):
            SafetensorsStore(tmp_path)
    for data in (b'{"w": 1, "w": 2}', b'{"w": {"dtype": "F32", "dtype": "F16"}}'):
        file.write_bytes(struct.pack("<Q", len(data)) + data)
        with pytest.raises(CheckpointError, match="occurs twice"):
            SafetensorsStore(tmp_path)
    with path.open("wb") as sparse:
        sparse.truncate(1 << 36)
    with pytest.raises(CheckpointError, match="too long"):
        read_json(path)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to: to open it would be to wait forever
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/tty")):
        for opening in (read_json, map_file):
            with pytest.raises(CheckpointError, match=str(path)):
                opening(path)
    with pytest.raises(CheckpointError, match=r"pipe: a directory, pipe or device"):
        read_json(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="No such file"):
        map_file(tmp_path / "none")


def test_truncation_and_damage(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32), "v": np.ones(4, np.float16)}, path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            SafetensorsStore(tmp_path)
    refused = 0
    for _ in range(1000):
        broken = bytearray(data)
        broken[rng.integers(0, len(data) - 72)] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            SafetensorsStore(tmp_path)
        except AnthesisError:
            refused += 1
    assert refused > 300


def test_unaligned_data_is_copied(tmp_path):
    head = json.dumps({"w": ENTRY}).encode()
    head += b" " * (5 - (8 + len(head)) % 4)  # one byte beyond a multiple of four
    numbers = np.arange(4, dtype=np.float32)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + numbers.tobytes())
    found = SafetensorsStore(tmp_path).read("w", slice(0, 2), slice(0, 2), transpose=False, exact=False)
    assert found.values.flags.aligned
    np.testing.assert_array_equal(found.values.ravel(), numbers)


def test_width_that_the_groups_do_not_divide_names_the_weight(tmp_path):
    raw = CONFIGS["bloom"] | {"hidden_size": 80}
    directory = write(tmp_path / "m", raw, tensors_of(raw))
    with pytest.raises(RequestError, match=r"embed.weight: .*width 80 .*int4"):
        program_of(raw, open_checkpoint(str(directory), weights="int4").kind_of)
    assert weight_kind("int4").column_step == 32
