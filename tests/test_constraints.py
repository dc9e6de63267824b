"""What a request forbids and favours, against Transformers' own logits processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from anthesis.engine.constraints import Constraints, nothing_is_allowed

VOCABULARY = 20
FEW = st.integers(0, 3)
"""Tokens of which texts repeat themselves."""
TOKEN = st.one_of(FEW, st.integers(0, VOCABULARY - 1))


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of `Constraints`, but for the prompt's length."""
    end_ids = draw(st.frozensets(TOKEN, max_size=2))
    words = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=4).map(tuple), max_size=8))
    words += [(token,) for token in end_ids if draw(st.booleans())]
    words += [(*word, draw(TOKEN)) for word in words if draw(st.booleans())]  # that begin alike
    bias = st.floats(-10, 10, width=16)
    return {
        "end_ids": end_ids,
        "bad_words": tuple(words),
        "no_repeat_ngram_size": draw(st.none() | st.integers(1, 5)),
        "min_new_tokens": draw(st.integers(0, 8)),
        "forced_prefix": tuple(draw(st.lists(TOKEN, max_size=3))),
        "logit_bias": tuple(draw(st.dictionaries(TOKEN, bias, max_size=4)).items()),
    }


def processed(
    request: dict[str, Any], prompt_tokens: int, tokens: list[int], logits: np.ndarray, penalty: float | None = None
) -> np.ndarray:
    """The logits (V,) float32 of the next token by Transformers' processors, in the order of its `generate`."""
    found: list[Any] = []
    if request["logit_bias"]:
        found.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in request["logit_bias"]]))
    if penalty is not None:
        found.append(RepetitionPenaltyLogitsProcessor(penalty))
    if request["no_repeat_ngram_size"] is not None:
        found.append(NoRepeatNGramLogitsProcessor(request["no_repeat_ngram_size"]))
    end_ids = sorted(request["end_ids"])
    bad_words = [[*word] for word in request["bad_words"]]
    if any(len(word) > 1 or word[0] not in end_ids for word in bad_words):  # it can't be told of none
        found.append(NoBadWordsLogitsProcessor(bad_words, end_ids or None))
    if request["min_new_tokens"] and end_ids:
        found.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, request["min_new_tokens"], end_ids))
    forced = request["forced_prefix"][len(tokens) - prompt_tokens :][:1]
    if forced:
        found.append(PrefixConstrainedLogitsProcessor(lambda batch_id, text: forced, 1))
    return called(found, tokens, logits)


def called(found: list[Any], tokens: list[int], logits: np.ndarray) -> np.ndarray:
    scores: np.ndarray = LogitsProcessorList(found)(torch.tensor([tokens]), torch.from_numpy(logits.copy())[None])
    return scores[0].numpy()


def random_logits(data: st.DataObject) -> np.ndarray:
    seed = data.draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(st.data(), requests(), st.lists(TOKEN, min_size=1, max_size=12))
def test_logits_are_those_of_transformers(data: st.DataObject, request: dict[str, Any], prompt: list[int]) -> None:
    """One object is asked about three beams in any order: they grow, are cut, and take over each other's text."""
    constraints = Constraints(prompt_tokens=len(prompt), **request)
    beams = [[*prompt] for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 12))):
        row, source = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        kept = data.draw(st.integers(len(prompt), len(beams[source])))
        beams[row] = beams[source][:kept] + data.draw(st.lists(TOKEN, max_size=6))
        logits = random_logits(data)
        found = logits.copy()
        constraints.apply(beams[row], found)
        assert constraints.needs_logits(len(beams[row])) or np.array_equal(found, logits)
        assert np.array_equal(found, processed(request, len(prompt), beams[row], logits))


