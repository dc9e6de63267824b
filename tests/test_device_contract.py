"""What every device has to keep, whatever it is: the same tests for all of them.

A device is given as a function that opens it. What a machine lacks is skipped by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anthesis.checkpoint.random import RandomWeight
from anthesis.devices import open_device
from anthesis.devices.device import Device, Executable
from anthesis.errors import UnsupportedError
from anthesis.models import trace
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program
from anthesis.program.reference import execute
from anthesis.program.widen import widen
from anthesis.quantize import WEIGHT_KINDS, quantize
from devices_under_test import DEVICES
from programs import ALL, blocks_of, caches, config_of, step_inputs

Array = NDArray[Any]

WINDOW = {
    "model_type": "mistral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 103, "sliding_window": 70,
}  # fmt: skip
WIDE = {"model_type": "bloom", "hidden_size": 128, "n_layer": 1, "n_head": 4, "vocab_size": 131}
"""Widths that every kind's groups divide."""

FAMILIES = {**ALL, "mistral": WINDOW}

ROUNDED_INPUTS = 0.03
"""Of the largest logit: what rounding the inputs of every product to bf16, or to 8 bits, may change."""

EXACT = 2e-5
"""The same of float32 sums of exact products."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each device in turn."""
    with request.param.device() as opened:
        yield opened


def weights_of(program: Program, dtype: Any = np.float64) -> dict[str, Array]:
    """Random weights as their kinds hold them."""
    found = {}
    for value in program.of_kind("weight"):
        scale = 0.4 if len(value.static_shape) == 1 else 1.5 * value.static_shape[1] ** -0.5
        rng = np.random.default_rng(len(value.name) + sum(map(ord, value.name)))
        array = rng.normal(0, scale, value.static_shape).astype(np.float32)
        found[value.name] = quantize(array, WEIGHT_KINDS[value.dtype]).dequantize(dtype)
    return found


def compiled(device: Device, program: Program, weights: Mapping[str, Array], blocks: int) -> Executable:
    """The program on the device, over a cache of its own."""
    return device.compile(program, packed(device, program, weights), device.allocate(program, blocks))


def packed(device: Device, program: Program, weights: Mapping[str, Array]) -> dict[str, Any]:
    """The program's weights in the device's layout."""
    uses = program.uses()
    return {
        value.name: device.pack(
            quantize(weights[value.name].astype(np.float32), WEIGHT_KINDS[value.dtype]), uses[value.name]
        )
        for value in program.of_kind("weight")
    }


