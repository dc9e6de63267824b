"""anthesis.hf's generate against transformers' own: the same tokens, scores, shapes and padding, in float32."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation import BaseStreamer

from anthesis.errors import AnthesisError, RequestError
from anthesis.hf import AnthesisForCausalLM, accelerate, direct
from anthesis.hf.options import SUPPORTED
from hf_models import PAD, TIE, VOCABULARY, both, padded, same, tiny

Pair = tuple[PreTrainedModel, AnthesisForCausalLM]


@cache
def pair_of(family: str) -> Pair:
    """Transformers' model and ours."""
    model = tiny(family)
    return model, accelerate(model, device="cpu", threads=1)


@pytest.fixture(params=["bloom", "llama"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@pytest.fixture
def llama() -> Pair:
    return pair_of("llama")


# --- random requests -------------------------------------------------------------------------------------------------

TOKENS = st.integers(PAD + 1, VOCABULARY - 1)
ENDS = st.one_of(st.none(), TOKENS, st.lists(TOKENS, min_size=1, max_size=8, unique=True))
RULES: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.sampled_from([0.7, 1.3, 3.0]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(st.lists(TOKENS, min_size=1, max_size=2), min_size=1, max_size=9),
    "min_new_tokens": st.integers(1, 6),
    "min_length": st.integers(1, 12),
    "suppress_tokens": st.lists(TOKENS, min_size=1, max_size=9),
    "begin_suppress_tokens": st.lists(TOKENS, min_size=1, max_size=9),
    "sequence_bias": st.dictionaries(st.tuples(TOKENS), st.sampled_from([-9.0, 5.0]), min_size=1, max_size=5),
    "renormalize_logits": st.just(True),
}


@st.composite
def requests(draw: st.DrawFn, *, beams: bool) -> dict[str, Any]:
    """Arguments of generate: prompts, lengths, ends, and a few of the rules."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    asked = padded(lengths, draw(st.integers(0, 99)))
    new = draw(st.integers(1, 8))
    asked |= {"max_new_tokens": new} if draw(st.booleans()) else {"max_length": max(lengths) + new}
    asked["eos_token_id"] = draw(ENDS)
    asked["pad_token_id"] = draw(st.sampled_from([PAD, 0]))  # 0 is none to transformers' beam search
    for name in draw(st.lists(st.sampled_from(sorted(RULES)), max_size=2, unique=True)):
        asked[name] = draw(RULES[name])
    if beams:
        asked["num_beams"] = draw(st.integers(2, 4))
        asked["num_return_sequences"] = draw(st.integers(1, asked["num_beams"]))
        asked["length_penalty"] = draw(st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]))
        asked["early_stopping"] = draw(st.sampled_from([False, True, "never"]))
    return asked


TRIES = settings(max_examples=100, deadline=None, derandomize=True)


@TRIES
@given(family=st.sampled_from(["bloom", "llama"]), asked=requests(beams=False), scored=st.booleans())
def test_random_greedy_requests(family, asked, scored):
    kept = {"return_dict_in_generate": True, "output_scores": scored, "output_logits": scored}
    expected, found = both(*pair_of(family), **asked, **kept)
    assert type(found) is type(expected)
    if not same(expected.sequences, found.sequences):
        check_tie(*both(*pair_of(family), **asked, **{**kept, "output_scores": True}))
    elif scored:
        check_steps(expected, found, asked["input_ids"].shape[1], asked["pad_token_id"])


def check_tie(expected: Any, found: Any) -> None:
    """Accepts other tokens where transformers' two best were equal but for rounding, and fails otherwise."""
    width = min(expected.sequences.shape[1], found.sequences.shape[1])
    differs = expected.sequences[:, :width] != found.sequences[:, :width]
    assert differs.any(), f"shapes {tuple(expected.sequences.shape)} and {tuple(found.sequences.shape)}"
    first = int(differs.any(dim=0).nonzero()[0])
    scores = expected.scores[first - (expected.sequences.shape[1] - len(expected.scores))]
    best = scores[differs[:, first]].topk(2).values
    assert (best[:, 0] - best[:, 1]).max() < TIE, f"{expected.sequences}\n{found.sequences}"


def check_steps(expected: Any, found: Any, length: int, pad: int) -> None:
    """Compares scores and logits of rows that were not over; of others there is nothing to compute."""
    over = torch.zeros(len(found.sequences), dtype=torch.bool)
    assert len(found.scores) == len(found.logits) == len(expected.scores) == found.sequences.shape[1] - length
    for step, kept in enumerate(zip(expected.scores, found.scores, expected.logits, found.logits, strict=True)):
        tokens = found.sequences[:, length + step]
        over |= (tokens == pad) & (expected.sequences[:, length + step] == pad)
        for theirs, ours in (kept[:2], kept[2:]):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            torch.testing.assert_close(ours[~over], theirs[~over], atol=TIE, rtol=1e-4)


@TRIES
@given(family=st.sampled_from(["bloom", "llama"]), asked=requests(beams=True))
def test_random_beam_requests(family, asked):
    kept = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected, found = both(*pair_of(family), **asked, **kept)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=TIE, rtol=1e-4)
    if not same(expected.sequences, found.sequences):
        gaps = expected.sequences_scores.diff().abs()
        assert len(gaps) and gaps.min() < TIE, f"{expected.sequences}\n{found.sequences}"
        return
    assert same(expected.beam_indices, found.beam_indices)
    plain = both(*pair_of(family), **asked)[1]
    assert same(expected.sequences, plain)


# --- every supported field -------------------------------------------------------------------------------------------

SAMPLED: dict[str, Any] = {"do_sample": True, "renormalize_logits": True, "top_k": 0}
EFFECTS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 9},
    "max_new_tokens": {"max_new_tokens": 3},
    "min_length": {"min_length": 12, "eos_token_id": list(range(4, 40))},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": list(range(4, 40))},
    "early_stopping": {
        "num_beams": 3,
        "length_penalty": 3.0,
        "early_stopping": True,
        "eos_token_id": list(range(4, 24)),
    },
    "do_sample": {"do_sample": True, "typical_p": 0.99},
    "num_beams": {"num_beams": 3},
    "temperature": {**SAMPLED, "temperature": 3.0},
    "top_k": {**SAMPLED, "top_k": 4},
    "top_p": {**SAMPLED, "top_p": 0.4},
    "min_p": {**SAMPLED, "min_p": 0.3},
    "top_h": {**SAMPLED, "top_h": 0.5},
    "typical_p": {**SAMPLED, "typical_p": 0.4},
    "epsilon_cutoff": {**SAMPLED, "epsilon_cutoff": 0.05},
    "eta_cutoff": {**SAMPLED, "eta_cutoff": 0.3},
    "repetition_penalty": {"repetition_penalty": 4.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
    "length_penalty": {"num_beams": 3, "length_penalty": -2.0, "eos_token_id": list(range(4, 14))},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(4, 30)]},
    "renormalize_logits": {"renormalize_logits": True, "return_dict_in_generate": True, "output_scores": True},
    "forced_bos_token_id": {"forced_bos_token_id": 7, "lengths": [1, 1]},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 9.0)},
    "suppress_tokens": {"suppress_tokens": list(range(4, 30))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(4, 30))},
    "sequence_bias": {"sequence_bias": {(9,): 20.0, (9, 9): -30.0}},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=20.0, seeding_scheme="selfhash")},
    "num_return_sequences": {"num_beams": 3, "num_return_sequences": 2},
    "output_scores": {"return_dict_in_generate": True, "output_scores": True},
    "output_logits": {"return_dict_in_generate": True, "output_logits": True},
    "return_dict_in_generate": {"return_dict_in_generate": True},
    "pad_token_id": {"pad_token_id": 1, "eos_token_id": list(range(4, 20))},
    "bos_token_id": {"bos_token_id": 17, "lengths": None},
    "eos_token_id": {"eos_token_id": list(range(4, 20))},
}
NOT_SEEN = {"renormalize_logits", "remove_invalid_values", "return_dict_in_generate", "output_scores", "output_logits"}
"""Fields that change no token of a sound model."""

