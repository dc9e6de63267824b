"""Models split over ranks, against transformers in float64 and against themselves on one rank."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BloomConfig, LlamaConfig

from anthesis import LLM
from anthesis.engine.loaded import LoadedModel
from decoding_ways import decoded, reused
from parity.truth import TOLERANCE, VOCABULARY, check_greedy, difference, prompts, random_model, save, true_logits
from programs import step_inputs
from rank_threads import Rank, spread

CONFIGS = {
    "bloom-12": BloomConfig(hidden_size=384, n_head=12, n_layer=2, vocab_size=VOCABULARY),
    "bloom-16": BloomConfig(hidden_size=512, n_head=16, n_layer=2, vocab_size=VOCABULARY),
    "llama-3": LlamaConfig(
        hidden_size=288, intermediate_size=576, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=VOCABULARY, max_position_embeddings=256, tie_word_embeddings=True,
    ),
}  # fmt: skip

RANKS = (2, 3, 4)
TEXTS = prompts((1, 7, 65, 70))


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    """A model of transformers in float64, and where it is saved."""
    model = random_model(CONFIGS[request.param])
    return model, save(model, tmp_path_factory.mktemp(request.param))


NOISE = 0.15
"""What rounding inputs to eight bits may make of a lead. Sums over ranks differ in their last bits, which now and then
rounds an input the other way, and the next layers enlarge that: on two lively layers as these by up to 0.1.
"""


def greedy(rank: Rank) -> list[list[int]]:
    return [sequence.completion for sequence in rank.generate(TEXTS, max_new_tokens=48)]


@pytest.mark.parametrize("tp", RANKS)
def test_the_same_tokens_over_any_number_of_ranks(saved, tp):
    _, directory = saved
    (expected,) = spread(directory, 1, greedy, weights="fp32")
    assert len({tuple(tokens) for tokens in expected}) == len(TEXTS)
    assert spread(directory, tp, greedy, weights="fp32") == [expected] * tp


@pytest.mark.parametrize("weights", ["int8", "int8-g32", "int4", "int4m"])
def test_the_same_choices_of_quantised_weights(saved, weights):
    """At every place of a text, wherever the best token leads by more than rounding may take from it."""
    _, directory = saved
    (completions,) = spread(directory, 1, greedy, weights=weights)
    texts = [prompt + completion for prompt, completion in zip(TEXTS, completions, strict=True)]

    def choices(rank: Rank) -> list[np.ndarray]:
        return [rank.logits(text)[len(prompt) - 1 : -1] for prompt, text in zip(TEXTS, texts, strict=True)]

    (alone,) = spread(directory, 1, choices, weights=weights)
    for tp in RANKS:
        first, *others = spread(directory, tp, choices, weights=weights)
        for logits, tokens, whole in zip(first, completions, alone, strict=True):
            second, best = np.sort(whole, axis=1)[:, -2:].T
            leads = best - second > NOISE
            assert leads.mean() > 0.8
            assert np.array_equal(logits.argmax(axis=1)[leads], np.array(tokens)[leads])
        assert all(np.array_equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("tp", RANKS)
def test_rounding_costs_no_more_over_ranks(saved, tp, weights):
    """Logits of weights that round their inputs are as far from the exact ones as those of a single rank."""
    _, directory = saved
    exact = spread(directory, 1, lambda rank: rank.logits(TEXTS[-1]), weights=weights, device="reference-fp64")[0]
    alone = spread(directory, 1, lambda rank: rank.logits(TEXTS[-1]), weights=weights)[0]
    spread_out = spread(directory, tp, lambda rank: rank.logits(TEXTS[-1]), weights=weights)[0]
    errors = [np.sqrt(np.square(found - exact).mean()) for found in (alone, spread_out)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("tp", RANKS)
def test_logits_are_those_of_the_truth(saved, tp):
    model, directory = saved

    def work(rank: Rank):
        return [sequence.completion for sequence in rank.generate(TEXTS, max_new_tokens=40)], rank.logits(TEXTS[-1])

    found = spread(directory, tp, work, weights="fp32")
    completions, logits = found[0]
    for other_completions, other_logits in found[1:]:
        assert other_completions == completions
        assert np.array_equal(other_logits, logits), "ranks hold different bits"
    for prompt, completion in zip(TEXTS, completions, strict=True):
        check_greedy(model, prompt, completion)
    assert difference(logits, true_logits(model, TEXTS[-1])) < TOLERANCE


SAMPLINGS = [
    {},
    {"top_k": 5},
    {"top_p": 0.9},
    {"top_k": 40, "top_p": 0.8, "repetition_penalty": 1.3},
    {"min_p": 0.05, "repetition_penalty": 0.8},
    {"top_p": 0.5, "min_p": 0.01},
    {"top_k": 331},
]


@pytest.mark.parametrize("tp", RANKS)
def test_the_same_draws_over_any_number_of_ranks(saved, tp):
    """Log-probabilities too; each token depends on the noise of its own id, which another rank may hold."""
    _, directory = saved
    (logits,) = spread(directory, 1, lambda rank: rank.logits(TEXTS[1]), weights="fp32")
    ordered = np.sort(logits, axis=1)
    temperature = float(np.median(ordered[:, -1] - ordered[:, -10])) / 1.5  # many tokens are likely then

    def draw(rank: Rank):
        found = []
        for seed, sampling in enumerate(SAMPLINGS):
            params = {"temperature": temperature, "seed": seed, "logprobs": 6, "max_new_tokens": 24, **sampling}
            found += rank.generate(TEXTS[:3], **params)
        return [(s.completion, s.logprobs) for s in found]

    (expected,) = spread(directory, 1, draw, weights="fp32")
    chosen_best = np.mean([place.logprob == place.top[0][1] for _, places in expected for place in places])
    assert 0.1 < chosen_best < 0.7, "few draws are of the most likely token"
    for found in spread(directory, tp, draw, weights="fp32"):
        for (tokens, logprobs), (true_tokens, true_logprobs) in zip(found, expected, strict=True):
            assert tokens == true_tokens
            for place, true in zip(logprobs, true_logprobs, strict=True):
                assert [token for token, _ in place.top] == [token for token, _ in true.top]
                assert place.logprob == pytest.approx(true.logprob, abs=TOLERANCE)
                assert [p for _, p in place.top] == pytest.approx([p for _, p in true.top], abs=TOLERANCE)


def test_the_reference_device_over_ranks(saved):
    model, directory = saved
    options = {"weights": "fp32", "device": "reference-fp64"}
    for tokens, logits in spread(
        directory, 3, lambda r: (r.generate(TEXTS[:1], max_new_tokens=2)[0].completion, r.logits(TEXTS[1])), **options
    ):
        check_greedy(model, TEXTS[0], tokens, compared=0.5)
        assert difference(logits, true_logits(model, TEXTS[1])) < TOLERANCE / 2


LAYOUTS = [(2, 1), (3, 1), (4, 1), (1, 2), (2, 2)]


def check_processes(directory, tp, pp, weights):
    """What `LLM` starts computes what threads do: each stage's sums are added in the same order."""
    drawing = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "top_p": 0.9}

    def work(rank: Rank):
        drawn = [sequence.completion for sequence in rank.generate(TEXTS, **drawing)]
        return greedy(rank), drawn, rank.logits(TEXTS[2])

    completions, drawn, logits = spread(directory, tp, work, weights=weights)[0]
    with LLM(str(directory), tp=tp, pp=pp, weights=weights, device="cpu", cache="fp32") as llm:
        found = llm.generate(TEXTS, max_new_tokens=48, ignore_eos=True)
        assert [completion.token_ids for completion in found] == completions
        assert [c.token_ids for c in llm.generate(TEXTS, ignore_eos=True, **drawing)] == drawn
        assert np.array_equal(llm.logits(TEXTS[2]), logits)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_processes(saved, weights, tp, pp):
    check_processes(saved[1], tp, pp, weights)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["llama-3"], indirect=True)
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_every_way_of_decoding_over_ranks(saved, tp, pp):
    with LLM(str(saved[1]), device="cpu", cache="fp32", reuse_prefixes=False) as llm:
        expected = decoded(llm)
    with LLM(str(saved[1]), tp=tp, pp=pp, device="cpu", cache="fp32", speculate="lookup") as llm:
        assert decoded(llm) == expected
        assert reused(llm) > 100


