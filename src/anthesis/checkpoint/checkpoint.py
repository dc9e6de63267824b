"""A model's configuration and weights, wherever they are."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from anthesis.checkpoint.adapted import AdaptedWeights
from anthesis.checkpoint.adapter import adapter_files
from anthesis.checkpoint.default import default_model
from anthesis.checkpoint.gguf import GgufStore
from anthesis.checkpoint.memory import InMemoryModel
from anthesis.checkpoint.packed import MODEL_NAME, PackedStore, read_model, read_tokenizer
from anthesis.checkpoint.random import RandomWeight, RandomWeights
from anthesis.checkpoint.safetensors import SafetensorsStore, read_json
from anthesis.checkpoint.store import TensorStore
from anthesis.checkpoint.stored import StoredWeights
from anthesis.checkpoint.torch_bin import TorchBinStore, holds_only_bin
from anthesis.config import ConfigReader, ModelConfig
from anthesis.errors import CheckpointError, ConfigError, RequestError, UnsupportedError, few, naming, printable
from anthesis.fingerprint import sampled_sha256
from anthesis.models import family_of_config, family_of_gguf, preset, trace
from anthesis.models.family import Family, Source
from anthesis.program.ir import Value
from anthesis.quantize import WeightTensor, weight_kind

RANDOM_PREFIX = "random:"
IN_MEMORY = "memory"
"""The source of a model that was not read from files."""

_ADAPTER_MARK = " + adapter "
_MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".jinja")


class _Weights(Protocol):
    def kind_of(self, name: str, shape: tuple[int, ...]) -> str: ...

    def load(self, value: Value) -> WeightTensor: ...

    def check(self, weights: Iterable[Value]) -> None: ...

    def release(self) -> None: ...


@dataclass
class Checkpoint:
    """A model's configuration and weights. Use it as a context manager, or close it.

    Attributes:
        description: for people: "SmolLM2-135M-Instruct.Q4_1.gguf".
        family: the model family.
        config: the model's configuration.
        is_random: the weights are made up.
        tokenizer_source: the directory that holds the tokenizer's files, the metadata of a GGUF file, or None where
            there is no tokenizer.
        path: the file or directory; None for random weights and for a model in memory.
        adapter: the directory of the adapter that is merged into the weights, or None.
    """

    description: str
    family: Family
    config: ModelConfig
    is_random: bool
    tokenizer_source: Path | Mapping[str, Any] | None
    _weights: _Weights | None
    path: Path | None = None
    adapter: Path | None = None

    @property
    def source(self) -> str:
        """Where the weights come from: "random", "memory", "hub ID at REVISION", "file NAME" or "directory NAME".

        With an adapter " + adapter NAME" follows, as in `description`.
        """
        model, plus, adapter = self.description.partition(_ADAPTER_MARK) if self.adapter else (self.description, "", "")
        if self.path is None:
            return "random" if self.is_random else IN_MEMORY
        if self.path.parent.name == "snapshots":  # of the hub's cache
            return f"hub {model} at {self.path.name}{plus}{adapter}"
        return f"{'directory' if self.path.is_dir() else 'file'} {self.path.resolve().name}{plus}{adapter}"

    def kind_of(self, name: str, shape: tuple[int, ...]) -> str:
        """The kind in which a weight of the program will be loaded; pass this method to `Builder`.

        Args:
            name: of the weight in the program.
            shape: of the whole weight.

        Returns:
            fp32 for a vector; for a matrix what `--weights` says, or the stored kind.

        Raises:
            RequestError: the kind's groups don't divide the weight's width.
        """
        return self._open().kind_of(name, shape)

    def load(self, value: Value) -> WeightTensor:
        """This rank's share of a weight.

        Args:
            value: a weight of the program: `value.start` and `value.shape` of `value.full_shape`, `value.dtype` being
                the kind.

        Returns:
            The share; possibly a read-only view of the file. It is the same as that part of the whole weight.

        Raises:
            RequestError: the share's columns cut a group, or the kind can't represent the elements.
            CheckpointError: elements of the share are NaN or infinite.
        """
        return self._open().load(value)

    def recipe(self, value: Value) -> RandomWeight | None:
        """What this rank's share of a weight is made by, of random weights; None of others, which `load` gives.

        Args:
            value: as for `load`.

        Raises:
            RequestError: the share's columns cut a group.
        """
        weights = self._open()
        return weights.recipe(value) if isinstance(weights, RandomWeights) else None

    def check(self, weights: Iterable[Value]) -> None:
        """Checks that the checkpoint holds all of the program's weights, in the right shapes, and nothing else.

        Raises:
            CheckpointError: naming the missing, misshapen and unexpected tensors.
        """
        self._open().check(weights)

    def release(self) -> None:
        """Takes what was read of mapped files out of this process's memory; weights that are views stay valid."""
        self._open().release()

    def fingerprint(self, config: ModelConfig) -> str:
        """As `model_fingerprint`, of the files as they are now.

        Args:
            config: this checkpoint's, possibly with fewer usable tokens.

        Raises:
            UnsupportedError: the model came from memory.
        """
        if self.source == IN_MEMORY:
            raise UnsupportedError(
                f"{self.description} has no files to take a fingerprint of; open it from a directory"
            )
        return model_fingerprint(self.path, config, self.adapter)

    def close(self) -> None:
        """Lets go of the files; weights that were loaded before stay valid."""
        self._weights = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> _Weights:
        assert self._weights is not None, "the checkpoint is closed"
        return self._weights


