"""What a device is: it packs weights, holds a cache, and turns a program into something that runs one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from anthesis.program.ir import Array, Arrays, Program
from anthesis.quantize import WeightTensor

PackedWeight = Any
"""A weight in the device's own layout; only the device that made it looks inside."""

Cache = Any
"""The block cache in the device's own layout, shared by its executables."""


@dataclass(frozen=True)
class DeviceInfo:
    """A device as results describe it.

    Attributes:
        name: as in `--device`.
        description: the processor or card.
        memory_bytes: what the device can hold; for the host's memory what is available now.
        arithmetic: dtype in which products are summed, and the inputs they take.
        batch_invariant: a prompt's logits are the same bits alone, in any batch and in chunks of any size.
    """

    name: str
    description: str
    memory_bytes: int
    arithmetic: str
    batch_invariant: bool


class Executable(Protocol):
    """A program lowered to a device, over fixed weights and a fixed cache."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step.

        Args:
            inputs: the program's inputs by name, int32, float32, uint64 or uint8 as it declares them; "R" and "L" may
                differ from step to step, "B" and "M" are the cache's.

        Returns:
            The program's outputs by name: token (L,) int32, logits (L, V) float32, ...
        """


class Device(Protocol):
    """Where programs run."""

    def info(self) -> DeviceInfo:
        """What it is and what it can do."""

    def pack(self, weight: WeightTensor) -> PackedWeight:
        """Brings a weight into the device's layout; called once for each, at load."""

    def allocate(self, program: Program, num_blocks: int) -> Cache:
        """A zeroed cache pool of `num_blocks` blocks for every layer of the program."""

    def compile(self, program: Program, weights: Mapping[str, PackedWeight], cache: Cache) -> Executable:
        """Lowers (and captures) the program; the cache is shared with the programs compiled before."""