def test_two_processes(saved):
    check_processes(saved[1], 2, 1, "fp32")


def check_copies(model: LoadedModel) -> np.ndarray:
    """A copied block is as good as its source on every rank; gives the logits (1, V) that say so."""
    cache = model.allocate(6)
    executable = model.compile("logits", None, cache)
    executable.run(step_inputs([(0, 0, [*range(70)])], blocks_each=2))
    next_token = step_inputs([(0, 70, [7])], blocks_each=2)
    expected = executable.run(next_token)["logits"].copy()
    model.copy_blocks(cache, [1, 2, 2], [5, 4, 3])
    for table in ([5, 3], [1, 4], [5, 2]):
        assert np.array_equal(
            executable.run({**next_token, "block_table": np.array([table], np.int32)})["logits"], expected
        )
    empty = executable.run({**next_token, "block_table": np.array([[0, 2]], np.int32)})["logits"]
    assert np.abs(empty - expected).max() > 0.01
    return expected


@pytest.mark.parametrize("saved", ["llama-3"], indirect=True)
def test_blocks_are_copied_on_all_ranks(saved):
    """Rank 0 of two processes tells the other one."""
    first, second = spread(saved[1], 2, lambda rank: check_copies(rank.model), weights="fp32")
    assert np.array_equal(first, second)
    with LLM(str(saved[1]), tp=2, weights="fp32", device="cpu", cache="fp32") as llm:
        assert np.array_equal(check_copies(llm.loaded), first)


@pytest.mark.parametrize("saved", ["llama-3"], indirect=True)
@pytest.mark.parametrize(("sources", "targets"), [([1, 2], [3, 1]), ([1, 2], [3, 3]), ([1], [2, 3])])
def test_copies_that_depend_on_their_order_are_refused(saved, sources, targets):
    def copy(rank: Rank) -> None:
        rank.model.copy_blocks(rank.model.allocate(4), sources, targets)

    with pytest.raises(AssertionError, match="a block is copied onto one that is copied too"):
        spread(saved[1], 1, copy, weights="fp32")
