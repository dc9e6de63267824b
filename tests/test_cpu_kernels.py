"""The kernels of the CPU device against float64: products of every kind of weight, attention, norms, activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from anthesis.devices.cpu import CpuDevice
from anthesis.errors import RequestError, UnsupportedError
from anthesis.program.attend import Attend, alibi_slopes
from anthesis.program.ir import BLOCK_TOKENS, Array, Op, Program, Value
from anthesis.program.ops import Activate, Embed, Linear, Norm, Rope, SelectRows
from anthesis.program.sample import Argmax
from anthesis.quantize import WEIGHT_KINDS, WeightTensor, quantize, weight_kind
from cpu_variants import VARIABLE, kernels
from programs import BLOOM, config_of

__all__ = ["kernels"]

Damage = Callable[[Array, Array], None]

CPU_KINDS = [name for name in WEIGHT_KINDS if name != "fp8"]


def run_ops(
    ops: list[Op],
    weights: Mapping[str, WeightTensor],
    rows: int,
    outputs: tuple[str, ...],
    *,
    threads: int = 2,
    inputs: Mapping[str, Array] | None = None,
    caches: Mapping[str, Value] | None = None,
    blocks: int = 0,
) -> dict[str, Array]:
    """Runs operations on the CPU device: what they read as `x` are the rows of the weight `x`.

    The device hands over only what is called `token` or `logits`, so the last operation of a test names its result so.
    """
    values = {name: Value(name, w.shape, w.kind.name, "weight", start=(0,) * len(w.shape), full_shape=w.shape)
              for name, w in weights.items()}  # fmt: skip
    for name, shape in {"tokens": ("R",), "positions": ("R",), "slots": ("R",), "segments": ("B", 3),
                        "block_table": ("B", "M"), "logit_rows": ("L",)}.items():  # fmt: skip
        values[name] = Value(name, shape, "int32", "input")
    values |= caches or {}
    program = Program(config_of(BLOOM), values, (), {}, outputs).with_ops(ops)
    device = CpuDevice(threads)
    packed = {name: device.pack(weight, program.uses().get(name, frozenset())) for name, weight in weights.items()}
    cache = device.allocate(program, blocks) if blocks else {}
    count = np.arange(rows, dtype=np.int32)
    given = {
        "tokens": count, "positions": count, "slots": np.zeros(rows, np.int32), "logit_rows": count,
        "segments": np.array([[0, rows, 0]], np.int32), "block_table": np.zeros((1, 1), np.int32),
    } | dict(inputs or {})  # fmt: skip
    return device.compile(program, packed, cache).run(given)


def fp32(array: NDArray[Any]) -> WeightTensor:
    return quantize(np.asarray(array, np.float32), WEIGHT_KINDS["fp32"])


def rounded(x: NDArray[np.float32], kind: str, wide: bool) -> NDArray[np.float64]:
    """The inputs as the device takes them for this kind of weight."""
    if WEIGHT_KINDS[kind].bits >= 16:
        return x.astype(ml_dtypes.bfloat16 if kind == "bf16" else np.float32).astype(np.float64)
    steps = np.float32(127 * 256 if wide else 127)
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    largest = np.abs(padded).max(axis=-1, keepdims=True)
    inverse = np.where(largest > 0, steps / np.where(largest > 0, largest, 1), 0).astype(np.float32)
    scale = (largest / steps).astype(np.float64)
    return (np.rint(padded * inverse) * scale).reshape(len(x), -1)[:, : x.shape[1]]


SHAPES = [(16, 32), (32, 128), (48, 128), (37, 128), (1, 256), (100, 384), (700, 128)]
ODD_SHAPES = [(5, 45), (70, 33), (16, 1), (33, 100)]
ROWS = (1, 2, 5, 8, 13, 33)


@pytest.mark.parametrize("wide", [False, True], ids=["natural", "wide"])
@pytest.mark.parametrize("name", CPU_KINDS)
def test_products(kernels: str, name: str, wide: bool) -> None:
    """Against the exact product of the rounded inputs, bounded by the sum of the magnitudes of its terms."""
    rng = np.random.default_rng(0)
    kind = weight_kind(name)
    shapes = SHAPES + (ODD_SHAPES if kind.column_step == 1 else [])
    for outputs, columns in shapes:
        if columns % kind.column_step:
            continue
        weight = quantize(rng.normal(0, 0.4, (outputs, columns)).astype(np.float32), kind)
        bias, residual = rng.normal(size=outputs), rng.normal(size=(max(ROWS), outputs))
        x = rng.normal(size=(max(ROWS), columns)).astype(np.float32)
        x[0, : columns // 2] *= 100  # an outlier in one group must not cost the others their precision
        ops: list[Op] = [
            Embed(ids="tokens", weight="x", out="rows"),
            Embed(ids="tokens", weight="residual", out="added"),
            Linear(x="rows", weights=("w",), biases=("bias",), outs=("logits",), residual="added", wide_inputs=wide),
        ]
        tensors = {"x": fp32(x), "w": weight, "bias": fp32(bias), "residual": fp32(residual)}
        exact, inputs = weight.dequantize(np.float64), rounded(x, name, wide)
        true = inputs @ exact.T + bias.astype(np.float32) + residual.astype(np.float32)
        magnitude = np.abs(inputs) @ np.abs(exact).T + np.abs(bias) + np.abs(residual)
        for rows in ROWS:
            found = run_ops(ops, tensors, rows, ("logits",))["logits"]
            assert found.shape == (rows, outputs)
            near = np.abs(found - true[:rows]) <= 1e-6 * magnitude[:rows]
            assert near.all(), f"{outputs} x {columns}, {rows} rows"


def test_a_matrix_with_and_without_its_biases(kernels: str) -> None:
    """They stand in its tiles, so there can't be others; a product without any adds none."""
    rng = np.random.default_rng(4)
    numbers: dict[str, tuple[int, ...]] = {"x": (3, 64), "w": (37, 64), "b": (37,), "c": (37,)}
    weights = {name: fp32(rng.normal(size=shape)) for name, shape in numbers.items()}
    embed = Embed(ids="tokens", weight="x", out="rows")
    biased = Linear(x="rows", weights=("w",), outs=("first",), biases=("b",))
    x, w, b = (weights[name].dequantize(np.float64) for name in ("x", "w", "b"))
    plain = Linear(x="rows", weights=("w",), outs=("logits",), residual="first")
    found = run_ops([embed, biased, plain], weights, 3, ("logits",))["logits"]
    assert np.allclose(found, 2 * x @ w.T + b, atol=1e-4)
    other = Linear(x="rows", weights=("w",), outs=("logits",), biases=("c",))
    with pytest.raises(ValueError, match="two different biases"):
        run_ops([embed, biased, other], weights, 3, ("logits",))


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4m"])
def test_more_rows_than_a_cache_holds(kernels: str, name: str) -> None:
    """Rows that pass by the tiles in several turns."""
    rng = np.random.default_rng(4)
    weight = quantize(rng.normal(0, 0.4, (40, 4096)).astype(np.float32), weight_kind(name))
    x = rng.normal(size=(150, 4096)).astype(np.float32)
    ops = [Embed(ids="tokens", weight="x", out="rows"), Linear(x="rows", weights=("w",), outs=("logits",))]
    found = run_ops(ops, {"x": fp32(x), "w": weight}, len(x), ("logits",))["logits"]
    exact, inputs = weight.dequantize(np.float64), rounded(x, name, wide=False)
    assert (np.abs(found - inputs @ exact.T) <= 1e-6 * (np.abs(inputs) @ np.abs(exact).T)).all()