ELSEWHERE = {"max_time", "stop_strings"}
"""Fields whose effect has a test of its own."""


def test_every_supported_field_is_tried():
    assert set(EFFECTS) | ELSEWHERE == SUPPORTED


@pytest.mark.parametrize("field", sorted(EFFECTS))
def test_a_supported_field_does_what_it_does_in_transformers(pair, field):
    asked = dict(EFFECTS[field])
    lengths = asked.pop("lengths", [5, 2, 7])
    prompt = padded(lengths) if lengths else {}
    plain: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": 2}
    arguments = {**prompt, **({"eos_token_id": 2} if field == "max_length" else plain), **asked}
    expected, found = both(*pair, **arguments)
    assert type(found) is type(expected)
    for name in expected.keys() if not isinstance(expected, torch.Tensor) else ():
        assert name in ("past_key_values", "cache") or (found[name] is None) == (expected[name] is None)
    if field == "renormalize_logits":
        torch.testing.assert_close(found.scores[0], expected.scores[0], atol=TIE, rtol=1e-4)
        assert (found.scores[0].exp().sum(dim=1) - 1).abs().max() < TIE
    expected, found = (one if isinstance(one, torch.Tensor) else one.sequences for one in (expected, found))
    assert same(expected, found), f"{expected}\n{found}"
    if field not in NOT_SEEN:
        without = {**plain, **{name: value for name, value in arguments.items() if name != field}}
        changed = both(*pair, **without)[1]
        assert not same(changed if isinstance(changed, torch.Tensor) else changed.sequences, found), "it had no effect"


