"""PyTorch's own checkpoint files: pytorch_model.bin, or shards with an index, mapped into memory by torch.

Such a file is a zip archive, uncompressed: NAME/data.pkl, a pickle with the tensors' names and shapes, and their bytes
in NAME/data/0, 1, ... Whoever opens a pickle runs what it says, so torch sees a file only after we have seen that the
archive is what torch.save writes, and that the pickle asks for nothing but plain tensors; then torch itself is told to
load weights only. What is a lie beyond that torch or the checks after it find, before anything is allocated.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html; pickle: Python's pickletools.
"""

from __future__ import annotations

import importlib.util
import pickle
import pickletools
import sys
import zipfile
from io import FileIO
from math import prod
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

import ml_dtypes
from numpy.typing import NDArray

from anthesis.checkpoint.safetensors import check_promises, has_safetensors, safetensors_files, shards, take
from anthesis.checkpoint.store import Rows, StoredTensor, check_count, check_name, open_weights
from anthesis.errors import CheckpointError, UnsupportedError, first_line, printable
from anthesis.quantize import WeightTensor
from anthesis.regular_file import read_up_to

INDEX_NAME = "pytorch_model.bin.index.json"
SINGLE_NAME = "pytorch_model.bin"

MAX_PICKLE_BYTES = 16 << 20
MAX_OPERATIONS = 1 << 17
"""Of a pickle: enough for 4,000 tensors, and a second of looking at it."""

MAX_DIRECTORY_BYTES = 4 << 20
"""Of an archive: enough for 60,000 entries."""

MAX_DEPTH = 50
"""Of tuples within tuples; torch.save writes 2. Python overflows its stack on some 10,000."""

_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED = frozenset(
    {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
    | {f"torch.{name}Storage" for name in _STORAGES}
)
_TENSOR_KINDS = {
    "QInt": "quantised", "QUInt": "quantised", "_qtensor": "quantised", "sparse": "sparse", "nested": "nested",
    "Complex": "complex", "meta": "without data (meta)", "tensor_v3": "of an uncommon dtype",
    "tensor": "of a special kind", "Parameter": "of a special kind", "torch.storage": "of an uncommon dtype",
}  # fmt: skip
_OTHER_GLOBALS = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})
_LOCAL, _END, _LOCATOR = Struct("<4s5H3I2H"), Struct("<4s4H2IH"), Struct("<4sIQI")
_END64_BYTES = 56
# What zipfile and pickletools raise, and what is raised here for the same.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, EOFError, LookupError, ValueError, StructError)
# Whatever a damaged pickle, or PyTorch's own reader in C++, makes torch.load raise: it promises no errors of its own.
_LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
                AssertionError, ArithmeticError, EOFError, OSError)  # fmt: skip


def holds_only_bin(directory: Path) -> bool:
    """Whether a directory holds PyTorch weights by their usual names, and no safetensors, which are preferred."""
    return any((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME)) and not has_safetensors(directory)


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files, safetensors or else PyTorch's, that make up the checkpoint in a directory.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    if holds_only_bin(directory):
        return shards(directory, SINGLE_NAME, INDEX_NAME, ".bin")[0]
    return safetensors_files(directory)


