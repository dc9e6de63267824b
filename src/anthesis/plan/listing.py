"""A program as a readable list, with equal layers written once."""

from __future__ import annotations

import re
from itertools import groupby

from anthesis.program.ir import Op, Program

_LAYER = re.compile(r"\b(layers|cache)\.(\d+)\b")


def program_listing(program: Program) -> str:
    """The operations one per line; consecutive layers that differ in their number alone are written once.

    Args:
        program: of any rank.

    Returns:
        Lines "results = kind(arguments) -> shapes"; in collapsed layers i is the layer's number.
    """
    layers: list[tuple[int | None, list[str]]] = []
    for layer, ops in groupby(program.ops, key=_layer_of):
        layers.append((layer, [_line(program, op, layer) for op in ops]))
    text = []
    for _, equal in groupby(layers, key=lambda layer: (layer[0] is None, layer[1])):
        group = list(equal)
        first, lines = group[0]
        last = group[-1][0]
        if first is None:
            text += [f"  {line}" for line in lines]
            continue
        text.append(
            f"layer i = {first}:" if first == last else f"layers i = {first} to {last}, {len(group)} equal ones:"
        )
        text += [f"    {line}" for line in lines]
    return "\n".join(text)


def _layer_of(op: Op) -> int | None:
    found = [_LAYER.search(name) for name in op.writes()]
    return int(found[0][2]) if found and found[0] else None


def _line(program: Program, op: Op, layer: int | None) -> str:
    shapes = ", ".join(str(program.values[name]).split(": ", 1)[1] for name in op.writes())
    weights = [program.values[name] for name in op.reads() if program.values[name].kind == "weight"]
    kinds = dict.fromkeys(weight.dtype for weight in weights if len(weight.shape) > 1)
    line = f"{op} -> {shapes}" + (f"; weights {'+'.join(kinds)}" if kinds else "")
    if layer is None:
        return line

    def relative(match: re.Match[str]) -> str:
        distance = int(match[2]) - layer
        return f"{match[1]}.i{f'{distance:+d}' if distance else ''}"

    return _LAYER.sub(relative, line)
