"""PyTorch files: the same weights as from safetensors, and files that lie, bomb or attack."""

import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint import torch_bin as module
from anthesis.checkpoint.torch_bin import TorchBinStore
from anthesis.errors import AnthesisError, CheckpointError, UnsupportedError
from anthesis.models import family_of_config
from test_checkpoint_safetensors import CONFIGS, program_of, tensors_of
from test_checkpoint_safetensors import write as write_safetensors

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def to_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def write(directory, raw, tensors, shards=1):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        torch.save(tensors, directory / SINGLE)
        return directory
    weight_map = {}
    for i in range(shards):
        part, name = dict(list(tensors.items())[i::shards]), f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_weights_are_those_of_safetensors(tmp_path, family, dtype, shards, prefixed):
    raw, prefix = CONFIGS[family], family_of_config(CONFIGS[family]).prefixes[0]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors_of(raw, dtype).items()}
    tensors = {prefix * prefixed + name: tensor for name, tensor in tensors.items()}
    directories = (
        write_safetensors(tmp_path / "a", raw, tensors, shards),
        write(tmp_path / "b", raw, {name: to_torch(tensor) for name, tensor in tensors.items()}, shards),
    )
    expected, found = (open_checkpoint(str(directory)) for directory in directories)
    values = program_of(raw, expected.kind_of).of_kind("weight")
    found.check(values)
    for value in values:
        one, other = expected.load(value), found.load(value)
        assert one.kind == other.kind == expected.load(value).kind
        np.testing.assert_array_equal(one.values, other.values)


def test_safetensors_win(tmp_path):
    raw = CONFIGS["bloom"]
    directory = write_safetensors(tmp_path / "m", raw, tensors_of(raw))
    (directory / SINGLE).write_bytes(b"not looked at")
    open_checkpoint(str(directory))


def store_of(tmp_path, tensors):
    torch.save(tensors, tmp_path / SINGLE)
    return TorchBinStore(tmp_path)


def test_views_strides_and_shared_storage(tmp_path):
    whole = torch.arange(96, dtype=torch.float32).reshape(8, 12)
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with _metadata
    state |= {"w": whole, "t": whole.T, "s": whole[1:7:2, 3:9:2], "tied": whole, "empty": torch.empty(0)}
    state |= {"p": torch.nn.Parameter(whole.half()), "scalar": torch.tensor(2.0), "mask": torch.ones(3) > 0,
              "ids": torch.arange(4), "b": whole.bfloat16().T[2:, 1:]}  # fmt: skip
    store = store_of(tmp_path, state)
    assert store.tensors.keys() == state.keys()
    for name in ("w", "t", "s", "tied", "p", "b", "weight"):
        true = state[name].detach().float().numpy()
        for transpose in (False, True):
            wanted = true.T if transpose else true
            for rows in (slice(0, None), slice(1, 3), np.array([1, 0, 1])):
                found = store.read(name, rows, slice(1, 3), transpose=transpose, exact=False)
                np.testing.assert_array_equal(found.dequantize(), wanted[rows, 1:3])
                assert found.values.flags.c_contiguous
    kinds = {name: store.tensors[name].kind for name in ("w", "p", "b", "ids", "mask")}
    assert kinds == {"w": "fp32", "p": "fp16", "b": "bf16", "ids": None, "mask": None}
    assert store.tensors["ids"].stored_as == "int64"
    first, second = (store.read(n, slice(2, 4), slice(0, 12), transpose=False, exact=False) for n in ("w", "tied"))
    assert np.shares_memory(first.values, second.values)


def test_loading_takes_no_memory_for_the_weights(tmp_path):
    tensor = torch.zeros(1 << 24)  # 64 MiB
    torch.save({"w": tensor}, tmp_path / SINGLE)
    del tensor
    script = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from anthesis.checkpoint.torch_bin import TorchBinStore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store = TorchBinStore(Path(sys.argv[1]))\n"
        "store.read('w', slice(5, 9), slice(None), transpose=False, exact=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000  # KiB