def check_torch(what: str) -> None:
    """Finds out, without importing it, whether torch is there.

    Raises:
        UnsupportedError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError(
            f'{what} holds PyTorch weights (.bin), for which torch is needed: pip install "anthesis[torch]"; '
            "or take the model as safetensors"
        )


class TorchBinStore:
    """The tensors of a directory with PyTorch files.

    Args:
        directory: holds pytorch_model.bin, or pytorch_model.bin.index.json and the shards it names.
        single: what the file is called instead, where there is one.

    Raises:
        CheckpointError: a file is missing, damaged, or asks for something else than plain tensors.
        UnsupportedError: torch is not installed; a file in a format from before PyTorch 1.6.
    """

    def __init__(self, directory: Path, single: str = SINGLE_NAME) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self.tensors: dict[str, StoredTensor] = {}
        files, weight_map = shards(directory, single, INDEX_NAME, ".bin")
        check_torch(str(directory))
        held = {path.name: self._load(path) for path in files}
        check_promises(directory, weight_map, held)

    def _load(self, path: Path) -> frozenset[str]:
        """Adds the tensors of a file; gives their names."""
        sizes = _check_archive(path)
        import torch

        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _LOAD_ERRORS as error:
            raise CheckpointError(f"{path}: damaged: torch can't load it: {first_line(error)}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}: holds {type(found).__name__}, not a dictionary of tensors")
        check_count(path, len(self.tensors) + len(found))
        for name, tensor in found.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{path}: a tensor's name is {type(name).__name__}, not text")
            check_name(path, name)
            if name in self.tensors:
                raise CheckpointError(f"{path}: the tensor {name} is stored in two shards")
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"{path}: {name} is {type(tensor).__name__}, not a tensor; a model's weights alone are needed, "
                    "as torch.save(model.state_dict(), ...) writes them"
                )
            array, type_name = _array(path, name, tensor, sizes)
            self.tensors[name] = StoredTensor(name, array.shape, type_name, _KINDS.get(type_name))
            self._arrays[name] = array
        return frozenset(found)

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """See `TensorStore.read`."""
        kind = self.tensors[name].kind
        assert kind is not None
        return take(self._arrays[name], kind, rows, columns, transpose)

    def release(self) -> None:
        """See `TensorStore.release`; these files are mapped by PyTorch, which offers nothing of the kind."""


def _array(path: Path, name: str, tensor: Any, sizes: frozenset[int]) -> tuple[NDArray[Any], str]:
    """A tensor (...) of any dtype as an array (...) on the same memory, with what torch calls its dtype."""
    import torch

    type_name = str(tensor.dtype).removeprefix("torch.")
    storage, nbytes = tensor.untyped_storage().nbytes(), prod(tensor.shape) * tensor.element_size()
    # The storage's own size is a claim as well; one that goes beyond its bytes would read those of its neighbours.
    if storage not in sizes or nbytes > storage:
        raise CheckpointError(
            f"{path}: damaged: {name} of shape {list(tensor.shape)!r:.100} and dtype {type_name} takes {nbytes} bytes "
            f"of a storage said to have {storage}, which holds fewer (or the tensor is an expanded one, which is not "
            "read: save its clone)"
        )
    plain = tensor.detach()
    if type_name == "bfloat16":  # which NumPy lacks, so it crosses as integers
        return plain.view(torch.uint16).numpy().view(ml_dtypes.bfloat16), type_name
    return plain.numpy(), type_name


class _BoundedFile(FileIO):
    """A file for zipfile, which reads an archive's whole directory at once, as long as it is said to be."""

    def read(self, size: int | None = -1) -> bytes:
        """Like that of any file."""
        if size is None or size < 0:
            size = MAX_DIRECTORY_BYTES  # "to the end" is what zipfile says for the last few bytes
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes; at most {MAX_DIRECTORY_BYTES:,} are read")
        return super().read(size) or b""


def _check_archive(path: Path) -> frozenset[int]:
    """Checks a file, pickle included, before torch sees it; gives the sizes of its storages."""
    with open_weights(path) as opened, _BoundedFile(opened.fileno(), closefd=False) as file:
        if file.read(4) != b"PK\x03\x04":
            raise UnsupportedError(
                f"{path}: no file of PyTorch 1.6 or newer (a zip archive): if it is an older one, and you trust it, "
                'convert it: python -c "import sys, torch; f = sys.argv[1]; '
                f'torch.save(torch.load(f, weights_only=True), f)" {path.name}; else download it anew'
            )
        try:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                prefix = _check_entries(file, archive)
                order = f"{prefix}/byteorder"  # files of PyTorch before 2.1 have none
                if order in archive.namelist() and _entry(archive, order, 16) != sys.byteorder.encode():
                    raise ValueError(f"its byte order is not {sys.byteorder}, which alone is read")
                _check_pickle(_entry(archive, f"{prefix}/data.pkl", MAX_PICKLE_BYTES))
                data = f"{prefix}/data/"
                return frozenset({0} | {e.file_size for e in archive.infolist() if e.filename.startswith(data)})
        except (OSError, *_ZIP_ERRORS) as error:
            raise CheckpointError(
                f"{path}: damaged, or not written by torch.save: {printable(str(error), 1000)}"
            ) from error


