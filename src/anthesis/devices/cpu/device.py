"""The CPU device: packs weights into tiles, keeps the cache, lowers programs to the C++ extension's instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anthesis.checkpoint.random import RandomWeight
from anthesis.cores import usable_cores
from anthesis.devices.bandwidth import ReadBandwidth, of_host
from anthesis.devices.cpu.lower import Lowering
from anthesis.devices.device import Counters, DeviceInfo, InstructionTime
from anthesis.errors import RequestError, UnsupportedError
from anthesis.host import processor_name
from anthesis.memory import available_memory_bytes
from anthesis.native import extension, multiply_add_peak
from anthesis.parallel.communicator import Communicator
from anthesis.parallel.seat import Seat
from anthesis.program.attend import Attend
from anthesis.program.ir import Array, Arrays, Program, Value
from anthesis.program.ops import BIASED
from anthesis.program.stages import arriving_name, leaving_name
from anthesis.quantize import WeightTensor
from anthesis.units import counted

PEAK_S = 0.02


class CpuDevice:
    """This machine's processor.

    Args:
        threads: that run a step; None: one for each core that this process may use.
        seat: of this rank, where the model is split over several; None: it is not.

    Raises:
        UnsupportedError: the extension was never built.
        RequestError: ANTHESIS_CPU_KERNELS names kernels that can't run here.
    """

    def __init__(self, threads: int | None = None, seat: Seat | None = None) -> None:
        self._native = extension()
        self._ranks = None if seat is None else seat.communicator
        self._sharers = 1 if seat is None else seat.sharers
        try:
            self.kernels: str = self._native.chosen_kernels()
        except ValueError as error:
            raise RequestError(str(error)) from error
        self.threads = threads or (usable_cores() if seat is None else seat.threads)
        self._pool = self._native.Pool(self.threads)
        self._arena = self._native.Arena()

    def info(self) -> DeviceInfo:
        """The processor, its kernels and its threads."""
        return DeviceInfo(
            name="cpu",
            description=f"{processor_name()}, {self.kernels} kernels, {counted(self.threads, 'thread')}",
            memory_bytes=available_memory_bytes() // self._sharers,
            arithmetic="float32 sums; inputs: bf16 for bf16, 8 bits in groups of 32 for int8 and int4, 16 for q, k, v; "
            "of the attention as the cache",
            batch_invariant=True,
            full_batch=64,  # docs/log.md
            kernels=self.kernels,
            uses_host_memory=True,
        )

    def held_bytes(self, value: Value) -> int:
        """Bytes of a weight in tiles, or of one block of a cache.

        Raises:
            UnsupportedError: a kind of weights without kernels here.
        """
        if value.kind == "cache":
            return value.nbytes({"P": 1})
        shape = value.static_shape
        if len(shape) == 1:
            return 4 * (-(-shape[0] // 16) * 16)
        try:
            nbytes: int = self._native.matrix_bytes(value.dtype, *shape)
        except ValueError as error:
            raise UnsupportedError(f"{error} on the cpu device; choose another --weights, such as bf16") from error
        return nbytes

    def pack(self, weight: WeightTensor, uses: frozenset[str]) -> Any:
        """A matrix (N, K) in tiles of sixteen rows, whatever its kind, or a vector (N,) float32.

        The tiles have room for biases where a product adds some.
        """
        if len(weight.shape) == 1:
            return self._native.Vector(np.ascontiguousarray(weight.values, np.float32))
        values = weight.values if weight.values.strides[1] == weight.values.itemsize else weight.values.copy()
        scales, minimums = (_halves(array, weight.shape[0]) for array in (weight.scales, weight.minimums))
        return self._native.pack_matrix(
            self._arena,
            self._pool,
            weight.kind.name,
            weight.shape[1],
            values.view(np.uint8),
            scales,
            minimums,
            BIASED in uses,
        )

    def make(self, weight: RandomWeight, uses: frozenset[str]) -> Any:
        """A random weight, made on the host: (N, K) or (N,), as `pack` gives it, float32 where nothing else is said."""
        return self.pack(weight.on_host(), uses)

    def allocate(self, program: Program, num_blocks: int, old: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A pool of blocks for each layer, in the dtype that the program's caches have."""
        arena = self._native.Arena()
        return {
            op.cache: self._native.make_cache(
                arena, num_blocks, *_sizes(program, op), None if old is None else old[op.cache]
            )
            for op in _attends(program)
        }

    def copy_blocks(self, cache: Mapping[str, Any], sources: Sequence[int], targets: Sequence[int]) -> None:
        """Blocks (N,) onto blocks (N,) in all layers, by all threads together."""
        self._native.copy_blocks(self._pool, list(cache.values()), sources, targets)

    def compile(self, program: Program, weights: Mapping[str, Any], cache: Mapping[str, Any]) -> CpuExecutable:
        """The program as a list of native instructions over these weights and this cache.

        Raises:
            UnsupportedError: an operation that this device does not have.
        """
        assert program.world_size == 1 or self._ranks is not None, (
            "a program of several ranks needs what they exchange by"
        )
        return CpuExecutable(program, weights, cache, self._pool, self._ranks)

    def counters(self) -> Counters:
        """Nothing is captured here."""
        return Counters()

    def inputs_of(self, kind: str, wide: bool) -> str:
        """As `kernels.hpp` has it."""
        if kind.startswith("int"):
            return f"int{16 if wide else 8} in groups of 32"
        return "bf16" if kind == "bf16" else "fp32"

    def synchronize(self) -> None:
        """A step runs on threads that have all done their part when it returns."""

    def read_bandwidth(self, nbytes: int | None = None) -> ReadBandwidth:
        """That of the host's memory."""
        return of_host(nbytes)

    def multiply_add_peaks(self) -> Mapping[str, float]:
        """Those of all usable cores, with the instructions that the kernels use."""
        peaks = {kind: multiply_add_peak(kind, usable_cores(), PEAK_S) for kind in ("bf16", "int8")}
        return {kind: peak for kind, peak in peaks.items() if peak is not None}

    def versions(self) -> Mapping[str, str]:
        """The kernels are this package's."""
        return {}


