"""What a device is: it packs weights, holds a cache, and turns a program into something that runs one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from anthesis.checkpoint.random import RandomWeight
from anthesis.devices.bandwidth import ReadBandwidth
from anthesis.program.ir import Array, Arrays, Op, Program, Value
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
        full_batch: sequences completed at once beyond which a step takes longer by nearly as much as it does more.
        kernels: which ones compute: "avx512", "triton", ...
        uses_host_memory: its memory is the host's, which all ranks of a machine share.
    """

    name: str
    description: str
    memory_bytes: int
    arithmetic: str
    batch_invariant: bool
    full_batch: int
    kernels: str
    uses_host_memory: bool = False


@dataclass(frozen=True)
class Counters:
    """What a device has counted since it was opened; None where it does not count.

    Attributes:
        captures: steps that were captured as graphs, or compiled.
        capture_s: seconds that this took.
        uncaptured: steps that ran call by call, though the device captures steps.
        compilations: of graphs by the device's own compiler, those of captures included.
        cpu_fallbacks: operations that the device had the host's processor do.
        memory_bytes: of the device, the most that was held at once.
    """

    captures: int = 0
    capture_s: float = 0.0
    uncaptured: int = 0
    compilations: int | None = None
    cpu_fallbacks: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class InstructionTime:
    """What one instruction of an executable took.

    Attributes:
        ops: the operations that it computes.
        values: that they read and write, by name.
        seconds: in all steps since measuring began.
    """

    ops: tuple[Op, ...]
    values: Mapping[str, Value]
    seconds: float


class Executable(Protocol):
    """A program lowered to a device, over fixed weights and a fixed cache."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step.

        Args:
            inputs: the program's inputs by name, int32, float32, uint64 or uint8 as it declares them; "R" and "L" may
                differ from step to step. Rows that a device adds name the last line of block_table (B, M) as their
                slot, which is all zeros: they write to the scratch block.

        Returns:
            The program's outputs by name: token (L,) int32, logits (L, V) float32, ...
        """

    def measure(self, on: bool) -> list[InstructionTime]:
        """From now on takes the time of each instruction in every step, or no longer does.

        Returns:
            What each took since `measure(True)`, in order, waiting for all threads included; empty where nothing was
            measured.

        Raises:
            UnsupportedError: the device has no counters.
        """


class Device(Protocol):
    """Where programs run."""

    def info(self) -> DeviceInfo:
        """What it is and what it can do."""

    def held_bytes(self, value: Value) -> int:
        """Bytes that a weight takes once it is packed here; of a cache, those of one block."""

    def pack(self, weight: WeightTensor, uses: frozenset[str]) -> PackedWeight:
        """Brings a weight into the device's layout; called once for each, at load.

        Args:
            weight: on the host.
            uses: how the fused program's operations use it (`Program.uses`): a table that is only looked up needs no
                matrix layout, and a matrix may have room for the biases that are added.
        """

    def make(self, weight: RandomWeight, uses: frozenset[str]) -> PackedWeight:
        """A random weight in the device's layout: what `pack` would make of it, made where it is fastest."""

    def allocate(self, program: Program, num_blocks: int, old: Cache | None = None) -> Cache:
        """A cache pool for every layer of the program.

        Args:
            program: that declares the caches.
            num_blocks: of the pool.
            old: a smaller pool; what its blocks hold is kept. Executables that were compiled over it are not run again.
        """

    def copy_blocks(self, cache: Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """In every layer's cache, copies block sources[i] onto block targets[i]; later steps find it there.

        Args:
            cache: that `allocate` made; executables that were compiled over it go on with it.
            sources: (N,) blocks; the same one may be copied several times.
            targets: (N,) blocks, each once and none of them a source.
        """

    def compile(self, program: Program, weights: Mapping[str, PackedWeight], cache: Cache) -> Executable:
        """Lowers (and captures) the program; the cache is shared with the programs compiled before."""

    def inputs_of(self, kind: str, wide: bool) -> str:
        """What the other operand of a product is rounded to, in words.

        Args:
            kind: of the weights.
            wide: as the operation says (`Linear.wide_inputs`).
        """

    def counters(self) -> Counters:
        """What it has counted since it was opened."""

    def synchronize(self) -> None:
        """Waits until the device has done all it was asked for; a step that has returned leaves nothing to wait for."""

    def read_bandwidth(self, nbytes: int | None = None) -> ReadBandwidth:
        """Measures how fast the memory that holds the weights is read, in a fraction of a second.

        Args:
            nbytes: of the buffer to read, or where that is no different as many as make it so; what a buffer of this
                size keeps in a cache, a model does too. None: as many as say how fast the memory alone is.
        """

    def multiply_add_peaks(self) -> Mapping[str, float]:
        """Most multiply-adds per second, measured, by the kind of their inputs: bf16, int8; empty where unknown."""

    def versions(self) -> Mapping[str, str]:
        """Of what it computes with, by name, besides NumPy and this package."""
