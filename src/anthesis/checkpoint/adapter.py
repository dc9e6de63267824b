"""A PEFT LoRA adapter: which tensors of a model it changes, and how.

| stored for a module                        | effect on its weight W, (N, K)                                     |
|--------------------------------------------|--------------------------------------------------------------------|
| lora_A (r, K), lora_B (N, r)               | W + B A * scaling                                                  |
| lora_embedding_A (r, N), lora_embedding_B  | W + (B A)^T * scaling                                              |
| lora_magnitude_vector (N,)                 | each row of the sum scaled to this length (DoRA, arXiv:2402.09353) |
| lora_B.bias (N,)                           | bias + lora_B.bias * scaling                                       |
| weight, bias (modules_to_save, bias="all") | replaced                                                           |

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anthesis.checkpoint.adapter_config import CONFIG_NAME, AdapterConfig
from anthesis.checkpoint.safetensors import SafetensorsStore
from anthesis.checkpoint.store import TensorStore
from anthesis.checkpoint.torch_bin import TorchBinStore
from anthesis.errors import CheckpointError, RequestError, UnsupportedError, few

WEIGHTS_NAME, BIN_NAME = "adapter_model.safetensors", "adapter_model.bin"

PRODUCT_ROWS = 32
"""Rows of every product of factors: where all have one shape, no element depends on how many rows are wanted."""

_FACTORS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_B.bias": "bias",
}
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+?)"
    rf"(?:\.(?P<factor>{'|'.join(map(re.escape, _FACTORS))})"
    r"|(?:\.base_layer|\.modules_to_save)?\.(?P<part>weight|bias))"
)


@dataclass(frozen=True)
class Addition:
    """What is added to a tensor of the model: the product of two matrices, or a vector, times a number.

    Attributes:
        tensors: names of the adapter's tensors by what they are ("a", "b", ...).
        scaling: the number.
        rank: of the matrices.
    """

    tensors: dict[str, str]
    scaling: float
    rank: int


def adapter_files(directory: Path) -> tuple[Path, Path]:
    """The configuration and the tensors of an adapter.

    Raises:
        RequestError: there is no such directory.
        CheckpointError: it holds no adapter.
    """
    if not directory.is_dir():
        raise RequestError(
            f"the adapter {directory}: no such directory; `hf download NAME --local-dir DIR` fetches one of the Hub"
        )
    for name in (WEIGHTS_NAME, BIN_NAME):
        if (directory / name).is_file() and (directory / CONFIG_NAME).is_file():
            return directory / CONFIG_NAME, directory / name
    raise CheckpointError(
        f"{directory} is not an adapter: it needs {CONFIG_NAME}, and {WEIGHTS_NAME} or {BIN_NAME}, as PEFT's "
        "save_pretrained writes them"
    )


class Adapter:
    """An adapter on disk, its tensors unread.

    Args:
        directory: holds adapter_config.json, and adapter_model.safetensors or adapter_model.bin.
        known: names of the model's tensors, as a Hugging Face checkpoint stores them but for the family's prefixes.
        prefixes: of the family.

    Attributes:
        trained_on: name of the model that it was trained on, or empty.
        additions: by name of the model's tensor, what is added to it.
        replaced: by name of the model's tensor, the name of the adapter's that takes its place.
        store: the adapter's tensors.

    Raises:
        RequestError: there is no such directory.
        CheckpointError: the adapter is damaged, or made for another model.
        UnsupportedError: it is of a kind that is not merged here.
    """

    def __init__(self, directory: Path, known: Iterable[str], prefixes: tuple[str, ...]) -> None:
        self._where = f"the adapter {directory}"
        file = adapter_files(directory)[1]
        self._config = AdapterConfig(directory)
        self.trained_on = self._config.trained_on
        self.store: TensorStore = (
            SafetensorsStore(directory, WEIGHTS_NAME)
            if file.name == WEIGHTS_NAME
            else TorchBinStore(directory, BIN_NAME)
        )
        self.additions: dict[str, Addition] = {}
        self.replaced: dict[str, str] = {}
        self._sort_tensors(frozenset(known), prefixes)

    def _sort_tensors(self, known: frozenset[str], prefixes: tuple[str, ...]) -> None:
        """Finds out what each tensor is for."""
        factors: dict[str, tuple[str, dict[str, str]]] = {}
        strange = []
        for tensor in self.store.tensors:
            found = _TENSOR.fullmatch(tensor)
            if found is None:
                strange.append(tensor)
                continue
            module, part, factor = found["module"], found["part"], _FACTORS.get(found["factor"])
            prefix = next((prefix for prefix in prefixes if module.startswith(prefix)), "")
            changed = f"{module[len(prefix) :]}.{part or ('bias' if factor == 'bias' else 'weight')}"
            if changed not in known:
                strange.append(tensor)
            elif factor is None:
                self.replaced[changed] = tensor
            elif factor == "bias":
                self.additions[changed] = Addition({factor: tensor}, self._config.scaling(module), 0)
            else:
                factors.setdefault(changed, (module, {}))[1][factor] = tensor
        if strange:
            raise CheckpointError(
                f"{self._where} holds tensors that this model has no use for, so it was made for another model, or by "
                f"another method: {few(sorted(strange))}"
            )
        for changed, (module, tensors) in factors.items():
            self._check_set(module, tensors)
            self.additions[changed] = Addition(tensors, self._config.scaling(module), self._config.rank(module))
        if not self.additions and not self.replaced:
            raise CheckpointError(f"{self._where} holds no tensors, so it changes nothing")

    def _check_set(self, module: str, tensors: Mapping[str, str]) -> None:
        """Checks that all tensors of an adapted module are there."""
        if tensors.keys() - {"magnitude"} not in ({"a", "b"}, {"embedding_a", "embedding_b"}):
            raise CheckpointError(
                f"{self._where} is incomplete: of {module} it holds only {few(sorted(tensors.values()))}; lora_A and "
                "lora_B are needed"
            )
        if ("magnitude" in tensors) != self._config.has_magnitudes:
            raise CheckpointError(
                f"{self._where} contradicts itself: {CONFIG_NAME} has use_dora = {self._config.has_magnitudes}, and "
                f"{module} has {'a' if 'magnitude' in tensors else 'no'} lora_magnitude_vector"
            )
        if "magnitude" in tensors and "embedding_a" in tensors:
            raise UnsupportedError(
                f"{self._where} has DoRA on the embedding {module}, which is not merged here; merge it with peft "
                "(merge_and_unload) and take the model that this gives"
            )

    def changes(self, name: str) -> bool:
        """Whether it changes this tensor of the model."""
        return name in self.additions or name in self.replaced

    def misfits(self, shapes: Mapping[str, tuple[int, ...]], transposed: frozenset[str]) -> list[str]:
        """What is wrong with the shapes and types of its tensors, in words.

        Args:
            shapes: of the model's tensors, as [out, in].
            transposed: names of those that are stored [in, out].
        """
        expected: dict[str, tuple[int, ...]] = {}
        for changed, addition in self.additions.items():
            rows, width = (*shapes[changed], 0)[:2]
            parts = {
                "a": (addition.rank, width),
                "b": (rows, addition.rank),
                "embedding_a": (addition.rank, rows),
                "embedding_b": (width, addition.rank),
            }
            expected |= {name: parts.get(part, (rows,)) for part, name in addition.tensors.items()}
        for changed, name in self.replaced.items():
            expected[name] = shapes[changed][::-1] if changed in transposed else shapes[changed]
        wrong = []
        for name, shape in expected.items():
            stored = self.store.tensors[name]
            if stored.kind is None:
                wrong.append(f"{name} is stored as {stored.stored_as}, which is not read")
            elif stored.shape != shape:
                wrong.append(f"{name} has the shape {list(stored.shape)!r:.100}, not {list(shape)}")
        return wrong

    def merging(self, name: str) -> Merging:
        """What is added to a tensor of the model, read.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        addition = self.additions[name]
        found = {part: self._read(tensor) for part, tensor in addition.tensors.items()}
        if "bias" in found:
            return Merging(None, found["bias"], addition.scaling, None)
        if "a" in found:
            return Merging(found["a"], found["b"], addition.scaling, found.get("magnitude"))
        a, b = (np.ascontiguousarray(found[part].T) for part in ("embedding_b", "embedding_a"))
        return Merging(a, b, addition.scaling, None)

    def _read(self, name: str) -> NDArray[np.float64]:
        """A tensor of the adapter, (N, K) or (N,) float64."""
        shape = self.store.tensors[name].shape
        found = self.store.read(name, slice(0, shape[0]), slice(0, shape[-1]), transpose=False, exact=True)
        numbers: NDArray[np.float64] = found.dequantize(np.float64)
        if not np.isfinite(numbers).all():
            raise CheckpointError(f"{self._where}: {name} holds NaN or infinity, so it is damaged")
        return numbers


@dataclass(frozen=True)
class Merging:
    """An `Addition` with its tensors read; call it to add it.

    Attributes:
        a: (r, K) float64; None for a vector.
        b: (N, r) float64, or (N,) for a vector.
        scaling: a number.
        magnitude: (N,) float64, what the rows of the sum are scaled to, or None.
    """

    a: NDArray[np.float64] | None
    b: NDArray[np.float64]
    scaling: float
    magnitude: NDArray[np.float64] | None

    def __call__(self, own: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The sum, for some rows.

        Args:
            own: (R, K) or (R,) float32, the weight without the adapter.
            rows: (R,), which rows of the model's tensor these are.

        Returns:
            Like `own`.
        """
        if self.a is None:
            added = self.b[rows]
        else:
            blocks = np.zeros((-(-len(rows) // PRODUCT_ROWS), PRODUCT_ROWS, len(self.a)))
            blocks.reshape(-1, len(self.a))[: len(rows)] = self.b[rows]
            added = np.concatenate([block @ self.a for block in blocks])[: len(rows)]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is found by the caller
            added *= self.scaling
            added += own
            if self.magnitude is not None:
                added *= (self.magnitude[rows] / np.linalg.norm(added, axis=1))[:, None]
            return added.astype(np.float32)