@pytest.mark.parametrize("name", CPU_KINDS)
def test_gated_products(kernels: str, name: str) -> None:
    rng = np.random.default_rng(6)
    first, second = (quantize(rng.normal(0, 0.2, (90, 128)).astype(np.float32), weight_kind(name)) for _ in range(2))
    x = rng.normal(size=(33, 128)).astype(np.float32)
    rows = Embed(ids="tokens", weight="x", out="rows")
    gated = Linear(x="rows", weights=("first", "second"), outs=("logits",), activation="silu", gated=True)
    inputs, exact = rounded(x, name, wide=False), [weight.dequantize(np.float64) for weight in (first, second)]
    a, b = (inputs @ weight.T for weight in exact)
    of_a, of_b = (1e-6 * np.abs(inputs) @ np.abs(weight).T for weight in exact)  # how far each may be off
    true, slope = a / (1 + np.exp(-a)) * b, 1.1  # of the activation at most
    most = slope * of_a * np.abs(b) + np.abs(a) * of_b + slope * of_a * of_b + 4e-7 * np.abs(a * b)
    for count in ROWS:
        tensors = {"x": fp32(x), "first": first, "second": second}
        found = run_ops([rows, gated], tensors, count, ("logits",))["logits"]
        assert (np.abs(found - true[:count]) <= most[:count]).all()