class CpuExecutable:
    """A program lowered to native instructions."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Any],
        cache: Mapping[str, Any],
        pool: Any,
        ranks: Communicator | None = None,
    ) -> None:
        lowering = Lowering(program, weights, cache, pool, ranks)
        self._native = lowering.native
        self._instructions = lowering.instructions
        self._values = lowering.program.values
        self._outputs = {name: program.values[name] for name in program.outputs}
        self._arriving, self._leaving = arriving_name(program), leaving_name(program)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """One step; logits (L, V) come as float32."""
        rows = {"R": len(inputs["tokens"]), "L": len(inputs.get("logit_rows", ()))}
        outputs: dict[str, Array] = {
            name: np.empty(
                (rows[str(value.shape[0])], *map(int, value.shape[1:])),
                np.int32 if value.dtype == "int32" else np.float32,
            )
            for name, value in self._outputs.items()
        }
        # what goes from stage to stage has a name of its own in every program, and the same for the extension
        given = {"hidden" if name == self._arriving else name: array for name, array in inputs.items()}
        taken = {"hidden" if name == self._leaving else name: array for name, array in outputs.items()}
        self._native.run(given, taken)
        return outputs

    def measure(self, on: bool) -> list[InstructionTime]:
        """See `Executable.measure`: one thread looks at the clock after each instruction."""
        seconds = self._native.seconds()
        self._native.measure(on)
        return [InstructionTime(i.computes, self._values, s) for i, s in zip(self._instructions, seconds, strict=False)]


def _attends(program: Program) -> list[Attend]:
    return [op for op in program.ops if isinstance(op, Attend)]


def _sizes(program: Program, op: Attend) -> tuple[int, int, bool]:
    """(key-value heads, head size, whether numbers are bf16) of a layer's cache."""
    cache = program.values[op.cache]
    return cache.static_width // op.head_dim, op.head_dim, cache.dtype == "bf16"


def _halves(array: Array | None, rows: int) -> Array | None:
    """Scales or minimums as the bits of fp16: (N, groups) uint16."""
    return None if array is None else np.ascontiguousarray(array).view(np.uint16).reshape(rows, -1)
