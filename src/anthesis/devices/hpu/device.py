"""The Gaudi device: an Intel Gaudi card through PyTorch and its plug-in, habana_frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from anthesis.checkpoint.random import RandomWeight
from anthesis.devices.accelerator.device import AcceleratorDevice, Caches
from anthesis.devices.accelerator.graphs import Graphs
from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.sizes import needed_blocks
from anthesis.devices.device import Counters, DeviceInfo, Executable
from anthesis.devices.hpu.graphs import EagerGraphs, LazyGraphs
from anthesis.devices.hpu.operations import HpuOperations
from anthesis.devices.hpu.sampling import SamplingExecutable, without_sampling
from anthesis.errors import UnsupportedError
from anthesis.parallel.gaudi import MODE_VARIABLE, Mode, load_gaudi
from anthesis.parallel.seat import Seat
from anthesis.program.ir import Program, Value

KINDS = ("bf16", "fp32")
"""Of matrices, that this device has; vectors are float32 on it, however they are stored."""


def open_card(seat: Seat | None = None) -> HpuDevice:
    """The card that this rank uses.

    Args:
        seat: of this rank, where the model is split over several: the ranks of a machine take its cards in order.

    Raises:
        UnsupportedError: Gaudi's software or a card is not there, or the software was set up in another way before; or
            layers are split over ranks in eager mode.
        RequestError: variables of the environment that can't be right.
    """
    mode = load_gaudi(None if seat is None else seat.local_rank)
    if not torch.hpu.is_available():
        raise UnsupportedError(
            "the hpu device can't be used: Gaudi's software is installed and finds no card; see docs/devices.md, or "
            "take --device cpu"
        )
    if mode == "eager" and seat is not None and seat.communicator is not None:
        raise UnsupportedError(
            "in eager mode Gaudi's software keeps exchanges of ranks out of compiled steps, so the hpu device splits "
            f"layers over ranks in lazy mode only; set {MODE_VARIABLE}=lazy, or take --tp 1"
        )
    return HpuDevice(torch.device("hpu"), mode, seat)


class HpuDevice(AcceleratorDevice):
    """A card, driven by Gaudi's software, which is imported already.

    Args:
        device: of the tensors.
        mode: in which that software runs.
        seat: of this rank, where the model is split over several; None: it is not.
    """

    separate_inputs = True

    def __init__(self, device: torch.device, mode: Mode, seat: Seat | None = None) -> None:
        graphs: Graphs = LazyGraphs() if mode == "lazy" else EagerGraphs()
        self._hpu: Any = torch.hpu
        self._mode = mode
        self._before = {name: _counted(name) for name in ("graph_compilation", "cpu_fallback")}
        super().__init__(device, HpuOperations(), graphs, needed_blocks, seat)

    def info(self) -> DeviceInfo:
        """The card, and how much of its memory is free."""
        free, _ = self._hpu.mem_get_info()
        return DeviceInfo(
            name="hpu",
            description=f"{self._hpu.get_device_name()}, {self._mode} mode",
            memory_bytes=int(free),
            arithmetic="float32 sums; inputs of products bf16 (fp32 for fp32), and their results but for logits; of "
            "the attention as the cache",
            batch_invariant=False,
            full_batch=64,
            kernels=self._operations.kernels,
        )

    def held_bytes(self, value: Value) -> int:
        """See `AcceleratorDevice.held_bytes`.

        Raises:
            UnsupportedError: a kind of weights that this device does not have.
        """
        if value.kind == "weight" and len(value.shape) > 1 and value.dtype not in KINDS:
            raise UnsupportedError(
                f"the hpu device has no {value.dtype} weights, only {' and '.join(KINDS)}; choose --weights bf16"
            )
        return super().held_bytes(value)

    def make(self, weight: RandomWeight, uses: frozenset[str]) -> Matrix | torch.Tensor:
        """A random weight, (N, K) or (N,) float32, made on the host: Gaudi can't compute its hashes of 64 bits."""
        return self.pack(weight.on_host(), uses)

    def compile(self, program: Program, weights: Mapping[str, Any], cache: Caches) -> Executable:
        """The program over these weights and this cache; it is captured when it runs, and tokens are drawn on the host.

        Raises:
            UnsupportedError: an operation that accelerators don't have.
        """
        on_card, sample = without_sampling(program)
        executable = super().compile(on_card, weights, cache)
        return executable if sample is None else SamplingExecutable(on_card, executable, sample)

    def inputs_of(self, kind: str, wide: bool) -> str:
        """The same for all products."""
        return "fp32" if kind == "fp32" else "bf16"

    def synchronize(self) -> None:
        """Waits for all that was asked of the card."""
        self._hpu.synchronize()

    def counters(self) -> Counters:
        """What was captured and compiled, what the host's processor had to do, and the most memory that was held."""
        counted = super().counters()
        return replace(
            counted,
            compilations=self._since_opened("graph_compilation"),
            cpu_fallbacks=self._since_opened("cpu_fallback"),
            memory_bytes=int(self._hpu.max_memory_allocated()),
        )

    def _since_opened(self, name: str) -> int | None:
        now, before = _counted(name), self._before[name]
        return None if now is None or before is None else now - before


def _counted(name: str) -> int | None:
    """How often that has happened in this process; None where this version of Gaudi's software does not count it."""
    metric = import_module("habana_frameworks.torch.hpu.metrics").metric_global(name)
    found = None if metric is None else dict(metric.stats()).get("TotalNumber")
    return None if found is None else int(found)
