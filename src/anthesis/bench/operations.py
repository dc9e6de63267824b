"""Where the time of a decode step goes: the executor's counters beside what each operation must move and compute."""

from __future__ import annotations

import re
from dataclasses import dataclass

from anthesis.devices.device import InstructionTime
from anthesis.errors import RequestError
from anthesis.llm import LLM
from anthesis.program.ir import Cost, Op, Step
from anthesis.program.ops import Linear


@dataclass(frozen=True, kw_only=True)
class OperationKind:
    """The operations of one kind, over all layers, in one decode step.

    Attributes:
        kind: of the operations; a product's with the weights it reads.
        count: how many there are.
        memory_bytes: read from weights, and read from and written to the cache.
        activation_bytes: read and written in activations, which mostly stay in a processor's caches.
        flops: a multiply-add being two.
        step_s: time, waiting for all threads included.
    """

    kind: str
    count: int
    memory_bytes: int
    activation_bytes: int
    flops: int
    step_s: float


def measure_operations(llm: LLM, prompt_ids: list[int], batch: int, new_tokens: int) -> tuple[OperationKind, ...]:
    """Completes the prompt once more with counters on, which are read from the second token on.

    Args:
        llm: loaded.
        prompt_ids: of each sequence.
        batch: sequences B.
        new_tokens: of each sequence, at least 2.

    Returns:
        The kinds, those that take most time first.

    Raises:
        UnsupportedError: the device has no counters.
        RequestError: the first sequence ends before the last one's prompt is read.
    """
    handles = [llm.submit(prompt_ids, max_new_tokens=new_tokens, ignore_eos=True) for _ in range(batch)]
    try:
        while any(handle.num_tokens == 0 for handle in handles):
            llm.step()
        if any(handle.finished for handle in handles):
            raise RequestError(
                f"can't count the operations of {batch} sequences at once: with {new_tokens} new tokens the first "
                f"ends before all prompts of {len(prompt_ids)} are read; take more new tokens"
            )
        before = sum(handle.num_tokens for handle in handles)
        llm.measure(True)
        steps = 0
        while not any(handle.finished for handle in handles):  # all run in each of these steps
            llm.step()
            steps += 1
        times = llm.measure(False)
        after = sum(handle.num_tokens for handle in handles)
    finally:
        for handle in handles:
            handle.close()
    context = len(prompt_ids) + (before + after - batch) // (2 * batch)  # in the middle; the last token is read by none
    return by_kind(times, Step(rows=batch, logit_rows=batch, context=context, sequences=batch), steps)


def by_kind(times: list[InstructionTime], step: Step, steps: int) -> tuple[OperationKind, ...]:
    """Adds up instructions of one kind.

    Args:
        times: of a program's instructions, in all steps.
        step: the size of each.
        steps: how many there were, at least one.
    """
    found: dict[str, tuple[int, Cost, float]] = {}
    for instruction in times:
        kind = kind_of(instruction.ops)
        count, cost, seconds = found.get(kind, (0, Cost(), 0.0))
        for op in instruction.ops:
            cost += op.cost(instruction.values, step)
        found[kind] = count + 1, cost, seconds + instruction.seconds
    kinds = (
        OperationKind(
            kind=kind,
            count=count,
            memory_bytes=cost.weight_bytes + cost.cache_bytes,
            activation_bytes=cost.activation_bytes,
            flops=cost.flops,
            step_s=seconds / steps,
        )
        for kind, (count, cost, seconds) in found.items()
    )
    return tuple(sorted(kinds, key=lambda kind: -kind.step_s))


def kind_of(ops: tuple[Op, ...]) -> str:
    """What the operations of an instruction are called together: "norm linear attention.q k v"."""
    if not ops:
        return "rope angles"
    name = " ".join(dict.fromkeys(op.kind for op in ops))
    last = ops[-1]
    if isinstance(last, Linear):
        weights = [re.sub(r"^layers\.\d+\.|\.weight$", "", weight) for weight in last.weights]
        name += " " + " ".join([weights[0], *(weight.rpartition(".")[2] for weight in weights[1:])])
    return name