def open_checkpoint(
    model: str | InMemoryModel | None, *, weights: str = "native", seed: int = 0, adapter: str | None = None
) -> Checkpoint:
    """Opens a model without reading its weights.

    Args:
        model: a directory, packed or not, a .gguf file, `random:NAME`, `random:` and the path of a config.json, or a
            Hub id; one that is in memory; None for the default model.
        weights: the kind of all matrices, or "native": as they are stored.
        seed: of random weights, 0 .. 2**64 - 1.
        adapter: the directory of a PEFT LoRA adapter that is merged into the weights; None: none.

    Raises:
        RequestError: no such model, weight kind, preset or adapter; also a configuration that is not supported.
        CheckpointError: the checkpoint is damaged.
    """
    if weights != "native":
        weight_kind(weights)
    if not 0 <= seed < 2**64:
        raise RequestError(f"the seed is {seed}; it must be from 0 to 2**64 - 1")
    checkpoint = _with_possible_ends(_open_model(model, weights, seed))
    return checkpoint if adapter is None else _adapted(checkpoint, Path(adapter).expanduser(), weights)


def _open_model(model: str | InMemoryModel | None, weights: str, seed: int) -> Checkpoint:
    if isinstance(model, InMemoryModel):
        return _open_in_memory(model, weights)
    if model is not None and model.startswith(RANDOM_PREFIX):
        return _open_random(model.removeprefix(RANDOM_PREFIX), weights, seed)
    path = default_model() if model is None else Path(model).expanduser()
    name = path.name or str(path)
    if not path.exists():
        assert model is not None
        from anthesis.checkpoint.hub import hub_path, looks_like_hub_id  # its HTTP modules take a while to import

        if not looks_like_hub_id(model):
            raise RequestError(f"{model}: no such file or directory")
        path, name = hub_path(model), model
    elif path.is_dir():
        name = path.resolve().name  # of "." as well
    return replace(_open_path(path, name, weights), path=path)


def _adapted(checkpoint: Checkpoint, adapter: Path, weights: str) -> Checkpoint:
    """The checkpoint with an adapter merged into its weights."""
    own = checkpoint._weights
    if checkpoint.is_random or not isinstance(own, StoredWeights):
        raise RequestError(
            f"{checkpoint.description}: an adapter belongs to the weights it was trained with; name those"
        )
    merged = AdaptedWeights(adapter, own, checkpoint.description, checkpoint.family, checkpoint.config, weights)
    description = f"{checkpoint.description}{_ADAPTER_MARK}{printable(adapter.resolve().name)}"
    return replace(checkpoint, description=description, config=merged.config, _weights=merged, adapter=adapter)


def model_fingerprint(path: Path | None, config: ModelConfig, adapter: Path | None = None) -> str:
    """A fingerprint of all that a model's results depend on: configuration, weights, adapter and tokenizer, sampled.

    Args:
        path: of the file or directory; None for random weights, which the configuration does not tell apart.
        config: the configuration.
        adapter: the directory of the adapter, or None.

    Raises:
        OSError: a file can't be read.
        AnthesisError: the adapter is no longer there.
    """
    digest = hashlib.sha256(repr(config).encode())
    for file in (*_model_files(path), *(() if adapter is None else adapter_files(adapter))):
        digest.update(sampled_sha256(file).encode())
    return digest.hexdigest()


def _model_files(path: Path | None) -> list[Path]:
    if path is None or path.is_file():
        return [] if path is None else [path]
    return sorted(file for file in path.iterdir() if file.suffix in _MODEL_SUFFIXES and file.is_file())


def _open_path(path: Path, name: str, weights: str) -> Checkpoint:
    if path.is_file():
        return _open_gguf(path, name, weights)
    if (path / MODEL_NAME).exists():
        return _open_packed(path, weights)
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").is_file() and ggufs:
        if len(ggufs) > 1:
            raise RequestError(f"{path} holds several GGUF files; name one of them: {few([p.name for p in ggufs])}")
        return _open_gguf(ggufs[0], ggufs[0].name, weights)
    return _open_directory(path, name, weights)


