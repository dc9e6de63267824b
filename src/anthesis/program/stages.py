"""Cuts a program into stages of whole layers, for ranks that work one after the other: pipeline parallelism.

A stage hands the rows that it has computed to the next: one value, an output of the one and an input of the other by
the same name. A stage is a program like any other: it is cut before `partition`, so that the ranks of a stage share it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from anthesis.errors import RequestError
from anthesis.program.ir import Program, Value

Layers = range
"""The numbers of a stage's layers."""


def choose_stages(program: Program, count: int) -> tuple[Layers, ...]:
    """The layers of each stage, such that the largest stage has as few bytes of weights as possible.

    The first stage has the embedding besides its layers, the last one the head: with a tied one both hold it.

    Args:
        program: as traced, with the weights of the whole model.
        count: stages.

    Returns:
        One range for each stage, in order; none is empty.

    Raises:
        RequestError: there are fewer layers than stages.
    """
    num_layers = program.config.num_layers
    if count > num_layers:
        raise RequestError(f"the model has {num_layers} layers, too few for {count} stages; 1 to {num_layers} work")
    per_layer = [0] * num_layers
    first_op = _first_op(program, 0)
    for i, op in enumerate(program.ops):
        for value in (program.values[name] for name in op.reads()):
            if value.kind == "weight":
                layer = _layer(value.name)
                outside = 0 if i < first_op else num_layers - 1
                per_layer[outside if layer is None else layer] += value.nbytes()
    # the least largest sum, by bisection over what one stage may have
    low, high = max(per_layer), sum(per_layer)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_fill(per_layer, middle)) <= count else (middle + 1, high)
    stages = _fill(per_layer, low)
    while len(stages) < count:  # fewer would do: divide the longest
        longest = max(range(len(stages)), key=lambda i: len(stages[i]))
        whole = stages[longest]
        middle = (whole.start + whole.stop) // 2
        stages[longest : longest + 1] = [range(whole.start, middle), range(middle, whole.stop)]
    return tuple(stages)


def stage(program: Program, layers: Layers) -> Program:
    """The part of a program that computes these layers, with what stands before the first and behind the last layer.

    Args:
        program: as traced, with any ending.
        layers: of the stage.

    Returns:
        The stage's program; the same object where it has all layers.
    """
    num_layers = program.config.num_layers
    if len(layers) == num_layers:
        return program
    begin = 0 if layers.start == 0 else _first_op(program, layers.start)
    end = len(program.ops) if layers.stop == num_layers else _first_op(program, layers.stop)
    values = dict(program.values)
    if begin:
        arriving = _passed_on(program, begin)
        values[arriving.name] = replace(arriving, kind="input")
    outputs = program.outputs if end == len(program.ops) else (_passed_on(program, end).name,)
    return replace(program, values=values, outputs=outputs).with_ops(program.ops[begin:end])


def arriving_name(program: Program) -> str | None:
    """The input of a stage's program that the stage before computes; None for the first stage."""
    rows = [value.name for value in program.of_kind("input") if value.shape[1:] == (program.config.hidden_size,)]
    assert len(rows) <= 1, f"several stages hand over {', '.join(rows)}"
    return rows[0] if rows else None


def leaving_name(program: Program) -> str | None:
    """The output of a stage's program that the next stage goes on with; None for the last stage."""
    handed = ("R", program.config.hidden_size)
    return next((name for name in program.outputs if program.values[name].shape == handed), None)


def _fill(sizes: Sequence[int], most: int) -> list[Layers]:
    """As few runs as possible whose sums are at most `most`."""
    stages, first, total = [], 0, 0
    for i, size in enumerate(sizes):
        if total + size > most:
            stages.append(range(first, i))
            first, total = i, 0
        total += size
    return [*stages, range(first, len(sizes))]


def _layer(name: str) -> int | None:
    """The layer that a value belongs to, by its name."""
    found = re.match(r"(?:layers|cache)\.(\d+)(?:\.|$)", name)
    return None if found is None else int(found[1])


def _first_op(program: Program, layer: int) -> int:
    """Where in the program the layer begins."""
    later = range(layer, program.config.num_layers)
    return next(i for i, op in enumerate(program.ops) if any(_layer(name) in later for name in op.reads()))


def _passed_on(program: Program, at: int) -> Value:
    """The one value that is computed before an operation and read from there on."""
    made = {name for op in program.ops[:at] for name in op.writes()}
    needed = {name for op in program.ops[at:] for name in op.reads()} & made
    assert len(needed) == 1, f"{', '.join(sorted(needed))} would all have to be handed from stage to stage"
    return program.values[needed.pop()]
