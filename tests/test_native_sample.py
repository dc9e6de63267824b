"""The native sampler against `Sample.evaluate`: the same tokens for the same logits, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anthesis import native
from anthesis.program.draw import gumbel_noise
from anthesis.program.sample import Sample

PARAMETERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
DTYPES = {"top_k": np.int32, "seed": np.uint64}
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 3}
OP = Sample(
    **{name: name for name in (*PARAMETERS, "logits", "positions", "logit_rows", "seen")},
    token="token",
    usable=1,
)
REPORTING = replace(OP, logprob="logprob", top_tokens="top_tokens", top_logprobs="top_logprobs", top=0)


def arrays_of(logits: Any, rows: list[dict[str, Any]], seen: Any = None) -> dict[str, Any]:
    """The operation's inputs; `seen` (L, V) bool."""
    arrays = {name: np.array([(OFF | row)[name] for row in rows], DTYPES.get(name, np.float32)) for name in PARAMETERS}
    arrays["logits"] = np.ascontiguousarray(logits, np.float32)
    arrays["seen"] = np.packbits(np.zeros(logits.shape, bool) if seen is None else seen, axis=1, bitorder="little")
    arrays["positions"] = np.arange(len(rows), dtype=np.int32) * 7
    arrays["logit_rows"] = np.arange(len(rows), dtype=np.int32)
    return arrays


def native_sample(arrays: dict[str, Any], usable: int, threads: int, top: int | None = None) -> tuple[Any, ...]:
    count = len(arrays["logits"])
    token = np.full(count, -2, np.int32)
    logprob = np.full(0 if top is None else count, 5, np.float32)
    top_tokens, top_logprobs = np.full((count, top or 0), -2, np.int32), np.full((count, top or 0), 5, np.float32)
    inputs = {name: value for name, value in arrays.items() if name != "logit_rows"}
    results = {"token": token, "logprob": logprob, "top_tokens": top_tokens, "top_logprobs": top_logprobs}
    native.extension().sample(**inputs, usable=usable, threads=threads, **results)
    return token, logprob, top_tokens, top_logprobs


def check(arrays: dict[str, Any], usable: int, top: int | None = None, threads: tuple[int, ...] = (1, 2, 3)) -> Any:
    """Compares with the reference; returns its tokens."""
    op = replace(OP, usable=usable) if top is None else replace(REPORTING, usable=usable, top=top)
    with np.errstate(all="ignore"):
        expected = op.evaluate(arrays)
    for count in threads:
        results = native_sample(arrays, usable, count, top)
        different = np.flatnonzero(results[0] != expected[0])
        shown = [{name: arrays[name][i] for name in PARAMETERS} for i in different]
        assert not shown, f"{count} threads: {results[0][different]} for {expected[0][different]}: {shown}"
        if top is not None:
            assert np.array_equal(results[2], expected[2])
            for ours, truth in ((results[1], expected[1]), (results[3], expected[3])):
                np.testing.assert_allclose(ours, truth, rtol=1.2e-7, atol=1e-14, equal_nan=True)
    return expected[0]