def test_without_torch(tmp_path, monkeypatch):
    (tmp_path / SINGLE).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match=r'pip install "anthesis\[torch\]"'):
        TorchBinStore(tmp_path)


def refused(tmp_path, *messages, error=CheckpointError, file=SINGLE):
    """The directory is refused with these texts in the message, and little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            TorchBinStore(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    for message in (file, *messages):
        assert message in (text := str(caught.value)), text
    assert len(str(caught.value)) < 1200
    return str(caught.value)


# --- what stands in a pickle -----------------------------------------------------------------------------------------


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stored:
    """Pickled as the reference to a storage."""

    def __init__(self, kind=torch.FloatStorage, key="0", numel=4, location="cpu"):
        self.reference = "storage", kind, key, location, numel


class _Pickler(pickle.Pickler):
    def persistent_id(self, item):
        return item.reference if isinstance(item, Stored) else None


def archive(path, found, data=(bytes(16),), protocol=2, **entries):
    """A file as torch.save lays it out, with this pickle (bytes) or these pickled objects."""
    with zipfile.ZipFile(path, "w") as file:
        if not isinstance(found, bytes):
            with (path.parent / "pickled").open("wb") as pickled:
                _Pickler(pickled, protocol).dump(found)
            found = (path.parent / "pickled").read_bytes()
        file.writestr("archive/data.pkl", found)
        for i, part in enumerate(data):
            file.writestr(f"archive/data/{i}", part)
        for name, text in {"version": "3\n", **entries}.items():
            file.writestr(f"archive/{name}", text)
    return path


def tensor(size=(2, 2), stride=(2, 1), offset=0, **storage):
    return Calls(torch._utils._rebuild_tensor_v2, Stored(**storage), offset, size, stride, False, {})


def test_a_crafted_file_is_read_where_it_is_right(tmp_path):
    archive(tmp_path / SINGLE, {"w": tensor()}, byteorder="little")
    found = TorchBinStore(tmp_path).read("w", slice(0, 2), slice(0, 2), transpose=False, exact=False)
    np.testing.assert_array_equal(found.values, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("function", "arguments", "asked"),
    [
        ("os.system", "touch {}", "posix.system"),
        ("builtins.eval", "open('{}', 'w')", "eval"),
        ("builtins.exec", "open('{}', 'w')", "exec"),
        ("subprocess.Popen", "touch {}", ".Popen"),
        ("torch.load", "{}", "torch.serialization.load"),
        ("torch.hub.load_state_dict_from_url", "file://{}", "torch.hub"),
        ("builtins.bytearray", "{}", "bytearray"),
        ("builtins.getattr", "{}", "getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_a_pickle_that_would_run_code(tmp_path, function, arguments, asked, protocol):
    module_name, _, name = function.rpartition(".")
    call = Calls(getattr(__import__(module_name, fromlist=["x"]), name), arguments.format(tmp_path / "touched"))
    archive(tmp_path / SINGLE, {"first": 1, "w": call}, protocol=protocol)
    refused(tmp_path, asked, "nothing of it was run", *["the tensor w"] * (protocol != 4))
    assert not (tmp_path / "touched").exists()


def test_code_behind_an_allowed_name_or_a_storage(tmp_path):
    for found in (
        {"w": Calls(torch.FloatStorage, 1 << 40)},  # would be 4 TiB
        Calls(__import__("collections").OrderedDict, 1 << 40),
        {"w": Calls(torch._utils._rebuild_tensor_v2, "no storage", 0, (1,), (1,), False, {})},
        {"w": tensor(kind=torch._utils._rebuild_parameter)},
    ):
        archive(tmp_path / SINGLE, found)
        refused(tmp_path)


def test_a_torchscript_program(tmp_path):
    archive(tmp_path / SINGLE, {"w": tensor()}, **{"constants.pkl": pickle.dumps(())})
    refused(tmp_path, "TorchScript")
    with zipfile.ZipFile(tmp_path / SINGLE, "w") as file:
        for name in ("Archive/data.pkl", "Archive/CONSTANTS.pkl"):
            file.writestr(name, b"")
    refused(tmp_path, "TorchScript")


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"size": (1 << 20, 1 << 20), "stride": (0, 0)}, "w of shape"),  # expand
        ({"size": (2, 4), "stride": (0, 1)}, "save its clone"),
        ({"size": (1 << 40, 1 << 40), "stride": (0, 0)}, "w"),  # whose product overflows
        ({"size": (1 << 32, 1 << 32), "stride": (0, 0)}, ""),  # to 0
        ({"size": (3, 2)}, "torch can't load it"),
        ({"size": (1 << 30, 2)}, "torch can't load it"),
        ({"size": (2, 2), "offset": 1 << 40}, "torch can't load it"),
        ({"size": (2, 2), "offset": -4}, "torch can't load it"),
        ({"size": (-2, 2)}, "torch can't load it"),
        ({"size": (2, 2), "stride": (-2, 1)}, "torch can't load it"),
        ({"size": (2, 2), "stride": (2,)}, "torch can't load it"),
        ({"numel": 8}, "said to have 32"),
        ({"numel": 8, "size": (8,), "stride": (1,)}, "said to have 32"),
        ({"numel": 1 << 50}, "w of shape"),
        ({"numel": -1}, ""),
        ({"numel": "4"}, ""),
        ({"key": "7"}, "torch can't load it"),
        ({"key": "../data.pkl"}, ""),
    ],
)
def test_shapes_that_lie(tmp_path, lie, message):
    archive(tmp_path / SINGLE, {"w": tensor(**lie)}, (bytes(16), bytes(4000)))
    refused(tmp_path, message)


@pytest.mark.filterwarnings("ignore")
def test_special_tensors(tmp_path):
    for tensor_, what in (
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.eye(3).to_sparse_csr(), "sparse"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantised"),
        (torch.ones(3, dtype=torch.complex64), "complex"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.ones(3).to(torch.float8_e4m3fn), "uncommon dtype"),
        (torch.ones(3).to(torch.uint16), "uncommon dtype"),
    ):
        torch.save({"good": torch.ones(3), "odd": tensor_}, tmp_path / SINGLE)
        refused(tmp_path, "the tensor odd", what)


def test_what_is_no_tensor(tmp_path):
    for found, message in (
        ({"w": torch.ones(3), "step": 5}, "step is int"),
        ({"state_dict": {"w": torch.ones(3)}}, "state_dict is dict"),
        ([torch.ones(3)], "holds list"),
        ({4: torch.ones(3)}, "a tensor's name is int"),
        (torch.ones(3), "holds Tensor"),
    ):
        torch.save(found, tmp_path / SINGLE)
        refused(tmp_path, message)


def test_pickles_that_overtax_whoever_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPERATIONS", 10_000)
    for found, message in (
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", "tuples"),  # as a key its hash overflows the stack
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 200 + b"K\x01s.", "tuples"),
        (b"\x80\x02" + b"(" * 30_000 + b".", "operations"),
        (b"\x80\x02}r\xff\xff\xff\xffs.", "damaged"),  # a place in the memo beyond all bounds
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),  # a text of 2 GiB
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "damaged"),  # a number of 2 GiB
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
        (b"}.", "pickle protocol 0"),
        (b"\x80\x7f}.", "pickle protocol 127"),
    ):
        archive(tmp_path / SINGLE, found)
        refused(tmp_path, message)
    monkeypatch.setattr(module, "MAX_PICKLE_BYTES", 1000)
    archive(tmp_path / SINGLE, b"\x80\x02" + bytes(1000))
    refused(tmp_path, "its data.pkl has 1,002 bytes")


# --- the archive around it -------------------------------------------------------------------------------------------


def test_archives_that_are_not_torchs(tmp_path, monkeypatch):
    path = tmp_path / SINGLE
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("archive/data.pkl", bytes(1 << 24))
        refused(tmp_path, "compressed")
    archive(path, {"w": tensor()}, byteorder="big")
    refused(tmp_path, "byte order")
    good = archive(path, {"w": tensor()}, byteorder="little").read_bytes()
    for data, message in (
        (good + b"x", "something follows"),
        (good + good, "something precedes"),
        (b"PK\x03\x04" + good, "something precedes"),
        (good.replace(b"archive/data/0", b"archive/DATA.PKL"[:14]), ""),
    ):
        path.write_bytes(data)
        refused(tmp_path, message)
    for names, message in (
        (["archive/data.pkl", "archive/DATA.pkl"], "same name"),
        (["archive/data.pkl", "other/data.pkl"], "is not in 'archive'"),
        (["archive/data/0"], "data.pkl"),
        ([], "no file of PyTorch"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"")
        refused(tmp_path, message, error=AnthesisError)
    monkeypatch.setattr(module, "MAX_DIRECTORY_BYTES", 100)
    path.write_bytes(good)
    refused(tmp_path, "its directory has")


def test_entries_beyond_the_file(tmp_path):
    good = archive(tmp_path / SINGLE, {"w": tensor()}).read_bytes()
    at = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02") + 4)  # of data/0, in the directory
    for size in (17, 1000, 1 << 30, (1 << 32) - 2):
        number = size.to_bytes(4, "little")
        (tmp_path / SINGLE).write_bytes(good[: at + 20] + number * 2 + good[at + 28 :])
        refused(tmp_path, "damaged")


def test_every_truncation_and_random_damage(tmp_path):
    path, rng, refusals = tmp_path / SINGLE, np.random.default_rng(0), 0
    good = archive(path, {"w": tensor(), "v": tensor(key="1", numel=2, size=(2,), stride=(1,))}, (bytes(16), bytes(8)))
    good = good.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(AnthesisError, match=SINGLE):
            TorchBinStore(tmp_path)
    for _ in range(1500):
        broken = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 3)):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            TorchBinStore(tmp_path)
        except AnthesisError as error:
            assert str(path) in str(error)  # noqa: PT017 - it may as well be harmless
            refusals += 1
    assert refusals > 500


def test_random_damage_to_the_pickle_alone(tmp_path):
    path, rng, refusals = tmp_path / SINGLE, np.random.default_rng(1), 0
    archive(path, {"w": tensor(), "v": tensor(key="1", numel=2, size=(2,), stride=(1,))})
    good = (tmp_path / "pickled").read_bytes()
    for _ in range(1500):
        broken = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 3)):
            broken[at] = rng.integers(0, 256)
        archive(path, bytes(broken), (bytes(16), bytes(8)))
        try:
            TorchBinStore(tmp_path)
        except AnthesisError as error:
            assert str(path) in str(error)  # noqa: PT017
            refusals += 1
    assert refusals > 700


def test_files_from_before_pytorch_1_6(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / SINGLE, _use_new_zipfile_serialization=False)
    message = refused(tmp_path, "PyTorch 1.6", "convert it: python -c", error=UnsupportedError)
    code = message.partition('python -c "')[2].partition('"')[0]
    subprocess.run([sys.executable, "-c", code, tmp_path / SINGLE], check=True)
    assert TorchBinStore(tmp_path).tensors["w"].shape == (3,)


def test_shards_that_contradict_each_other_or_the_index(tmp_path):
    raw, tensors = CONFIGS["bloom"], {"a": torch.ones(3), "b": torch.ones(4)}
    directory = write(tmp_path / "m", raw, tensors, 2)
    one, two = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
    for weight_map, message in (
        ({"a": one, "b": one}, "lacks the tensor b, which the index promises"),
        ({"a": one, "b": "../x.bin"}, "not a .bin file beside it"),
        ({"a": one, "b": "x.safetensors"}, "not a .bin file beside it"),
        ({"a": one, "b": "x.bin"}, "1 of 2 shards are missing"),
    ):
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        refused(directory, message, file="")
    (directory / INDEX).write_text("[" * 1000)
    refused(directory, "JSON", file=INDEX)
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": one, "b": two}}))
    torch.save(tensors, directory / two)
    refused(directory, "the tensor a is stored in two shards", file=two)
