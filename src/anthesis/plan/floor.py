"""The floor: the least time a step can take on given hardware, from what the program must move and compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from anthesis.plan.hardware import Hardware
from anthesis.program.collectives import AllGather, Collective
from anthesis.program.cost import cost
from anthesis.program.ir import Program, Step
from anthesis.program.stages import leaving_name

Ranks = Sequence[tuple[Program, int]]
"""The fused programs of all ranks of a stage, alike ones once, each with how many ranks it stands for."""

Bound = Literal["memory", "compute", "links", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The collectives of one kind and size in a step.

    Attributes:
        kind: "all_reduce", "all_gather", ..., or "hand_over" from stage to stage.
        count: how many the step has.
        payload_bytes: what a rank brings to each.
        moved_bytes: what each must send per device, see `moved_bytes`.
    """

    kind: str
    count: int
    payload_bytes: int
    moved_bytes: float


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time of one step, and what it is made of.

    total_s = max(memory_s, compute_s) + link_s, and of stages the sum: reading memory and computing overlap, and a
    collective, or the next stage, waits for the sums before it. memory_s = (weight and cache bytes) / bandwidth,
    activations staying on chip; compute_s = flops / peak; link_s = moved bytes / link bandwidth. Nothing is counted for
    latencies, so no device comes below it. What is unknown of the hardware counts as nothing; without the bandwidth
    there is no floor.

    Attributes:
        read_bytes: weights and cache that the slowest rank of each stage reads, all stages together (all ranks together
            where they share the memory).
        flops: of the slowest ranks (or of all together).
        link_bytes: sent per device, by one of each stage.
        memory_s, compute_s, link_s: seconds, or None where the hardware's rate is unknown.
        total_s: seconds, or None where the bandwidth is unknown.
        bound: which of the three is longest.
    """

    read_bytes: int
    flops: int
    link_bytes: float
    memory_s: float | None
    compute_s: float | None
    link_s: float | None
    total_s: float | None
    bound: Bound


def moved_bytes(collective: Collective, payload_bytes: int, world_size: int) -> float:
    """Bytes that a device must send for a collective, whatever the algorithm.

    Args:
        collective: the operation.
        payload_bytes: what each rank brings.
        world_size: ranks W.

    Returns:
        2 (W - 1) / W of the payload for a reduction whose result all ranks get; (W - 1) times the payload for a gather.

    Source:
        Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib.
        Comput. 69 (2009), section 3.
    """
    if isinstance(collective, AllGather):
        return float((world_size - 1) * payload_bytes)
    return 2 * (world_size - 1) / world_size * payload_bytes


def exchanges(program: Program, step: Step) -> tuple[Exchange, ...]:
    """The collectives of one step of this rank, alike ones together, in the order in which they first occur."""
    found: dict[tuple[str, int], Exchange] = {}
    for op in program.ops:
        if isinstance(op, Collective):
            payload = op.cost(program.values, step).sent_bytes
            before = found.get((op.kind, payload))
            found[op.kind, payload] = Exchange(
                kind=op.kind,
                count=1 + (before.count if before else 0),
                payload_bytes=payload,
                moved_bytes=moved_bytes(op, payload, program.world_size),
            )
    return tuple(found.values())


def handed_over(program: Program, step: Step) -> Exchange | None:
    """What a rank of a stage sends to the next one: rows of activations; None of the last stage."""
    leaving = leaving_name(program)
    if leaving is None:
        return None
    nbytes = program.values[leaving].nbytes(step.sizes())
    return Exchange(kind="hand_over", count=1, payload_bytes=nbytes, moved_bytes=float(nbytes))


def floor(stages: Sequence[Ranks], step: Step, hardware: Hardware, weight_kinds: Sequence[str]) -> Floor:
    """The least time of one step.

    Args:
        stages: of each stage the programs of all its ranks.
        step: its size.
        hardware: what each rank runs on.
        weight_kinds: kinds of the matrices.
    """
    floors = [_floor(ranks, step, hardware, weight_kinds) for ranks in stages]
    memory_s, compute_s, link_s, total_s = (
        _sum(getattr(one, name) for one in floors) for name in ("memory_s", "compute_s", "link_s", "total_s")
    )
    parts: dict[Bound, float] = {"memory": memory_s or 0.0, "compute": compute_s or 0.0, "links": link_s or 0.0}
    return Floor(
        read_bytes=sum(one.read_bytes for one in floors),
        flops=sum(one.flops for one in floors),
        link_bytes=sum(one.link_bytes for one in floors),
        memory_s=memory_s,
        compute_s=compute_s,
        link_s=link_s,
        total_s=total_s,
        bound="unknown" if memory_s is None else max(parts, key=lambda part: parts[part]),
    )


def _floor(ranks: Ranks, step: Step, hardware: Hardware, weight_kinds: Sequence[str]) -> Floor:
    """Of one stage; its `bound` is not looked at."""
    needs = []
    for program, count in ranks:
        needed = cost(program, step)
        sent = [*exchanges(program, step), handed_over(program, step)]
        moved = sum(exchange.count * exchange.moved_bytes for exchange in sent if exchange is not None)
        needs.append((count, needed.weight_bytes + needed.cache_bytes, needed.flops, moved))
    if hardware.memory_is_shared:
        read_bytes, flops = (sum(need[0] * need[i] for need in needs) for i in (1, 2))
    else:
        read_bytes, flops = (max(need[i] for need in needs) for i in (1, 2))
    link_bytes = max(need[3] for need in needs)
    memory_s = _seconds(read_bytes, hardware.read_bytes_per_s)
    compute_s = _seconds(flops, hardware.flops_per_s(weight_kinds))
    link_s = _seconds(link_bytes, hardware.link_bytes_per_s)
    return Floor(
        read_bytes=int(read_bytes),
        flops=int(flops),
        link_bytes=link_bytes,
        memory_s=memory_s,
        compute_s=compute_s,
        link_s=link_s,
        total_s=None if memory_s is None else max(memory_s, compute_s or 0.0) + (link_s or 0.0),
        bound="unknown",
    )


def _sum(seconds: Iterable[float | None]) -> float | None:
    """Of times that are all known, or None."""
    known = list(seconds)
    return None if None in known else sum(time for time in known if time is not None)


def _seconds(amount: float, per_second: float | None) -> float | None:
    """The time for an amount; none for nothing, even where the rate is unknown."""
    if amount == 0:
        return 0.0
    return None if per_second is None else amount / per_second
