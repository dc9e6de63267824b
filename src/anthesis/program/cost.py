"""The cost of a program: what one step must move and compute, and so the least time it can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anthesis.program.ir import Cost, Program, Step, Value


def cost(program: Program, step: Step) -> Cost:
    """The sum of the operations' costs on this rank.

    Args:
        program: of one rank.
        step: the step's size.
    """
    return sum((op.cost(program.values, step) for op in program.ops), Cost())


def cost_by_kind(program: Program, step: Step) -> dict[str, Cost]:
    """`cost`, apart for each kind of operation, in the order in which the kinds first occur."""
    costs: dict[str, Cost] = {}
    for op in program.ops:
        costs[op.kind] = costs.get(op.kind, Cost()) + op.cost(program.values, step)
    return costs


def kind_bytes(value: Value) -> int:
    """Bytes of a weight in its kind, or of one block of a cache in its dtype."""
    return value.nbytes({"P": 1})


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds.

    Attributes:
        weight_bytes: its share of the weights.
        cache_bytes: its share of the key-value cache.
        buffer_bytes: the largest set of intermediate values alive at once in a step.
    """

    weight_bytes: int
    cache_bytes: int
    buffer_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.cache_bytes + self.buffer_bytes


def memory(program: Program, step: Step, cache_blocks: int, held: Callable[[Value], int] = kind_bytes) -> Memory:
    """What this rank must hold to run steps of this size.

    Args:
        program: of one rank.
        step: the largest step.
        cache_blocks: blocks P in the cache's pool.
        held: bytes that a device takes to hold a weight, or one block of a cache; by their kinds unless given.
    """
    weights = sum(held(value) for value in program.of_kind("weight"))
    cache = cache_blocks * sum(held(value) for value in program.of_kind("cache"))
    return Memory(weights, cache, _peak_buffer_bytes(program, step.sizes()))


def _peak_buffer_bytes(program: Program, sizes: dict[str, int]) -> int:
    last_use = {name: i for i, op in enumerate(program.ops) for name in (*op.writes(), *op.reads())}
    last_use.update(dict.fromkeys(program.outputs, len(program.ops)))
    alive: dict[str, int] = {}
    peak = 0
    for i, op in enumerate(program.ops):
        alive.update((name, program.values[name].nbytes(sizes)) for name in op.writes())
        peak = max(peak, sum(alive.values()))
        alive = {name: nbytes for name, nbytes in alive.items() if last_use[name] > i}
    return peak
