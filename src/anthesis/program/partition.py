"""Splits a program over W ranks: each keeps its share of every weight and cache, and collectives join the results.

The model says which dimensions may be split by naming their axes; nothing here knows a model. Where a sum runs over a
split dimension, the result is partial and an `all_reduce` follows it at once, so that a bias or residual, which the
trace adds afterwards, is added once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from anthesis.errors import RequestError
from anthesis.program.attend import Attend
from anthesis.program.collectives import AllGather, AllReduce, AllReduceBest, SampleOverRanks
from anthesis.program.ir import Axis, Op, Program, Value
from anthesis.program.ops import Embed, Linear
from anthesis.program.sample import Argmax, Sample
from anthesis.quantize import weight_kind

Shares = Mapping[str, tuple[int, int]]
"""For each axis the first element of this rank's share and the one after its last."""

ALIGNED_ELEMENTS = 16
"""Shares begin at multiples of this, where that makes them no more uneven than by one in `ALIGNED_PIECES`."""

ALIGNED_PIECES = 8

INPUT_GROUP = 32
"""Inputs that share a scale where a device multiplies integers."""

Pieces = Mapping[str, tuple[int, int]]
"""For each axis that follows no other the number of pieces that stay together, and the elements of one."""


def partition(program: Program, rank: int, world_size: int) -> Program:
    """This rank's share of the program.

    Args:
        program: of one rank, as traced (before `fuse`).
        rank: the tensor-parallel rank, from 0.
        world_size: the number of ranks W.

    Returns:
        The program of that rank; the same object when W is 1.

    Raises:
        RequestError: a dimension has fewer pieces than there are ranks; the message lists the numbers that work.
    """
    assert program.world_size == 1
    assert 0 <= rank < world_size
    if world_size == 1:
        return program
    pieces = _pieces(program, world_size)
    of_ranks = [_shares(program, pieces, other, world_size) for other in range(world_size)]
    shares = of_ranks[rank]
    vocabulary = tuple(last - first for first, last in (other["vocab"] for other in of_ranks))
    values = {
        value.name: _share_of(value, shares)
        for value in program.values.values()
        if value.kind not in ("buffer", "output")
    }
    ops: list[Op] = []
    for op in program.ops:
        for local in _with_collectives(_localized(op, shares), values, program.outputs, shares, vocabulary):
            values.update((value.name, value) for value in local.infer(values))
            ops.append(local)
    return replace(program, values=values, rank=rank, world_size=world_size).with_ops(ops)


def alike_ranks(program: Program, world_size: int) -> list[tuple[int, int]]:
    """The ranks whose programs differ in shape: of each such group the last rank, and how many are in it.

    Raises:
        RequestError: as `partition`.
    """
    if world_size == 1:
        return [(0, 1)]
    pieces = _pieces(program, world_size)
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(world_size):
        shares = _shares(program, pieces, rank, world_size)
        groups.setdefault(tuple(last - first for first, last in shares.values()), []).append(rank)
    return [(ranks[-1], len(ranks)) for ranks in groups.values()]


def _pieces(program: Program, world_size: int) -> dict[str, tuple[int, int]]:
    """The pieces of every axis that follows no other, enough for the ranks."""
    pieces = {}
    for axis in program.axes.values():
        if axis.follows is None:
            piece = _piece(program, axis)
            # shares that begin at whole cache lines, where that is about as even
            aligned = math.lcm(piece, ALIGNED_ELEMENTS)
            if axis.elements % aligned == 0 and axis.elements // aligned >= world_size * ALIGNED_PIECES:
                piece = aligned
            pieces[axis.name] = axis.elements // piece, piece
    most = min(count for count, _ in pieces.values())
    if most < world_size:
        scarce = ", ".join(
            f"{count} piece{'s' if count > 1 else ''} of {name}"
            for name, (count, _) in pieces.items()
            if count < world_size
        )
        works = "only one rank works" if most == 1 else f"1 to {most} ranks work"
        raise RequestError(f"the model can't be split over {world_size} ranks: it has {scarce}; {works}")
    return pieces