def steps(vocabulary: int, seed: int = 0) -> list[dict[str, Array]]:
    """Prompts of several lengths, then single rows, then both side by side."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, vocabulary, count).tolist()

    return [
        step_inputs([(0, 0, tokens(45)), (1, 0, tokens(3)), (2, 0, tokens(9))]),
        step_inputs([(0, 45, tokens(20)), (1, 3, tokens(1)), (2, 9, tokens(1))]),
        step_inputs([(0, 65, tokens(1)), (1, 4, tokens(1)), (2, 10, tokens(1))]),
        step_inputs([(0, 66, tokens(1))], blocks_each=4),
        step_inputs([(0, 67, tokens(1))], blocks_each=4),
    ]


def differing(found: Array, true: Array) -> float:
    """The largest difference as a share of the largest true number."""
    return float(np.abs(found - true).max() / max(1.0, np.abs(true).max()))


def run_all(
    device: Device, program: Program, inputs: list[dict[str, Array]], tolerance: float, output: str = "logits"
) -> None:
    weights = weights_of(program)
    blocks = blocks_of(inputs[0])
    executable = compiled(device, program, weights, blocks)
    arrays = weights | caches(program, blocks)
    for step in inputs:
        found = executable.run(step)[output]
        true = execute(program, arrays | step)[output]
        assert found.shape == true.shape
        assert np.isfinite(found).all()
        assert differing(found, true) < tolerance


def test_it_tells_about_itself(device: Device) -> None:
    info = device.info()
    assert info.name in ("cpu", "cuda", "hpu", "reference", "reference-fp64")
    assert info.description
    assert info.memory_bytes > 0
    assert info.full_batch >= 1
    assert device.counters().captures >= 0
    assert set(device.multiply_add_peaks()) <= {"bf16", "int8"}
    assert all(device.versions().values())


def test_it_measures_how_fast_its_memory_is_read(device: Device) -> None:
    found = device.read_bandwidth()
    assert found.note
    assert found.median is not None
    assert 1e8 < found.median < 1e14


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "traced"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family(device: Device, family: str, fused: bool) -> None:
    kinds = device_kinds(device)
    kind = "fp32" if "fp32" in kinds else "bf16"
    traced = trace(
        config_of(FAMILIES[family]), "logits", lambda n, shape: "fp32" if len(shape) == 1 else kind,
        "fp32" if kind == "fp32" else "bf16",
    )  # fmt: skip
    program = widen(fuse(traced) if fused else traced)
    inputs = steps(traced.config.vocab_size)
    run_all(device, program, inputs, EXACT if kind == "fp32" else ROUNDED_INPUTS)


def device_kinds(device: Device) -> tuple[str, ...]:
    """The kinds of weights that the device has."""
    found, refusals = [], []
    for kind in WEIGHT_KINDS:
        program = trace(config_of(WIDE), "logits", lambda n, s, kind=kind: "fp32" if len(s) == 1 else kind)
        try:
            for value in program.of_kind("weight"):
                device.held_bytes(value)
        except UnsupportedError as error:
            refusals.append(str(error))
        else:
            found.append(kind)
    assert all("--weights" in refusal for refusal in refusals)
    return tuple(found)


@pytest.mark.parametrize("cache", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_every_kind_of_weights(device: Device, kind: str, cache: str) -> None:
    """Or an error that says what to choose instead."""
    if kind not in device_kinds(device):
        pytest.skip(f"this device has no {kind}, and says so")
    program = widen(fuse(trace(config_of(WIDE), "logits", lambda n, s: "fp32" if len(s) == 1 else kind, cache)))
    # of a cache in bf16 another float64 executor with the same rounding would be needed to ask for more
    run_all(device, program, steps(131), EXACT if (kind, cache) == ("fp32", "fp32") else ROUNDED_INPUTS)


def test_held_bytes_are_those_that_are_held(device: Device) -> None:
    """At least what the kind needs, and at most a run of 256 columns and a tile of 16 rows more, as float64 if not."""
    for kind in device_kinds(device):
        program = trace(config_of(WIDE), "logits", lambda n, s, kind=kind: "fp32" if len(s) == 1 else kind)
        for value in program.of_kind("weight"):
            held = device.held_bytes(value)
            assert value.nbytes() <= held <= 16 * value.nbytes() + 16 * 256 * 8


def test_random_weights_are_the_same_however_they_are_made(device: Device) -> None:
    for kind in device_kinds(device):
        program = fuse(trace(config_of(WIDE), "logits", lambda n, s, kind=kind: "fp32" if len(s) == 1 else kind))
        uses = program.uses()
        recipes = {
            v.name: RandomWeight(5, v.name, v.static_shape, (0,) * len(v.shape), v.static_shape, WEIGHT_KINDS[v.dtype])
            for v in program.of_kind("weight")
        }
        made = {name: device.make(recipe, uses[name]) for name, recipe in recipes.items()}
        packed = {name: device.pack(recipe.on_host(), uses[name]) for name, recipe in recipes.items()}
        (step, *_) = steps(131)
        blocks = blocks_of(step)
        one, other = (
            device.compile(program, weights, device.allocate(program, blocks)).run(step)["logits"]
            for weights in (made, packed)
        )
        assert np.array_equal(one, other)


def exact_kind(device: Device) -> str:
    return "fp32" if "fp32" in device_kinds(device) else "bf16"


def test_a_larger_cache_keeps_what_the_old_one_holds(device: Device) -> None:
    kind = exact_kind(device)
    program = fuse(trace(config_of(WIDE), "logits", lambda n, s: "fp32" if len(s) == 1 else kind, "fp32"))
    weights, inputs = weights_of(program), steps(131)
    uses = program.uses()
    packed = {
        v.name: device.pack(quantize(weights[v.name].astype(np.float32), WEIGHT_KINDS[v.dtype]), uses[v.name])
        for v in program.of_kind("weight")
    }
    blocks = blocks_of(inputs[0])
    small = device.allocate(program, blocks)
    device.compile(program, packed, small).run(inputs[0])
    large = device.allocate(program, blocks + 3, small)
    kept = device.compile(program, packed, large).run(inputs[1])["logits"]
    at_once = compiled(device, program, weights, blocks)
    at_once.run(inputs[0])
    assert np.array_equal(kept, at_once.run(inputs[1])["logits"])


def test_programs_share_weights_and_a_cache(device: Device) -> None:
    """A prompt's beginning is stored by one program, and its end read by another."""
    kind = exact_kind(device)
    kind_of = lambda n, s: "fp32" if len(s) == 1 else kind  # noqa: E731
    programs = {
        finish: widen(fuse(trace(config_of(WIDE), finish, kind_of, "fp32"))) for finish in ("cache", "argmax", "logits")
    }
    weights, uses = weights_of(programs["logits"]), programs["logits"].uses()
    packed = {
        v.name: device.pack(quantize(weights[v.name].astype(np.float32), WEIGHT_KINDS[v.dtype]), uses[v.name])
        for v in programs["logits"].of_kind("weight")
    }
    tokens = np.random.default_rng(3).integers(0, 131, 100).tolist()
    whole = step_inputs([(0, 0, tokens)])
    blocks = blocks_of(whole)
    cache = device.allocate(programs["logits"], blocks)
    first = step_inputs([(0, 0, tokens[:80])])
    del first["logit_rows"]
    assert device.compile(programs["cache"], packed, cache).run(first) == {}
    rest = step_inputs([(0, 80, tokens[80:])])
    rest["logit_rows"] = np.array([19], np.int32)
    found = device.compile(programs["logits"], packed, cache).run(rest)["logits"]
    token = device.compile(programs["argmax"], packed, cache).run(rest)["token"]
    true = execute(programs["logits"], weights | caches(programs["logits"], blocks) | whole)["logits"][-1:]
    assert differing(found, true) < (EXACT if kind == "fp32" else ROUNDED_INPUTS)
    assert token.dtype == np.int32
    assert token[0] == found[0].argmax()


