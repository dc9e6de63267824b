"""Runs a program in NumPy, operation by operation: slow, obvious, and the oracle for every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anthesis.program.collectives import Collective
from anthesis.program.ir import Array, Arrays, Program

Exchange = Callable[[Arrays], Sequence[Arrays]]
"""What this rank brings to a collective -> what all ranks bring, in order."""


def execute(program: Program, arrays: Arrays, exchange: Exchange | None = None) -> dict[str, Array]:
    """Runs one step of one rank.

    Args:
        program: of a single rank, or a rank's share.
        arrays: inputs, weights (matrices as float32 or float64 arrays of the whole arithmetic's dtype) and caches by
            name; the caches are updated in place.
        exchange: with the other ranks; None for a single one.

    Returns:
        The program's outputs by name: token (L,) int32, logits (L, V) float, ...
    """
    assert program.world_size == 1 or exchange is not None, "one rank's share of a program means nothing alone"
    held = dict(arrays)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by a token of -1, not by warnings
        for op in program.ops:
            if isinstance(op, Collective) and exchange is not None:
                results = op.combine(exchange(_of(held, op.reads())))
            else:
                results = op.evaluate(held)
            held.update(zip(op.writes(), results, strict=True))
    return _of(held, program.outputs)


def execute_ranks(programs: Sequence[Program], arrays: Sequence[Arrays]) -> list[dict[str, Array]]:
    """Runs one step of all ranks of a partitioned program in this process, in lockstep.

    Args:
        programs: rank 0 to W - 1.
        arrays: for each rank what `execute` takes: its shares, in float32 or float64.

    Returns:
        For each rank its outputs by name: token (L,) int32, logits (L, V) float32 or float64, ...
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by a token of -1, not by warnings
        return _execute(programs, arrays)


def _execute(programs: Sequence[Program], arrays: Sequence[Arrays]) -> list[dict[str, Array]]:
    held: list[dict[str, Array]] = [dict(own) for own in arrays]
    for ops in zip(*(program.ops for program in programs), strict=True):
        if isinstance(ops[0], Collective):
            results = [ops[0].combine([_of(own, op.reads()) for own, op in zip(held, ops, strict=True)])] * len(ops)
        else:
            results = [op.evaluate(own) for op, own in zip(ops, held, strict=True)]
        for op, own, result in zip(ops, held, results, strict=True):
            own.update(zip(op.writes(), result, strict=True))
    return [_of(own, program.outputs) for own, program in zip(held, programs, strict=True)]


def _of(arrays: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: arrays[name] for name in names}