def through_identity(x: str, width: int) -> tuple[Linear, dict[str, WeightTensor]]:
    """A product that only hands a value over as `logits`."""
    return Linear(x=x, weights=("identity",), outs=("logits",)), {"identity": fp32(np.eye(width))}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "relu"])
def test_activations(kernels: str, activation: str) -> None:
    """Within 4e-7 of their value or of the distance to zero, from tiny to huge, alone and within a product."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e30, -200, -88, -87, 0, -0.0, 1e-30, 87, 89, 1e30]])
    x = x.astype(np.float32)[None]
    (true,) = Activate(x="x", out="y", activation=activation).evaluate({"x": x.astype(np.float64)})  # type: ignore[arg-type]
    last, identity = through_identity("y", x.shape[1])
    rows = Embed(ids="tokens", weight="x", out="rows")
    alone = run_ops(
        [rows, Activate(x="rows", out="y", activation=activation), last], {"x": fp32(x)} | identity, 1, ("logits",)
    )  # type: ignore[arg-type]
    within = [rows, Linear(x="rows", weights=("identity",), outs=("logits",), activation=activation)]  # type: ignore[arg-type]
    inside = run_ops(within, {"x": fp32(x)} | identity, 1, ("logits",))
    assert np.array_equal(alone["logits"], inside["logits"])
    assert (np.abs(alone["logits"] - true) <= 4e-7 * np.maximum(np.abs(x), 1e-3)).all()


@pytest.mark.parametrize(("width", "runs"), [(64, 1), (45, 1), (7, 3), (1024, 1), (16, 4)])
@pytest.mark.parametrize(("norm", "bias"), [("layer", True), ("layer", False), ("rms", False), ("rms", True)])
def test_norms(kernels: str, norm: str, bias: bool, width: int, runs: int) -> None:
    """Alone, and as the beginning of the product that reads it."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5, width * runs)) * 10 + 3).astype(np.float32)
    tensors = {"x": fp32(x), "w": fp32(rng.normal(size=width)), "b": fp32(rng.normal(size=width))}
    op = Norm(x="rows", weight="w", bias="b" if bias else None, out="y", norm=norm, epsilon=1e-3, width=width)  # type: ignore[arg-type]
    arrays = {"rows": x.astype(np.float64)} | {name: tensors[name].dequantize(np.float64) for name in "wb"}
    (true,) = op.evaluate(arrays)
    rows = Embed(ids="tokens", weight="x", out="rows")
    last, identity = through_identity("y", width * runs)
    inside = run_ops([rows, op, last], tensors | identity, 5, ("logits",))["logits"]
    twice = [rows, op, Activate(x="y", out="z", activation="relu"), last]  # so that somebody else reads it too
    alone = run_ops(twice, tensors | identity, 5, ("logits",))["logits"]
    assert np.abs(inside - true).max() < 2e-5
    assert np.array_equal(alone, inside)