def sampling(rows: int, **changes: Any) -> dict[str, Array]:
    given: dict[str, Any] = {
        "temperature": np.zeros(rows), "top_k": np.zeros(rows), "top_p": np.ones(rows), "min_p": np.zeros(rows),
        "repetition_penalty": np.ones(rows), "seed": np.arange(rows), "seen": np.zeros((rows, 17)), **changes,
    }  # fmt: skip
    dtypes = {"top_k": np.int32, "seed": np.uint64, "seen": np.uint8}
    return {name: np.asarray(array).astype(dtypes.get(name, np.float32)) for name, array in given.items()}


SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": np.full(8, 1.3)},
    "some drawn": {"temperature": np.array([0, 1, 0, 0.5, 2, 0, 1, 1])},
    "top-k": {"temperature": np.full(8, 1.5), "top_k": np.array([1, 2, 3, 0, 50, 131, 2, 7])},
    "top-p": {"temperature": np.full(8, 1.5), "top_p": np.array([0.1, 0.5, 0.9, 1, 0.99, 0.3, 0.7, 0.2])},
    "min-p": {"temperature": np.full(8, 1.5), "min_p": np.array([0.1, 0.5, 0.9, 0, 0.01, 0.3, 0.7, 1])},
    "all": {
        "temperature": np.full(8, 0.9), "top_k": np.full(8, 20), "top_p": np.full(8, 0.8), "min_p": np.full(8, 0.02),
        "repetition_penalty": np.array([1, 1.1, 1.5, 2, 0.5, 1, 1.2, 1.3]),
        "seed": np.array([0, 1, 2**64 - 1, 2**63, 77, 2**33, 5, 6], np.uint64),
        "seen": np.random.default_rng(0).integers(0, 256, (8, 17)),
    },
    "penalised": {
        "repetition_penalty": np.array([1, 1.1, 1.5, 2, 0.5, 1, np.inf, 0]),
        "seen": np.random.default_rng(1).integers(0, 256, (8, 17)),
    },
    "extreme": {"temperature": np.array([np.inf, 1e-45, 1e38, 1, 1, 1, 1, 1e-30])},
}  # fmt: skip


@pytest.mark.parametrize("top", [None, 5])
@pytest.mark.parametrize("name", SAMPLING)
def test_tokens_are_drawn_as_the_definition_says(device: Device, name: str, top: int | None) -> None:
    """From the device's own logits: the definition in NumPy draws the same tokens from them."""
    kind = exact_kind(device)
    kind_of = lambda n, s: "fp32" if len(s) == 1 else kind  # noqa: E731
    config = config_of(WIDE)
    programs = {
        finish: fuse(trace(config, finish, kind_of, "fp32", top if finish == "sample" else None))
        for finish in ("sample", "logits")
    }
    weights = weights_of(programs["logits"])
    step = step_inputs([(slot, 0, [3 + slot]) for slot in range(8)])
    blocks = blocks_of(step)
    logits = compiled(device, programs["logits"], weights, blocks).run(step)["logits"]
    inputs = step | sampling(8, **SAMPLING[name])
    found = compiled(device, programs["sample"], weights, blocks).run(inputs)
    op = programs["sample"].ops[-1]
    with np.errstate(over="ignore"):
        expected = dict(zip(op.writes(), op.evaluate({**inputs, "logits": logits}), strict=True))
    assert found.keys() == expected.keys()
    assert found["token"].tolist() == expected["token"].tolist()
    if top is not None:
        assert np.array_equal(found["top_tokens"], expected["top_tokens"])
        for part in ("logprob", "top_logprobs"):
            assert np.allclose(found[part], expected[part], atol=1e-4)


