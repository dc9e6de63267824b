"""The passes: a partitioned or fused program computes what the traced one does, and costs are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anthesis.errors import RequestError
from anthesis.models import preset, trace
from anthesis.program.attend import alibi_slopes
from anthesis.program.collectives import Collective
from anthesis.program.cost import collectives, cost, cost_by_kind, memory
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Step
from anthesis.program.ops import Linear
from anthesis.program.partition import partition
from anthesis.program.reference import execute, execute_ranks
from programs import ALL, BLOOM, LLAMA, blocks_of, caches, config_of, random_weights, shares, step_inputs

ROWS = [(0, 0, list(range(3, 73))), (1, 0, [5]), (2, 0, [9, 8, 7])]


def run(program: Program, weights: dict[str, Any], dtype: type = np.float64) -> dict[str, Any]:
    inputs = step_inputs(ROWS)
    return execute(program, {**weights, **caches(program, blocks_of(inputs), dtype), **inputs})


@pytest.mark.parametrize("name", ALL)
def test_fusing_keeps_every_bit_and_needs_fewer_operations(name: str) -> None:
    program = trace(config_of(ALL[name]), "logits")
    fused = fuse(program)
    weights = random_weights(program, np.float32)
    assert np.array_equal(run(program, weights, np.float32)["logits"], run(fused, weights, np.float32)["logits"])
    linears = [op for op in fused.ops if isinstance(op, Linear)]
    assert len(linears) == 4 * 2 + 1, "q/k/v in one, the attention's output, the MLP's two, and the head"
    assert not [op for op in fused.ops if op.kind in ("activation", "mul")]
    adds = [op for op in fused.ops if op.kind == "add"]
    assert len(adds) == (1 if name == "gpt2" else 0), "only the sum of token and position embedding is left"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("finish", ["logits", "argmax"])
@pytest.mark.parametrize("fused", [False, True])
def test_ranks_together_compute_what_one_does(name: str, world_size: int, finish: Any, fused: bool) -> None:
    program = trace(config_of(ALL[name]), finish)
    weights = random_weights(program)
    expected = run(program, weights)
    parts = [partition(program, rank, world_size) for rank in range(world_size)]
    parts = [fuse(part) if fused else part for part in parts]
    inputs = step_inputs(ROWS)
    held = [{**shares(p, weights), **caches(p, blocks_of(inputs)), **inputs} for p in parts]
    for result in execute_ranks(parts, held):
        if finish == "logits":
            np.testing.assert_allclose(result["logits"], expected["logits"], rtol=1e-10, atol=1e-10)
        else:
            assert np.array_equal(result["token"], expected["token"])


@pytest.mark.parametrize("name", ALL)
def test_every_weight_element_is_on_a_rank_and_shares_do_not_overlap(name: str) -> None:
    program = trace(config_of(ALL[name]), "logits")
    parts = [partition(program, rank, 3) for rank in range(3)]
    for whole in program.of_kind("weight"):
        covered = np.zeros(whole.full_shape, int)
        for part in parts:
            share = part.values[whole.name]
            covered[tuple(slice(a, a + n) for a, n in zip(share.start, share.static_shape, strict=True))] += 1
        axes = set(filter(None, whole.axes))
        if not axes:
            assert (covered == 3).all()
        elif axes == {"kv_heads"}:
            assert (covered >= 1).all(), "a key-value head is on every rank whose query heads read it"
        else:
            assert (covered == 1).all()


def test_bias_and_residual_of_a_row_split_product_come_once_after_the_reduction() -> None:
    part = fuse(partition(trace(config_of(BLOOM)), 1, 2))
    for i, op in enumerate(part.ops):
        if isinstance(op, Linear) and op.outs[0].endswith(".partial"):
            assert not op.biases
            assert op.residual is None
            following = [other.kind for other in part.ops[i + 1 : i + 4]]
            assert following == ["all_reduce", "add", "add"]


def test_too_many_ranks_is_an_error_that_lists_the_numbers_that_work() -> None:
    with pytest.raises(RequestError, match=r"7 pieces of heads; 1 to 7 ranks work"):
        partition(trace(config_of(BLOOM)), 0, 8)


def test_shares_of_grouped_weights_end_at_group_borders() -> None:
    raw = {**LLAMA, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 160}
    program = trace(config_of(raw), kind_of=lambda name, shape: "int4" if len(shape) == 2 else "fp32")
    for rank in range(3):
        part = partition(program, rank, 3)
        for weight in part.of_kind("weight"):
            if weight.axes[-1] is not None and len(weight.shape) == 2:
                assert weight.start[1] % 32 == 0
                assert weight.static_shape[1] % 32 == 0
    with pytest.raises(RequestError, match="4 pieces of heads"):  # heads of 16 go in pairs, groups being 32 wide
        partition(program, 0, 5)


def test_cost_is_the_weights_once_and_the_cache_of_the_context() -> None:
    program = fuse(trace(config_of(preset("bloomz-560m"))))
    step = Step(rows=1, logit_rows=1, context=100, sequences=1)
    total = cost(program, step)
    parameters = 559_214_592
    vectors = sum(v.static_shape[0] for v in program.of_kind("weight") if len(v.shape) == 1)
    # all matrices in bf16, vectors in fp32, and the embedding once as the head plus one row of it as a table
    assert total.weight_bytes == 2 * (parameters - vectors) + 4 * vectors + 2 * 1024
    assert total.cache_bytes == 101 * 98_304
    matrices = sum(np.prod(v.static_shape) for v in program.of_kind("weight") if len(v.shape) == 2)
    linear = cost_by_kind(program, step)["linear"]
    assert linear.flops == 2 * matrices
    assert memory(program, step, cache_blocks=10).cache_bytes == 10 * 64 * 98_304


def test_collectives_of_a_split_model() -> None:
    part = partition(trace(config_of(preset("bloomz"))), 3, 8)
    assert collectives(part) == {"all_reduce": 2 * 70 + 1, "all_reduce_best": 1}
    assert cost(part, Step()).sent_bytes == 141 * 14336 * 4 + 8
    assert not any(isinstance(op, Collective) for op in trace(config_of(BLOOM)).ops)


def test_a_program_that_only_fills_the_cache_leaves_out_the_head() -> None:
    config = config_of(LLAMA)
    program = fuse(trace(config, "cache"))
    assert program.outputs == ()
    names = [weight.name for weight in program.of_kind("weight")]
    assert "final_norm.weight" not in names
    assert "layers.1.mlp.up.weight" not in names
    assert "layers.1.attention.k.weight" in names
    whole = trace(config, "logits")
    weights = random_weights(whole, np.float32)
    inputs = step_inputs(ROWS)
    filled, expected = (caches(p, blocks_of(inputs), np.float32) for p in (program, whole))
    execute(program, {**weights, **filled, **inputs})
    execute(whole, {**weights, **expected, **inputs})
    for name, cache in filled.items():
        assert np.array_equal(cache, expected[name])


@pytest.mark.parametrize("heads", [1, 7, 12, 16, 112])
def test_alibi_slopes_are_those_of_the_reference_model(heads: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    ones = torch.ones(1, 2)
    expected = build_alibi_tensor(ones, heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_allclose(alibi_slopes(heads), expected, rtol=1e-6)


def test_a_program_prints_itself() -> None:
    text = str(fuse(trace(config_of(LLAMA))))
    assert "layers.0.mlp.gated = linear(" in text
    assert "activation=silu gated=True" in text
    assert "cache cache.1: bf16[P, 2, 64, 24]" in text
