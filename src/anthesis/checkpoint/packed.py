"""Packed directories: a model's weights under the program's names and in their kinds, so that nothing is converted.

| file                | holds                                                                                     |
|---------------------|-------------------------------------------------------------------------------------------|
| anthesis.json       | `PackedModel`: the configuration, and of each weight of the program its kind and shape    |
| weights.safetensors | of each weight NAME its values; NAME.scales and NAME.minimums where its kind has them     |
| tokenizer.gguf      | the tokenizer, if it came out of a GGUF file: metadata and no tensors                     |
| tokenizer.json, ... | the tokenizer, if it came out of a directory: copies of its files                         |

Weights are whole and not fused, so that the directory serves any number of ranks. In weights.safetensors the header is
padded so that the data begins at a multiple of 64 bytes, and the arrays stand one behind the other, those of wide
elements first: each of them is aligned to its elements, and can be used where it is mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from anthesis.checkpoint.gguf_header import read_header
from anthesis.checkpoint.safetensors import read_header as read_safetensors_header
from anthesis.checkpoint.safetensors import read_json
from anthesis.checkpoint.store import Rows, StoredTensor, check_count, check_name, forget_pages, map_file
from anthesis.config import MAX_SIZES, ModelConfig
from anthesis.errors import CheckpointError, RequestError
from anthesis.models import families
from anthesis.models.family import Family
from anthesis.quantize import WEIGHT_KINDS, Array, WeightTensor
from anthesis.records import from_document

FORMAT, VERSION = "anthesis packed model", 1
MODEL_NAME, WEIGHTS_NAME, GGUF_TOKENIZER_NAME = "anthesis.json", "weights.safetensors", "tokenizer.gguf"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
ALIGNMENT = 64

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class PackedWeight:
    """What is stored of a weight of the program.

    Attributes:
        kind: a weight kind.
        shape: of the whole weight.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """The contents of anthesis.json.

    Attributes:
        format: `FORMAT`.
        version: `VERSION`.
        model: the model it was made of, for people.
        family: of the model.
        is_random: the weights are made up.
        weights: the kind of matrices that was asked for, or "native".
        config: the fields of the family's configuration.
        tokenizer: names of the files that make up the tokenizer; empty where there is none.
        tensors: the weights of the program by name.
    """

    format: str
    version: int
    model: str
    family: str
    is_random: bool
    weights: str
    config: dict[str, Any]
    tokenizer: tuple[str, ...]
    tensors: dict[str, PackedWeight]


@dataclass(frozen=True)
class Place:
    """Where an array stands in weights.safetensors.

    Attributes:
        dtype: as safetensors calls it.
        shape: of the array.
        begin, end: first byte, and that behind the last, within the data.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def element_entry(self) -> dict[str, Any]:
        """What the header of a safetensors file says about the elements."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    def header_entry(self) -> dict[str, Any]:
        """All that the header says."""
        return {**self.element_entry(), "data_offsets": [self.begin, self.end]}


def parts(name: str, tensor: WeightTensor) -> Iterator[tuple[str, Array]]:
    """The arrays of a weight under their stored names.

    Args:
        name: of the weight.
        tensor: the weight or some of its rows.

    Yields:
        `tensor.values`, (N, ...) of the kind's dtype; then scales and minimums, where there are any.
    """
    for suffix, array in (("", tensor.values), (".scales", tensor.scales), (".minimums", tensor.minimums)):
        if array is not None:
            yield name + suffix, array


def layout(tensors: Mapping[str, PackedWeight]) -> dict[str, Place]:
    """Where each array stands, in the order in which they stand: wide elements first, else as in the program."""
    dtypes = {dtype: name for name, dtype in _DTYPES.items()}
    found = []
    for name, weight in tensors.items():
        row = WeightTensor.empty(WEIGHT_KINDS[weight.kind], (1, *weight.shape[1:]))
        found += [(part, array.dtype, (weight.shape[0], *array.shape[1:])) for part, array in parts(name, row)]
    found.sort(key=lambda array: -array[1].itemsize)
    places, at = {}, 0
    for name, dtype, shape in found:
        end = at + prod(shape) * dtype.itemsize
        places[name] = Place(dtypes[dtype], shape, at, end)
        at = end
    return places


def data_bytes(places: Mapping[str, Place]) -> int:
    """Bytes of all arrays together."""
    return max((place.end for place in places.values()), default=0)


