"""`sample`: every parameter changes the result in its own way, draws follow the distribution, a seed gives its text."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anthesis.engine.sampling import SamplingParams
from anthesis.errors import RequestError
from anthesis.program.draw import draw as pick
from anthesis.program.draw import gumbel_noise, log_softmax, outside_top_p
from anthesis.program.sample import Argmax, Sample

V = 50
NAMES = ("logits", "positions", "logit_rows", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
OP = Sample(
    **{name: name for name in (*NAMES, "seen", "token", "logprob", "top_tokens", "top_logprobs")}, usable=V - 2, top=3
)
PLAIN = replace(OP, logprob=None, top_tokens=None, top_logprobs=None, top=None)


def draw(logits: Any, draws: int = 1, op: Sample = OP, **parameters: Any) -> tuple[Any, ...]:
    """`draws` rows of the same logits at different positions."""
    row = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 7,
    } | parameters
    seen = np.zeros((draws, -(-V // 8)), np.uint8)
    for token in row.pop("seen", ()):
        seen[:, token // 8] |= 1 << (token % 8)
    dtypes = {"top_k": np.int32, "seed": np.uint64}
    arrays = {name: np.full(draws, value, dtypes.get(name, np.float32)) for name, value in row.items()}
    arrays |= {"logits": np.tile(np.float32(logits), (draws, 1)), "seen": seen}
    arrays |= {"positions": np.arange(draws, dtype=np.int32), "logit_rows": np.arange(draws, dtype=np.int32)}
    return op.evaluate(arrays)


@pytest.fixture
def logits() -> Any:
    return np.random.default_rng(3).normal(0, 1.2, V)


def frequencies(tokens: Any) -> Any:
    return np.bincount(tokens, minlength=V) / len(tokens)


def softmax(scores: Any) -> Any:
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def expected(logits: Any, kept: Any, temperature: float = 1.0) -> Any:
    scores = np.where(kept, logits / temperature, -np.inf)
    scores[V - 2 :] = -np.inf
    return softmax(scores)


def check_distribution(tokens: Any, probabilities: Any) -> None:
    """Chi-square over tokens expected at least five times, at a level that a right sampler misses once in 100,000."""
    count = len(tokens)
    likely = probabilities * count >= 5
    observed, mean = frequencies(tokens)[likely] * count, probabilities[likely] * count
    chi2 = ((observed - mean) ** 2 / mean).sum()
    freedom = likely.sum() - 1
    assert chi2 < freedom + 4.5 * np.sqrt(2 * freedom) + 10
    assert not frequencies(tokens)[probabilities == 0].any()


def test_draws_follow_the_softmax_and_never_a_padding_row(logits: Any) -> None:
    logits[V - 1] = 20.0
    check_distribution(draw(logits, 20_000)[0], expected(logits, np.ones(V, bool)))


def test_temperature_sharpens(logits: Any) -> None:
    check_distribution(draw(logits, 20_000, temperature=0.5)[0], expected(logits, np.ones(V, bool), 0.5))
    assert (draw(logits, 50, temperature=0.0)[0] == logits[: V - 2].argmax()).all()


def test_top_k_keeps_the_k_most_likely(logits: Any) -> None:
    kept = np.isin(np.arange(V), np.argsort(-logits[: V - 2])[:5])
    check_distribution(draw(logits, 20_000, top_k=5)[0], expected(logits, kept))


def test_top_p_keeps_the_smallest_set_with_that_mass(logits: Any) -> None:
    probabilities = expected(logits, np.ones(V, bool))
    order = np.argsort(-probabilities)
    size = 1 + int(np.searchsorted(np.cumsum(probabilities[order]), 0.7))
    assert 1 < size < V - 2
    kept = np.isin(np.arange(V), order[:size])
    check_distribution(draw(logits, 20_000, top_p=0.7)[0], expected(logits, kept))
    assert set(draw(logits, 100, top_p=1e-6)[0]) == {logits[: V - 2].argmax()}


def test_min_p_keeps_tokens_near_the_most_likely(logits: Any) -> None:
    probabilities = expected(logits, np.ones(V, bool))
    kept = probabilities >= 0.2 * probabilities.max()
    assert 1 < kept.sum() < V - 2
    check_distribution(draw(logits, 20_000, min_p=0.2)[0], expected(logits, kept))


def test_repetition_penalty_makes_seen_tokens_less_likely(logits: Any) -> None:
    best = int(logits[: V - 2].argmax())
    worst = int(logits[: V - 2].argmin())
    changed = logits.copy()
    changed[best] /= 1.8
    changed[worst] *= 1.8
    result = draw(logits, 20_000, repetition_penalty=1.8, seen=(best, worst))[0]
    check_distribution(result, expected(changed, np.ones(V, bool)))
    second = int(np.argsort(-logits[: V - 2])[1])
    assert draw(logits, temperature=0.0, repetition_penalty=50.0, seen=(best,))[0][0] == second


def test_filters_compose_as_transformers_does(logits: Any) -> None:
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    seen = [1, 4, 9, 30]
    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.85),
            MinPLogitsWarper(0.05),
        ]
    )
    usable = torch.tensor(logits[None, : V - 2], dtype=torch.float64)
    left = steps(torch.tensor([seen]), usable)[0].numpy()
    result = draw(logits, 20_000, temperature=0.8, top_k=20, top_p=0.85, min_p=0.05, repetition_penalty=1.3, seen=seen)[
        0
    ]
    check_distribution(result, np.append(softmax(left), [0, 0]))


def test_a_seed_gives_its_tokens_whatever_the_batch(logits: Any) -> None:
    many = draw(logits, 64)[0]
    assert np.array_equal(many[:9], draw(logits, 9)[0])
    assert not np.array_equal(many, draw(logits, 64, seed=8)[0])


def test_log_probabilities_are_the_models_own(logits: Any) -> None:
    tokens, logprobs, top_tokens, top_logprobs = draw(logits, 5, temperature=0.3, top_k=2)
    own = log_softmax(np.float32(logits))
    np.testing.assert_allclose(logprobs, own[tokens], rtol=1e-6)
    assert top_tokens[0].tolist() == np.argsort(-own[: V - 2])[:3].tolist()
    np.testing.assert_allclose(top_logprobs[0], own[top_tokens[0]], rtol=1e-6)


def plain_choice(row: Any, parameters: dict[str, Any], position: int, seen: set[int]) -> int:
    """What `Sample` is defined to choose, in the plainest words: sort everything, add everything."""
    usable = row[: V - 2].astype(np.float64)
    fp32 = {name: float(np.float32(value)) for name, value in parameters.items()}
    penalty, temperature = fp32["repetition_penalty"], fp32["temperature"]
    scores = np.array(
        [(s / penalty if s > 0 else s * penalty) if i in seen and penalty != 1 else s for i, s in enumerate(usable)]
    )
    if temperature == 0:
        return int(np.flatnonzero(scores == scores.max())[0])
    scores = scores / temperature
    if 0 < parameters["top_k"] < len(scores):
        scores[scores < np.sort(scores)[-parameters["top_k"]]] = -np.inf
    if fp32["top_p"] < 1:
        order = np.argsort(-scores, kind="stable")
        mass = np.cumsum(np.rint(np.exp(scores[order] - scores.max()) * 2.0**33))
        size = int(np.flatnonzero(mass >= fp32["top_p"] * mass[-1])[0]) + 1
        scores[order[size:]] = -np.inf
    if fp32["min_p"] > 0:
        scores[scores < scores.max() + np.log(fp32["min_p"])] = -np.inf
    return int((scores + gumbel_noise(parameters["seed"], position, np.arange(len(scores)))).argmax())


LOGITS = st.one_of(
    st.lists(st.floats(-60, 60, width=32), min_size=V, max_size=V),
    st.lists(st.integers(-3, 3).map(float), min_size=V, max_size=V),  # ties everywhere
    st.lists(st.one_of(st.just(-np.inf), st.sampled_from([0.0, 1.0, 1e-30, 2e-30])), min_size=V, max_size=V),
)


@settings(max_examples=400, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.05, 50)),
    top_k=st.integers(0, V),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.3, 3)),
    seen=st.sets(st.integers(0, V - 1)),
    seed=st.integers(0, 2**64 - 1),
)
def test_choices_and_likeliest_tokens_are_those_of_the_plain_definition(
    logits: Any, seen: set[int], **parameters: Any
) -> None:
    row = np.float32(logits)
    assume(np.isfinite(row[: V - 2]).any())
    tokens, logprobs, top_tokens, top_logprobs = draw(row, 3, seen=seen, **parameters)
    assert tokens.tolist() == [plain_choice(row, parameters, position, seen) for position in range(3)]
    assert np.array_equal(draw(row, 3, op=PLAIN, seen=seen, **parameters)[0], tokens)
    shifted = row.astype(np.float64) - float(row.max())
    own = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    likeliest = sorted(range(V - 2), key=lambda i: (-row[i], i))[:3]
    assert np.array_equal(logprobs, own[tokens])
    assert top_tokens.tolist() == [likeliest] * 3
    assert np.array_equal(top_logprobs[0], own[likeliest])


@pytest.mark.parametrize("spread", [1e-6, 0.01, 1.0, 5.0, 300.0])
def test_a_large_vocabulary_is_sampled_by_the_same_definition(spread: float) -> None:
    count = 40_000  # several pieces
    rng = np.random.default_rng(5)
    scores = np.round(rng.normal(0, spread, count), 6)
    scores[rng.integers(0, count, 500)] = scores.max()
    order = np.argsort(-scores, kind="stable")
    mass = np.cumsum(np.rint(np.exp(scores[order] - scores.max()) * 2.0**33))
    for top_p in (0.0, 1e-4, 0.3, 0.9, 0.999999):
        size = 1 + int(np.searchsorted(mass, top_p * mass[-1]))
        assert np.array_equal(np.flatnonzero(~outside_top_p(scores, top_p)), np.sort(order[:size]))
    tokens = np.arange(count)
    for position in range(20):
        expected = (scores + gumbel_noise(9, position, tokens)).argmax()
        assert pick(9, position, tokens, scores) == expected
        some = np.sort(order[:1000])
        assert pick(9, position, some, scores[some]) == some[(scores[some] + gumbel_noise(9, position, some)).argmax()]


NOT_FINITE = {
    "nan": {4: np.nan},
    "nan beside inf": {4: np.nan, 9: np.inf},
    "inf": {V - 3: np.inf},
    "all -inf": dict.fromkeys(range(V - 2), -np.inf),
    "all nan": dict.fromkeys(range(V), np.nan),
}


@pytest.mark.parametrize("changes", NOT_FINITE.values(), ids=list(NOT_FINITE))
@pytest.mark.parametrize(
    "parameters", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 2.0}]
)
def test_a_row_without_a_finite_best_logit_gives_no_token(logits: Any, changes: Any, parameters: Any) -> None:
    bad = logits.copy()
    for token, value in changes.items():
        bad[token] = value
    with np.errstate(all="raise", under="ignore"):
        tokens, logprobs, top_tokens, top_logprobs = draw(bad, 2, seen=(1, 4), **parameters)
        score, best = Argmax(logits="x", score="s", token="t", usable=V - 2).evaluate({"x": np.float32([bad, logits])})
    assert tokens.tolist() == [-1, -1]
    assert (top_tokens == -1).all()
    assert np.isnan(logprobs).all() and np.isnan(top_logprobs).all()
    assert best.tolist() == [-1, logits[: V - 2].argmax()], "the rows beside it are as ever"
    assert score[0] == (-np.inf if len(changes) == V - 2 else np.inf)


def test_what_is_not_finite_in_padding_or_is_minus_infinity_spoils_nothing(logits: Any) -> None:
    logits[V - 1], logits[3] = np.nan, -np.inf
    best = int(np.nanargmax(logits[: V - 2]))
    assert draw(logits, op=PLAIN, temperature=0.0)[0].tolist() == [best]
    assert (draw(logits, 200, op=PLAIN)[0] >= 0).all()
    assert 3 not in draw(logits, 2000, op=PLAIN, temperature=50.0)[0]
    argmax = Argmax(logits="x", score="s", token="t", usable=V - 2)
    assert argmax.evaluate({"x": np.float32(logits)[None]})[1].tolist() == [best]


def test_parameters_that_fp32_rounds_to_0_or_infinity_have_the_effect_of_their_limit(logits: Any) -> None:
    best, second = (int(i) for i in np.argsort(-logits[: V - 2])[:2])
    with np.errstate(all="raise", under="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (draw(logits, 20, temperature=np.float32(1e-46))[0] == best).all()
        logits[7] = -np.inf
        hot = draw(logits, 20_000, temperature=np.float32(np.inf))[0]
        assert draw(logits, temperature=0.0, repetition_penalty=np.float32(np.inf), seen=(best,))[0][0] == second
        for penalty in (0.0, np.inf):
            tokens = draw(logits, 20, repetition_penalty=np.float32(penalty), seen=range(V))[0]
            assert ((tokens >= 0) & (tokens != 7)).all()
    check_distribution(hot, expected(np.zeros(V), np.arange(V) != 7))


def test_the_highest_hash_gives_finite_noise() -> None:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    def unmix(x: int) -> int:
        for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
            y = x
            for _ in range(3):
                y = x ^ (y >> shift)
            x = y * pow(factor, -1, 2**64) & mask
        return x

    key = mix((mix((7 + golden) & mask) + 3 * golden) & mask)
    hashes = (mask, 0, 2**63)
    tokens = [((unmix(h) - key) * pow(golden, -1, 2**64) - 1) & mask for h in hashes]
    assert [mix((key + (t + 1) * golden) & mask) for t in tokens] == list(hashes)
    noise = gumbel_noise(7, 3, np.array(tokens, np.uint64).view(np.int64))
    np.testing.assert_allclose(noise, [53 * np.log(2), -np.log(53 * np.log(2)), -np.log(np.log(2))], rtol=1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**31 - 1))
def test_noise_has_the_mean_and_spread_of_the_gumbel_distribution(seed: int, position: int) -> None:
    noise = gumbel_noise(seed, position, np.arange(20_000))
    assert abs(noise.mean() - 0.5772) < 0.06
    assert abs(noise.std() - np.pi / np.sqrt(6)) < 0.06


def test_noise_differs_between_neighbouring_seeds_positions_and_tokens() -> None:
    tokens = np.arange(1000)
    base = gumbel_noise(1, 1, tokens)
    others = [gumbel_noise(2, 1, tokens), gumbel_noise(1, 2, tokens), gumbel_noise(1, 1, tokens + 1)]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15


def test_argmax_takes_the_lowest_of_equal_ids_and_no_padding_row() -> None:
    op = Argmax(logits="x", score="s", token="t", usable=4)
    score, token = op.evaluate({"x": np.float32([[1, 3, 3, 2, 9], [5, 1, 1, 1, 0]])})
    assert token.tolist() == [1, 0]
    assert score.tolist() == [3, 5]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"temperature": 1.0, "min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"logprobs": -1},
        {"logprobs": 101},
        {"top_p": 0.9},
        {"top_k": 3},
    ],
)
def test_parameters_out_of_range_or_without_effect_are_refused(bad: dict[str, Any]) -> None:
    name = next(reversed(bad))
    with pytest.raises(RequestError, match=name):
        SamplingParams(**({"max_new_tokens": 5} | bad))