@settings(max_examples=50, deadline=None)
@given(st.data(), requests(), st.lists(TOKEN, min_size=1, max_size=12), st.sampled_from([0.5, 1.3]))
def test_a_repetition_penalty_may_come_afterwards(
    data: st.DataObject, request: dict[str, Any], prompt: list[int], penalty: float
) -> None:
    """Though Transformers has it between the bias and all that forbids."""
    logits = random_logits(data)
    found = logits.copy()
    Constraints(prompt_tokens=len(prompt), **request).apply(prompt, found)
    after = called([RepetitionPenaltyLogitsProcessor(penalty)], prompt, found)
    assert np.array_equal(after, processed(request, len(prompt), prompt, logits, penalty))


def allowed(tokens: list[int], **request: Any) -> set[int]:
    """The tokens that may come next, of a prompt of one token and what follows it."""
    logits = np.zeros(VOCABULARY, np.float32)
    Constraints(prompt_tokens=1, **request).apply(tokens, logits)
    return set(np.flatnonzero(logits > -np.inf).tolist())


ALL = set(range(VOCABULARY))


def test_what_each_of_them_forbids() -> None:
    assert allowed([5]) == ALL
    assert allowed([5], bad_words=[(3,), (5, 6), (5, 7, 8), (2, 9)]) == ALL - {3, 6}
    assert allowed([5, 7], bad_words=[(3,), (5, 6), (5, 7, 8), (2, 9)]) == ALL - {3, 8}
    assert allowed([5], bad_words=[(2,), (5, 2)], end_ids=frozenset({2})) == ALL - {2}
    assert allowed([5, 6], bad_words=[(2,), (5, 2)], end_ids=frozenset({2})) == ALL
    assert allowed([5, 6, 5, 7, 5], no_repeat_ngram_size=2) == ALL - {6, 7}
    assert allowed([5, 6, 5, 7, 5], no_repeat_ngram_size=1) == ALL - {5, 6, 7}
    assert allowed([5, 6, 5, 7, 5], no_repeat_ngram_size=3) == ALL
    assert allowed([5, 6, 7], min_new_tokens=3, end_ids=frozenset({2, 4})) == ALL - {2, 4}
    assert allowed([5, 6, 7, 8], min_new_tokens=3, end_ids=frozenset({2, 4})) == ALL
    assert allowed([5], forced_prefix=(9, 8)) == {9}
    assert allowed([5, 9], forced_prefix=(9, 8)) == {8}
    assert allowed([5, 9, 8], forced_prefix=(9, 8)) == ALL
    assert allowed([5], forced_prefix=(9,), bad_words=[(9,)]) == {9}


def test_an_end_that_the_vocabulary_does_not_have_is_forbidden_all_the_same() -> None:
    assert allowed([5], min_new_tokens=1, end_ids=frozenset({2, VOCABULARY})) == ALL - {2}


def test_it_is_seen_when_nothing_is_allowed() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    words = [(token,) for token in range(VOCABULARY)]
    Constraints(prompt_tokens=1, bad_words=words[1:]).apply([5], logits)
    assert not nothing_is_allowed(logits)
    Constraints(prompt_tokens=1, bad_words=words[:1]).apply([5], logits)
    assert nothing_is_allowed(logits)


@pytest.mark.parametrize(
    ("request_", "until"),
    [
        ({}, 0),
        ({"end_ids": frozenset({2})}, 0),
        ({"min_new_tokens": 3}, 0),
        ({"min_new_tokens": 3, "end_ids": frozenset({2})}, 3),
        ({"forced_prefix": (4, 5)}, 2),
        ({"bad_words": [(2,)], "end_ids": frozenset({2})}, 0),
        ({"bad_words": [(4, 5)]}, 99),
        ({"no_repeat_ngram_size": 2}, 99),
        ({"logit_bias": [(4, 1.0)]}, 99),
    ],
    ids=str,
)
def test_logits_are_wanted_for_as_long_as_something_may_change_them(request_: dict[str, Any], until: int) -> None:
    constraints = Constraints(prompt_tokens=7, **request_)
    assert [constraints.needs_logits(7 + new) for new in range(99)] == [new < until for new in range(99)]
