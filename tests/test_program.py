"""The passes: a partitioned or fused program computes what the traced one does, and costs are what they say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anthesis.errors import RequestError
from anthesis.models import preset, trace
from anthesis.program.attend import alibi_slopes
from anthesis.program.builder import Builder
from anthesis.program.collectives import AllGather, Collective, SampleOverRanks
from anthesis.program.cost import cost, cost_by_kind, memory
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Step
from anthesis.program.ops import Embed, Linear, activate
from anthesis.program.partition import alike_ranks, partition
from anthesis.program.reference import execute, execute_ranks
from anthesis.program.widen import widen
from programs import ALL, BLOOM, GPT2, LLAMA, QWEN3, blocks_of, caches, config_of, random_weights, shares, step_inputs

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


def traced_sums(summed: Callable[[Builder, str, str, str], str]) -> Program:
    """The residual stream and two products with a bias, attention's and the MLP's say, put together by `summed`."""
    config = config_of(LLAMA)
    b = Builder(config, "logits")
    x = b.embed("embed", config.vocab_size)
    first, second = (
        b.linear(b.activation(b.linear(x, f"{name}.up", "ffn"), kind), f"{name}.down", "hidden", bias=True)
        for name, kind in (("one", "silu"), ("two", "relu"))
    )
    b.logits(b.select_rows(summed(b, x, first, second)), tied=True)
    return b.program()


SUMS: dict[str, Callable[[Builder, str, str, str], str]] = {
    "x + (a + b)": lambda b, x, one, two: b.add(x, b.add(one, two, "both"), "sum"),
    "x + (b + a)": lambda b, x, one, two: b.add(x, b.add(two, one, "both"), "sum"),
    "(a + b) + x": lambda b, x, one, two: b.add(b.add(one, two, "both"), x, "sum"),
    "(x + a) + b": lambda b, x, one, two: b.add(b.add(x, one, "first"), two, "sum"),
    "b + (a + x)": lambda b, x, one, two: b.add(two, b.add(one, x, "first"), "sum"),
    "a + a": lambda b, x, one, two: b.add(one, one, "sum"),
}


@pytest.mark.parametrize("summed", SUMS.values(), ids=list(SUMS))
def test_sums_of_two_products_keep_both_and_every_bit(summed: Any) -> None:
    program = traced_sums(summed)
    fused = fuse(program)
    weights = random_weights(program, np.float32)
    inputs = step_inputs(ROWS)
    expected, result = (execute(p, {**weights, **inputs})["logits"] for p in (program, fused))
    assert np.array_equal(result, expected)
    read = {name for op in fused.ops if isinstance(op, Linear) for name in op.weights}
    kept = {"one.down.weight", "two.down.weight"} & {value.name for value in program.of_kind("weight")}
    assert kept <= read
    assert len(fused.ops) < len(program.ops)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_products_that_make_queries_keys_and_values_take_wide_inputs(name: str, fused: bool) -> None:
    """Whatever is between them and the attention, and no other product."""
    program = trace(config_of(ALL[name]))
    program = widen(fuse(program) if fused else program)
    wide = {
        weight.partition(".weight")[0].rpartition(".")[2]
        for op in program.ops
        if isinstance(op, Linear) and op.wide_inputs
        for weight in op.weights
    }
    assert wide == {"q", "k", "v"}
    count = sum(isinstance(op, Linear) and op.wide_inputs for op in program.ops)
    assert count == program.config.num_layers * (1 if fused else 3)


@pytest.mark.parametrize("name", ALL)
def test_fusing_twice_changes_nothing(name: str) -> None:
    fused = fuse(trace(config_of(ALL[name]), "logits"))
    assert fuse(fused).ops == fused.ops


def test_a_program_whose_values_come_too_late_or_never_is_not_made() -> None:
    program = trace(config_of(BLOOM), "logits")
    first, second, *rest = program.ops
    with pytest.raises(AssertionError, match=rf"nothing before it gives {first.writes()[0]}"):
        program.with_ops([second, first, *rest])
    residual = next(i for i, op in enumerate(fuse(program).ops) if isinstance(op, Linear) and op.residual)
    ops = list(fuse(program).ops)
    ops[residual] = replace(ops[residual], residual="nowhere")
    with pytest.raises(AssertionError, match="nothing before it gives nowhere"):
        program.with_ops(ops)
    with pytest.raises(AssertionError, match="no operation gives the output logits"):
        program.with_ops(program.ops[:-1])
    with pytest.raises(AssertionError, match="is there already"):
        program.with_ops([first, first, second, *rest])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("vocab_size", [96, 97])
def test_ranks_together_sample_what_one_does(name: str, world_size: int, vocab_size: int) -> None:
    config = config_of({**ALL[name], "vocab_size": vocab_size})
    program = trace(config, "sample", top_logprobs=3)
    weights = random_weights(program)
    inputs = step_inputs(ROWS)
    count = len(inputs["logit_rows"])
    drawn = np.arange(count) % 2
    inputs |= {
        "temperature": (1.5 * drawn).astype(np.float32),
        "top_k": np.where(np.arange(count) % 3, 0, 20).astype(np.int32),
        "top_p": np.where(np.arange(count) % 5, 1, 0.9).astype(np.float32),
        "min_p": np.full(count, 0.01, np.float32),
        "repetition_penalty": np.where(np.arange(count) % 7, 1, 1.3).astype(np.float32),
        "seed": np.arange(count).astype(np.uint64),
        "seen": np.full((count, -(-vocab_size // 8)), 0b10010, np.uint8),
    }
    expected = execute(program, {**weights, **caches(program, blocks_of(inputs)), **inputs})
    greedy = run(trace(config, "argmax"), weights)["token"]
    plain = (drawn == 0) & (np.arange(count) % 7 != 0)
    assert np.array_equal(expected["token"][plain], greedy[plain])
    assert not np.array_equal(expected["token"][drawn == 1], greedy[drawn == 1])

    parts = [fuse(partition(program, rank, world_size)) for rank in range(world_size)]
    assert not any(isinstance(op, AllGather) for part in parts for op in part.ops), "logits stay where they are"
    shares_of_v = tuple(part.values["logits"].static_width for part in parts)
    assert [op.widths for part in parts for op in part.ops if isinstance(op, SampleOverRanks)] == [
        shares_of_v
    ] * world_size
    assert sum(shares_of_v) == vocab_size
    assert (len(set(shares_of_v)) == 1) == (vocab_size % world_size == 0)
    held = [{**shares(p, weights), **caches(p, blocks_of(inputs)), **inputs} for p in parts]
    for result in execute_ranks(parts, held):
        for output in ("token", "top_tokens"):
            assert np.array_equal(result[output], expected[output])
        for output in ("logprob", "top_logprobs"):
            np.testing.assert_allclose(result[output], expected[output], rtol=1e-6)


def test_a_program_without_log_probabilities_gives_the_token_only() -> None:
    program = trace(config_of(BLOOM), "sample", top_logprobs=None)
    assert program.outputs == ("token",)
    assert "log" not in str(program.ops[-1]).replace("logits", "").replace("logit_rows", "")
    many = trace(config_of(BLOOM), "sample", top_logprobs=1000)
    assert many.values["top_tokens"].shape == ("L", 101), "no more than there are"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("finish", ["argmax", "sample"])
def test_one_bad_weight_of_the_head_gives_no_token_on_any_rank(bad: float, world_size: int, finish: Any) -> None:
    program = trace(config_of(QWEN3), finish, top_logprobs=None)
    inputs = step_inputs(ROWS)
    count = len(inputs["logit_rows"])
    inputs |= {name: np.ones(count, np.float32) for name in ("temperature", "top_p", "repetition_penalty")}
    inputs |= {"top_k": np.zeros(count, np.int32), "min_p": np.zeros(count, np.float32)}
    inputs |= {"seed": np.zeros(count, np.uint64), "seen": np.zeros((count, 13), np.uint8)}
    for row in (0, 50, 96):
        weights = random_weights(program)
        weights["head.weight"][row, 0] = bad
        parts = [partition(program, rank, world_size) for rank in range(world_size)]
        held = [{**shares(p, weights), **caches(p, blocks_of(inputs)), **inputs} for p in parts]
        for result in execute_ranks(parts, held):
            # with an infinite weight the logit is -inf where the input is negative, and another token is the best
            below = result["token"] >= 0
            assert below.sum() < count
            assert not (np.isnan(bad) and below.any())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ALL)
def test_alike_ranks_stand_for_all(name: str, world_size: int) -> None:
    program = trace(config_of(ALL[name]))
    alike = alike_ranks(program, world_size)
    shapes = Counter(shapes_of(partition(program, rank, world_size)) for rank in range(world_size))
    assert {shapes_of(partition(program, rank, world_size)): count for rank, count in alike} == shapes
    assert len(alike) == len(shapes)


def shapes_of(program: Program) -> tuple[tuple[int | str, ...], ...]:
    return tuple(value.shape for value in program.values.values())


def test_a_rank_with_padding_only_neither_wins_nor_spoils_the_choice() -> None:
    config = replace(config_of(QWEN3), usable_vocab_size=60)
    program = trace(config)
    weights = random_weights(program)
    expected = run(program, weights)["token"]
    assert expected.max() < 60
    parts = [partition(program, rank, 3) for rank in range(3)]
    assert parts[2].values["head.weight"].start[0] >= 60
    inputs = step_inputs(ROWS)
    held = [{**shares(p, weights), **caches(p, blocks_of(inputs)), **inputs} for p in parts]
    for result in execute_ranks(parts, held):
        assert np.array_equal(result["token"], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations_of_any_finite_number_are_finite_and_do_not_warn(activation: Any, dtype: Any) -> None:
    largest = np.finfo(dtype).max
    x = np.array([-largest, -1e15, -1000, -100, -20, -3, -1, -0.5, 0, 0.5, 1, 3, 20, 1000, 1e15, largest], dtype)
    with np.errstate(all="raise", under="ignore"):
        result = activate(x, activation)
    assert result.dtype == dtype
    assert np.isfinite(result).all()
    assert np.array_equal(result[x >= 1000], x[x >= 1000])
    assert (np.abs(result[x <= -100]) < 1e-30).all()
    middle = x[np.abs(x) <= 20].astype(np.float64)
    truth = {
        "silu": middle / (1 + np.exp(-middle)),
        "gelu": middle / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in middle])),
        "gelu_tanh": middle / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (middle + 0.044715 * middle**3))),
        "relu": np.maximum(middle, 0),
    }[activation]
    np.testing.assert_allclose(result[np.abs(x) <= 20], truth, rtol=1e-5, atol=1e-6)


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
    one_head = {**GPT2, "n_head": 1}
    with pytest.raises(RequestError, match=r"it has 1 piece of heads; only one rank works$"):
        partition(trace(config_of(one_head)), 0, 2)


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
    (embed,) = (op for op in program.ops if isinstance(op, Embed))
    table = program.values[embed.weight]
    for rows, read in ((7, 7), (10**6, 250_880)):  # a long prompt reads each row of the table once
        assert embed.cost(program.values, Step(rows=rows)).weight_bytes == read * 2 * 1024, str(table)
    assert memory(program, step, cache_blocks=10).cache_bytes == 10 * 64 * 98_304


def test_collectives_of_a_split_model() -> None:
    part = partition(trace(config_of(preset("bloomz"))), 3, 8)
    counts = Counter(op.kind for op in part.ops if isinstance(op, Collective))
    assert counts == {
        "all_reduce": 2 * 70 + 1,
        "all_reduce_best": 1,
    }
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
