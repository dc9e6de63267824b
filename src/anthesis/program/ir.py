"""The program: one token step of a decoder as a list of operations over named values.

A program holds shapes and types only, no weights and no device. Shapes are integers or symbols. Two symbols vary from
step to step: "R", the token rows, and "L", the rows whose logits are wanted (decode: L = R; prefill: L < R). Three are
fixed when a cache is allocated: "B" sequences, "M" blocks a sequence may have, "P" blocks in the pool.

Every dimension may name the axis along which `partition` may split it over ranks ("heads", "ffn", ...); the shape rules
of the operations carry these names along, so a split that does not fit together is found while tracing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray

from anthesis.config import ModelConfig
from anthesis.quantize import WEIGHT_KINDS, weight_kind

Dim = int | str
Array = NDArray[Any]
Arrays = Mapping[str, Array]
ValueKind = Literal["input", "weight", "cache", "buffer", "output"]

BLOCK_TOKENS = 64
"""Tokens in a block of the key-value cache, and keys per step of the attention arithmetic."""

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int32": 4, "uint64": 8, "uint8": 1}


@dataclass(frozen=True)
class Value:
    """A named array of the program.

    Attributes:
        name: unique in the program.
        shape: integers or symbols.
        dtype: a key of `DTYPE_BYTES`; for weights a weight kind.
        kind: where it lives: given anew each step (input), loaded once (weight), kept between steps (cache), computed
            within the step (buffer), or handed to the caller (output).
        axes: for each dimension the axis along which it may be split, or None.
        start: for a weight the place of this rank's share in the whole weight, by dimension.
        full_shape: for a weight the shape of the whole.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    kind: ValueKind
    axes: tuple[str | None, ...] = ()
    start: tuple[int, ...] = ()
    full_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = self.dtype in (WEIGHT_KINDS if self.kind == "weight" else DTYPE_BYTES)
        assert known, f"{self.name} has the unknown dtype {self.dtype}"
        if not self.axes:
            object.__setattr__(self, "axes", (None,) * len(self.shape))
        assert len(self.axes) == len(self.shape), f"{self.name}: {self.axes} does not describe {self.shape}"

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape of a value without symbols."""
        assert all(isinstance(dim, int) for dim in self.shape), f"{self} has symbolic dimensions"
        return tuple(int(dim) for dim in self.shape)

    @property
    def static_width(self) -> int:
        """The last dimension, which has to be an integer."""
        width = self.shape[-1]
        assert isinstance(width, int), f"{self} has a symbolic width"
        return width

    def nbytes(self, sizes: Mapping[str, int] | None = None) -> int:
        """Bytes of the value, its symbols replaced by `sizes`."""
        shape = tuple(dim if isinstance(dim, int) else (sizes or {})[dim] for dim in self.shape)
        if self.kind == "weight":
            return weight_kind(self.dtype).nbytes(shape)
        return math.prod(shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class Axis:
    """A dimension that ranks may share.

    Attributes:
        name: how values refer to it.
        elements: its whole length.
        unit: elements that stay together (a head).
        follows: the axis whose shares decide this one's: a rank takes every piece that its share of the other touches
            (key-value heads follow query heads).
    """

    name: str
    elements: int
    unit: int = 1
    follows: str | None = None


@dataclass(frozen=True)
class Step:
    """The size of one step, for which a cost is asked.

    Attributes:
        rows: token rows R.
        logit_rows: rows L whose logits are wanted.
        context: attended length S of each sequence.
        sequences: sequences B among which the rows are shared.
    """

    rows: int = 1
    logit_rows: int = 1
    context: int = 1
    sequences: int = 1

    def sizes(self) -> dict[str, int]:
        """The symbols' values."""
        return {"R": self.rows, "L": self.logit_rows, "B": self.sequences, "M": -(-self.context // BLOCK_TOKENS)}


@dataclass(frozen=True)
class Cost:
    """What an operation must move and compute.

    Attributes:
        weight_bytes: read from weights.
        cache_bytes: read from and written to the key-value cache.
        activation_bytes: read and written in activations, which a fast device keeps on chip.
        flops: floating-point operations, a multiply-add being two.
        sent_bytes: a collective's payload on this rank.
    """

    weight_bytes: int = 0
    cache_bytes: int = 0
    activation_bytes: int = 0
    flops: int = 0
    sent_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
            self.activation_bytes + other.activation_bytes,
            self.flops + other.flops,
            self.sent_bytes + other.sent_bytes,
        )


class Op(ABC):
    """An operation: which values it reads and writes, its shape rule, its cost, and what it computes."""

    kind: ClassVar[str]

    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the values it reads (and, for a cache, updates)."""

    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """Names of the values it computes."""

    def use_of(self, name: str) -> str:
        """How it uses a value that it reads: by its kind, unless some of them are used in a way of their own."""
        return self.kind

    @abstractmethod
    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """The shape rule: the values of `writes()` from those of `reads()`."""

    @abstractmethod
    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        """What one execution moves and computes."""

    @abstractmethod
    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        """The reference implementation, row by row.

        Args:
            arrays: those of `reads()` by name; activations (R, E) float32 or float64, weights of the same dtype.

        Returns:
            Those of `writes()`, in order; of the dtype of the arithmetic, float32 or float64, ids int32.
        """

    def __str__(self) -> str:
        details = {
            key: value
            for key, value in vars(self).items()
            if value not in (None, (), False, 0) and not _is_name(value, self.reads() + self.writes())
        }
        shown = "".join(f" {key}={_short(value)}" for key, value in details.items())
        return f"{', '.join(self.writes())} = {self.kind}({', '.join(self.reads())}){shown}"


def _is_name(value: object, names: tuple[str, ...]) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(part is None or part in names for part in parts)


def _short(value: object) -> str:
    return f"({len(value)} numbers)" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Program:
    """One token step.

    Attributes:
        config: the model it was traced from.
        values: all values by name.
        ops: the operations in an order in which they can run.
        axes: the dimensions that ranks may share, by name.
        outputs: names of the values handed to the caller.
        rank: which rank's share this is.
        world_size: over how many ranks W it is split.
    """

    config: ModelConfig
    values: Mapping[str, Value]
    ops: tuple[Op, ...]
    axes: Mapping[str, Axis]
    outputs: tuple[str, ...]
    rank: int = 0
    world_size: int = 1

    def of_kind(self, kind: ValueKind) -> list[Value]:
        """The values of one kind, in order of definition."""
        return [value for value in self.values.values() if value.kind == kind]

    def uses(self) -> dict[str, frozenset[str]]:
        """By each value that is read, how the operations use it (`Op.use_of`)."""
        found: dict[str, set[str]] = {}
        for op in self.ops:
            for name in op.reads():
                found.setdefault(name, set()).add(op.use_of(name))
        return {name: frozenset(kinds) for name, kinds in found.items()}

    def with_ops(self, ops: Iterable[Op]) -> Program:
        """The program with other operations over the same inputs, weights and caches; shapes are inferred anew.

        Asserts that every value is given before it is read, once, and that the outputs are given.
        """
        ops = tuple(ops)
        used = {name for op in ops for name in op.reads()}
        values = {
            value.name: value
            for value in self.values.values()
            if value.kind not in ("buffer", "output") and value.name in used
        }
        for op in ops:
            unknown = [name for name in op.reads() if name not in values]
            assert not unknown, f"{op}: nothing before it gives {', '.join(unknown)}"
            for value in op.infer(values):
                assert value.name not in values, f"{op}: {value.name} is there already"
                values[value.name] = replace(value, kind="output") if value.name in self.outputs else value
        lost = [name for name in self.outputs if name not in values]
        assert not lost, f"no operation gives the output {', '.join(lost)}"
        return replace(self, ops=ops, values=values)

    def __str__(self) -> str:
        lines = [f"program of {self.config.family}, rank {self.rank} of {self.world_size}, {len(self.ops)} operations"]
        for value in self.of_kind("input") + self.of_kind("cache"):
            lines.append(f"  {value.kind} {value}")
        for op in self.ops:
            shapes = ", ".join(str(self.values[name]).split(": ", 1)[1] for name in op.writes())
            lines.append(f"  {op} -> {shapes}")
        return "\n".join(lines)