def test_a_logit_that_is_not_finite_gives_no_token(device: Device) -> None:
    kind = exact_kind(device)
    kind_of = lambda n, s: "fp32" if len(s) == 1 else kind  # noqa: E731
    for finish in ("argmax", "sample"):
        program = fuse(trace(config_of(WIDE), finish, kind_of, "fp32"))
        weights = weights_of(program)
        weights["final_norm.bias"] = np.full_like(weights["final_norm.bias"], np.nan)
        step = step_inputs([(0, 0, [3]), (1, 0, [4])]) | (sampling(2) if finish == "sample" else {})
        assert compiled(device, program, weights, blocks_of(step)).run(step)["token"].tolist() == [-1, -1]


def test_what_a_sequence_leaves_in_its_blocks_reaches_no_other(device: Device) -> None:
    """Numbers that are not finite, in a block that a prompt gets later, and in a step that goes on with it."""
    kind = exact_kind(device)
    program = fuse(trace(config_of(WIDE), "logits", lambda n, s: "fp32" if len(s) == 1 else kind, "fp32"))
    weights = weights_of(program)
    bad = 7
    weights["embed.weight"][bad] = np.nan
    first = step_inputs([(0, 0, [bad] * 64)])
    executable = compiled(device, program, weights, blocks_of(first))
    assert np.isnan(executable.run(first)["logits"]).all()
    for step in (step_inputs([(0, 0, [3, 4, 5])]), step_inputs([(0, 3, [6])])):
        logits = executable.run(step)["logits"]  # of which one column is that of the token itself
        assert np.isfinite(np.delete(logits, bad, axis=1)).all()


def test_copied_blocks_are_read_as_their_sources_are(device: Device) -> None:
    """In every layer, by a step that ran before, one source several times, and nothing else is changed."""
    kind, cache_dtype = ("fp32", "fp32") if "fp32" in device_kinds(device) else ("bf16", "bf16")
    program = fuse(trace(config_of(ALL["llama"]), "logits", lambda n, s: "fp32" if len(s) == 1 else kind, cache_dtype))
    cache = device.allocate(program, 10)
    executable = device.compile(program, packed(device, program, weights_of(program)), cache)
    texts = np.random.default_rng(8).integers(0, 103, (2, 66)).tolist()
    prompts = step_inputs([(slot, 0, text) for slot, text in enumerate(texts)], blocks_each=2)
    executable.run({**prompts, "logit_rows": prompts["logit_rows"][-1:]})

    def logits(*tables: tuple[int, int]) -> Array:
        """Of the same token as the 67th of the texts in these blocks."""
        step = step_inputs([(slot, 66, [5]) for slot in range(len(tables))], blocks_each=2)
        found: Array = executable.run({**step, "block_table": np.array(tables, np.int32)})["logits"]
        return found

    first, second = logits((1, 2), (3, 4))
    assert differing(first, second) > 0.05
    device.copy_blocks(cache, [1, 2, 2, 3, 4], [9, 5, 6, 8, 7])
    for tables in (((9, 5), (8, 7)), ((1, 6), (3, 7)), ((1, 2), (3, 4))):  # copies, sources and copies, sources
        assert np.array_equal(logits(*tables), (first, second))
    device.copy_blocks(cache, [3, 4], [1, 2])
    assert np.array_equal(logits((9, 5), (1, 2)), (first, second))
    device.copy_blocks(cache, [], [])
    assert np.array_equal(logits((9, 5), (1, 2)), (first, second))


def test_a_device_that_says_so_is_batch_invariant(device: Device) -> None:
    """The same bits for a row alone, beside others, and for a prompt in chunks."""
    if not device.info().batch_invariant:
        pytest.skip(f"{device.info().name} does not claim it")
    program = fuse(trace(config_of(WIDE), "logits", lambda n, s: "fp32" if len(s) == 1 else "bf16", "bf16"))
    weights = weights_of(program)
    tokens = np.random.default_rng(4).integers(0, 131, (2, 140)).tolist()
    together = step_inputs([(slot, 0, text) for slot, text in enumerate(tokens)])
    blocks = blocks_of(together)
    expected = compiled(device, program, weights, blocks).run(together)["logits"].reshape(2, 140, -1)
    executable = compiled(device, program, weights, blocks)
    done = 0
    for count in (1, 33, 1, 100, 5):
        chunk = step_inputs([(1, done, tokens[1][done : done + count])])
        assert np.array_equal(executable.run(chunk)["logits"], expected[1, done : done + count])
        done += count


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'; known are: auto, cpu, cuda, hpu, reference"):
        open_device("tpu")