def _entry(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    with archive.open(name) as file:
        return read_up_to(file, size)


def _check_end(file: FileIO) -> None:
    """Checks that the archive's end can't be read in two ways: zipfile and torch look for it differently."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _LOCATOR.size))
    tail = file.read(_END.size + _LOCATOR.size)
    end = _END.unpack(tail[-_END.size :])
    if end[0] != b"PK\x05\x06" or end[-1] != 0:
        raise ValueError("truncated, or something follows the archive")
    locator, _, at, _ = _LOCATOR.unpack(tail[: _LOCATOR.size])
    if locator == b"PK\x06\x07" and at != size - _END.size - _LOCATOR.size - _END64_BYTES:
        raise ValueError("the archive's end is not where it says")


def _check_entries(file: FileIO, archive: zipfile.ZipFile) -> str:
    """Checks that the entries lie plainly in the archive; gives the directory they are in."""
    entries = archive.infolist()
    prefix = entries[0].filename.partition("/")[0] if entries else ""
    names = {entry.filename.lower() for entry in entries}  # torch finds them whatever their case
    if len(names) != len(entries):
        raise ValueError("two entries have the same name")
    if f"{prefix}/constants.pkl".lower() in names:
        raise ValueError("a TorchScript program, not a model's weights")
    if min((entry.header_offset for entry in entries), default=0):
        raise ValueError("something precedes the archive")
    for entry in entries:
        if not entry.filename.startswith(f"{prefix}/"):
            raise ValueError(f"the entry {entry.filename[:100]!r} is not in {prefix[:100]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise ValueError(f"the entry {entry.filename[:100]!r} is compressed or encrypted, torch.save does neither")
        file.seek(entry.header_offset)
        name_bytes, extra_bytes = _LOCAL.unpack(file.read(_LOCAL.size))[-2:]
        end = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes + entry.file_size
        if end > archive.start_dir:
            raise ValueError(f"the entry {entry.filename[:100]!r} goes on to byte {end} of {archive.start_dir}")
    size = archive.getinfo(f"{prefix}/data.pkl").file_size
    if size > MAX_PICKLE_BYTES:
        raise ValueError(f"its data.pkl has {size:,} bytes, at most {MAX_PICKLE_BYTES:,} are read")
    return prefix


def _check_pickle(data: bytes) -> None:
    """Goes through a pickle without running it: it may ask for nothing but plain tensors, and nest nothing deeply."""
    texts = [""]  # in the order they come, so that an error can name the tensor
    stack: list[int] = []  # of each object how deeply it nests tuples; -1 is a mark
    memo: dict[int, int] = {}
    argument: Any
    protocol = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if count > MAX_OPERATIONS:
            raise ValueError(f"its data.pkl has more than {MAX_OPERATIONS:,} operations")
        if isinstance(argument, str) and operation.name != "GLOBAL":
            texts = [*texts[-1:], argument] if argument != "storage" else texts
        if operation.name == "PROTO":
            protocol = argument
        if operation.name in _OTHER_GLOBALS:
            raise ValueError(_refusal(".".join(texts[-2:]), ""))
        if operation.name == "GLOBAL" and (asked := argument.replace(" ", ".")) not in _ALLOWED:
            raise ValueError(_refusal(asked, texts[-1]))
        before = operation.stack_before
        popped = []
        if pickletools.markobject in before:
            while (depth := stack.pop()) >= 0:
                popped.append(depth)
            before = before[: before.index(pickletools.markobject)]
        popped += [stack.pop() for _ in before]
        depth = max(popped, default=0) + operation.name.startswith("TUPLE")
        if depth > MAX_DEPTH:
            raise ValueError(f"its data.pkl nests more than {MAX_DEPTH} tuples")
        if operation.name in ("GET", "BINGET", "LONG_BINGET"):
            depth = memo[argument]
        elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = depth
        stack += [-1 if kind is pickletools.markobject else depth for kind in operation.stack_after]
    if protocol not in (2, 3):
        raise ValueError(f"its data.pkl is of pickle protocol {protocol}, not 2, in which torch.save writes")


def _refusal(asked: str, name: str) -> str:
    where = f"the tensor {name[:200]}" if name else "its data.pkl"
    kind = next((kind for word, kind in _TENSOR_KINDS.items() if word in asked and asked.startswith("torch.")), None)
    if kind:
        return f"{where} is {kind} ({asked}), and only plain tensors are read: save them as such, or take safetensors"
    return (
        f"{where} asks for {asked[:200]!r}, which no weights need and which may be an attack; nothing of it was run: "
        "take the model from somebody you trust, as safetensors"
    )
