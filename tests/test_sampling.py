"""`sample`: every parameter changes the result in its own way, draws follow the distribution, a seed gives its text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anthesis.engine.sampling import SamplingParams
from anthesis.errors import RequestError
from anthesis.program.sample import Argmax, Sample, gumbel_noise, log_softmax

V = 50
NAMES = ("logits", "positions", "logit_rows", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
OP = Sample(
    **{name: name for name in (*NAMES, "seen", "token", "logprob", "top_tokens", "top_logprobs")}, usable=V - 2, top=3
)


def draw(logits: Any, draws: int = 1, **parameters: Any) -> tuple[Any, ...]:
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
    return OP.evaluate(arrays)


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