def attended(q: Array, k: Array, v: Array, op: Attend, dtype: str) -> Array:
    """What the rows of one sequence see: q (T, H, D), k and v (T, K, D) -> (T, H D) float64.

    Of a bf16 cache all that is multiplied is rounded to bf16: keys, values, queries times the scale, and exponentials.
    """

    def factor(array: Array) -> Array:
        return (array.astype(ml_dtypes.bfloat16) if dtype == "bf16" else array).astype(np.float64)

    heads = q.shape[1]
    kv_heads = op.kv_head_of(heads)
    queries = factor(q * np.float32(op.scale) if dtype == "bf16" else q * op.scale)
    keys, values = factor(k)[:, kv_heads], factor(v)[:, kv_heads]
    slopes = alibi_slopes(op.num_heads)[op.first_head : op.first_head + heads]
    rows = []
    for position, query in enumerate(queries):
        oldest = 0 if op.window is None else max(0, position + 1 - op.window)
        parts = []
        for start in range(oldest // BLOCK_TOKENS * BLOCK_TOKENS, position + 1, BLOCK_TOKENS):
            seen = np.arange(max(start, oldest), min(start + BLOCK_TOKENS, position + 1))
            scores = np.einsum("khd,hd->hk", keys[seen], query)
            if op.alibi:
                scores -= slopes[:, None] * (position - seen)
            most = scores.max(axis=1)
            weights = factor(np.exp(scores - most[:, None]))
            parts.append((most, weights.sum(axis=1), np.einsum("hk,khd->hd", weights, values[seen])))
        scaled = [np.exp(most - np.max([part[0] for part in parts], axis=0)) for most, _, _ in parts]
        total = sum(scale * part[1] for scale, part in zip(scaled, parts, strict=True))
        rows.append(sum(scale[:, None] * part[2] for scale, part in zip(scaled, parts, strict=True)) / total[:, None])
    return np.array(rows).reshape(len(rows), -1)


@dataclass
class Attention:
    """What was found, and how far from the truth: of each row the largest error; and the spread of the truth."""

    results: list[Array]
    errors: Array
    spread: float


def attention(draw: np.random.Generator, *, dtype: str, heads: int, kv_heads: int, size: int, window: int | None,
              alibi: bool, rotated: bool, lengths: list[int], steps: list[int], threads: int = 2,
              part: tuple[int, int] | None = None, damage: Damage = lambda k, v: None) -> Attention:  # fmt: skip
    """Over several sequences, computed in steps.

    `part`: the first query head of a rank, and how many it has; else it has all. `damage` changes keys and values.
    """
    total, blocks_each = sum(lengths), 4
    first_head, own = part or (0, heads)
    q, k, v = (draw.normal(size=(total, n * size)).astype(np.float32) for n in (own, kv_heads, kv_heads))
    damage(k, v)
    cache = Value("cache", ("P", 2, BLOCK_TOKENS, kv_heads * size), dtype, "cache")
    frequencies = tuple(1000.0 ** (-i / (size // 2)) for i in range(size // 2))
    ops: list[Op] = [Embed(ids="tokens", weight=name, out=f"{name}.rows") for name in "qkv"]
    names = {name: f"{name}.rows" for name in "qkv"}
    if rotated:
        ops += [
            Rope(x=names[name], positions="positions", out=f"{name}.turned", frequencies=frequencies) for name in "qk"
        ]
        names |= {name: f"{name}.turned" for name in "qk"}
    attend = Attend(**names, cache="cache", positions="positions", slots="slots", segments="segments", head_dim=size,
                    block_table="block_table", out="attended", num_heads=heads, num_kv_heads=kv_heads,
                    scale=size**-0.5, window=window, alibi=alibi, first_head=first_head)  # fmt: skip
    ops.append(attend)
    last, identity = through_identity("attended", own * size)
    ops.append(last)
    tensors = {"q": fp32(q), "k": fp32(k), "v": fp32(v)} | identity

    values = {
        name: Value(name, w.shape, "fp32", "weight", start=(0, 0), full_shape=w.shape) for name, w in tensors.items()
    }
    for name, shape in {"tokens": ("R",), "positions": ("R",), "slots": ("R",), "segments": ("B", 3),
                        "block_table": ("B", "M"), "logit_rows": ("L",)}.items():  # fmt: skip
        values[name] = Value(name, shape, "int32", "input")
    program = Program(config_of(BLOOM), values | {"cache": cache}, (), {}, ("logits",)).with_ops(ops)
    device = CpuDevice(threads)
    num_blocks = 1 + blocks_each * len(lengths)
    packed = {name: device.pack(weight, program.uses().get(name, frozenset())) for name, weight in tensors.items()}
    executable = device.compile(program, packed, device.allocate(program, num_blocks))
    positions = np.concatenate([np.arange(length) for length in lengths])
    if rotated:
        turn = Rope(x="x", positions="positions", out="out", frequencies=frequencies)
        q, k = (
            turn.evaluate({"x": x.astype(np.float64), "positions": positions})[0].astype(np.float32) for x in (q, k)
        )
    ends = np.cumsum(lengths)
    rows = [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    cut = [[x[own_rows].reshape(-1, x.shape[1] // size, size) for x in (q, k, v)] for own_rows in rows]
    true = np.concatenate([attended(q, k, v, attend, dtype) for q, k, v in cut])
    table = 1 + draw.permutation(num_blocks - 1).astype(np.int32).reshape(len(lengths), blocks_each)

    first = np.cumsum([0, *lengths[:-1]])
    done, errors, results = [0] * len(lengths), np.zeros(total), []
    for step in [*steps, max(lengths)]:
        runs = [(s, done[s], min(step, lengths[s] - done[s])) for s in range(len(lengths)) if done[s] < lengths[s]]
        if not runs:
            break
        tokens = np.concatenate([first[s] + at + np.arange(n) for s, at, n in runs]).astype(np.int32)
        begins = np.cumsum([0, *(n for _, _, n in runs)])
        inputs = {
            "tokens": tokens, "positions": np.concatenate([at + np.arange(n) for _, at, n in runs]).astype(np.int32),
            "slots": np.repeat([s for s, _, _ in runs], [n for _, _, n in runs]).astype(np.int32),
            "segments": np.array([(begins[i], n, at) for i, (_, at, n) in enumerate(runs)] + [(0, 0, 0)], np.int32),
            "block_table": table, "logit_rows": np.arange(len(tokens), dtype=np.int32),
        }  # fmt: skip
        found = executable.run(inputs)["logits"]
        errors[tokens] = np.abs(found - true[tokens]).max(axis=1)
        results.append(found)
        for s, _, n in runs:
            done[s] += n
    return Attention(results, errors, float(true.std()))


def check_errors(found: Attention, dtype: str, rotated: bool) -> None:
    """What is at the border between two bf16 numbers in float64 may be rounded to the other side in float32.

    That happens to an exponential of some rows, and, once they are rotated, to a query or key of most.
    """
    if dtype == "fp32":
        assert found.errors.max() < 2e-5
    else:
        assert found.errors.max() < 2e-2
        assert rotated or np.median(found.errors) < 2e-6


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("spoil", ["negative NaN", "infinities"])
def test_keys_that_are_no_numbers(kernels: str, dtype: str, spoil: str) -> None:
    """Every row that sees one has no number either, and only those: NaN has a sign, which says nothing."""

    def damage(k: Array, v: Array) -> None:
        if spoil == "negative NaN":
            k[3] = -np.float32(np.nan)
        else:
            k[3, ::2], k[3, 1::2] = np.inf, -np.inf

    with np.errstate(invalid="ignore"):
        found = attention(
            np.random.default_rng(1), dtype=dtype, heads=4, kv_heads=2, size=16, window=None, alibi=True,
            rotated=False, lengths=[130], steps=[1, 1, 1, 1, 1, 70, 1], damage=damage,
        )  # fmt: skip
    finite = np.concatenate([np.isfinite(rows).all(axis=1) for rows in found.results])
    assert finite.tolist() == [True] * 3 + [False] * 127


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(1, 1, 64), (6, 3, 22), (4, 4, 8), (9, 3, 64), (8, 1, 16), (2, 2, 128), (5, 1, 40), (4, 2, 33), (3, 3, 1)],
)
def test_attention(kernels: str, dtype: str, heads: int, kv_heads: int, size: int) -> None:
    """Prompts, chunks and single rows of sequences of different lengths, against float64."""
    rng = np.random.default_rng(heads * size)
    for window, alibi, rotated in [(None, True, False), (None, False, True), (70, False, True), (1, False, False)]:
        if rotated and size % 2:
            continue
        found = attention(
            rng, dtype=dtype, heads=heads, kv_heads=kv_heads, size=size, window=window, alibi=alibi, rotated=rotated,
            lengths=[200, 3, 64, 65, 130], steps=[1, 1, 63, 7, 1],
        )  # fmt: skip
        assert found.spread > 0.05
        check_errors(found, dtype, rotated)


@pytest.mark.parametrize(("dtype", "rotated"), [("fp32", False), ("fp32", True), ("bf16", False)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "window", "part"),
    [(6, 3, 22, None, None), (2, 2, 64, 100, None), (14, 1, 16, None, None), (8, 1, 16, None, (2, 3))],
)
def test_threads_share_the_keys_of_single_rows(
    kernels: str, heads: int, kv_heads: int, size: int, window: int | None, part: tuple[int, int] | None, dtype: str,
    rotated: bool,
) -> None:  # fmt: skip
    """However the blocks of a head are shared, its result is the same bits, and right."""
    found = {}
    for threads in (1, 2, 3, 7):
        one = attention(
            np.random.default_rng(5), dtype=dtype, heads=heads, kv_heads=kv_heads, size=size, window=window,
            alibi=not rotated, rotated=rotated, lengths=[250, 70], steps=[60, *[1] * 9, 130, *[1] * 5],
            threads=threads, part=part,
        )  # fmt: skip
        check_errors(one, dtype, rotated)
        found[threads] = one.results
    assert all(np.array_equal(a, b) for one in found.values() for a, b in zip(found[1], one, strict=True))


def test_the_embedding_is_looked_up_in_the_tiles(kernels: str) -> None:
    rng = np.random.default_rng(2)
    for name in CPU_KINDS:
        weight = quantize(rng.normal(size=(37, 128)).astype(np.float32), weight_kind(name))
        last, identity = through_identity("rows", 128)
        ids = np.array([0, 36, 15, 16, 31, 32, 7], np.int32)
        found = run_ops([Embed(ids="tokens", weight="x", out="rows"), last], {"x": weight} | identity, 7, ("logits",),
                        inputs={"tokens": ids})["logits"]  # fmt: skip
        assert np.array_equal(found, weight.dequantize(np.float32)[ids]), name


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4m"])
def test_what_is_not_a_number_stays_so(kernels: str, name: str) -> None:
    """In its own row, and in no other."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(9, 64)).astype(np.float32)
    x[2, 5], x[4, 40], x[7, 63] = np.nan, np.inf, -np.inf
    weight = quantize(rng.normal(size=(20, 64)).astype(np.float32), weight_kind(name))
    ops = [Embed(ids="tokens", weight="x", out="rows"), Linear(x="rows", weights=("w",), outs=("logits",))]
    found = run_ops(ops, {"x": fp32(x), "w": weight}, 9, ("logits",))["logits"]
    assert [bool(np.isfinite(row).all()) for row in found] == [row not in (2, 4, 7) for row in range(9)]
    assert not np.isfinite(found[[2, 4, 7]]).any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("usable", [1, 15, 17, 1023, 1024, 1041, 4096, 5003])
def test_argmax(kernels: str, usable: int, threads: int) -> None:
    """The lowest of equal ids, at every border of what is looked at together; nothing beyond the usable ones."""
    rng = np.random.default_rng(usable)
    ends = sorted({i % usable for i in (0, 1, 15, 16, 1023, 1024, 1025, usable // 2 - 1, usable // 2, usable - 1)})
    x = rng.normal(size=(4 * len(ends) + 3, usable + 37)).astype(np.float32)
    x[:, usable:] = np.nan
    for row, place in enumerate(ends):
        x[4 * row, place] = 9
        x[4 * row + 1, [place, -38]] = 9
        x[4 * row + 2, place] = np.nan
        x[4 * row + 3, place] = rng.choice([-np.inf, np.inf])
    x[-1, :usable], x[-2, :usable], x[-3, :usable] = -np.inf, 5, -3e38
    op = Argmax(logits="rows", score="score", token="token", usable=usable)
    ops: list[Op] = [Embed(ids="tokens", weight="x", out="rows"), op]
    found = run_ops(ops, {"x": fp32(x)}, len(x), ("token",), threads=threads)["token"]
    assert found.tolist() == op.evaluate({"rows": x})[1].tolist()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("usable", "count"), [(1, 4), (15, 2), (1041, 1), (5003, 33), (5003, 7), (20000, 70)])
def test_argmax_of_a_product(kernels: str, usable: int, count: int, threads: int) -> None:
    """Logits of many rows are never in memory: the best of them are the same, also equal ones in other tasks."""
    rng = np.random.default_rng(usable)
    weight = np.round(rng.normal(size=(usable + 37, count)), 1).astype(np.float32)  # so that the largest is there often
    weight[usable:] = 99
    for row in range(count):
        weight[rng.integers(0, usable, 3), row] = weight[:usable, row].max()
    rows = np.eye(count, dtype=np.float32)
    if count > 4:
        rows[3, 3], rows[4, 4] = np.nan, np.inf
    op = Argmax(logits="logits", score="score", token="token", usable=usable)
    ops: list[Op] = [
        Embed(ids="tokens", weight="x", out="all"), SelectRows(x="all", rows="logit_rows", out="rows"),
        Linear(x="rows", weights=("w",), outs=("logits",)), op,
    ]  # fmt: skip
    found = run_ops(ops, {"x": fp32(rows), "w": fp32(weight)}, count, ("token",), threads=threads)["token"]
    with np.errstate(invalid="ignore"):
        true = op.evaluate({"logits": rows @ weight.T})[1]
    assert found.tolist() == true.tolist()


def test_kinds_without_kernels_are_named() -> None:
    value = Value("w", (16, 32), "fp8", "weight")
    with pytest.raises(
        UnsupportedError, match="no kernels for weights of the kind fp8 on the cpu device; choose another"
    ):
        CpuDevice().held_bytes(value)


def test_kernels_that_can_not_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(RequestError, match=r"ANTHESIS_CPU_KERNELS is 'mmx'; this processor can run: .*portable"):
        CpuDevice()
