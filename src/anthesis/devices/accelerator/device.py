"""What devices driven through PyTorch have in common."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from anthesis.checkpoint.random import RandomWeight
from anthesis.devices.accelerator.bandwidth import of_card
from anthesis.devices.accelerator.exchange import Exchange
from anthesis.devices.accelerator.executable import AcceleratorExecutable
from anthesis.devices.accelerator.graphs import Graphs
from anthesis.devices.accelerator.matrices import Matrix, matrix_bytes, pack
from anthesis.devices.accelerator.memory import saying_what_for
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.accelerator.random import random_matrix, random_vector
from anthesis.devices.accelerator.sizes import all_blocks, power_of_two
from anthesis.devices.accelerator.step import Step
from anthesis.devices.bandwidth import ReadBandwidth, of_host
from anthesis.devices.device import Counters, DeviceInfo, Executable
from anthesis.parallel.seat import Seat
from anthesis.program.ir import BLOCK_TOKENS, Array, Program, Value
from anthesis.quantize import WeightTensor

Caches = dict[str, torch.Tensor]
_CACHE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_REMEDY = "take a smaller --batch or --cache-memory"


class AcceleratorDevice(ABC):
    """Weights, caches and programs as tensors; a device adds what it is, its operations and its graphs.

    Args:
        device: of the tensors.
        operations: that it runs.
        graphs: that capture steps.
        blocks: how many blocks attention looks at, as in `size_of`.
        seat: of this rank, where the model is split over several; None: it is not.
        in_rank_order: sums over ranks are added in that order, as in `Exchange`.
    """

    pinned = False
    """Inputs stand in memory from which the card copies by itself."""

    separate_inputs = False
    """Each input is a tensor of its own on the device, which need not look at bytes as at other numbers."""

    def __init__(
        self,
        device: torch.device,
        operations: Operations,
        graphs: Graphs,
        blocks: Callable[[int, int], int] = all_blocks,
        seat: Seat | None = None,
        in_rank_order: bool = False,
    ) -> None:
        self.device, self.graphs = device, graphs
        self._operations, self._blocks = operations, blocks
        communicator = None if seat is None else seat.communicator
        self._ranks = None if communicator is None else Exchange(communicator, in_rank_order)
        self._executables: weakref.WeakSet[AcceleratorExecutable] = weakref.WeakSet()
        if seat is not None:
            seat.leaving.append(self.let_go)

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What it is and what it can do."""

    def held_bytes(self, value: Value) -> int:
        """Bytes of a weight in its kind, four-bit rows rounded up to whole runs; of a cache, those of one block."""
        return value.nbytes({"P": 1}) if value.kind == "cache" else matrix_bytes(value)

    def pack(self, weight: WeightTensor, uses: frozenset[str]) -> Matrix | torch.Tensor:
        """A matrix (N, K) of any kind as tensors, or a vector (N,) float32.

        Raises:
            RequestError: the device has too little memory for it.
        """
        with self._memory_for(weight.nbytes):
            if len(weight.shape) == 1:
                return torch.from_numpy(np.array(weight.values, np.float32)).to(self.device)
            return pack(weight, self.device)

    def make(self, weight: RandomWeight, uses: frozenset[str]) -> Matrix | torch.Tensor:
        """A random weight, a matrix (N, K) of any kind or a vector (N,) float32, made on the device.

        Raises:
            RequestError: the device has too little memory for it.
        """
        make: Callable[[RandomWeight, torch.device], Matrix | torch.Tensor]
        make = random_vector if len(weight.shape) == 1 else random_matrix
        with self._memory_for(weight.kind.nbytes(weight.shape)):
            return make(weight, self.device)

    def allocate(self, program: Program, num_blocks: int, old: Caches | None = None) -> Caches:
        """One tensor (128 P, K D) for each layer: of each block 64 rows of keys, then 64 of values.

        Raises:
            RequestError: the device has too little memory for it.
        """
        values = program.of_kind("cache")
        needed = num_blocks * sum(self.held_bytes(value) for value in values)
        what = f"a key-value cache of {needed / 1e9:,.2f} GB"
        caches = {}
        with saying_what_for(self.device, what, _REMEDY):
            for value in values:
                shape = num_blocks * 2 * BLOCK_TOKENS, value.static_width
                cache = torch.zeros(shape, dtype=_CACHE_DTYPES[value.dtype], device=self.device)
                if old is not None:
                    cache[: len(old[value.name])] = old[value.name]
                caches[value.name] = cache
        return caches

    def copy_blocks(self, cache: Caches, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Blocks (N,) onto blocks (N,) in each layer's tensor, in place, where captured steps read it.

        Some are copied twice, to make their number a power of two: a device may compile each shape that it meets.

        Raises:
            DeviceMemoryError: the device has too little memory for what is on its way.
        """
        count = power_of_two(len(sources))
        with torch.inference_mode(), self.graphs.running(), saying_what_for(self.device, "copying blocks", _REMEDY):
            read, written = (self._rows_of(np.resize(blocks, count)) for blocks in (sources, targets))
            for tensor in cache.values():
                tensor.index_copy_(0, written, tensor.index_select(0, read))
            self._operations.settle()  # nothing else would have it done before a step is replayed

    def _rows_of(self, blocks: Array) -> torch.Tensor:
        """The rows of blocks (N,) in a layer's tensor, (128 N,) int64, as PyTorch wants it."""
        rows = blocks[:, None] * (2 * BLOCK_TOKENS) + np.arange(2 * BLOCK_TOKENS)
        return torch.from_numpy(rows.reshape(-1).astype(np.int64)).to(self.device)

    def _memory_for(self, nbytes: int) -> AbstractContextManager[None]:
        what = f"a weight of {nbytes / 1e9:,.2f} GB"
        return saying_what_for(self.device, what, "see `anthesis plan` for what the model needs")

    def compile(self, program: Program, weights: Mapping[str, Any], cache: Caches) -> Executable:
        """The program over these weights and this cache; it is captured when it runs.

        Raises:
            UnsupportedError: an operation that accelerators don't have.
            RequestError: the device has too little memory for joining matrices.
        """
        with saying_what_for(self.device, "joining matrices", "see `anthesis plan` for what the model needs"):
            step = Step(program, weights, cache, self._operations, self._ranks, self.device)
        executable = AcceleratorExecutable(
            step, self.graphs, self._blocks, self.device, self.to_host, self.pinned, self.separate_inputs
        )
        self._executables.add(executable)
        return executable

    def let_go(self) -> None:
        """Drops what was captured: what ranks exchange by can't be left before."""
        for executable in self._executables:
            executable.let_go()

    def to_host(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
        """Tensors as arrays of the host, waiting once for all of them; they are valid until the next step."""
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    def counters(self) -> Counters:
        """What was captured so far."""
        captures = self.graphs.captures
        return Counters(captures=captures.count, capture_s=captures.seconds, uncaptured=captures.steps_without)

    @abstractmethod
    def inputs_of(self, kind: str, wide: bool) -> str:
        """See `Device.inputs_of`."""

    @abstractmethod
    def synchronize(self) -> None:
        """See `Device.synchronize`."""

    def read_bandwidth(self, nbytes: int | None = None) -> ReadBandwidth:
        """That of the card's memory; of the host's where its tensors are the host's."""
        if self.device.type == "cpu":
            return of_host(nbytes)
        return of_card(self.device, self.info().memory_bytes, self.seconds_of, nbytes)

    def seconds_of(self, call: Callable[[], Any]) -> float:
        """How long the device takes for a call that gives a tensor, as the host sees it."""
        begin = time.perf_counter()
        call().view(-1)[:1].cpu()
        return time.perf_counter() - begin

    def multiply_add_peaks(self) -> Mapping[str, float]:
        """Unknown."""
        return {}

    def versions(self) -> Mapping[str, str]:
        """PyTorch's."""
        return {"torch": str(torch.__version__)}