def header_bytes(places: Mapping[str, Place]) -> bytes:
    """What stands before the data of weights.safetensors, padded to `ALIGNMENT`."""
    text = json.dumps({name: place.header_entry() for name, place in places.items()}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_model(directory: Path) -> tuple[PackedModel, Family, ModelConfig]:
    """The contents of anthesis.json, its family and its configuration.

    Raises:
        CheckpointError: a damaged file, or another format or version.
    """
    path = directory / MODEL_NAME
    raw = read_json(path)
    try:
        if (raw.get("format"), raw.get("version")) != (FORMAT, VERSION):
            raise CheckpointError(
                f"{path}: has the format {raw.get('format')!r:.60}, version {raw.get('version')!r:.60}; read here is "
                f"{FORMAT!r}, version {VERSION}: convert the model again"
            )
        if isinstance(raw.get("tensors"), dict):
            check_count(path, len(raw["tensors"]))
        json.dumps(raw, allow_nan=False)  # Python's reader takes NaN and Infinity for numbers
        model = from_document(PackedModel, raw, "it")
        family = next((family for family in families() if family.name == model.family), None)
        if family is None:
            raise ValueError(f"its family is {model.family!r:.60}, which is not known here")
        config = from_document(family.config_type, model.config, "its config")
        if config.family != family.name or not 1 <= config.usable_vocab_size <= config.vocab_size:
            raise ValueError(f"family {family.name} and its config, or vocab_size and usable_vocab_size, differ")
        for name, weight in model.tensors.items():
            check_name(path, name)
            _check_weight(name, weight)
        unknown = set(model.tokenizer) - {GGUF_TOKENIZER_NAME, *TOKENIZER_NAMES}
        if unknown:
            raise ValueError(f"its tokenizer is said to be in {min(unknown)!r:.60}")
    except (ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; convert the model again") from error
    return model, family, config


def read_tokenizer(directory: Path, model: PackedModel) -> Path | Mapping[str, Any] | None:
    """What `open_tokenizer` reads the tokenizer from: the directory, or the metadata of tokenizer.gguf.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    for name in sorted(set(model.tokenizer)):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: missing, or no regular file; {MODEL_NAME} names it")
    if GGUF_TOKENIZER_NAME not in model.tokenizer:
        return directory if model.tokenizer else None
    path = directory / GGUF_TOKENIZER_NAME
    return read_header(path, map_file(path))[0]


class PackedStore:
    """The weights of a packed directory, by their names in the program.

    Args:
        directory: holds weights.safetensors.
        model: what anthesis.json says about it.

    Raises:
        CheckpointError: weights.safetensors is damaged, or does not hold what anthesis.json says.
    """

    def __init__(self, directory: Path, model: PackedModel) -> None:
        path = directory / WEIGHTS_NAME
        self._data = data = map_file(path)
        header, start = read_safetensors_header(path, data)
        places = layout(model.tensors)
        for name, place in places.items():
            if name not in header:
                raise CheckpointError(
                    f"{path}: does not hold {name}, which {MODEL_NAME} names; convert the model again"
                )
            if not isinstance(header[name], dict) or not header[name].items() >= place.element_entry().items():
                raise CheckpointError(_differs(path, name, header[name], place.element_entry()))
        unexpected = header.keys() - places.keys()
        if unexpected:
            raise CheckpointError(f"{path}: holds {min(unexpected)}, which {MODEL_NAME} does not name")
        for name, place in places.items():  # after that: one array of another size moves all those behind it
            if header[name] != place.header_entry():
                raise CheckpointError(_differs(path, name, header[name], place.header_entry()))
            if start + place.end > data.size:
                raise CheckpointError(
                    f"{path}: truncated: {name} ends at byte {start + place.end} and the file at {data.size}; "
                    "copy or convert it again"
                )
        self._weights: dict[str, WeightTensor] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for name, weight in model.tensors.items():
            kind = WEIGHT_KINDS[weight.kind]
            arrays = [
                data[start + place.begin : start + place.end].view(_DTYPES[place.dtype]).reshape(place.shape)
                for place in (places.get(name + suffix) for suffix in ("", ".scales", ".minimums"))
                if place is not None
            ]
            self._weights[name] = WeightTensor(kind, weight.shape, *arrays)
            self.tensors[name] = StoredTensor(name, weight.shape, kind.name, kind.name, True, kind.column_step)

    def read(self, name: str, rows: Rows, columns: slice, *, transpose: bool, exact: bool) -> WeightTensor:
        """See `TensorStore.read`."""
        assert not transpose, "packed weights are [out, in]"
        part = self._weights[name].rows(rows)
        if len(part.shape) == 2:
            start, stop, _ = columns.indices(part.shape[1])
            part = part.columns(start, stop)
        # another program may have written the header anew, without its padding: then they are copied
        arrays = (np.require(array, requirements=["C", "A"]) for _, array in parts(name, part))
        return WeightTensor(part.kind, part.shape, *arrays)

    def release(self) -> None:
        """See `TensorStore.release`."""
        forget_pages(self._data)


def _differs(path: Path, name: str, found: Any, expected: dict[str, Any]) -> str:
    return f"{path}: {name} is {found!r:.200}, and {MODEL_NAME} leads to {expected}; convert the model again"


def _check_weight(name: str, weight: PackedWeight) -> None:
    """Raises ValueError for a weight that can't be."""
    if name.endswith((".scales", ".minimums")):
        raise ValueError(f"a weight is called {name!r:.60}, like the scales of another")
    if weight.kind not in WEIGHT_KINDS:
        raise ValueError(f"{name} is of the kind {weight.kind!r:.60}; known are: {', '.join(WEIGHT_KINDS)}")
    bounds = (MAX_SIZES["max_context"], MAX_SIZES["ffn_size"])  # of rows and columns, over all families
    if len(weight.shape) not in (1, 2) or not all(
        1 <= n <= most for n, most in zip(weight.shape, bounds, strict=False)
    ):
        raise ValueError(f"{name} has the shape {weight.shape!r:.100}")
    if len(weight.shape) == 1 and weight.kind != "fp32":
        raise ValueError(f"{name} is a vector of the kind {weight.kind}, and vectors are fp32")
    try:
        WEIGHT_KINDS[weight.kind].check_shape(weight.shape)
    except RequestError as error:
        raise ValueError(f"{name}: {error}") from error
