"""Where the values of a program stand while a step runs; those whose lives do not overlap share memory.

A plan holds for steps of every size. It is made in floats per row: a step of R rows finds a value R times as far from
the start, as R whole rows one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from anthesis.program.ir import Value

LINE_FLOATS = 16
"""Values begin at multiples of a cache line, for one row."""

Place = tuple[bool, int, int]
"""(its rows are logit rows, floats per row before it, floats of a row)"""


@dataclass(frozen=True)
class Life:
    """A value and when it is needed.

    Attributes:
        value: computed in the step.
        first: number of the instruction that writes it.
        last: number of the last one that reads it.
    """

    value: Value
    first: int
    last: int


@dataclass(frozen=True)
class ArenaPlan:
    """Where each value stands.

    Attributes:
        places: by name.
        floats_per_row: that the values with a row for each token take together.
        floats_per_logit_row: likewise for those with a row for each wanted row of logits.
    """

    places: Mapping[str, Place]
    floats_per_row: int
    floats_per_logit_row: int


def plan_arena(lives: Iterable[Life]) -> ArenaPlan:
    """The first gap that is wide enough for each value, in the order in which they are written."""
    places: dict[str, Place] = {}
    ends = {False: 0, True: 0}
    standing: dict[bool, list[tuple[int, int, Life]]] = {False: [], True: []}  # (begin, end, life), sorted by begin
    for life in sorted(lives, key=lambda life: life.first):
        logit_rows = life.value.shape[0] == "L"
        width = life.value.static_width if len(life.value.shape) > 1 else 1
        needed = -(-width // LINE_FLOATS) * LINE_FLOATS
        living = [other for other in standing[logit_rows] if other[2].last >= life.first]
        begin = _first_gap([(begin, end) for begin, end, _ in living], needed)
        standing[logit_rows] = sorted([*living, (begin, begin + needed, life)], key=lambda other: other[0])
        places[life.value.name] = (logit_rows, begin, width)
        ends[logit_rows] = max(ends[logit_rows], begin + needed)
    return ArenaPlan(places, ends[False], ends[True])


def _first_gap(taken: Sequence[tuple[int, int]], needed: int) -> int:
    at = 0
    for begin, end in taken:
        if begin - at >= needed:
            return at
        at = max(at, end)
    return at
