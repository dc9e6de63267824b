"""The CUDA device: an NVIDIA card through PyTorch and Triton."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from anthesis.devices.accelerator.device import AcceleratorDevice, Caches
from anthesis.devices.accelerator.graphs import Graphs, NoGraphs
from anthesis.devices.accelerator.operations import Operations
from anthesis.devices.bandwidth import ReadBandwidth
from anthesis.devices.cuda.graphs import CudaGraphs
from anthesis.devices.device import Counters, DeviceInfo, Executable
from anthesis.errors import UnsupportedError
from anthesis.memory import available_memory_bytes
from anthesis.parallel.launch import NAME_VARIABLE
from anthesis.parallel.seat import Seat
from anthesis.parallel.variables import launched
from anthesis.program.ir import Array, Program, Value
from anthesis.units import counted

FP8_CAPABILITY = (8, 9)
"""Compute capability from which a card converts e4m3 by itself (NVIDIA Ada and Hopper)."""

BF16_CAPABILITY = (8, 0)

_INVARIANT_INPUTS = "bf16 (fp32 for fp32 and fp16); of the attention as the cache"
_INPUTS = (
    "those of one row float32, of several rows bf16 (fp32 for fp32 and fp16), from 128 rows on with bf16 weights in "
    "place of those with groups; of the attention as the cache"
)

DRIVER = Path("/proc/driver/nvidia/version")


def open_card(seat: Seat | None = None, invariant: bool = False) -> CudaDevice:
    """The card that this rank uses.

    Args:
        seat: of this rank, where the model is split over several: the ranks of a machine take its cards in order.
        invariant: only kernels that compute each row alone, whatever is beside it.

    Raises:
        UnsupportedError: there is no such card, or it is too old.
    """
    index = 0
    if torch.cuda.is_available():
        index = card_of(0 if seat is None else seat.place, torch.cuda.device_count(), os.environ)
    reason = why_unusable(index)
    if reason is not None:
        raise UnsupportedError(f"the cuda device can't be used: {reason}; see docs/devices.md, or take --device cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    from anthesis.devices.cuda.operations import CudaOperations

    return CudaDevice(device, CudaOperations(invariant), seat, invariant)


def why_unusable(index: int = 0) -> str | None:
    """Why a card can't be used; None where it can.

    Args:
        index: its number.
    """
    built = torch.version.cuda
    if built is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return f"PyTorch for CUDA {built} finds no NVIDIA card"
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < BF16_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and 8.0 (A100) is the least"
        )
    if find_spec("triton") is None:
        return "Triton is not installed, which PyTorch's builds for CUDA bring along"
    compilers = (os.environ.get("CC"), "gcc", "clang")
    if not any(shutil.which(compiler) for compiler in compilers if compiler):
        return "there is no C compiler (CC, gcc or clang), which Triton needs to launch kernels"
    return None


def card_of(place: int, count: int, environment: Mapping[str, str]) -> int:
    """The number of the card that a rank takes: of those that its process sees, in order.

    Args:
        place: of the rank on its machine, from 0.
        count: of the cards that it sees.
        environment: of its process.

    Raises:
        UnsupportedError: there are fewer cards than ranks.
    """
    is_ours = NAME_VARIABLE in environment or launched(environment) is None
    if count == 1 and not is_ours:
        return 0  # a launcher that gives each rank a card of its own
    if place >= count:
        raise UnsupportedError(
            f"rank {place} of this machine, counted from 0, has no card: {counted(count, 'card')} can be seen; take "
            "fewer ranks a machine, or name more cards in CUDA_VISIBLE_DEVICES"
        )
    return place


class CudaDevice(AcceleratorDevice):
    """A card; or, for tests, its code on the host's tensors, without graphs.

    Args:
        device: of the tensors.
        operations: that it runs.
        seat: of this rank, where the model is split over several; None: it is not.
        invariant: the operations compute each row alone.
    """

    def __init__(
        self, device: torch.device, operations: Operations, seat: Seat | None = None, invariant: bool = False
    ) -> None:
        self._is_card = device.type == "cuda"
        self.pinned = self._is_card
        self._invariant = invariant
        self._peak_bytes = 0
        if self._is_card:
            torch.cuda.reset_peak_memory_stats(device)
        graphs: Graphs = CudaGraphs(device) if self._is_card else NoGraphs()
        super().__init__(device, operations, graphs, seat=seat, in_rank_order=invariant)

    def info(self) -> DeviceInfo:
        """The card, and how much of its memory is free."""
        if self._is_card:
            free, _ = torch.cuda.mem_get_info(self.device)
            # what PyTorch keeps for itself and does not use now is free, too
            free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            major, minor = torch.cuda.get_device_capability(self.device)
            description = f"{torch.cuda.get_device_name(self.device)}, compute capability {major}.{minor}"
        else:
            free, description = available_memory_bytes(), "the code of the cuda device on the host"
        return DeviceInfo(
            name="cuda",
            description=description,
            memory_bytes=free,
            arithmetic="float32 sums; inputs: " + (_INVARIANT_INPUTS if self._invariant else _INPUTS),
            batch_invariant=self._invariant,
            full_batch=64,
            kernels=self._operations.kernels,
            uses_host_memory=not self._is_card,
        )

    def held_bytes(self, value: Value) -> int:
        """See `AcceleratorDevice.held_bytes`.

        Raises:
            UnsupportedError: fp8 on a card that can't convert it.
        """
        if value.dtype == "fp8" and self._is_card:
            capability = torch.cuda.get_device_capability(self.device)
            if capability < FP8_CAPABILITY:
                raise UnsupportedError(
                    f"fp8 needs compute capability 8.9, and this card has {capability[0]}.{capability[1]}; choose "
                    "--weights int8"
                )
        return super().held_bytes(value)

    def compile(self, program: Program, weights: Mapping[str, Any], cache: Caches) -> Executable:
        """See `AcceleratorDevice.compile`.

        Raises:
            UnsupportedError: an operation that accelerators don't have.
            RequestError: the device has too little memory for joining matrices.
        """
        executable = super().compile(program, weights, cache)
        if self._is_card:  # steps have a stream of their own; and what was joined has left pieces of the old size
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        return executable

    def to_host(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
        """See `AcceleratorDevice.to_host`."""
        if not self._is_card:
            return super().to_host(tensors)
        copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        torch.cuda.current_stream(self.device).synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    def counters(self) -> Counters:
        """What was captured, and the most memory that was held."""
        counted = super().counters()
        if not self._is_card:
            return counted
        return replace(counted, memory_bytes=self._peak())

    def inputs_of(self, kind: str, wide: bool) -> str:
        """It depends on the rows of a step, unless each is computed alone; no more for wide inputs."""
        several = "fp32" if kind in ("fp32", "fp16") else "bf16"
        return several if self._invariant else f"fp32 of one row, {several} of several"

    def synchronize(self) -> None:
        """Waits for all streams of the card."""
        if self._is_card:
            torch.cuda.synchronize(self.device)

    def read_bandwidth(self, nbytes: int | None = None) -> ReadBandwidth:
        """See `AcceleratorDevice.read_bandwidth`; the buffer that is read counts for no peak of memory."""
        self._peak_bytes = self._peak()
        found = super().read_bandwidth(nbytes)
        if self._is_card:
            torch.cuda.reset_peak_memory_stats(self.device)
        return found

    def seconds_of(self, call: Callable[[], Any]) -> float:
        """How long the card takes for a call, by its own clock."""
        if not self._is_card:
            return super().seconds_of(call)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # is still at work when what follows is queued, so that no waiting for the host is in the time
        begin.record()
        call()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1e3

    def versions(self) -> Mapping[str, str]:
        """PyTorch's, and on a card those of CUDA, of its driver, and of Triton once that is used."""
        found = dict(super().versions())
        if self._is_card:
            found["cuda"] = str(torch.version.cuda)
            driver = driver_version(DRIVER.read_text() if DRIVER.is_file() else "")
            if driver is not None:
                found["nvidia driver"] = driver
            if "triton" in sys.modules:
                found["triton"] = str(sys.modules["triton"].__version__)
        return found

    def _peak(self) -> int:
        """The most bytes that were held at once since this device was opened."""
        if not self._is_card:
            return 0
        return max(self._peak_bytes, int(torch.cuda.max_memory_allocated(self.device)))


def driver_version(text: str) -> str | None:
    """The version of the driver, from what its kernel module tells about itself; None where that says nothing."""
    found = re.search(r"Kernel Module[^\n]*?\s(\d+\.[\d.]+)", text)
    return None if found is None else found[1]