def _open_random(name: str, weights: str, seed: int) -> Checkpoint:
    raw: Mapping[str, Any]
    file: Path | None
    path = Path(name).expanduser()
    if path.name == "config.json" or path.suffix == ".json" or "/" in name:
        if not path.is_file():
            raise RequestError(f"{RANDOM_PREFIX}{name}: no such file; expected the path of a config.json, or a preset")
        file, raw = path, read_json(path)
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    else:
        file, raw = None, preset(name)
    with naming(file):
        family = family_of_config(raw)
        kind = _native_kind(raw) if weights == "native" else weights
        config = family.read_config(raw)
    description = f"random weights in the shape of {name} (seed {seed})"
    return Checkpoint(description, family, config, True, None, RandomWeights(seed, kind))


def _with_possible_ends(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without end-of-sequence ids that can't come; it is said, since nobody means them.

    They are not refused: models trained with a vocabulary of their own often keep the ids of the one before.
    """
    config = checkpoint.config
    ends = tuple(i for i in config.eos_token_ids if i < config.vocab_size)
    if ends == config.eos_token_ids:
        return checkpoint
    odd = few([f"{i!r:.30}" for i in config.eos_token_ids if i >= config.vocab_size])
    warnings.warn(
        f"{checkpoint.description}: eos_token_id {odd} is outside the vocabulary of {config.vocab_size}, so it never "
        "comes" + ("" if ends else " and nothing ends a sequence before its limit"),
        stacklevel=2,
    )
    return replace(checkpoint, config=replace(config, eos_token_ids=ends))


def _check_layers(path: Path, config: ModelConfig, store: TensorStore) -> None:
    """Finds a made-up number of layers before anything is made for each of them."""
    if config.num_layers > len(store.tensors):
        raise CheckpointError(
            f"{path}: the configuration has {config.num_layers} layers, and no more than {len(store.tensors)} tensors "
            "are stored"
        )


def _native_kind(raw: Mapping[str, Any]) -> str:
    """The kind that a config.json says its weights have; bf16 where it does not say."""
    dtype = ConfigReader(raw).string("dtype", "torch_dtype", default="bfloat16")
    kinds = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    if dtype not in kinds:
        raise ConfigError(f"config.json has the dtype {dtype!r:.60}; known are {', '.join(kinds)}; or say --weights")
    return kinds[dtype]


def _open_gguf(path: Path, name: str, weights: str) -> Checkpoint:
    if path.suffix != ".gguf":
        raise RequestError(f"{path}: not a model: a directory with config.json and safetensors, or a .gguf file, is")
    store = GgufStore(path)
    if "general.architecture" not in store.metadata:
        raise CheckpointError(f"{path}: lacks general.architecture, so it holds no model")
    with naming(path):
        family = family_of_gguf(store.metadata["general.architecture"])
        assert family.gguf is not None
        config = family.gguf.read_config(store.metadata, frozenset(store.tensors))
    _check_layers(path, config, store)
    found = StoredWeights(str(path), store, family.gguf.sources(config), (), family.gguf.ignored, weights)
    return Checkpoint(name, family, config, False, store.metadata, found)


def _open_packed(path: Path, weights: str) -> Checkpoint:
    model, family, config = read_model(path)
    store = PackedStore(path, model)
    _check_layers(path, config, store)
    sources = {value.name: Source(value.name) for value in trace(config).of_kind("weight")}
    found = StoredWeights(str(path), store, sources, (), (), weights)
    return Checkpoint(printable(model.model), family, config, model.is_random, read_tokenizer(path, model), found)


def _open_directory(path: Path, name: str, weights: str) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is not a model: it holds neither config.json nor a .gguf file")
    raw = read_json(path / "config.json")
    _check_unquantised(str(path), raw)
    with naming(path / "config.json"):
        family = family_of_config(raw)
        config = family.read_config(raw)
    generation = path / "generation_config.json"
    if generation.is_file():
        with naming(generation):
            more_ends = ConfigReader(read_json(generation), generation.name).token_ids("eos_token_id")
        config = replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *more_ends))))
    store: TensorStore = TorchBinStore(path) if holds_only_bin(path) else SafetensorsStore(path)
    _check_layers(path, config, store)
    found = StoredWeights(str(path), store, family.sources(config), family.prefixes, family.ignored, weights)
    has_tokenizer = any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
    return Checkpoint(name, family, config, False, path if has_tokenizer else None, found)


def _open_in_memory(model: InMemoryModel, weights: str) -> Checkpoint:
    _check_unquantised(model.description, model.config)
    family = family_of_config(model.config)
    config = family.read_config(model.config)
    found = StoredWeights(
        model.description, model.store, family.sources(config), family.prefixes, family.ignored, weights
    )
    return Checkpoint(model.description, family, config, False, None, found)


def _check_unquantised(where: str, raw: Mapping[str, Any]) -> None:
    quantization = raw.get("quantization_config") or raw.get("compression_config")
    if quantization:
        method = (
            quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else quantization
        )
        raise UnsupportedError(
            f"{where}: the weights are quantised by {printable(str(method), 60)} (quantization_config), which is not "
            "read; take the unquantised model and choose --weights, or a GGUF file"
        )
