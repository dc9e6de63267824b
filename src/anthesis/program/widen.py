"""Which products keep sixteen bits of their inputs where others keep eight.

A device that multiplies integers rounds the inputs of a product as well: to eight bits, in groups of 32 with a scale of
their own. What that costs is measured in perplexity (docs/log.md); most of it comes from queries and keys, whose
errors the softmax enlarges.
"""

from __future__ import annotations

from dataclasses import replace

from anthesis.program.attend import Attend
from anthesis.program.ir import Program
from anthesis.program.ops import Add, Linear, Norm, Rope


def widen(program: Program) -> Program:
    """The program with wide inputs for the products that make queries, keys and values, fused or not."""
    attended: set[str] = set()
    for op in reversed(program.ops):
        if isinstance(op, Attend):
            attended.update((op.q, op.k, op.v))
        elif isinstance(op, Norm | Rope) and op.out in attended:
            attended.add(op.x)
        elif isinstance(op, Add) and op.out in attended:  # a bias, in a program that is not fused
            attended.add(op.a)
    return program.with_ops(
        replace(op, wide_inputs=True) if isinstance(op, Linear) and attended.intersection(op.outs) else op
        for op in program.ops
    )
