"""`anthesis plan`: what a model needs and how fast it can be at best, before anything is loaded."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anthesis.cli import options
from anthesis.cli.document import print_json
from anthesis.units import amount, counted, duration

if TYPE_CHECKING:
    from anthesis.plan import Plan
    from anthesis.plan.floor import Floor

SCHEMA_VERSION = 1
WIDTH = 100

PlanDevice = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="A card (gaudi2, h100, ...), cpu, reference; else this machine."),
]
Context = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens the cache holds per sequence. Left out: the model's, at most 2048."),
]
Batch = Annotated[int, typer.Option(metavar="N", help="Sequences at once.")]
PlanPrompt = Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="Per sequence in the job.")]
PlanNew = Annotated[int, typer.Option("-n", "--max-new-tokens", metavar="N", help="Generated in the job.")]
Ops = Annotated[bool, typer.Option("--ops", help="List a token step's operations and costs.")]


def plan(
    model: options.Model = None,
    device: PlanDevice = None,
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    context: Context = None,
    batch: Batch = 1,
    weights: options.Weights = "native",
    cache: options.Cache = "auto",
    prompt_tokens: PlanPrompt = 7,
    max_new_tokens: PlanNew = 100,
    ops: Ops = False,
    json: options.Json = False,
) -> None:
    """Say what a model needs, whether it fits, and the least time a token can take. No weight is read.

    $ anthesis plan random:bloomz --device gaudi2 --tp 8
    """
    from anthesis.plan import make_plan

    made = make_plan(
        model,
        device=device,
        tp=tp,
        pp=pp,
        context=context,
        batch=batch,
        weights=weights,
        cache=cache,
        prompt_tokens=prompt_tokens,
        new_tokens=max_new_tokens,
    )
    if json:
        print_json(plan_document(made, ops))
        return
    for heading, rows in _sections(made):
        print(heading)
        for name, text in rows:
            print(_row(name, text))
    if ops:
        print("\n".join(_operation_lines(made)))


def _row(name: str, text: str) -> str:
    return f"  {name:<18} {text}".rstrip()


def plan_document(made: Plan, ops: bool) -> dict[str, Any]:
    """The JSON document of `plan --json`: sizes in bytes, times in seconds, rates per second.

    Args:
        made: the plan.
        ops: whether the operations belong to it.
    """
    document = {"schema_version": SCHEMA_VERSION, "kind": "plan", **asdict(made)}
    for name in ("rank_memory", "total_memory"):
        document[name]["total_bytes"] = getattr(made, name).total_bytes
    if not ops:
        del document["operations"], document["listing"]
    return document


def _sections(made: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    hardware, job = made.hardware, made.job
    each = f"{made.pp} stages of {made.tp}" if made.pp > 1 else f"{made.tp}"
    devices = f"device {hardware.name}" if hardware.memory_is_shared else f"{each} x {hardware.name}"
    ranks = f", {each} ranks" if hardware.memory_is_shared and _has_ranks(made) else ""
    sequences = counted(job.batch, "sequence")
    parameters = f"{made.parameters / 1e9:.4g} B" if made.parameters >= 1e9 else f"{made.parameters / 1e6:.4g} M"
    heading = (
        f"{made.model}: {parameters} parameters in {made.num_layers} layers, "
        f"weights {'+'.join(made.weight_kinds)}, cache {made.cache_dtype}"
    )
    return [
        (heading, []),
        (f"on {devices}{ranks} ({hardware.description})", _hardware_rows(made)),
        (_memory_heading(made), _memory_rows(made)),
        (f"token step, {sequences} at {job.decode_step().context:,} tokens, {_of_which_ranks(made)}", _step_rows(made)),
        (f"least possible time (latencies count as nothing{_counted(made)})", _floor_rows(made)),
    ]


def _of_which_ranks(made: Plan) -> str:
    return "per rank" if made.pp == 1 else "of one rank of every stage"


def _hardware_rows(made: Plan) -> list[tuple[str, str]]:
    hardware = made.hardware
    peak = hardware.flops_per_s(made.weight_kinds)
    rows = [
        ("memory", amount(hardware.memory_bytes, "B")),
        ("bandwidth", "unknown" if hardware.read_bytes_per_s is None else amount(hardware.read_bytes_per_s, "B/s")),
        ("peak", "unknown, so computing counts as nothing" if peak is None else amount(peak, "FLOP/s")),
    ]
    if _has_ranks(made):
        link = hardware.link_bytes_per_s
        unknown = "unknown, so exchanges count as nothing"
        rows.append(("links", unknown if link is None else f"{amount(link, 'B/s')} per direction and device"))
        per_machine = hardware.devices_per_machine
        if not hardware.memory_is_shared and per_machine is not None and made.tp > per_machine:
            rows.append(("between machines", f"links not counted; a machine usually has {per_machine} devices"))
        elif not hardware.memory_is_shared and made.pp > 1:
            rows.append(("between stages", "as fast as within a machine, whatever the network between machines"))
    return [*rows, *_wrapped("figures from", hardware.figures)]


def _has_ranks(made: Plan) -> bool:
    return made.tp * made.pp > 1


def _wrapped(name: str, text: str) -> list[tuple[str, str]]:
    """A row as several, so that none is wider than `WIDTH`."""
    lines = textwrap.wrap(text, WIDTH - len(_row("", "x")) + 1, break_long_words=False, break_on_hyphens=False)
    return [("" if i else name, line) for i, line in enumerate(lines)]


def _memory_heading(made: Plan) -> str:
    if made.hardware.memory_is_shared:
        return "memory, all ranks together" if _has_ranks(made) else "memory"
    return "memory per device" + (", of the rank that needs most" if _has_ranks(made) else "")


def _memory_rows(made: Plan) -> list[tuple[str, str]]:
    job, hardware = made.job, made.hardware
    need = made.total_memory if hardware.memory_is_shared else made.rank_memory
    usable = hardware.memory_bytes - made.reserve_bytes
    sequences = counted(job.batch, "sequence")
    held = f"{sequences} of {job.context_tokens:,} tokens, {made.cache_bytes_per_token:,} B per token"
    return [
        ("weights", f"{amount(need.weight_bytes, 'B')}{_held(made)}"),
        ("cache", f"{amount(need.cache_bytes, 'B')} ({held}{' over all ranks' if _has_ranks(made) else ''})"),
        ("buffers", amount(need.buffer_bytes, "B")),
        ("in all", f"{amount(need.total_bytes, 'B')} of {amount(usable, 'B')} ({_reserve(made)} held in reserve)"),
        ("verdict", _verdict(made)),
    ]


def _holds_kinds(made: Plan) -> bool:
    """Whether the device keeps the weights in their kinds; it may pad them a little."""
    return made.total_memory.weight_bytes < 1.1 * made.kinds_weight_bytes


def _held(made: Plan) -> str:
    """Said of weights that the device does not hold in their kinds."""
    if _holds_kinds(made):
        return ""
    kinds = "+".join(made.weight_kinds)
    return f" as {made.hardware.name} holds them, dequantised ({amount(made.kinds_weight_bytes, 'B')} as {kinds})"


def _as_kinds(made: Plan) -> str:
    return "" if _holds_kinds(made) else f", weights as {'+'.join(made.weight_kinds)}"


def _counted(made: Plan) -> str:
    if _holds_kinds(made):
        return ""
    return f"; of weights read as {'+'.join(made.weight_kinds)}: {made.hardware.name} reads more"


def _reserve(made: Plan) -> str:
    return f"{made.reserve_bytes / made.hardware.memory_bytes:.0%}"


def _verdict(made: Plan) -> str:
    if made.fits:
        return "fits"
    if made.hardware.memory_is_shared:
        fewer = "weights of fewer bits, " if _holds_kinds(made) else "a smaller model, "
        return f"does not fit; take {fewer}less context, or a smaller batch"
    if made.smallest_tp is None:
        return f"does not fit, on any number of {made.hardware.name}; take less context or a smaller batch"
    per_machine = made.hardware.devices_per_machine
    machines = "" if per_machine is None else f" (a machine usually has {per_machine})"
    each = f"{made.pp} stages of " if made.pp > 1 else ""
    return f"does not fit; the fewest it fits on are {each}{made.smallest_tp} x {made.hardware.name}{machines}"


def _step_rows(made: Plan) -> list[tuple[str, str]]:
    floor = made.token_floor
    shared = made.hardware.memory_is_shared and _has_ranks(made)
    rows = [
        ("reads", f"{amount(floor.read_bytes, 'B')}{' in all ranks' if shared else ''}{_as_kinds(made)}"),
        ("computes", f"{amount(floor.flops, 'FLOP')}{' in all ranks' if shared else ''}"),
    ]
    for exchange in made.exchanges:
        rows.append((exchange.kind, f"{exchange.count} x {exchange.payload_bytes:,} B"))
    if not made.exchanges:
        rows.append(("collectives", "none"))
    return rows


def _floor_rows(made: Plan) -> list[tuple[str, str]]:
    job = made.job
    step = made.token_floor
    if step.total_s is None or made.job_floor_s is None or made.full_context_floor.total_s is None:
        return [("unknown", "the memory's bandwidth is not known")]
    return [
        ("per token", f"{duration(step.total_s)} ({_parts(step)}), {job.batch / step.total_s:,.1f} tokens/s in all"),
        ("at full context", f"{duration(made.full_context_floor.total_s)} ({job.context_tokens:,} tokens)"),
        (
            f"{job.prompt_tokens} + {job.new_tokens} tokens",
            f"{duration(made.job_floor_s)}, prompt included",
        ),
    ]


def _parts(floor: Floor) -> str:
    parts = {"memory": floor.memory_s, "compute": floor.compute_s, "links": floor.link_s}
    known = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return f"{known}; bound by {floor.bound}"


def _operation_lines(made: Plan) -> list[str]:
    lines = [
        "operations of a token step, on the rank that needs most",
        f"  {'kind':<18} {'weights':>12} {'cache':>12} {'activations':>12} {'computes':>14} {'sends':>12}",
    ]
    for kind, cost in made.operations.items():
        sizes = (cost.weight_bytes, cost.cache_bytes, cost.activation_bytes)
        cells = "".join(f" {amount(size, 'B'):>12}" for size in sizes)
        lines.append(f"  {kind:<18}{cells} {amount(cost.flops, 'FLOP'):>14} {amount(cost.sent_bytes, 'B'):>12}")
    return [*lines, "program (R rows in the step, L rows with logits; equal layers are listed once)", made.listing]