# --- what is not a field of the configuration ------------------------------------------------------------------------


def test_a_plain_request_goes_the_direct_way(llama):
    """Where no scores are asked for, the engine does all of it: nothing waits for Python between two steps."""
    _, ours = llama
    prompt = padded([5, 5])
    asked = {"max_new_tokens": 4, "do_sample": True, "top_k": 5, "temperature": 0.5, "repetition_penalty": 1.2}
    for arguments in ({"max_new_tokens": 4}, asked):
        assert plan_of(ours, **prompt, **arguments) is not None
    for more in ({"typical_p": 0.5}, {"eos_token_id": 9}, {"stop_strings": "x"}, {"no_repeat_ngram_size": 2}):
        assert plan_of(ours, **prompt, **asked, **more) is None


def plan_of(ours: AnthesisForCausalLM, **arguments: Any) -> object:
    return direct.plan(ours.llm, ours.request(**arguments))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 2.5},
        {"temperature": 3.0, "top_k": 7},
        {"temperature": 3.0, "top_p": 0.6},
        {"temperature": 6.0, "min_p": 0.4},
        {"temperature": 3.0, "repetition_penalty": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_sampling_has_the_distribution_of_transformers(llama, asked):
    """Chi-square of tokens drawn the direct way, against the probabilities that transformers' processors leave."""
    theirs, ours = llama
    prompt, rows = padded([6]), 4000
    asked = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "eos_token_id": 2, **asked}
    kept = theirs.generate(**prompt, **asked, return_dict_in_generate=True, output_scores=True)
    expected = kept.scores[0][0].softmax(dim=0).double().numpy() * rows
    torch.manual_seed(1)
    assert plan_of(ours, **prompt, **asked) is not None
    drawn = ours.generate(**prompt, **asked, num_return_sequences=rows)[:, -1].numpy()
    found = np.bincount(drawn, minlength=VOCABULARY)
    assert not found[expected == 0].any(), "drawn, though transformers never would"
    often = expected >= 5
    expected = np.append(expected[often], expected[~often].sum())
    found = np.append(found[often], found[~often].sum())
    kept = expected > 0
    chi = np.sum((found - expected)[kept] ** 2 / expected[kept])
    freedom = kept.sum() - 1
    assert freedom >= 2
    assert chi < freedom + 4 * np.sqrt(2 * freedom), f"chi-square {chi:.1f} with {freedom} degrees of freedom"


