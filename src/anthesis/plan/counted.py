"""The floor of steps that have run: what each had to read and compute.

What a step costs (`anthesis.program.cost`) is linear in its rows, its rows with logits and the tokens that they attend
to, so the coefficients are worked out once for each way in which a program finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from anthesis.parallel.layout import Layout
from anthesis.program.attend import Attend
from anthesis.program.builder import Finish
from anthesis.program.cost import cost
from anthesis.program.ir import Cost, Program, Step

Sequences = Sequence[tuple[int, int]]
"""Of each sequence of a step (tokens in the cache before it, rows)."""

Programs = Callable[[Finish], Sequence[Program]]
"""The programs of all ranks, in order, that finish in one of the ways."""


@dataclass(frozen=True)
class _Attention:
    """What the layers with one window read and compute for each token that is attended to.

    Attributes:
        window: most tokens that a row attends to; None: all before it.
        token_bytes: of a token's keys and values: read for each sequence, and written for each row.
        row_flops: for each pair of a row and a token that it attends to.
    """

    window: int | None
    token_bytes: int
    row_flops: int


@dataclass(frozen=True)
class _LinearCost:
    """What the steps of one program cost, as a linear function of their size."""

    fixed: Cost
    row: Cost
    logit_row: Cost
    attention: tuple[_Attention, ...]

    def of(self, sequences: Sequences, logit_rows: int, shared: Sequence[int]) -> tuple[int, int]:
        """(bytes of weights and cache, flops) of a step; the arguments are those of `OnStep`."""
        rows = sum(count for _, count in sequences)
        nbytes = self.fixed.weight_bytes + rows * self.row.weight_bytes + logit_rows * self.logit_row.weight_bytes
        flops = self.fixed.flops + rows * self.row.flops + logit_rows * self.logit_row.flops
        for layers in self.attention:
            tokens, pairs = _attended(sequences, shared, layers.window)
            nbytes += (tokens + rows) * layers.token_bytes
            flops += pairs * layers.row_flops
        return nbytes, flops


StepCost = tuple[tuple[int, int], ...]
"""(bytes of weights and cache, flops) of a step on each of the stages, which wait for each other."""


class StepCosts:
    """What steps of a model must read and compute.

    Args:
        programs: of the model, `LLM.loaded.programs`.
        layout: of its ranks.
        shares_memory: ranks read memory together, at the rate that is taken: what they read is added up. Otherwise
            each rank has a memory of its own, and the one counts that holds most.
    """

    def __init__(self, programs: Programs, layout: Layout, *, shares_memory: bool) -> None:
        self._programs, self._layout, self._shares_memory = programs, layout, shares_memory
        self._costs: dict[Finish, list[_LinearCost]] = {}

    def of(self, finish: Finish, sequences: Sequences, logit_rows: int, shared: Sequence[int] = ()) -> StepCost:
        """Of one step; the arguments are those of `OnStep`; left out, nothing is shared."""
        shared = shared or [0] * len(sequences)
        stages = tuple(costs.of(sequences, logit_rows, shared) for costs in self._stages(finish))
        if finish != "cache":
            return stages
        # nobody waits for a step without logits: stages work on one and on the next at the same time
        return ((max(nbytes for nbytes, _ in stages), max(flops for _, flops in stages)),)

    def _stages(self, finish: Finish) -> list[_LinearCost]:
        if finish not in self._costs:
            ranks = [_linear_cost(program) for program in self._programs(finish)]
            tp = self._layout.tp
            stages = [ranks[first : first + tp] for first in range(0, len(ranks), tp)]
            together = _sum if self._shares_memory else _largest
            self._costs[finish] = [together(stage) for stage in stages]
        return self._costs[finish]


class StepCounter:
    """Adds up the floors of steps; `LLM.watch` takes it.

    As in `floor` a step takes at least max(bytes / bandwidth, flops / peak), stages one behind the other. So what is
    kept of a step is its bytes where reading takes longer, else its flops, by rates that are known at the beginning;
    with other rates that were measured later the sum is a bound all the same, if a lower one.

    Args:
        costs: of the model.
        read_bytes_per_s: of the memory; None: unknown, then there is no floor.
        flops_per_s: peak; None: unknown, then computing counts as nothing.

    Attributes:
        steps: that were counted.
        memory_bound_bytes: of weights and cache, read in steps that are bound by the memory.
        compute_bound_flops: of the other steps.
    """

    def __init__(self, costs: StepCosts, *, read_bytes_per_s: float | None, flops_per_s: float | None) -> None:
        self._costs = costs
        # a flop costs the time of so many bytes
        self._flop_bytes = read_bytes_per_s / flops_per_s if read_bytes_per_s and flops_per_s else 0.0
        self.steps = self.memory_bound_bytes = self.compute_bound_flops = 0

    def __call__(
        self, finish: Finish, sequences: list[tuple[int, int]], logit_rows: int, shared: Sequence[int] = ()
    ) -> None:
        """Counts a step; see `OnStep`."""
        self.steps += 1
        for nbytes, flops in self._costs.of(finish, sequences, logit_rows, shared):
            if nbytes >= flops * self._flop_bytes:
                self.memory_bound_bytes += nbytes
            else:
                self.compute_bound_flops += flops

    def floor_s(self, read_bytes_per_s: float | None, flops_per_s: float | None) -> float | None:
        """The least time of all steps; None where the bandwidth, or a peak that is needed, is unknown.

        Args:
            read_bytes_per_s: of the memory.
            flops_per_s: peak.
        """
        if read_bytes_per_s is None or (self.compute_bound_flops and flops_per_s is None):
            return None
        return self.memory_bound_bytes / read_bytes_per_s + self.compute_bound_flops / (flops_per_s or 1.0)


def _linear_cost(program: Program) -> _LinearCost:
    attends = [op for op in program.ops if isinstance(op, Attend)]
    others = replace(program, ops=tuple(op for op in program.ops if not isinstance(op, Attend)))
    one, two, two_logits = (cost(others, step) for step in (Step(), Step(rows=2), Step(logit_rows=2)))
    row, logit_row = _minus(two, one), _minus(two_logits, one)
    attention: dict[int | None, _Attention] = {}
    for op in attends:
        needed = op.cost(program.values, Step())  # a row that attends to itself: a token is written, and one is read
        before = attention.get(op.window, _Attention(op.window, 0, 0))
        attention[op.window] = _Attention(
            op.window, before.token_bytes + needed.cache_bytes // 2, before.row_flops + needed.flops
        )
    return _LinearCost(_minus(_minus(one, row), logit_row), row, logit_row, tuple(attention.values()))


def _attended(sequences: Sequences, shared: Sequence[int], window: int | None) -> tuple[int, int]:
    """(Tokens of all sequences that are read once, pairs of a row and a token that it attends to).

    Tokens that several sequences share need be read only once. Of a window they all count as read: a bound from below.
    """
    tokens = pairs = 0
    for (first, count), read_before in zip(sequences, shared, strict=True):
        end = first + count
        if window is None or end <= window:
            tokens += end - read_before
            pairs += count * first + count * (count + 1) // 2
        else:
            tokens += window - max(0, read_before - (end - window))
            growing = max(0, window - first)  # rows that the window does not cut yet
            pairs += growing * first + growing * (growing + 1) // 2 + (count - growing) * window
    return tokens, pairs


def _minus(a: Cost, b: Cost) -> Cost:
    return Cost(weight_bytes=a.weight_bytes - b.weight_bytes, flops=a.flops - b.flops)


def _sum(ranks: Sequence[_LinearCost]) -> _LinearCost:
    """Of ranks that share a memory."""
    attention = tuple(
        _Attention(layers[0].window, sum(each.token_bytes for each in layers), sum(each.row_flops for each in layers))
        for layers in zip(*(rank.attention for rank in ranks), strict=True)
    )
    fixed, row, logit_row = (
        sum((getattr(rank, name) for rank in ranks), Cost()) for name in ("fixed", "row", "logit_row")
    )
    return _LinearCost(fixed, row, logit_row, attention)


def _largest(ranks: Sequence[_LinearCost]) -> _LinearCost:
    """Of ranks that wait for each other: the one that reads most in any case."""
    return max(ranks, key=lambda rank: rank.fixed.weight_bytes)