def some_logits(rng: np.random.Generator, count: int, vocab: int) -> Any:
    """(count, vocab) float32 of one of many kinds."""
    spread = 10 ** rng.uniform(-6, 2.5)
    kind = rng.integers(9)
    logits = rng.normal(rng.uniform(-30, 30), spread, (count, vocab))
    if kind == 1:
        logits = np.round(logits / spread)  # ties everywhere
    if kind == 2:
        logits[rng.random(logits.shape) < rng.choice([0.1, 0.9, 0.999])] = -np.inf
    if kind == 3:
        logits[:] = rng.choice([0.0, -0.0, 1.5, -4.0])
    if kind == 4:
        logits = rng.choice([0.0, -0.0, 1e-40, -1e-40, 1.0], logits.shape)
    if kind == 5:
        logits = rng.choice([3e38, -3e38, 1e30, 0.0], logits.shape)
    if kind == 6:  # equal ones at the top and in the middle
        logits[:, rng.integers(0, vocab, 1 + vocab // 8)] = logits.max()
        logits[:, rng.integers(0, vocab, 1 + vocab // 8)] = np.median(logits)
    if kind == 7:
        logits[rng.integers(count), rng.integers(vocab)] = rng.choice([np.nan, -np.nan, np.inf])
    if kind == 8:
        logits[rng.integers(count)] = -np.inf
    with np.errstate(over="ignore"):
        return logits.astype(np.float32)


def some_parameters(rng: np.random.Generator, vocab: int) -> dict[str, Any]:
    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    k = pick(0, 0, 1, 2, 50, vocab // 2, vocab - 1, vocab, vocab + 5, rng.integers(1, vocab + 1), 2**31 - 1)
    return {
        "temperature": pick(0, 1, 1, 0.7, 10 ** rng.uniform(-3, 3), 1e-45, 1e-30, 3e38, np.inf),
        "top_k": max(0, k),
        "top_p": pick(1, 1, 0, 0.5, 0.9, rng.random(), 1e-6, np.nextafter(np.float32(1), np.float32(0))),
        "min_p": pick(0, 0, 1, 0.05, rng.random(), 1e-20),
        "repetition_penalty": pick(1, 1, 1.2, 0.5, 10 ** rng.uniform(-1, 1), 0, np.inf),
        "seed": rng.integers(0, 2**64, dtype=np.uint64),
    }


@pytest.mark.parametrize("seed", range(25))
def test_tokens_are_those_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        vocab = int(rng.choice([rng.integers(1, 10), rng.integers(1, 300), rng.integers(1, 6000)]))
        usable = int(rng.choice([vocab, rng.integers(1, vocab + 1), max(1, vocab - 8)]))
        count = 6
        seen = rng.random((count, vocab)) < rng.choice([0, 0.001, 0.05, 0.9, 1])
        rows = [some_parameters(rng, usable) for _ in range(count)]
        top = [None, 0, 1, 5, usable][rng.integers(5)]
        check(arrays_of(some_logits(rng, count, vocab), rows, seen), usable, top and min(top, usable))


@pytest.mark.parametrize("spread", [0.0, 1e-3, 2.0, 5.0])
def test_a_large_vocabulary_gives_the_same_tokens(spread: float) -> None:
    rng = np.random.default_rng(1)
    vocab, usable = 250_880, 250_680
    rows = [
        {},
        {"temperature": 0.6},
        {"temperature": 3},
        {"top_k": 50},
        {"top_k": 5000, "top_p": 0.99},
        {"top_k": 50, "top_p": 0.9},
        {"top_p": 0.9},
        {"top_p": 0.999, "temperature": 2},
        {"min_p": 0.05},
        {"min_p": 1e-3, "top_p": 0.5},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "top_p": 0.95},
        {"repetition_penalty": 1.3, "temperature": 0},
        {"repetition_penalty": 1.3, "top_k": 100},
    ]
    logits = rng.normal(0, spread, (len(rows), vocab)).astype(np.float32)
    check(arrays_of(logits, rows, rng.random(logits.shape) < 0.002), usable, top=20, threads=(1, 2))
    halves = np.float32(logits).view(np.uint32) & 0xFFFF0000  # as bf16 logits are: a few thousand values
    check(arrays_of(halves.view(np.float32), rows, rng.random(logits.shape) < 0.002), usable, threads=(2,))


def test_a_mass_that_is_just_enough_is_enough() -> None:
    # four equal masses, and a top_p of exactly so many of them
    logits = np.tile(np.float32([1, 5, 5, 0.5, 5, 5, -np.inf]), (200, 1))
    for top_p, kept in ((0.25, {1}), (np.nextafter(np.float32(0.25), np.float32(1)), {1, 2}), (0.5, {1, 2})):
        arrays = arrays_of(logits, [{"top_p": top_p, "temperature": 0.1}] * 200)
        assert set(check(arrays, 7).tolist()) == kept


@pytest.mark.parametrize("temperature", [1e-12, 1e-16, 1e-17, 3e-18, 1e-20])
def test_sums_that_rounding_makes_equal_give_the_lowest_id(temperature: float) -> None:
    logits = np.full((50, 500), 10, np.float32)
    check(arrays_of(logits, [{"temperature": temperature, "seed": i} for i in range(50)]), 500)


@pytest.mark.parametrize("temperature", [1e-16, 1e-15, 3e-15, 1e-14])
def test_so_it_does_where_the_higher_ids_were_seen(temperature: float) -> None:
    # half of 20, so that these scores are the others'
    logits = np.repeat(np.float32([[10, 20]]), 250, axis=1).repeat(100, axis=0)
    row = {"temperature": temperature, "repetition_penalty": 2}
    check(arrays_of(logits, [{**row, "seed": i} for i in range(100)], logits == 20), 500)


def test_masses_are_right_to_the_last_unit() -> None:
    # Besides the most likely token four whose masses make exactly as much, or one unit more: only then a top_p of 1/2
    # keeps another. The largest of the four is as near to being rounded the other way as can be found.
    rng = np.random.default_rng(4)
    unit = 2.0**33
    first = rng.uniform(0.1, 0.6, 2_000_000).astype(np.float32)
    mass = np.exp(-first.astype(np.float64)) * unit
    first = first[np.argsort(abs(mass - np.floor(mass) - 0.5))[:50]]

    def mass_of(distance: Any) -> Any:
        return np.rint(np.exp(-np.float64(distance)) * unit)

    for more in (0, 1):
        rest = unit + more - mass_of(first)
        second = np.nextafter(np.float32(-np.log(rest / unit)), np.float32(9))
        fourth = np.full_like(first, np.log(unit / 5))
        third = np.float32(-np.log((rest - mass_of(second) - 5) / unit))
        assert (mass_of(first) + mass_of(second) + mass_of(third) + mass_of(fourth) == unit + more).all()
        logits = -np.stack([first, 0 * first, third, second, fourth], axis=1).repeat(12, axis=0)
        tokens = check(arrays_of(logits, [{"top_p": 0.5, "seed": i} for i in range(len(logits))]), 5, threads=(2,))
        assert set(tokens.tolist()) == ({0, 1} if more else {1})


def test_the_rarest_noise_wins_over_the_most_likely_token() -> None:
    rng = np.random.default_rng(5)
    vocab = 4096
    rows = [{"seed": int(seed)} for seed in range(64)]
    logits = np.zeros((len(rows), vocab), np.float32)
    for i, row in enumerate(rows):
        noise = gumbel_noise(row["seed"], 7 * i, np.arange(vocab))
        # every sum is nearly the same, so that the choice hangs on the last bits of the noise
        logits[i] = -noise + rng.choice([0, 1e-6, 1e-4], vocab)
    check(arrays_of(logits, rows), vocab)


def test_padding_spoils_log_probabilities_only() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (5, 300)).astype(np.float32)
    logits[0, 299], logits[1, 280], logits[2, 299], logits[3, 290] = np.nan, np.inf, -np.inf, 40
    assert (check(arrays_of(logits, [{}] * 5), 270, top=10) >= 0).all()


def test_the_portable_code_gives_the_same_tokens() -> None:
    code = (
        "import numpy as np, test_native_sample as t\n"
        "for seed in (0, 1, 2): t.test_tokens_are_those_of_the_reference(seed)\n"
        "t.test_a_large_vocabulary_gives_the_same_tokens(2.0)\n"
    )
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "ANTHESIS_CPU_KERNELS": "portable", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usable": 0}, "more tokens"),
        ({"usable": 71}, "more tokens"),
        ({"threads": 0}, "no threads"),
        ({"seed": np.zeros(3, np.uint64)}, "numbers of rows"),
        ({"seen": np.zeros((2, 8), np.uint8)}, "a bit for each"),
        ({"logits": np.zeros((2, 140), np.float32)[:, ::2]}, "gaps"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = arrays_of(np.zeros((2, 70), np.float32), [{}, {}])
    usable, threads = change.pop("usable", 70), change.pop("threads", 1)
    with pytest.raises(ValueError, match=message):
        native_sample(arrays | change, usable, threads)
