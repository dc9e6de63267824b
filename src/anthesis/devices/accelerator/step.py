"""A program lowered to calls of a device's operations, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anthesis.devices.accelerator import draw
from anthesis.devices.accelerator.exchange import Exchange
from anthesis.devices.accelerator.matrices import Matrix, can_join, join
from anthesis.devices.accelerator.operations import Attention, NormWeights, Operations, Product, Tensors
from anthesis.devices.accelerator.sizes import StepSize
from anthesis.devices.folding import Folding, folding, separate_gates, turns
from anthesis.errors import UnsupportedError
from anthesis.program.attend import Attend, alibi_slopes
from anthesis.program.collectives import AllGather, AllReduce, AllReduceBest, SampleOverRanks
from anthesis.program.ir import Op, Program
from anthesis.program.ops import Activate, Add, Embed, Linear, Mul, Norm, Rope, SelectRows
from anthesis.program.sample import Argmax, Sample

Call = Callable[[Tensors, StepSize], "tuple[torch.Tensor, ...]"]
"""(values by name, size of the step) -> the values that are computed, in order."""


@dataclass(frozen=True)
class Instruction:
    """One call, the operations that it computes, and the values that nobody reads after it."""

    ops: tuple[Op, ...]
    writes: tuple[str, ...]
    call: Call
    last_read: tuple[str, ...]


class Step:
    """A program over its weights and its cache.

    Args:
        program: of one rank.
        weights: by name: a `Matrix`, or (N,) float32. Matrices that are multiplied together are joined in place.
        caches: by name: (128 P, K D).
        operations: of the device.
        ranks: what the program's ranks exchange by, or None.
        device: of the tensors.

    Attributes:
        program: what was lowered, gates of two kinds of weights taken apart.
        instructions: in order.
        frequencies: of the rotations, by the name of their angles.

    Raises:
        UnsupportedError: an operation that accelerators don't have.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Any],
        caches: Mapping[str, torch.Tensor],
        operations: Operations,
        ranks: Exchange | None,
        device: torch.device,
    ) -> None:
        self.program = program = separate_gates(program)
        self._weights, self._caches, self._operations, self._ranks = weights, caches, operations, ranks
        self._device = device
        self._angles: dict[Any, str] = {}
        self.frequencies: dict[str, Any] = {}
        choosing = (Argmax, Sample, SampleOverRanks, AllGather)
        read = (name for op in program.ops if isinstance(op, choosing) for name in op.reads())
        self._logits = {*read, *program.outputs}  # what tokens are chosen by, or what the program is asked for
        found = folding(program)
        lowered = [(op, *self._lower(op, found)) for op in program.ops if not found.has(op)]
        last: dict[str, int] = {}
        for i, (op, also, _) in enumerate(lowered):
            last.update((name, i) for one in (op, *also) for name in (*one.reads(), *one.writes()))
        kept = {*program.outputs, *(value.name for value in program.of_kind("input"))}
        self.instructions = tuple(
            Instruction(
                (*also, op),
                op.writes(),
                call,
                tuple(name for name, at in last.items() if at == i and name not in kept),
            )
            for i, (op, also, call) in enumerate(lowered)
        )

    def run(self, inputs: Tensors, size: StepSize) -> Tensors:
        """One step.

        Args:
            inputs: `StepInputs.tensors`.
            size: of the step.

        Returns:
            The program's outputs by name, of the step's size.
        """
        held = dict(inputs)
        for instruction in self.instructions:
            held.update(zip(instruction.writes, instruction.call(held, size), strict=True))
            for name in instruction.last_read:
                held.pop(name, None)
        return {name: held[name] for name in self.program.outputs}

    def _lower(self, op: Op, found: Folding) -> tuple[tuple[Op, ...], Call]:
        """The operations that are computed on the way to this one, and the call."""
        do, ranks = self._operations, self._ranks
        if isinstance(op, Linear):
            return self._linear(op, found)
        if isinstance(op, Attend):
            return self._attend(op, found)
        if isinstance(op, Embed):
            table: Matrix = self._weights[op.weight]
            return (), lambda held, size: (do.embed(held[op.ids], table, op.offset),)
        if isinstance(op, Norm):
            norm = self._norm(op)
            return (), lambda held, size: (do.norm(held[op.x], norm),)
        if isinstance(op, Rope):
            angles = self._angles_of(op)
            return (), lambda held, size: (do.rotate(held[op.x], held[angles]),)
        if isinstance(op, Activate):
            return (), lambda held, size: (do.activate(held[op.x], op.activation),)
        if isinstance(op, Mul):
            return (), lambda held, size: (held[op.a] * held[op.b],)
        if isinstance(op, Add):
            bias = self._weights.get(op.b)
            return (), lambda held, size: (held[op.a] + (held[op.b] if bias is None else bias),)
        if isinstance(op, SelectRows):
            return (), lambda held, size: (held[op.x].index_select(0, held[op.rows]) if size.selects else held[op.x],)
        if isinstance(op, Argmax):
            usable = max(0, min(self.program.values[op.logits].static_width, op.usable - op.first_id))
            return (), lambda held, size: do.argmax(held[op.logits], usable, op.first_id)
        if isinstance(op, Sample):
            return (), lambda held, size: self._sampled(op, held[op.logits], held, size)
        assert ranks is not None, "a program of several ranks needs what they exchange by"
        if isinstance(op, AllReduce):
            return (), lambda held, size: (ranks.sum(held[op.x]),)
        if isinstance(op, AllGather):
            return (), lambda held, size: (ranks.gather_columns(held[op.x], op.widths),)
        if isinstance(op, AllReduceBest):
            return (), lambda held, size: ranks.best(held[op.score], held[op.token])
        if isinstance(op, SampleOverRanks):
            # a card's link moves all logits faster than its host could say which are needed
            return (), lambda held, size: self._sampled(
                op.sample, ranks.gather_columns(held[op.sample.logits], op.widths), held, size
            )
        raise UnsupportedError(f"the operation {op.kind} is not in this version of the accelerators' devices")

    def _sampled(self, op: Sample, logits: torch.Tensor, held: Tensors, size: StepSize) -> tuple[torch.Tensor, ...]:
        token = self._operations.sample(op, logits, held, size)
        return (token,) if op.top is None else (token, *draw.log_probabilities(op, logits, token))

    def _norm(self, op: Norm) -> NormWeights:
        return NormWeights(op, self._weights[op.weight], None if op.bias is None else self._weights[op.bias])

    def _angles_of(self, rope: Rope) -> str:
        key = turns(rope)
        if key not in self._angles:
            self._angles[key] = name = f"angles.{len(self._angles)}"
            frequencies = np.array(rope.frequencies)
            if rope.divisors is not None:
                frequencies = frequencies / self._weights[rope.divisors].cpu().numpy()
            self.frequencies[name] = frequencies
        return self._angles[key]

    def _linear(self, op: Linear, found: Folding) -> tuple[tuple[Op, ...], Call]:
        matrices = [self._weights[name] for name in op.weights]
        vectors = [None if name is None else self._weights[name] for name in op.biases or (None,) * len(matrices)]
        widths = tuple(matrix.shape[0] for matrix in matrices)
        if can_join(matrices):
            matrices = [join(matrices)]
            self._operations.settle()  # so that no more than these are there twice
            if any(vector is not None for vector in vectors):
                zeros = (torch.zeros(width, device=self._device) for width in widths)
                vectors = [torch.cat([next(zeros) if v is None else v for v in vectors])]
            else:
                vectors = [None]
        norm = found.norms.get(op.x)
        product = Product(
            tuple(matrices),
            tuple(vectors),
            widths,
            None if norm is None else self._norm(norm),
            op.activation,
            op.gated,
            gives_logits=not self._logits.isdisjoint(op.outs),
        )
        x, do = op.x if norm is None else norm.x, self._operations

        def call(held: Tensors, size: StepSize) -> tuple[torch.Tensor, ...]:
            return do.linear(held[x], product, None if op.residual is None else held[op.residual])

        return () if norm is None else (norm,), call

    def _attend(self, op: Attend, found: Folding) -> tuple[tuple[Op, ...], Call]:
        values = self.program.values
        heads, kv_heads = (values[name].static_width // op.head_dim for name in (op.q, op.k))
        slopes = torch.from_numpy(alibi_slopes(op.num_heads)[op.first_head : op.first_head + heads]).float()
        ropes = found.rotations.get(op.out)
        attention = Attention(
            op,
            heads,
            kv_heads,
            torch.from_numpy(op.kv_head_of(heads)).to(self._device),
            slopes.to(self._device) if op.alibi else None,
            None if ropes is None else self._angles_of(ropes[0]),
        )
        q, k = (op.q, op.k) if ropes is None else (rope.x for rope in ropes)
        cache, do = self._caches[op.cache], self._operations
        return ropes or (), lambda held, size: (do.attend(attention, held[q], held[k], held[op.v], cache, held, size),)