def test_a_seed_of_torch_makes_sampling_repeatable(llama):
    _, ours = llama
    for more in ({}, {"typical_p": 0.9}):  # the direct way, and step by step
        asked = {**padded([4, 2]), "max_new_tokens": 8, "do_sample": True, "temperature": 3.0, **more}
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(ours.generate(**asked, num_return_sequences=2))
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
        assert len(set(map(tuple, found[0].tolist()))) == 4, "rows of one prompt are drawn each by itself"


class Favour(LogitsProcessor):
    """Adds to one token's score, by the place it is at; remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        scores = scores.clone()
        scores[:, 10 + input_ids.shape[1] % 3] += 50.0
        return scores


class AfterTwo(StoppingCriteria):
    """Ends a row at its second token 11."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids == 11).sum(dim=1) >= 2


@pytest.mark.parametrize("ends", [2, None])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_processors_and_criteria_of_the_callers_own(pair, num_beams, ends):
    seen = []
    for model in pair:
        favour = Favour()
        prompt = padded([4, 2])
        prompt["input_ids"][0, -1] = 11  # so that the first row is over before the other
        asked = {**prompt, "max_new_tokens": 9, "num_beams": num_beams, "eos_token_id": ends}
        rows = model.generate(
            **asked,
            logits_processor=LogitsProcessorList([favour]),
            stopping_criteria=StoppingCriteriaList([AfterTwo()]),
        )
        seen.append([rows, *favour.seen])
    assert len(seen[0]) == len(seen[1]) > 3
    if num_beams == 1:
        assert all(torch.equal(theirs, ours) for theirs, ours in zip(*seen, strict=True))
    assert same(seen[0][0], seen[1][0])


