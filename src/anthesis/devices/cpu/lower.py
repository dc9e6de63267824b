"""Lowers a program to the flat list of instructions that the C++ extension runs.

Norms become part of the products that read them, and rotations part of the attention that reads them, so that no thread
waits for another in between; what else reads them keeps them an instruction of their own. A head of which only the best
token is wanted looks for it as it computes the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from anthesis.devices.cpu.arena import ArenaPlan, Life, Place, plan_arena
from anthesis.devices.folding import folding, separate_gates, turns
from anthesis.errors import UnsupportedError
from anthesis.native import extension
from anthesis.program.attend import Attend, alibi_slopes
from anthesis.program.collectives import AllGather, AllReduce, AllReduceBest, SampleOverRanks
from anthesis.program.ir import Op, Program, Value
from anthesis.program.ops import Activate, Add, Embed, Linear, Mul, Norm, Rope, SelectRows
from anthesis.program.sample import Argmax, Sample
from anthesis.program.stages import arriving_name, leaving_name


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of a step's positions: (R, D), made once for all layers."""

    out: str
    frequencies: tuple[float, ...]

    @property
    def value(self) -> Value:
        """Where they stand."""
        return Value(self.out, ("R", 2 * len(self.frequencies)), "fp32", "buffer")


@dataclass(frozen=True)
class Hidden:
    """The rows that the stage before has computed and this one begins with, or that this one hands over."""

    value: Value
    is_input: bool


@dataclass
class Instruction:
    """One operation together with those that it computes on the way.

    Attributes:
        op: the operation, or the angles of rotations, or what goes from stage to stage.
        norm: over whole rows, computed before the product.
        ropes: the rotations of queries and keys, computed within the attention.
        angles: that those rotate by, or a rotation that stands alone.
        reads: values it reads, the inputs and weights not counted.
        writes: values it computes.
    """

    op: Op | Angles | Hidden
    norm: Norm | None = None
    ropes: tuple[Rope, ...] = ()
    angles: Angles | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def computes(self) -> tuple[Op, ...]:
        """The operations of the program that it computes."""
        if isinstance(self.op, Angles | Hidden):
            return ()
        return (*(() if self.norm is None else (self.norm,)), *self.ropes, self.op)

    def source(self, name: str) -> str:
        """The value that is read in place of one that is computed on the way."""
        return self.renamed.get(name, name)


def fold(program: Program, weights: Mapping[str, Any]) -> list[Instruction]:
    """The instructions of a program, in order.

    Args:
        program: of one rank, fused or not.
        weights: packed, by name.
    """
    found = folding(program)
    angles: dict[Any, Angles] = {}

    def angles_of(rope: Rope) -> Angles:
        frequencies = np.array(rope.frequencies)
        if rope.divisors is not None:
            frequencies = frequencies / weights[rope.divisors].values()
        return angles.setdefault(turns(rope), Angles(f"angles.{len(angles)}", tuple(frequencies.tolist())))

    instructions = []
    for op in program.ops:
        # what finds the best of all ranks is part of what finds the rank's own best
        if found.has(op) or isinstance(op, AllReduceBest):
            continue
        instruction = Instruction(op)
        if isinstance(op, Linear) and op.x in found.norms:
            instruction.norm = found.norms[op.x]
            instruction.renamed = {op.x: instruction.norm.x}
        elif isinstance(op, Attend) and op.out in found.rotations:
            instruction.ropes = q, k = found.rotations[op.out]
            instruction.angles, instruction.renamed = angles_of(q), {q.out: q.x, k.out: k.x}
        elif isinstance(op, Rope):
            instruction.angles = angles_of(op)
        instructions.append(instruction)
    first = [Instruction(table) for table in angles.values()]
    arriving = arriving_name(program)
    if arriving is not None:
        first.append(Instruction(Hidden(program.values[arriving], True)))
    leaving = leaving_name(program)
    last = [] if leaving is None else [Instruction(Hidden(program.values[leaving], False))]
    for instruction in (every := [*first, *instructions, *last]):
        instruction.reads, instruction.writes = _reads_and_writes(program, instruction, arriving)
    return every


