"""Which operations a device computes on the way to others, so that nothing has to wait in between.

A norm over whole rows that only products read becomes part of each of them; the rotations of queries and keys that only
one attention reads become part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from anthesis.program.attend import Attend
from anthesis.program.ir import Op, Program
from anthesis.program.ops import Activate, Add, Linear, Mul, Norm, Rope


@dataclass(frozen=True)
class Folding:
    """What is computed on the way.

    Attributes:
        norms: by the name of their result.
        rotations: of queries and of keys, by the name of the attention's result; both turn by the same angles.
    """

    norms: Mapping[str, Norm]
    rotations: Mapping[str, tuple[Rope, Rope]]

    def has(self, op: Op) -> bool:
        """Whether the operation is part of others."""
        if isinstance(op, Norm):
            return op.out in self.norms
        return any(op is rope for pair in self.rotations.values() for rope in pair)


def folding(program: Program) -> Folding:
    """What may be computed on the way in a program of one rank, fused or not."""
    readers: dict[str, list[Op]] = {name: [] for name in program.values}
    makers: dict[str, Op] = {}
    for op in program.ops:
        makers.update((name, op) for name in op.writes())
        for name in op.reads():
            readers[name].append(op)

    def only_products_read(op: Op) -> bool:
        if not isinstance(op, Norm) or op.out in program.outputs or op.width != program.values[op.x].static_width:
            return False
        return all(isinstance(reader, Linear) and reader.residual != op.out for reader in readers[op.out])

    def rotations(op: Attend) -> tuple[Rope, Rope] | None:
        q, k = makers.get(op.q), makers.get(op.k)
        if not isinstance(q, Rope) or not isinstance(k, Rope):
            return None
        alone = len(readers[q.out]) == 1 and len(readers[k.out]) == 1
        return (q, k) if alone and turns(q) == turns(k) else None

    return Folding(
        {op.out: op for op in program.ops if isinstance(op, Norm) and only_products_read(op)},
        {op.out: pair for op in program.ops if isinstance(op, Attend) and (pair := rotations(op))},
    )


def separate_gates(program: Program) -> Program:
    """The program with gated products of two kinds of weights taken apart: kernels sum both in one format."""
    ops: list[Op] = []
    for op in program.ops:
        if not isinstance(op, Linear) or not op.gated or len({program.values[name].dtype for name in op.weights}) == 1:
            ops.append(op)
            continue
        assert op.activation is not None, "a gate has an activation"
        (out,) = op.outs
        first, second, active, product = (f"{out}.{part}" for part in ("first", "second", "active", "product"))
        ops.append(replace(op, outs=(first, second), activation=None, gated=False, residual=None))
        ops.append(Activate(x=first, out=active, activation=op.activation))
        ops.append(Mul(a=active, b=second, out=out if op.residual is None else product))
        if op.residual is not None:
            ops.append(Add(a=op.residual, b=product, out=out))
    return program.with_ops(ops)


def turns(rope: Rope) -> tuple[object, ...]:
    """What a rotation's angles depend on besides the position."""
    return rope.frequencies, rope.divisors
