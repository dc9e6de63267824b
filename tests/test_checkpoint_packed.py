"""Packed directories: what is written is what a load would have given, what is damaged is refused; NaN in weights."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel

from anthesis import LLM
from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.convert import write_packed
from anthesis.checkpoint.default import default_model
from anthesis.checkpoint.gguf import GgufStore
from anthesis.checkpoint.packed import MODEL_NAME, WEIGHTS_NAME
from anthesis.checkpoint.stored import StoredWeights
from anthesis.errors import AnthesisError, CheckpointError, RequestError
from anthesis.models import families, trace
from anthesis.models.family import Source
from anthesis.program.ir import Value
from anthesis.program.partition import partition
from anthesis.records import from_document, to_document
from anthesis.tokenizer import open_tokenizer
from command_line import anthesis, command, fail, succeed, tiny_model
from programs import ALL, config_of
from test_checkpoint_gguf import random_blocks
from test_checkpoint_gguf import write as write_gguf
from test_checkpoint_safetensors import CONFIGS, tensors_of
from test_checkpoint_safetensors import write as write_directory
from trained_tokenizers import train_byte_level


def convert(model, directory, weights="native", seed=0):
    with open_checkpoint(str(model), weights=weights, seed=seed) as checkpoint:
        write_packed(checkpoint, directory, weights)
    return directory


def weights_of(checkpoint, rank=0, ranks=1):
    """Every weight of a rank, as the checkpoint gives it."""
    program = trace(checkpoint.config, "argmax", checkpoint.kind_of)
    values = partition(program, rank, ranks).of_kind("weight")
    checkpoint.check(values)
    return {value.name: checkpoint.load(value) for value in values}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        other = found[name]
        assert (other.kind, other.shape) == (weight.kind, weight.shape), name
        for mine, true in (
            (other.values, weight.values), (other.scales, weight.scales), (other.minimums, weight.minimums)
        ):  # fmt: skip
            assert (mine is None) == (true is None)
            if mine is not None:
                assert mine.dtype == true.dtype
                np.testing.assert_array_equal(mine.view(np.uint8), np.ascontiguousarray(true).view(np.uint8), name)


@pytest.fixture(params=CONFIGS)
def raw(request):
    return CONFIGS[request.param]


@pytest.fixture
def source(tmp_path, raw):
    return write_directory(tmp_path / "source", raw, tensors_of(raw))


@pytest.fixture(scope="module")
def packed_default(tmp_path_factory):
    return convert(default_model(), tmp_path_factory.mktemp("packed") / "smollm2")


@pytest.fixture
def packed(tmp_path):
    """A small one with scales and minimums, and a tokenizer."""
    source = write_directory(tmp_path / "source", CONFIGS["llama"], tensors_of(CONFIGS["llama"]))
    train_byte_level(ByteLevel()).save(str(source / "tokenizer.json"))
    return convert(source, tmp_path / "packed", "int4m")


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_default_model_is_the_same(packed_default):
    with open_checkpoint(None) as gguf, open_checkpoint(str(packed_default)) as packed:
        assert packed.config == gguf.config
        assert (packed.description, packed.family, packed.is_random) == (gguf.description, gguf.family, False)
        assert_same(weights_of(packed), weights_of(gguf))
        tokenizers = [open_tokenizer(checkpoint.tokenizer_source) for checkpoint in (packed, gguf)]
        kept = {key: value for key, value in gguf.tokenizer_source.items() if key.startswith("tokenizer.")}
        for key, value in kept.items():
            np.testing.assert_array_equal(packed.tokenizer_source[key], value)
    text = "Ünïcode, 12345 and  two spaces\n<|im_end|>"
    mine, true = (tokenizer.encode_chat([{"role": "user", "content": text}]) for tokenizer in tokenizers)
    assert mine == true


def test_the_default_model_says_the_same(packed_default):
    tokens = []
    for model in (None, str(packed_default)):
        with LLM(model, device="reference") as llm:
            tokens.append(llm.generate("The capital of France is", max_new_tokens=20)[0].token_ids)
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 20


@pytest.mark.parametrize("weights", ["native", "fp32", "fp16", "int8", "int8-g32", "int4", "int4m-g64", "fp8"])
def test_weights_are_those_that_loading_gives(tmp_path, source, weights):
    directory = convert(source, tmp_path / "packed", weights)
    with open_checkpoint(str(source), weights=weights) as true, open_checkpoint(str(directory)) as packed:
        assert packed.config == true.config
        assert_same(weights_of(packed), weights_of(true))


@pytest.mark.parametrize("weights", ["native", "int8", "int4", "fp8"])
def test_any_number_of_ranks_has_its_share(tmp_path, weights):
    raw = CONFIGS["llama"] | {
        "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 192, "intermediate_size": 384
    }  # fmt: skip
    source = write_directory(tmp_path / "source", raw, tensors_of(raw))
    directory = convert(source, tmp_path / "packed", weights)
    with open_checkpoint(str(source), weights=weights) as true, open_checkpoint(str(directory)) as packed:
        for rank in range(3):
            shares = weights_of(packed, rank, 3)
            assert shares["layers.0.attention.q.weight"].shape == (64, 192)
            assert_same(shares, weights_of(true, rank, 3))


@pytest.mark.parametrize("weights", ["native", "int8", "int4", "fp8"])
def test_random_weights(tmp_path, weights):
    model = tiny_model(tmp_path)
    directory = convert(model, tmp_path / "packed", weights, seed=7)
    with open_checkpoint(model, weights=weights, seed=7) as true, open_checkpoint(str(directory)) as packed:
        assert packed.is_random
        assert "seed 7" in packed.description
        assert packed.tokenizer_source is None
        assert_same(weights_of(packed), weights_of(true))


@pytest.mark.parametrize("pieces", [1, 1000])
@pytest.mark.slow
def test_weights_are_written_in_pieces(tmp_path, source, pieces, monkeypatch):
    monkeypatch.setattr("anthesis.checkpoint.convert.PIECE_ELEMENTS", pieces)
    directory = convert(source, tmp_path / "packed", "int4")
    with open_checkpoint(str(source), weights="int4") as true, open_checkpoint(str(directory)) as packed:
        assert_same(weights_of(packed), weights_of(true))


def test_another_kind_is_made_of_what_is_packed(tmp_path, source):
    directory = convert(source, tmp_path / "packed")
    with open_checkpoint(str(source), weights="int4") as true, open_checkpoint(str(directory), weights="int4") as found:
        assert_same(weights_of(found), weights_of(true))
    again = convert(convert(source, tmp_path / "int8", "int8"), tmp_path / "again")
    assert (again / WEIGHTS_NAME).read_bytes() == (tmp_path / "int8" / WEIGHTS_NAME).read_bytes()
    with pytest.warns(UserWarning, match="quantised once more, to int4"):
        open_checkpoint(str(again), weights="int4")


@pytest.mark.parametrize("weights", ["native", "fp32", "fp16", "int8", "int4m", "fp8"])
def test_the_weights_are_a_safetensors_file(tmp_path, source, weights):
    directory = convert(source, tmp_path / "packed", weights)
    data = (directory / WEIGHTS_NAME).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert start % 64 == 0
    header = json.loads(data[8:start])
    places = sorted(entry["data_offsets"] for entry in header.values())
    assert places[0][0] == 0
    assert [begin for begin, _ in places[1:]] == [end for _, end in places[:-1]]
    assert places[-1][1] == len(data) - start
    with open_checkpoint(str(directory)) as packed, safe_open(directory / WEIGHTS_NAME, "pt") as file:
        assert set(file.keys()) == set(header)
        for name, weight in weights_of(packed).items():
            assert all(a is None or (a.flags.aligned and not a.flags.owndata) for a in (weight.values, weight.scales))
            stored = file.get_tensor(name)
            assert stored.view(torch.uint8).numpy().tobytes() == weight.values.tobytes()
            assert tuple(stored.shape) == weight.values.shape
            if weight.scales is not None:
                np.testing.assert_array_equal(file.get_tensor(f"{name}.scales").numpy(), weight.scales)


def test_a_header_without_padding_is_read(packed):
    with open_checkpoint(str(packed)) as checkpoint:
        expected = weights_of(checkpoint)
    data = (packed / WEIGHTS_NAME).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = data[8:start].rstrip()
    header += b" " * (len(header) % 2 == 0)
    (packed / WEIGHTS_NAME).unlink()  # the expected weights are mapped
    (packed / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(header)) + header + data[start:])
    with open_checkpoint(str(packed)) as checkpoint:
        found = weights_of(checkpoint)
    assert_same(found, expected)
    assert all(weight.values.flags.aligned for weight in found.values())


def test_the_tokenizer_of_a_directory_comes_along(packed):
    with open_checkpoint(str(packed)) as checkpoint:
        tokenizer = open_tokenizer(checkpoint.tokenizer_source)
    assert tokenizer.encode("hello world") == open_tokenizer(packed.parent / "source").encode("hello world")


@pytest.mark.parametrize("name", ALL)
def test_configurations_are_read_back(name):
    config = config_of(ALL[name])
    family = next(family for family in families() if family.name == config.family)
    document = json.loads(json.dumps(to_document(config)))
    assert from_document(family.config_type, document, "config") == config


# --- what is damaged -------------------------------------------------------------------------------------------------


def checked(directory):
    with open_checkpoint(str(directory)) as checkpoint:
        checkpoint.check(trace(checkpoint.config, "argmax", checkpoint.kind_of).of_kind("weight"))


def refuse(directory, *named):
    """Opening and checking must fail with an error that names these."""
    with pytest.raises(CheckpointError) as caught:
        checked(directory)
    for text in named:
        assert text in str(caught.value), str(caught.value)


Q = "layers.0.attention.q.weight"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), 2, "version 2"),
        (("format",), "x", "'x'"),
        (("family",), "nobody", "nobody"),
        (("family",), "bloom", "it"),
        (("config", "family"), "bloom", "family"),
        (("config", "num_layers"), 3, "3 layers"),
        (("config", "num_layers"), 4000, "4000"),
        (("config", "num_layers"), 10**30, "num_layers"),
        (("config", "hidden_size"), 64, "has the shape"),
        (("config", "usable_vocab_size"), 97, "usable_vocab_size"),
        (("config", "windows"), [None], "windows"),
        (("config", "windows"), [0, 0], "window"),
        (("config", "frequencies"), [1.0], "frequencies"),
        (("config", "norm_epsilon"), float("nan"), "not JSON compliant"),
        (("config", "norm_epsilon"), 10**400, "damaged"),
        (("config", "activation"), "x", "activation"),
        (("config", "eos_token_ids"), [-5, 2], "token id -5"),
        (("config", "bos_token_id"), -1, "token id -1"),
        (("config",), {}, "lacks"),
        (("tokenizer",), ["../secret"], "secret"),
        (("tokenizer",), ["tokenizer.gguf"], "tokenizer.gguf"),
        (("tensors",), {}, "does not name"),
        (("tensors",), [], "an object"),
        (("tensors", Q, "kind"), "int3", "int3"),
        (("tensors", Q, "kind"), "int4", Q),
        (("tensors", Q, "kind"), "int8", Q),
        (("tensors", Q, "shape"), [64, 128], Q),
        (("tensors", Q, "shape"), [2**40, 2**40], Q),
        (("tensors", Q, "shape"), [2**30, 2**22], Q),
        (("tensors", Q, "shape"), [128, 127], Q),
        (("tensors", Q, "shape"), [128], Q),
        (("tensors", Q, "shape"), [0, 128], Q),
        (("tensors", "final_norm.weight", "kind"), "int8", "vectors"),
        (("tensors", f"{Q}.scales"), {"kind": "fp32", "shape": [128]}, f"{Q}.scales"),
        (("tensors", "surprise"), {"kind": "fp32", "shape": [128]}, "surprise"),
        (("tensors", "\x1b[2J"), {"kind": "fp32", "shape": [128]}, "'\\x1b[2J'"),
        (("tensors", "\x1b[2J" * 100), {"kind": 5, "shape": [128]}, "'\\x1b[2J"),
        (("tensors",), dict.fromkeys(map(str, range(32_769))), "32,769 tensors"),
    ],
)  # fmt: skip
def test_a_model_file_that_lies(packed, path, value, named):
    document = json.loads((packed / MODEL_NAME).read_text())
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (packed / MODEL_NAME).write_text(json.dumps(document))
    refuse(packed, named, str(packed))


def test_ends_that_never_come_are_left_out(packed):
    document = json.loads((packed / MODEL_NAME).read_text())
    document["config"]["eos_token_ids"] = [2, 1_000_000_000]
    document["model"] = "\x1b[2J" * 1000
    (packed / MODEL_NAME).write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="eos_token_id 1000000000 is outside the vocabulary") as caught:
        opened = open_checkpoint(str(packed))
    assert opened.config.eos_token_ids == (2,)
    assert opened.description.isprintable()
    assert len(str(caught[0].message)) < 2000


def test_a_wrong_tensor_is_named(packed):
    path = packed / WEIGHTS_NAME
    data = path.read_bytes()
    for old, new in ((b'"U8"', b'"I8"'), (b"[128,64]", b"[64,128]"), (Q.encode(), Q.replace("0", "9").encode())):
        path.write_bytes(data.replace(old, new, 1))
        refuse(packed, str(path))
    path.write_bytes(data[:-1])
    refuse(packed, str(path), "truncated", "head.weight")


@pytest.mark.parametrize("name", [MODEL_NAME, WEIGHTS_NAME, "tokenizer.json"])
def test_a_file_that_is_none(packed, name):
    path = packed / name
    path.unlink()
    if name != MODEL_NAME:
        refuse(packed, str(path))
    path.mkdir()
    refuse(packed, str(path))
    path.rmdir()
    os.mkfifo(path)
    refuse(packed, str(path))


@pytest.mark.parametrize("name", [MODEL_NAME, WEIGHTS_NAME])
def test_truncation_and_damage(packed, name):
    path = packed / name
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for size in [*range(40), *rng.integers(0, len(data), 40)]:
        path.write_bytes(data[:size])
        refuse(packed, str(path))
    refused = 0
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.integers(0, min(len(data), 2000))] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            with open_checkpoint(str(packed)) as checkpoint:
                weights_of(checkpoint)
        except AnthesisError:
            refused += 1
    assert refused > 60


# --- where it goes ---------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    model, out = tiny_model(tmp_path), tmp_path / "a b"
    result = anthesis("convert", model, str(out), "--weights", "int8")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    size = sum(path.stat().st_size for path in out.iterdir())
    assert f"({size:,} bytes), weights int8" in result.stderr
    assert f"anthesis generate '{out}'" in result.stderr
    assert "weights int8" in succeed("plan", str(out), "--device", "reference")
    ids = [
        json.loads(
            succeed("generate", *arguments, "--device", "reference", "--prompt-tokens", "3", "-n", "4", "--json")
        )
        for arguments in ((str(out),), (model, "--weights", "int8"))
    ]
    assert ids[0]["completions"][0]["token_ids"] == ids[1]["completions"][0]["token_ids"]


def test_a_directory_that_is_there(tmp_path):
    model = tiny_model(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "full/a", "missing/out"):
        assert name in fail("convert", model, str(tmp_path / name))
    assert (tmp_path / "full" / "a").read_text() == "kept"
    convert(model, tmp_path / "link")
    assert (tmp_path / "empty" / MODEL_NAME).is_file()
    with pytest.raises(RequestError, match="with files"):
        convert(model, tmp_path / "empty")


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def _assert_nothing_left(directory, result):
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
    assert "could not be written" in result.stderr
    assert "nothing was left there" in result.stderr
    assert list(directory.iterdir()) == []


def test_a_file_size_limit_leaves_nothing(tmp_path):
    (tmp_path / "disk").mkdir()
    convert = ("convert", tiny_model(tmp_path), str(tmp_path / "disk" / "out"))
    result = anthesis(*convert, before=_limit_files)  # a stand-in for below
    _assert_nothing_left(tmp_path / "disk", result)


@pytest.mark.parametrize("pages", [1, 16])
def test_a_full_disk_leaves_nothing(tmp_path, pages):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; a limit on the size of files stands in for it")
    try:
        arguments = command("convert", tiny_model(tmp_path), str(disk / "out"))
        result = subprocess.run(arguments, capture_output=True, text=True)
        _assert_nothing_left(disk, result)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def start_a_long_conversion(target):
    arguments = command("convert", "random:llama-3.2-1b", str(target))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(target.parent.glob(f".out.*/{WEIGHTS_NAME}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_what_a_killed_conversion_left_goes_with_the_next(tmp_path):
    (tmp_path / "disk").mkdir()
    target, model = tmp_path / "disk" / "out", tiny_model(tmp_path)
    process = start_a_long_conversion(target)
    assert "another process is writing" in fail("convert", model, str(target))
    process.kill()
    process.communicate(timeout=60)
    assert [path.name for path in target.parent.iterdir()] == [".out.unfinished"]
    succeed("convert", model, str(target))
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    with open_checkpoint(str(target)):
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path, sent):
    (tmp_path / "disk").mkdir()
    process = start_a_long_conversion(tmp_path / "disk" / "out")
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + sent, "")
    assert err == f"anthesis: interrupted; nothing was left at {tmp_path / 'disk' / 'out'}\n"
    assert list((tmp_path / "disk").iterdir()) == []


# --- weights that are no numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["native", "fp32", "int8", "int4m", "fp8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, weights, dtype, bad):
    raw = CONFIGS["bloom"]
    for name in ("h.1.mlp.dense_4h_to_h.weight", "ln_f.bias", "h.0.self_attention.query_key_value.weight"):
        tensors = tensors_of(raw, dtype)
        tensors[name].reshape(-1)[-3] = bad
        source = write_directory(tmp_path / "m", raw, tensors)
        with open_checkpoint(str(source), weights=weights) as checkpoint, pytest.raises(CheckpointError) as caught:
            weights_of(checkpoint)
        assert name in str(caught.value)
        assert str(source) in str(caught.value)


def test_the_largest_numbers_are_taken(tmp_path):
    raw = CONFIGS["bloom"]
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        tensors = tensors_of(raw, dtype)
        tensors["ln_f.weight"][:2] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min
        with open_checkpoint(str(write_directory(tmp_path / "m", raw, tensors))) as checkpoint:
            weights_of(checkpoint)


@pytest.mark.parametrize(
    ("weights", "suffix", "bits"),
    [("int8", ".scales", 0x7C00), ("int4m", ".minimums", 0xFE00), ("fp8", ".scales", 0x7FC00000), ("fp8", "", 0xFF)],
)
def test_scales_and_codes_that_are_not_finite_are_refused(tmp_path, weights, suffix, bits):
    packed = convert(tiny_model(tmp_path), tmp_path / "packed", weights)
    path = packed / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:start])[f"layers.1.mlp.up.weight{suffix}"]
    size = {"F32": 4, "F16": 2, "F8_E4M3": 1}[entry["dtype"]]
    at = start + entry["data_offsets"][1]
    data[at - size : at] = bits.to_bytes(size, "little")
    path.write_bytes(data)
    for kind in ("native", "fp32", "bf16"):
        checkpoint = open_checkpoint(str(packed), weights=kind)
        with pytest.raises(CheckpointError, match=r"packed: layers.1.mlp.up.weight .*NaN"):
            weights_of(checkpoint)


@pytest.mark.parametrize(("name", "at"), [("Q8_0", 0), ("Q4_1", 2), ("Q4_K", 0), ("Q6_K", 208)])
@pytest.mark.parametrize("weights", ["native", "fp32", "int4"])
def test_gguf_scales_that_are_not_finite_are_refused(tmp_path, name, at, weights):
    blocks = random_blocks(name)
    blocks[5, at : at + 2] = np.array([np.nan], np.float16).view(np.uint8)
    store = GgufStore(write_gguf(tmp_path / "m.gguf", {"w": (name, blocks)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = StoredWeights("m.gguf", store, {"w": Source("w")}, (), (), weights)
    shape = store.tensors["w"].shape
    whole = Value("w", shape, found.kind_of("w", shape), "weight", (), (0, 0), shape)
    with pytest.raises(CheckpointError, match=r"m.gguf: w \(stored as Q"):
        found.load(whole)
    # a rank reads its share, and only that
    found.load(replace(whole, shape=(4, shape[1]), start=(6, 0)))


def test_nan_in_a_packed_source_ends_a_conversion(tmp_path):
    raw = CONFIGS["bloom"]
    tensors = tensors_of(raw)
    tensors["ln_f.weight"][3] = np.nan
    source = write_directory(tmp_path / "m", raw, tensors)
    assert "ln_f.weight" in fail("convert", str(source), str(tmp_path / "out"), code=1)
    assert {path.name for path in tmp_path.iterdir()} == {"m"}