class AtOnce(StoppingCriteria):
    """Ends rows that begin with padding at their first token."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, 0] == PAD


@pytest.mark.parametrize("ends", [2, None])
def test_rows_that_are_over_go_on_where_nothing_tells_an_end(pair, ends):
    """As they do in transformers, which pads them only where an end of sequence is known."""
    asked = {**padded([4, 2]), "max_new_tokens": 6, "eos_token_id": ends}
    expected, found = both(*pair, **asked, stopping_criteria=StoppingCriteriaList([AtOnce()]))
    assert same(expected, found)
    assert found.shape == (2, 10)
    assert bool((found[1, 5:] == PAD).all()) == (ends is not None)


def test_a_processor_of_the_callers_takes_the_place_of_its_kind(pair):
    own = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(9.0)])
    asked = {**padded([5]), "max_new_tokens": 8, "repetition_penalty": 1.1}
    expected, found = both(*pair, **asked, logits_processor=own)
    assert same(expected, found)
    assert not same(found, both(*pair, **asked)[1])


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_allowed_tokens_by_prefix(pair, more):
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        return [20 + row, 30 + (int(ids[-1]) + len(ids)) % 7]

    expected, found = both(*pair, **padded([4, 2]), max_new_tokens=6, prefix_allowed_tokens_fn=allowed, **more)
    assert same(expected, found)


class Record(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(("lengths", "more"), [([5], {}), ([5], {"typical_p": 0.5, "do_sample": True}), ([4, 2], {})])
def test_a_streamer_is_given_the_prompt_and_each_token(pair, lengths, more):
    streams = []
    for model in pair:
        record = Record()
        torch.manual_seed(0)
        model.generate(**padded(lengths), max_new_tokens=5, streamer=record, eos_token_id=2, **more)
        assert record.ended
        streams.append(record.values)
    theirs, ours = streams
    assert len(ours) == 6
    assert all(same(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("more", [{}, {"temperature": 2.0, "top_k": 9, "eos_token_id": list(range(4, 12))}], ids=str)
def test_drawn_beams(pair, more):
    expected, found = both(
        *pair, **padded([4, 2]), max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=True, **more
    )
    assert same(expected, found)


def test_max_time_ends_the_call(llama):
    _, ours = llama
    begin = time.monotonic()
    rows = ours.generate(**padded([3]), max_new_tokens=200, max_time=1e-3, eos_token_id=None)
    assert 4 <= rows.shape[1] < 200
    assert time.monotonic() - begin < 5


def test_padding_is_found_where_no_mask_is_given(pair):
    prompt = padded([5, 2])
    expected, found = both(*pair, input_ids=prompt["input_ids"], max_new_tokens=6)
    assert same(expected, found)
    assert same(found, pair[1].generate(prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=6))


def test_a_configuration_goes_before_the_models_and_arguments_before_both(llama):
    theirs, ours = llama
    prompt = padded([3])
    given = GenerationConfig(max_new_tokens=7, eos_token_id=2)
    ours.generation_config.max_new_tokens = theirs.generation_config.max_new_tokens = 5
    try:
        assert ours.generate(**prompt).shape[1] == 8
        assert ours.generate(**prompt, generation_config=given).shape[1] == 10
        assert ours.generate(**prompt, generation_config=given, max_new_tokens=2).shape[1] == 5
        assert same(*both(*llama, **prompt, generation_config=given, max_new_tokens=2))
    finally:
        ours.generation_config.max_new_tokens = theirs.generation_config.max_new_tokens = None
    assert given.max_new_tokens == 7


def test_transition_scores(pair):
    found = [
        model.compute_transition_scores(kept.sequences, kept.scores, kept.get("beam_indices"))
        for beams in (1, 2)
        for model, kept in zip(
            pair,
            both(
                *pair,
                **padded([4, 2]),
                max_new_tokens=4,
                num_beams=beams,
                return_dict_in_generate=True,
                output_scores=True,
            ),
            strict=True,
        )
    ]
    for theirs, ours in (found[:2], found[2:]):
        torch.testing.assert_close(ours, theirs, atol=TIE, rtol=1e-4)


def test_a_completion_ends_with_the_context_and_says_so(llama):
    _, ours = llama
    prompt = padded([250])
    with pytest.warns(UserWarning, match="context of 256 tokens"):
        rows = ours.generate(**prompt, max_new_tokens=10, eos_token_id=None)
    assert rows.shape[1] == 256
    with pytest.raises(RequestError, match="no room for a completion"):
        ours.generate(**padded([256]), max_new_tokens=1)


def test_logits_and_loss_are_those_of_transformers(pair):
    theirs, ours = pair
    prompt = padded([6, 4])
    labels = torch.where(prompt["attention_mask"].cumsum(1) > 1, prompt["input_ids"], -100)
    with torch.no_grad():
        expected = theirs(**prompt, labels=labels)
    found = ours(**prompt, labels=labels)
    kept = prompt["attention_mask"].bool()
    torch.testing.assert_close(found.logits[kept], expected.logits[kept], atol=TIE, rtol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, atol=TIE, rtol=1e-4)
    assert not found.logits[~kept].any()
    loss, logits = ours(**prompt, labels=labels, return_dict=False)
    assert torch.equal(loss, found.loss)
    assert torch.equal(logits, found.logits)


def test_logits_that_are_no_numbers_are_an_error():
    broken = tiny("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(3e38)
        broken.lm_head.weight.fill_(3e38)
    with accelerate(broken, device="cpu", threads=1) as ours:
        for more in ({}, {"no_repeat_ngram_size": 2}):
            with pytest.raises(AnthesisError, match="logits"):
                ours.generate(**padded([3]), max_new_tokens=2, **more)