def _reads_and_writes(
    program: Program, instruction: Instruction, arriving: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(instruction.op, Angles):
        return (), (instruction.op.out,)
    if isinstance(instruction.op, Hidden):
        name = instruction.op.value.name
        return ((), (name,)) if instruction.op.is_input else ((name,), ())
    names = map(instruction.source, instruction.op.reads())
    reads = [name for name in names if name == arriving or program.values[name].kind in ("buffer", "output")]
    if instruction.angles is not None:
        reads.append(instruction.angles.out)
    # what is chosen, or gathered, goes to the caller, not into the arena
    leaves = isinstance(instruction.op, Argmax | Sample | SampleOverRanks | AllGather)
    writes = () if leaves else instruction.op.writes()
    return tuple(reads), writes


def _chosen_from(program: Program) -> dict[str, int]:
    """Logits of which nothing is wanted but the best one, made by the operation right before: how many may be it."""
    found = {}
    for before, op in pairwise(program.ops):
        if not isinstance(op, Argmax) or not isinstance(before, Linear) or before.outs != (op.logits,) or before.gated:
            continue
        if program.values[op.logits].shape[0] != "L":
            continue
        readers = sum(op.logits in reader.reads() for reader in program.ops)
        usable = _usable(program, op.logits, op.first_id, op.usable)
        if readers == 1 and op.logits not in program.outputs and usable > 0:
            found[op.logits] = usable
    return found


def _usable(program: Program, logits: str, first_id: int, usable: int) -> int:
    """How many of a rank's logits, from the first one on, are of tokens that may be chosen."""
    return max(0, min(program.values[logits].static_width, usable - first_id))


def plan(program: Program, instructions: list[Instruction]) -> ArenaPlan:
    """Where the values of the instructions stand."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, instruction in enumerate(instructions):
        for name in instruction.writes:
            first[name] = last[name] = i
        for name in instruction.reads:
            last[name] = i
    tables = {i.op.out: i.op.value for i in instructions if isinstance(i.op, Angles)}
    values = {**program.values, **tables}
    return plan_arena(Life(values[name], first[name], last[name]) for name in first)


class Lowering:
    """Writes the instructions of one program into a native one.

    Args:
        program: of one rank.
        weights: packed, by name: matrices and vectors.
        caches: of each layer, by name.
        pool: that runs it.
        ranks: what the program's ranks exchange by; None for a program of one rank.

    Attributes:
        program: what was lowered, gates taken apart where they have to be.
        instructions: what was written, in order.
        native: the program of the C++ extension.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Any], caches: Mapping[str, Any], pool: Any, ranks: Any = None
    ) -> None:
        self.program = program = separate_gates(program)
        self._weights = weights
        self._caches = caches
        self._native = extension()
        self.instructions = instructions = fold(program, weights)
        self._plan = plan(program, instructions)
        self._chosen_from = _chosen_from(program)
        self.native = self._native.Program(pool, self._plan.floats_per_row, self._plan.floats_per_logit_row, ranks)
        for instruction in instructions:
            self._write(instruction)

    def _place(self, name: str) -> Place:
        return self._plan.places[name]

    def _vector(self, name: str | None) -> Any:
        return None if name is None else self._weights[name]

    def _norm(self, op: Norm) -> Any:
        weight, bias = self._weights[op.weight], self._vector(op.bias)
        return self._native.Norm(weight, bias, op.epsilon, op.norm == "layer")

    def _write(self, instruction: Instruction) -> None:
        op, to, place = instruction.op, self.native, self._place
        if isinstance(op, Angles):
            to.add_angles(list(op.frequencies), place(op.out))
        elif isinstance(op, Linear):
            self._write_linear(op, instruction)
        elif isinstance(op, Attend):
            self._write_attend(op, instruction)
        elif isinstance(op, Embed):
            to.add_embed(self._weights[op.weight], op.ids == "positions", op.offset, place(op.out))
        elif isinstance(op, Norm):
            to.add_norm(self._norm(op), op.width, place(op.x), place(op.out))
        elif isinstance(op, Rope):
            assert instruction.angles is not None
            to.add_rotate(place(op.x), place(instruction.angles.out), 2 * len(op.frequencies), place(op.out))
        elif isinstance(op, Activate):
            to.add_elementwise("activate", place(op.x), None, None, op.activation, place(op.out))
        elif isinstance(op, Mul):
            to.add_elementwise("multiply", place(op.a), place(op.b), None, None, place(op.out))
        elif isinstance(op, Add) and self.program.values[op.b].kind == "weight":
            to.add_elementwise("add_vector", place(op.a), None, self._weights[op.b], None, place(op.out))
        elif isinstance(op, Add):
            to.add_elementwise("add", place(op.a), place(op.b), None, None, place(op.out))
        elif isinstance(op, SelectRows):
            to.add_elementwise("select_rows", place(op.x), None, None, None, place(op.out))
        elif isinstance(op, Hidden):
            to.add_hidden(op.is_input, place(op.value.name))
        elif isinstance(op, AllReduce):
            to.add_all_reduce(place(op.x), place(op.out))
        elif isinstance(op, AllGather):
            to.add_gather(place(op.x), sum(op.widths))
        elif isinstance(op, Argmax):
            usable = _usable(self.program, op.logits, op.first_id, op.usable)
            over_ranks = self.program.world_size > 1
            to.add_argmax(place(op.logits), op.first_id, usable, over_ranks, op.logits in self._chosen_from)
        elif isinstance(op, Sample):
            self._write_sample(op, 0, 1, self.program.values[op.logits].static_width)
        elif isinstance(op, SampleOverRanks):
            self._write_sample(op.sample, op.first_id, len(op.widths), sum(op.widths))
        else:
            raise UnsupportedError(f"the operation {op.kind} is not in this version of the CPU device")

    def _write_sample(self, op: Sample, first_id: int, ranks: int, vocab: int) -> None:
        usable = _usable(self.program, op.logits, first_id, op.usable)
        top = -1 if op.top is None else op.top
        self.native.add_sample(self._place(op.logits), usable, first_id, op.usable, vocab, ranks, top)

    def _write_linear(self, op: Linear, instruction: Instruction) -> None:
        norm = None if instruction.norm is None else self._norm(instruction.norm)
        biases = op.biases or (None,) * len(op.weights)
        matrices = [self._weights[name] for name in op.weights]
        vectors = [self._vector(name) for name in biases]
        outputs = self.program.outputs
        handed_over = [out in outputs and out != leaving_name(self.program) for out in op.outs]
        if op.gated:
            parts = [(*matrices, *vectors, op.wide_inputs, self._place(op.outs[0]), handed_over[0])]
        else:
            parts = [
                (matrix, None, vector, None, op.wide_inputs, self._place(out), to_caller)
                for matrix, vector, out, to_caller in zip(matrices, vectors, op.outs, handed_over, strict=True)
            ]
        residual = None if op.residual is None else self._place(op.residual)
        best_of = self._chosen_from.get(op.outs[0], 0)
        self.native.add_linear(self._place(instruction.source(op.x)), norm, parts, op.activation, residual, best_of)

    def _write_attend(self, op: Attend, instruction: Instruction) -> None:
        heads = self.program.values[op.q].static_width // op.head_dim
        slopes = alibi_slopes(op.num_heads)[op.first_head : op.first_head + heads].tolist() if op.alibi else []
        self.native.add_attend(
            cache=self._caches[op.cache],
            q=self._place(instruction.source(op.q)),
            k=self._place(instruction.source(op.k)),
            v=self._place(op.v),
            out=self._place(op.out),
            angles=None if instruction.angles is None else self._place(instruction.angles.out),
            queries_per_kv_head=op.num_heads // op.num_kv_heads,
            first_head=op.first_head,
            first_kv_head=op.first_kv_head,
            heads=heads,
            scale=op.scale,
            slopes=slopes,
            window=op.window or 0,
        )
