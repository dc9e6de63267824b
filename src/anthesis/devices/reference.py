"""The reference device: the NumPy executor, selectable for debugging and as the oracle of tests.

Weights are dequantised to the arithmetic's dtype, float32, or float64 as `reference-fp64`. Products take their inputs
unrounded.

NumPy's own threads spin while they wait for each other: beside any other busy process two of them are several times
slower than one, and one core alone nearly fills the memory bus with float32 products of one row. So one is the default.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from threadpoolctl import ThreadpoolController

from anthesis.checkpoint.random import RandomWeight
from anthesis.devices.bandwidth import ReadBandwidth, of_host
from anthesis.devices.device import Counters, DeviceInfo, InstructionTime
from anthesis.errors import UnsupportedError
from anthesis.memory import available_memory_bytes
from anthesis.parallel.communicator import Communicator
from anthesis.parallel.seat import Seat
from anthesis.program.ir import Array, Arrays, Program, Value
from anthesis.program.reference import execute
from anthesis.quantize import WeightTensor


class ReferenceDevice:
    """Runs programs in NumPy.

    Args:
        dtype: of the arithmetic, np.float32 or np.float64.
        threads: that matrix products may use.
        seat: of this rank, where the model is split over several; None: it is not.
    """

    def __init__(self, dtype: type[np.floating[Any]] = np.float32, threads: int = 1, seat: Seat | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.threads = threads
        self._ranks = None if seat is None else seat.communicator
        self._sharers = 1 if seat is None else seat.sharers

    def info(self) -> DeviceInfo:
        """NumPy on this machine's processor."""
        return DeviceInfo(
            name="reference" if self.dtype == np.float32 else "reference-fp64",
            description=f"NumPy {np.__version__} on {platform.machine()}, {self.threads} thread"
            + ("s" if self.threads > 1 else ""),
            memory_bytes=available_memory_bytes() // self._sharers,
            arithmetic=f"{self.dtype.name}, weights dequantised, inputs not rounded",
            batch_invariant=True,
            full_batch=16,  # docs/log.md
            kernels="numpy",
            uses_host_memory=True,
        )

    def held_bytes(self, value: Value) -> int:
        """Bytes of a weight (or of a cache's block) in the arithmetic's dtype, or of a bfloat16 cache's block."""
        shape = [dim for dim in value.shape if isinstance(dim, int)]
        return math.prod(shape) * self._dtype_of(value).itemsize

    def pack(self, weight: WeightTensor, uses: frozenset[str]) -> Array:
        """The weight dequantised: (N, K) or (N,) as it is, float32 or float64 as the arithmetic, whatever its uses."""
        return weight.dequantize(self.dtype)

    def make(self, weight: RandomWeight, uses: frozenset[str]) -> Array:
        """A random weight, made on the host: (N, K) or (N,), as `pack` gives it, float32 where nothing else is said."""
        return self.pack(weight.on_host(), uses)

    def allocate(self, program: Program, num_blocks: int, old: dict[str, Array] | None = None) -> dict[str, Array]:
        """One array (P, 2, 64, K D) for each layer, in bfloat16 or the arithmetic's dtype, by name."""
        caches = {}
        for value in program.of_kind("cache"):
            cache = np.zeros((num_blocks, *map(int, value.shape[1:])), self._dtype_of(value))
            if old is not None:
                cache[: len(old[value.name])] = old[value.name]
            caches[value.name] = cache
        return caches

    def copy_blocks(self, cache: dict[str, Array], sources: Sequence[int], targets: Sequence[int]) -> None:
        """In each layer's array, blocks (N,) onto blocks (N,)."""
        for blocks in cache.values():
            blocks[list(targets)] = blocks[list(sources)]

    def _dtype_of(self, value: Value) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.bfloat16) if (value.kind, value.dtype) == ("cache", "bf16") else self.dtype

    def compile(self, program: Program, weights: Mapping[str, Array], cache: dict[str, Array]) -> ReferenceExecutable:
        """The program over these weights and this cache."""
        names = (value.name for value in program.of_kind("weight"))
        return ReferenceExecutable(program, {name: weights[name] for name in names}, cache, self.threads, self._ranks)

    def counters(self) -> Counters:
        """Nothing is captured here."""
        return Counters()

    def inputs_of(self, kind: str, wide: bool) -> str:
        """Nothing is rounded."""
        return self.dtype.name

    def synchronize(self) -> None:
        """NumPy returns when it has computed."""

    def read_bandwidth(self, nbytes: int | None = None) -> ReadBandwidth:
        """That of the host's memory."""
        return of_host(nbytes)

    def multiply_add_peaks(self) -> Mapping[str, float]:
        """Unknown: NumPy's products are made by a library."""
        return {}

    def versions(self) -> Mapping[str, str]:
        """Only NumPy computes here."""
        return {}


class ReferenceExecutable:
    """A program, its weights and its cache, how many threads NumPy's products may use, and what ranks exchange by."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Array],
        cache: dict[str, Array],
        threads: int,
        ranks: Communicator | None = None,
    ) -> None:
        self._program, self._ranks = program, ranks
        self._held = {**weights, **cache}
        self._threads = threads
        self._libraries = ThreadpoolController()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step; logits (L, V) come in the arithmetic's dtype, float32 or float64."""
        with self._libraries.limit(limits=self._threads, user_api="blas"):
            return execute(self._program, {**self._held, **inputs}, self._exchange)

    def _exchange(self, own: Arrays) -> list[Arrays]:
        """The arrays of every rank, from this rank's."""
        if self._ranks is None:
            return [own]
        arrays = {name: np.ascontiguousarray(array) for name, array in own.items()}
        gathered = {
            name: [
                np.frombuffer(part, array.dtype).reshape(*array.shape[:-1], -1)
                for part in self._ranks.all_gather(array.reshape(-1).view(np.uint8))
            ]
            for name, array in arrays.items()
        }
        return [{name: parts[rank] for name, parts in gathered.items()} for rank in range(self._ranks.size)]

    def measure(self, on: bool) -> list[InstructionTime]:
        """There are no counters here.

        Raises:
            UnsupportedError: they were asked for.
        """
        if on:
            raise UnsupportedError("the reference device has no counters of its operations; --device cpu has")
        return []
