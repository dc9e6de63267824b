"""A model on a device: its packed weights, and the programs compiled over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from anthesis.checkpoint import Checkpoint
from anthesis.config import ModelConfig
from anthesis.devices.device import Cache, Device, Executable, PackedWeight
from anthesis.errors import RequestError
from anthesis.models import trace
from anthesis.program.builder import Finish
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Value
from anthesis.program.widen import widen

CACHE_DTYPES = ("fp32", "bf16")


def matrix_kinds(weights: Iterable[Value]) -> tuple[str, ...]:
    """The weight kinds of a program's matrices, each once, sorted."""
    return tuple(sorted({value.dtype for value in weights if len(value.shape) > 1}))


def choose_cache_dtype(cache: str, weights: Iterable[Value]) -> str:
    """The dtype of the key-value cache.

    Args:
        cache: "fp32", "bf16", or "auto": fp32 if all matrices are fp32, else bf16.
        weights: of the program.

    Raises:
        RequestError: none of these.
    """
    if cache not in (*CACHE_DTYPES, "auto"):
        raise RequestError(f"unknown cache type {cache!r}; known are: auto, {', '.join(CACHE_DTYPES)}")
    if cache != "auto":
        return cache
    return "fp32" if matrix_kinds(weights) == ("fp32",) else "bf16"


class LoadedModel:
    """Loads every weight once, by `load`, and compiles programs on demand.

    Args:
        checkpoint: open; it is not needed after `load`.
        config: the checkpoint's, possibly with fewer usable tokens.
        device: where to run.
        cache: as in `choose_cache_dtype`.

    Raises:
        RequestError: an unknown cache dtype, or more weights than the device can hold.
        CheckpointError: the checkpoint does not hold what the model needs.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, device: Device, cache: str = "auto") -> None:
        self.config = config
        self.device = device
        self._traced = trace(config, "argmax", checkpoint.kind_of)
        weights = self._traced.of_kind("weight")
        checkpoint.check(weights)
        self._kinds = {value.name: value.dtype for value in weights}
        self.cache_dtype = choose_cache_dtype(cache, weights)
        self.weight_kinds = matrix_kinds(weights)
        info = device.info()
        needed = sum(device.held_bytes(value) for value in weights)
        if needed > info.memory_bytes:
            raise RequestError(
                f"the weights take {needed / 1e9:,.1f} GB on {info.name}, and {info.memory_bytes / 1e9:,.1f} GB are "
                "free; take a smaller model, or see `anthesis plan` for what this one needs"
            )
        self._weights: dict[str, PackedWeight] = {}
        self._programs: dict[tuple[Finish, int | None], Program] = {}

    def load(self, checkpoint: Checkpoint, on_weight: Callable[[int, int], None]) -> None:
        """Loads the weights.

        Args:
            checkpoint: the same, still open.
            on_weight: called after each weight with (number loaded, number in all).

        Raises:
            CheckpointError: weights that are NaN or infinite.
        """
        weights, uses = self._traced.of_kind("weight"), self.program("argmax").uses()
        for count, value in enumerate(weights, start=1):
            self._weights[value.name] = self.device.pack(checkpoint.load(value), uses[value.name])
            on_weight(count, len(weights))

    def program(self, finish: Finish, top_logprobs: int | None = None) -> Program:
        """The fused program that finishes in this way."""
        if (finish, top_logprobs) not in self._programs:
            kind_of = lambda name, shape: self._kinds[name]  # noqa: E731
            traced = trace(self.config, finish, kind_of, self.cache_dtype, top_logprobs)
            self._programs[finish, top_logprobs] = widen(fuse(traced))
        return self._programs[finish, top_logprobs]

    def allocate(self, num_blocks: int, old: Cache | None = None) -> Cache:
        """A cache pool of so many blocks, the first of which keep what the old one holds."""
        return self.device.allocate(self.program("cache"), num_blocks, old)

    def compile(self, finish: Finish, top_logprobs: int | None, cache: Cache) -> Executable:
        """The program over this model's weights and a cache that `allocate` made."""
        return self.device.compile(self.program(finish, top_logprobs), self._weights, cache)

    def free(self) -> None:
        """Lets go of the weights."""
        self._weights.clear()

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block on the device, over all layers."""
        return sum(self.device.held_bytes(value) for value in self.program("cache").of_kind("cache"))
