"""The plan: a model's memory, collectives and floor on a device, from its program alone. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from anthesis.checkpoint import open_checkpoint
from anthesis.config import ModelConfig
from anthesis.engine.blocks import blocks_for
from anthesis.engine.loaded import choose_cache_dtype, matrix_kinds
from anthesis.errors import RequestError, check_counts
from anthesis.llm import PREFILL_CHUNK
from anthesis.models import trace
from anthesis.plan.floor import Exchange, Floor, Ranks, exchanges, floor, handed_over
from anthesis.plan.hardware import Hardware, find_hardware, holding
from anthesis.plan.listing import program_listing
from anthesis.program.cost import Memory, cost_by_kind, kind_bytes, memory
from anthesis.program.fuse import fuse
from anthesis.program.ir import BLOCK_TOKENS, Cost, Program, Step, Value
from anthesis.program.partition import alike_ranks, partition
from anthesis.program.stages import choose_stages, stage

DEFAULT_CONTEXT = 2048
PROMPT_TOKENS = 7
NEW_TOKENS = 100
RESERVE_SHARE = 0.1
"""Of a device's memory: left for its runtime, communication buffers and fragmentation."""

HeldBytes = Callable[[Value], int]
"""Bytes that a device takes for a weight, or for one block of a cache."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run.

    Attributes:
        batch: sequences B at once.
        context_tokens: prompt and completion that the cache has room for, of each sequence.
        prompt_tokens: of each sequence in the timed job.
        new_tokens: generated for each.
    """

    batch: int
    context_tokens: int
    prompt_tokens: int
    new_tokens: int

    def largest_step(self) -> Step:
        """The step with the most rows: all sequences but one decode, one brings a chunk of its prompt."""
        rows = min(PREFILL_CHUNK, self.context_tokens) + self.batch - 1
        return Step(rows, self.batch, self.context_tokens, self.batch)

    def decode_step(self) -> Step:
        """One token of every sequence, at the mean context of the job, of whose length costs are linear."""
        return Step(self.batch, self.batch, self.prompt_tokens + self.new_tokens // 2, self.batch)

    def last_step(self) -> Step:
        """One token of every sequence with the context full."""
        return Step(self.batch, self.batch, self.context_tokens, self.batch)

    def prefill_step(self) -> Step:
        """All prompts at once; a row attends to half of its prompt on average."""
        return Step(self.batch * self.prompt_tokens, self.batch, (self.prompt_tokens + 1) // 2, self.batch)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model needs and how fast it can be at best.

    Attributes:
        model: for people.
        is_random: the weights are made up.
        family: of the model.
        num_layers: decoder layers.
        parameters: elements of all weights.
        weight_kinds: kinds of the matrices.
        cache_dtype: of the key-value cache.
        tp: ranks W of each stage.
        pp: stages.
        job: what is to be run.
        hardware: what each rank runs on.
        rank_memory: of the rank that needs most, as the device holds it: the reference device holds weights
            dequantised, a device of a data sheet as they are.
        total_memory: of all ranks together.
        kinds_weight_bytes: of the weights in their kinds, all ranks together: what the floors count.
        cache_bytes_per_token: of the whole model, as the device holds it.
        reserve_bytes: of each device's memory, not to be used.
        fits: every rank fits its device, or all fit the memory they share.
        smallest_tp: the fewest devices of this kind for each stage on which it fits; None where no number does.
        exchanges: the collectives of one token step, of one rank of each stage, and what stages hand over.
        token_floor: of the step that generates one token of every sequence, at the job's mean context.
        full_context_floor: the same with the context full.
        prefill_floor: of the prompts, all in one step.
        job_floor_s: of the whole job, prefill_floor + (new_tokens - 1) token_floor; None where it is unknown.
        operations: cost of one token step by kind of operation, on the rank that needs most.
        listing: that rank's program, equal layers written once.
    """

    model: str
    is_random: bool
    family: str
    num_layers: int
    parameters: int
    weight_kinds: tuple[str, ...]
    cache_dtype: str
    tp: int
    pp: int
    job: Job
    hardware: Hardware
    rank_memory: Memory
    total_memory: Memory
    kinds_weight_bytes: int
    cache_bytes_per_token: int
    reserve_bytes: int
    fits: bool
    smallest_tp: int | None
    exchanges: tuple[Exchange, ...]
    token_floor: Floor
    full_context_floor: Floor
    prefill_floor: Floor
    job_floor_s: float | None
    operations: dict[str, Cost]
    listing: str


def make_plan(
    model: str | None = None,
    *,
    device: str | None = None,
    tp: int = 1,
    pp: int = 1,
    context: int | None = None,
    batch: int = 1,
    weights: str = "native",
    cache: str = "auto",
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> Plan:
    """Plans a model on a device, from its configuration and the headers of its files.

    Args:
        model: as in `LLM`.
        device: the name of a data sheet, or of a device in this machine ("reference", ...); None, "auto": the fastest.
        tp: devices W among which every layer is split.
        pp: stages of layers, each of `tp` devices.
        context: tokens of prompt and completion that the cache is to hold for each sequence; None: what the model
            allows, at most 2048, or as many as the job has.
        batch: sequences at once.
        weights: kind of all matrices, or "native": as stored.
        cache: dtype of the key-value cache, "fp32", "bf16" or "auto" (fp32 with fp32 weights, else bf16).
        prompt_tokens: of each sequence in the timed job.
        new_tokens: generated for each in the timed job.

    Raises:
        RequestError: a number below 1, an unknown name, a context the model does not have or the job does not fit, or
            a number of devices over which the model can't be split.
        CheckpointError: a damaged checkpoint.
    """
    check_counts(tp=tp, pp=pp, context=context, batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    hardware = find_hardware(device)  # before the model, which may have to be fetched first
    held = holding(hardware)
    with open_checkpoint(model, weights=weights) as checkpoint:
        config = checkpoint.config
        job = Job(
            batch=batch,
            context_tokens=_context(config, context, prompt_tokens + new_tokens),
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )
        program = trace(config, "argmax", checkpoint.kind_of)
        matrices = matrix_kinds(program.of_kind("weight"))
        cache_dtype = choose_cache_dtype(cache, program.of_kind("weight"))
        program = trace(config, "argmax", checkpoint.kind_of, cache_dtype)
    stages = _stages(program, tp, pp)
    ranks = [rank for stage_ranks in stages for rank in stage_ranks]

    needs = [_memory(rank, job, held) for rank, _ in ranks]
    total = Memory(
        *(sum(count * part for (_, count), part in zip(ranks, parts, strict=True)) for parts in _parts(needs))
    )
    largest = max(range(len(needs)), key=lambda i: needs[i].total_bytes)
    reserve_bytes = int(hardware.memory_bytes * RESERVE_SHARE)
    usable_bytes = hardware.memory_bytes - reserve_bytes
    if hardware.memory_is_shared:
        fits = total.total_bytes <= usable_bytes
        smallest_tp = 1 if _memory(fuse(program), job, held).total_bytes <= usable_bytes else None
    else:
        fits = needs[largest].total_bytes <= usable_bytes
        smallest_tp = _smallest_tp(program, pp, job, held, usable_bytes)
    token_floor, full_context_floor, prefill_floor = (
        floor(stages, step, hardware, matrices) for step in (job.decode_step(), job.last_step(), job.prefill_step())
    )
    return Plan(
        model=checkpoint.description,
        is_random=checkpoint.is_random,
        family=config.family,
        num_layers=config.num_layers,
        parameters=sum(math.prod(value.static_shape) for value in program.of_kind("weight")),
        weight_kinds=matrices,
        cache_dtype=cache_dtype,
        tp=tp,
        pp=pp,
        job=job,
        hardware=hardware,
        rank_memory=needs[largest],
        total_memory=total,
        kinds_weight_bytes=sum(
            count * sum(kind_bytes(weight) for weight in rank.of_kind("weight")) for rank, count in ranks
        ),
        cache_bytes_per_token=sum(held(cache) for cache in program.of_kind("cache")) // BLOCK_TOKENS,
        reserve_bytes=reserve_bytes,
        fits=fits,
        smallest_tp=smallest_tp,
        exchanges=_all_exchanges(stages, job.decode_step()),
        token_floor=token_floor,
        full_context_floor=full_context_floor,
        prefill_floor=prefill_floor,
        job_floor_s=_job_floor_s(prefill_floor, token_floor, job),
        operations=cost_by_kind(ranks[largest][0], job.decode_step()),
        listing=program_listing(ranks[largest][0]),
    )


def _context(config: ModelConfig, wanted: int | None, job_tokens: int) -> int:
    if wanted is None:
        context = max(DEFAULT_CONTEXT, job_tokens)
        context = context if config.max_context is None else min(context, config.max_context)
    else:
        context = wanted
    if config.max_context is not None and context > config.max_context:
        raise RequestError(f"context is {context}, and the model was made for at most {config.max_context} tokens")
    if job_tokens > context:
        raise RequestError(
            f"prompt and completion have {job_tokens} tokens together and the context is {context}; "
            "plan for fewer tokens or a longer context"
        )
    return context


def _stages(program: Program, tp: int, pp: int) -> list[Ranks]:
    """Of each stage the programs of its ranks."""
    parts = [stage(program, layers) for layers in choose_stages(program, pp)]
    return [[(fuse(partition(part, rank, tp)), count) for rank, count in alike_ranks(part, tp)] for part in parts]


def _all_exchanges(stages: Sequence[Ranks], step: Step) -> tuple[Exchange, ...]:
    """Those of the first rank of each stage: all of a stage bring as much."""
    found: dict[tuple[str, int], Exchange] = {}
    for (program, _), *_ in stages:
        for exchange in (*exchanges(program, step), handed_over(program, step)):
            if exchange is not None:
                key = exchange.kind, exchange.payload_bytes
                before = found[key].count if key in found else 0
                found[key] = replace(exchange, count=before + exchange.count)
    return tuple(found.values())


def _memory(rank: Program, job: Job, held: HeldBytes) -> Memory:
    blocks = job.batch * blocks_for(job.context_tokens) + 1  # and the scratch block
    return memory(rank, job.largest_step(), blocks, held)


def _parts(needs: Sequence[Memory]) -> list[list[int]]:
    return [[getattr(need, name) for need in needs] for name in ("weight_bytes", "cache_bytes", "buffer_bytes")]


def _smallest_tp(program: Program, pp: int, job: Job, held: HeldBytes, usable_bytes: int) -> int | None:
    """The fewest devices with so much memory for each stage on which the model fits."""
    whole = _memory(program, job, held)
    world_size = max(1, -(-(whole.weight_bytes + whole.cache_bytes) // (usable_bytes * pp)))
    while True:
        try:
            stages = _stages(program, world_size, pp)
        except RequestError:  # more ranks than there are pieces
            return None
        if all(_memory(rank, job, held).total_bytes <= usable_bytes for ranks in stages for rank, _ in ranks):
            return world_size
        world_size += 1


def _job_floor_s(prefill: Floor, token: Floor, job: Job) -> float | None:
    if prefill.total_s is None or token.total_s is None:
        return None
    return prefill.total_s + (job.new_tokens - 1) * token.total_s
