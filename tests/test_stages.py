"""Stages of layers: cut programs compute what whole ones do, fairly shared; what all ranks together hold and read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anthesis.errors import RequestError
from anthesis.models import preset, trace
from anthesis.plan import make_plan
from anthesis.program.cost import cost
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Step
from anthesis.program.partition import partition
from anthesis.program.reference import execute_ranks
from anthesis.program.stages import arriving_name, choose_stages, stage
from programs import ALL, blocks_of, caches, config_of, random_weights, shares, step_inputs

LAYERS = {"bloom": "n_layer", "llama": "num_hidden_layers", "qwen3": "num_hidden_layers", "gpt2": "n_layer"}
ROWS = [(0, 0, [5, 9, 2]), (1, 0, [7, 3, 3, 8, 1])]


def deep(name: str, layers: int = 5, **changes: Any) -> dict[str, Any]:
    """A configuration with several layers."""
    return {**ALL[name], LAYERS[name]: layers, **changes}


def run_stages(parts: list[Program], world_size: int, weights: dict[str, Any], inputs: dict[str, Any]) -> list[Any]:
    """The outputs of the last stage's ranks; each stage gets its rows from the ranks of the one before."""
    handed: list[dict[str, Any]] = [{}] * world_size
    for part in parts:
        ranks = [fuse(partition(part, rank, world_size)) for rank in range(world_size)]
        arrays = [
            {**shares(rank, weights), **caches(rank, blocks_of(inputs)), **inputs, **own}
            for rank, own in zip(ranks, handed, strict=True)
        ]
        handed = execute_ranks(ranks, arrays)
    return handed


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2])
def test_stages_together_compute_what_the_whole_does(name: str, count: int, world_size: int) -> None:
    program = trace(config_of(deep(name)), "logits")
    weights, inputs = random_weights(program), step_inputs(ROWS)
    (expected, *_) = run_stages([program], 1, weights, inputs)
    parts = [stage(program, layers) for layers in choose_stages(program, count)]
    assert len(parts) == count
    assert [arriving_name(part) is None for part in parts] == [i == 0 for i in range(count)]
    for found in run_stages(parts, world_size, weights, inputs):
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-9, atol=1e-9)


def test_every_ending_is_cut_at_the_same_layers() -> None:
    config = config_of(deep("llama"))
    layers = choose_stages(trace(config), 2)
    for finish in ("argmax", "sample", "logits", "cache"):
        parts = [stage(trace(config, finish), some) for some in layers]
        assert [[cache.name for cache in part.of_kind("cache")] for part in parts] == [
            [f"cache.{i}" for i in some] for some in layers
        ]
        assert parts[0].outputs == (arriving_name(parts[1]),)
    assert parts[1].outputs == (), "filling the cache gives nothing"


def test_stages_are_fair_by_what_they_hold() -> None:
    """The first one holds the embedding, the last one the head: of BLOOM-176B 7.2 GB each."""
    program = trace(config_of(preset("bloomz")))
    held = [
        sum(weight.nbytes() for weight in stage(program, layers).of_kind("weight"))
        for layers in choose_stages(program, 4)
    ]
    one_layer = 4.94e9
    assert max(held) - min(held) < 1.1 * one_layer
    assert [len(layers) for layers in choose_stages(trace(config_of(deep("bloom", 4))), 4)] == [1] * 4


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(RequestError, match=r"5 layers, too few for 6 stages; 1 to 5 work"):
        choose_stages(trace(config_of(deep("bloom"))), 6)


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_the_bytes_of_all_ranks_add_up_to_the_models(kind: str) -> None:
    """BLOOM-176B over 8 ranks, counting once what every rank has: norms, biases of sums, scales of split rows."""
    config = config_of(preset("bloomz"))
    whole = trace(config, "argmax", lambda name, shape: kind if len(shape) > 1 else "fp32")
    parts = [partition(whole, rank, 8) for rank in range(8)]
    for weight in whole.of_kind("weight"):
        own = [part.values[weight.name] for part in parts]
        if all(share.shape == weight.shape for share in own):
            assert weight.axes == (None,) * len(weight.shape), "what can be split is split"
            continue
        total = sum(share.nbytes() for share in own)
        # with a scale for each row, ranks that share its columns have it all
        again = 7 * 2 * weight.static_shape[0] if kind == "int8" and own[0].shape[0] == weight.shape[0] else 0
        assert total - again == weight.nbytes(), str(weight)
    replicated = sum(w.nbytes() for w in whole.of_kind("weight") if not any(w.axes))
    step = Step(rows=1, logit_rows=1, context=57)
    read = [cost(part, step) for part in parts]
    alone = cost(whole, step)
    scales = (
        7
        * 2
        * sum(w.static_shape[0] for w in whole.of_kind("weight") if kind == "int8" and len(w.shape) == 2 and w.axes[1])
    )
    row = whole.values["embed.weight"].nbytes() // config.vocab_size  # each rank looks for the token in its own
    assert sum(c.weight_bytes for c in read) == alone.weight_bytes + 7 * (replicated + row) + scales
    assert sum(c.cache_bytes for c in read) == alone.cache_bytes


def test_the_plan_of_stages() -> None:
    one, two, wide = (make_plan("random:bloomz", device="gaudi2", tp=tp, pp=pp) for tp, pp in ((8, 1), (8, 2), (16, 1)))
    assert two.rank_memory.weight_bytes < 0.53 * one.rank_memory.weight_bytes
    embed = 250_880 * 14336 * 2
    assert two.total_memory.weight_bytes - embed == pytest.approx(one.total_memory.weight_bytes, rel=1e-4)
    assert [(e.kind, e.count, e.payload_bytes) for e in two.exchanges] == [
        ("all_reduce", 141, 57_344),
        ("hand_over", 1, 57_344),
        ("all_reduce_best", 1, 8),
    ]
    # a token goes through one stage after the other: as long as on half as many devices, and one hand-over more
    assert one.token_floor.total_s is not None
    assert two.token_floor.total_s is not None
    assert two.token_floor.total_s - one.token_floor.total_s == pytest.approx(57_344 / 262.5e9, rel=0.1)
    assert wide.token_floor.total_s == pytest.approx(one.token_floor.total_s / 2, rel=0.01)


def test_a_plan_says_how_many_devices_a_stage_needs() -> None:
    plan = make_plan("random:bloomz", device="l4", tp=1, pp=7)
    assert not plan.fits
    assert plan.smallest_tp is not None
    fitting = make_plan("random:bloomz", device="l4", tp=plan.smallest_tp, pp=7)
    assert fitting.fits
    assert not make_plan("random:bloomz", device="l4", tp=plan.smallest_tp - 1, pp=7).fits
