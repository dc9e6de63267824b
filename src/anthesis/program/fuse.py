"""Joins operations into fewer, larger ones: what every device gains from.

- products of the same input become one (q/k/v; gate/up), so that it is read, and quantised, once;
- a bias, an activation, the gate's multiplication and the residual become part of the product before them.

The arithmetic and its order stay the same: on the reference executor a fused program gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from anthesis.program.ir import Op, Program
from anthesis.program.ops import Activate, Add, Linear, Mul


def fuse(program: Program) -> Program:
    """The program with fewer operations and the same results; run after `partition`.

    Args:
        program: of any rank.

    Returns:
        The fused program.
    """
    ops = program.ops
    for rule in (_fold_bias, _join_products, _fold_activation, _fold_gate, _fold_residual):
        ops = _rewrite(program, ops, rule)
    return program.with_ops(ops)


Readers = Mapping[str, list[Op]]
"""For each value the operations that read it."""

Rule = Callable[[Program, Readers, Linear], "tuple[Linear, list[Op]] | None"]
"""(program, readers, product) -> the larger product and the operations that it replaces besides its own, or None."""


def _rewrite(program: Program, ops: tuple[Op, ...], rule: Rule) -> tuple[Op, ...]:
    """Applies the rule once to every product that is left when its turn comes.

    `ops` are those of the program as earlier rules left them: fewer, over the same values.
    """
    readers: dict[str, list[Op]] = {name: [] for name in program.values}
    for op in ops:
        for name in op.reads():
            readers[name].append(op)
    instead: dict[int, Op | None] = {}
    for op in ops:
        if not isinstance(op, Linear) or id(op) in instead:
            continue
        found = rule(program, readers, op)
        if found is None:
            continue
        larger, others = found
        replaced = [op, *others]
        lost = {name for other in replaced for name in other.writes()}.difference(larger.writes())
        # of two products with one sum only the first can take it in: a + (b + c) as parallel residuals trace it
        if any(id(other) in instead for other in others) or lost.intersection(program.outputs):
            continue
        instead.update((id(other), None) for other in replaced)
        # a residual may be ready only where it was added; everything else is ready where the product stood
        place = op if larger.residual is None else replaced[-1]
        instead[id(place)] = larger
    kept = (instead.get(id(op), op) for op in ops)
    return tuple(op for op in kept if op is not None)


def _only_reader(readers: Readers, product: Linear) -> Op | None:
    """The one operation that reads the one result of the product, or None where there are more."""
    if len(product.outs) != 1 or len(readers[product.outs[0]]) != 1:
        return None
    return readers[product.outs[0]][0]


def _is_plain(product: Linear) -> bool:
    """Whether nothing follows the sums: what is folded in later would come before it in the arithmetic."""
    return not any(product.biases) and product.activation is None and not product.gated and product.residual is None


def _fold_bias(program: Program, readers: Readers, product: Linear) -> tuple[Linear, list[Op]] | None:
    add = _only_reader(readers, product)
    if not _is_plain(product) or type(add) is not Add or add.a not in product.outs:
        return None
    if program.values[add.b].kind != "weight":
        return None
    return replace(product, biases=(add.b,), outs=(add.out,)), [add]


def _join_products(program: Program, readers: Readers, product: Linear) -> tuple[Linear, list[Op]] | None:
    readers_of_x = (op for op in readers[product.x] if isinstance(op, Linear) and op.x == product.x)
    joined = [op for op in readers_of_x if _is_plain(replace(op, biases=()))]
    if len(joined) < 2 or product not in joined:
        return None
    biases = tuple(bias for op in joined for bias in (op.biases or (None,) * len(op.weights)))
    larger = Linear(
        x=product.x,
        weights=tuple(name for op in joined for name in op.weights),
        biases=biases if any(biases) else (),
        outs=tuple(name for op in joined for name in op.outs),
    )
    return larger, [op for op in joined if op is not product]


def _fold_activation(program: Program, readers: Readers, product: Linear) -> tuple[Linear, list[Op]] | None:
    activate = _only_reader(readers, product)
    if not isinstance(activate, Activate) or not _is_plain(replace(product, biases=())):
        return None
    return replace(product, activation=activate.activation, outs=(activate.out,)), [activate]


def _fold_gate(program: Program, readers: Readers, product: Linear) -> tuple[Linear, list[Op]] | None:
    if len(product.outs) != 2 or any(len(readers[out]) != 1 for out in product.outs) or product.activation:
        return None
    (activate,), (mul,) = (readers[out] for out in product.outs)
    if not isinstance(activate, Activate) or not isinstance(mul, Mul) or readers[activate.out] != [mul]:
        return None
    return replace(product, activation=activate.activation, gated=True, outs=(mul.out,)), [activate, mul]


def _fold_residual(program: Program, readers: Readers, product: Linear) -> tuple[Linear, list[Op]] | None:
    add = _only_reader(readers, product)
    if type(add) is not Add or product.residual is not None:
        return None
    other = add.a if add.b in product.outs else add.b
    if program.values[other].kind == "weight" or other in product.outs:
        return None
    return replace(product, residual=other, outs=(add.out,)), [add]
