"""A model on a device: its packed weights, and the programs compiled over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from anthesis.checkpoint import Checkpoint
from anthesis.config import ModelConfig
from anthesis.devices.device import Cache, Device, Executable, PackedWeight
from anthesis.engine.blocks import blocks_in
from anthesis.engine.pipeline import StageExecutable
from anthesis.errors import DeviceMemoryError, RequestError
from anthesis.memory import process_peak_memory_bytes
from anthesis.models import trace
from anthesis.parallel.layout import Layout
from anthesis.parallel.seat import Seat
from anthesis.program.builder import Finish
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Value
from anthesis.program.partition import partition
from anthesis.program.stages import choose_stages, stage
from anthesis.program.widen import widen

CACHE_DTYPES = ("fp32", "bf16")
ALONE = Seat(0, Layout())
"""Of a model that is not split."""


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
    """Loads every weight of one rank once, by `load`, and compiles programs on demand.

    Args:
        checkpoint: open; it is not needed after `load`.
        config: the checkpoint's, possibly with fewer usable tokens.
        device: where to run.
        cache: as in `choose_cache_dtype`.
        seat: which rank this is, and of how many.

    Attributes:
        traced: the program of the whole model.

    Raises:
        RequestError: an unknown cache dtype.
        DeviceMemoryError: more weights than the device can hold.
        CheckpointError: the checkpoint does not hold what the model needs.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, device: Device, cache: str = "auto", seat: Seat = ALONE
    ) -> None:
        self.config = config
        self.device = device
        self.seat = seat
        self.traced = trace(config, "argmax", checkpoint.kind_of)
        weights = self.traced.of_kind("weight")
        checkpoint.check(weights)
        self._kinds = {value.name: value.dtype for value in weights}
        self.cache_dtype = choose_cache_dtype(cache, weights)
        self.weight_kinds = matrix_kinds(weights)
        self._stages = choose_stages(self.traced, seat.layout.pp)
        self._weights: dict[str, PackedWeight] = {}
        self._programs: dict[tuple[Finish, int | None, int], Program] = {}
        info = device.info()
        needed = self.weight_bytes
        if needed > info.memory_bytes:
            shares = f"rank {seat.rank}'s share of the weights takes" if seat.layout.size > 1 else "the weights take"
            raise DeviceMemoryError(
                f"{shares} {needed / 1e9:,.1f} GB on {info.name}, and {info.memory_bytes / 1e9:,.1f} GB are "
                "free; take a smaller model, or see `anthesis plan` for what this one needs"
            )

    def load(self, checkpoint: Checkpoint, on_weight: Callable[[int, int], None]) -> None:
        """Loads the weights.

        Args:
            checkpoint: the same, still open.
            on_weight: called after each weight with (number loaded, number in all).

        Raises:
            CheckpointError: weights that are NaN or infinite.
        """
        program = self.program("argmax")
        weights, uses = program.of_kind("weight"), program.uses()
        for count, value in enumerate(weights, start=1):
            recipe, use = checkpoint.recipe(value), uses[value.name]
            self._weights[value.name] = (
                self.device.pack(checkpoint.load(value), use) if recipe is None else self.device.make(recipe, use)
            )
            checkpoint.release()  # so that the peak is the packed weights and one tensor
            on_weight(count, len(weights))

    def program(self, finish: Finish, top_logprobs: int | None = None, rank: int | None = None) -> Program:
        """The fused program that finishes in this way, of this rank or of another one."""
        rank = self.seat.rank if rank is None else rank
        if (finish, top_logprobs, rank) not in self._programs:
            kind_of = lambda name, shape: self._kinds[name]  # noqa: E731
            layout = self.seat.layout
            whole = trace(self.config, finish, kind_of, self.cache_dtype, top_logprobs)
            part = partition(stage(whole, self._stages[layout.stage(rank)]), layout.share(rank), layout.tp)
            self._programs[finish, top_logprobs, rank] = widen(fuse(part))
        return self._programs[finish, top_logprobs, rank]

    def allocate(self, num_blocks: int, old: Cache | None = None) -> Cache:
        """A cache pool of so many blocks, the first of which keep what the old one holds."""
        return self.device.allocate(self.program("cache"), num_blocks, old)

    def copy_blocks(self, cache: Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies blocks of the cache onto others, in all layers, as `Device.copy_blocks`."""
        assert len(targets) == len(sources) == len(set(targets).difference(sources)), (
            "a block is copied onto one that is copied too, or two onto the same"
        )
        self.device.copy_blocks(cache, sources, targets)

    def compile(self, finish: Finish, top_logprobs: int | None, cache: Cache) -> Executable:
        """The program over this model's weights and a cache that `allocate` made."""
        program = self.program(finish, top_logprobs)
        executable = self.device.compile(program, self._weights, cache)
        return executable if self.seat.layout.pp == 1 else StageExecutable(executable, program, self.seat)

    def max_blocks(self, cache_memory: int | None) -> int:
        """Blocks that the cache may have, once the weights are loaded.

        Args:
            cache_memory: bytes that it may take on this machine, of all its ranks together; None: half of what is free.

        Raises:
            RequestError: more is wanted than is free, or it is too little for one block.
        """
        wanted = None if cache_memory is None else cache_memory // self.seat.sharers
        return blocks_in(self.device.info().memory_bytes, wanted, self.block_bytes)

    def peak_memory_bytes(self) -> tuple[int, ...]:
        """The most memory that the process of each rank ever held, in rank order."""
        return (process_peak_memory_bytes(),)

    def programs(self, finish: Finish) -> list[Program]:
        """Those of all ranks, in order."""
        return [self.program(finish, rank=rank) for rank in range(self.seat.layout.size)]

    def free(self) -> None:
        """Lets go of the weights."""
        self._weights.clear()

    @property
    def machines(self) -> int:
        """Machines over which the ranks are spread, alike, where ranks of one share its memory; else 1."""
        if not self.device.info().uses_host_memory:
            return 1
        return -(-self.seat.layout.size // self.seat.sharers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of this rank's weights on the device."""
        return sum(self.device.held_bytes(value) for value in self.program("argmax").of_kind("weight"))

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block on the device, over all layers."""
        return sum(self.device.held_bytes(value) for value in self.program("cache").of_kind("cache"))