def _shares(program: Program, pieces: Pieces, rank: int, world_size: int) -> dict[str, tuple[int, int]]:
    shares: dict[str, tuple[int, int]] = {}
    for axis in program.axes.values():
        if axis.follows is None:
            count, piece = pieces[axis.name]
            first, last = (count * r // world_size for r in (rank, rank + 1))
            # what does not fill a piece goes to the last rank
            shares[axis.name] = first * piece, axis.elements if rank == world_size - 1 else last * piece
        else:
            leader = program.axes[axis.follows]
            first, last = shares[leader.name]
            per_unit = leader.elements // leader.unit // (axis.elements // axis.unit)
            touched = (first // leader.unit // per_unit, (last // leader.unit - 1) // per_unit + 1)
            shares[axis.name] = touched[0] * axis.unit, touched[1] * axis.unit
    return shares


def _piece(program: Program, axis: Axis) -> int:
    """Elements of the axis that stay together: a unit, and whole quantisation groups where columns are split.

    Inputs of products with integers are quantised too, in groups of 32: borders between two of them keep the numbers
    those of a single rank. Where that leaves fewer pieces than a unit would, it is so all the same: right before many.
    """
    kinds = {
        weight_kind(value.dtype)
        for value in program.of_kind("weight")
        if len(value.axes) == 2 and value.axes[1] == axis.name
    }
    steps = [math.lcm(kind.column_step, INPUT_GROUP if kind.has_quantised_inputs else 1) for kind in kinds]
    return math.lcm(axis.unit, *steps)


def _share_of(value: Value, shares: Shares) -> Value:
    shape, start = list(value.shape), [0] * len(value.shape)
    for i, axis in enumerate(value.axes):
        if axis is not None and axis in shares:
            start[i], last = shares[axis]
            shape[i] = last - start[i]
    return replace(value, shape=tuple(shape), start=tuple(start) if value.kind == "weight" else ())


def _localized(op: Op, shares: Shares) -> Op:
    """The operation with what it must know of its place: the first head or vocabulary row of this rank."""
    if isinstance(op, Attend):
        first_head, first_kv_head = (shares[axis][0] // op.head_dim for axis in ("heads", "kv_heads"))
        return replace(op, first_head=first_head, first_kv_head=first_kv_head)
    if isinstance(op, Argmax):
        return replace(op, first_id=shares["vocab"][0])
    return op


def _with_collectives(
    op: Op, values: Mapping[str, Value], outputs: tuple[str, ...], shares: Shares, vocabulary: tuple[int, ...]
) -> list[Op]:
    """The operation with the collective that its inputs or its result need; `vocabulary`: columns of each rank."""
    if isinstance(op, Embed) and values[op.weight].axes[0]:
        local = replace(op, offset=op.offset - values[op.weight].start[0], out=f"{op.out}.partial")
        return [local, AllReduce(x=local.out, out=op.out)]
    if isinstance(op, Linear) and values[op.x].axes[1]:
        (out,) = op.outs
        return [replace(op, outs=(f"{out}.partial",)), AllReduce(x=f"{out}.partial", out=out)]
    if isinstance(op, Argmax):
        local_best = replace(op, score=f"{op.score}.local", token=f"{op.token}.local")
        best = AllReduceBest(score=local_best.score, token=local_best.token, out_score=op.score, out_token=op.token)
        return [local_best, best]
    if isinstance(op, Sample):
        return [SampleOverRanks(sample=op, widths=vocabulary, first_id=shares["vocab"][0])]
    if isinstance(op, Linear) and op.outs[0] in outputs:
        (out,) = op.outs
        return [replace(op, outs=(f"{out}.local",)), AllGather(x=f"{out}.local", out=out, widths=vocabulary)]
    return [op]
