"""Speculation: it gives what there would be without it, learns when drafts are worth it, and loses little."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anthesis import LLM
from anthesis.engine.draft_model import DraftModel
from anthesis.engine.lookup import PromptLookup
from anthesis.engine.sequence import Sequence as Text
from anthesis.engine.speculation import HORIZON, MAX_DRAFT, MOST_LOST, Acceptance, Speculation
from anthesis.engine.step_time import SIZES, StepTimes, measure_steps
from anthesis.errors import RequestError, UnsupportedError
from parity.truth import random_model, save
from programs import LLAMA
from test_decoding import configs

PROMPTS = [[5, 6, 7, 8, 5, 6], list(range(12, 60)) * 2, [9, 8, 7], [20, 21, 22] * 9, [2, 2, 2, 2]]


def random(directory: Path, **changes: Any) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps({**LLAMA, "tie_word_embeddings": False, "eos_token_id": 11, **changes}))
    return f"random:{path}"


class Scripted:
    """Drafts that are right with a probability: it knows what follows each prompt."""

    chances = (0.9,) * MAX_DRAFT

    def __init__(self, known: dict[tuple[int, ...], list[int]], chance: float) -> None:
        self._known, self._chance = known, chance
        self._random = np.random.default_rng(0)
        self.forgotten: list[Text] = []

    def evidence(self, sequence: Text) -> int | None:
        return 0

    def draft(self, wanted: dict[Text, int]) -> dict[Text, list[int]]:
        drafts = {}
        for sequence, length in wanted.items():
            begin = len(sequence.tokens) - len(sequence.prompt)
            right = self._known[tuple(sequence.prompt)][begin : begin + length]
            drafts[sequence] = [token if self._random.random() < self._chance else 1 for token in right]
        return drafts

    def cost_s(self, sequences: Sequence[Text], length: int) -> float:
        return 0.0

    def backlog_s(self, sequence: Text) -> float:
        return 0.0

    def first_token(self, sequence: Text) -> int | None:
        return None

    def forget(self, sequence: Text) -> None:
        self.forgotten.append(sequence)


@pytest.fixture(scope="module", params=["bloom", "llama"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(configs()[request.param]), tmp_path_factory.mktemp(request.param))


def with_times(llm: LLM, seconds: Sequence[float]) -> LLM:
    """Fixes what steps are thought to take, so that a test does not depend on the machine."""
    speculation = llm._engine._speculation
    assert speculation is not None
    speculation.times = StepTimes(list(seconds))
    speculation.times.learn = lambda rows, seconds: None  # type: ignore[method-assign]
    return llm


FLAT = [1e-4] * len(SIZES)
SLOPED = [1e-4 * (1 + 0.15 * (size - 1)) for size in SIZES]
STEEP = [1e-4 * size for size in SIZES]


@pytest.fixture(scope="module")
def plain(directory: Path) -> Iterator[LLM]:
    with LLM(str(directory), weights="bf16", device="cpu", threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def looking(directory: Path) -> Iterator[LLM]:
    with LLM(str(directory), weights="bf16", device="cpu", threads=1, speculate="lookup") as llm:
        yield with_times(llm, FLAT)


def test_greedy_texts_are_equal_over_thousands_of_tokens(plain, looking):
    options = {"max_new_tokens": 120, "ignore_eos": True}
    rng = np.random.default_rng(0)
    prompts = PROMPTS + [[int(t) for t in rng.integers(4, 60, n)] * 2 for n in range(1, 36)]
    expected = plain.generate(prompts, **options)
    found = looking.generate(prompts, **options, batch=9)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert sum(len(c.token_ids) for c in found) == 4800
    assert sum(c.accepted_tokens for c in found) > 40, "some of them were drafts"
    assert sum(c.steps for c in found) == 4800 - sum(c.accepted_tokens for c in found)
    assert all(c.drafted_tokens == 0 and c.steps == 120 for c in expected)


@pytest.mark.parametrize("chance", [0.0, 0.6, 1.0])
def test_drafts_of_known_acceptance(plain, chance):
    expected = plain.generate(PROMPTS, max_new_tokens=100, ignore_eos=True)
    known = {tuple(c.prompt_token_ids): c.token_ids for c in expected}
    drafter = Scripted(known, chance)
    plain._engine.speculate(drafter)
    try:
        with_times(plain, FLAT if chance == 1 else SLOPED)
        found = [plain.generate([p], max_new_tokens=100, ignore_eos=True)[0] for p in PROMPTS]
    finally:
        plain._engine._speculation = None
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert len(set(drafter.forgotten)) == len(PROMPTS)
    accepted, drafted = (sum(getattr(c, name) for c in found) for name in ("accepted_tokens", "drafted_tokens"))
    if chance == 1:
        assert accepted == drafted
        assert max(c.steps for c in found) <= 2 + 100 / (1 + MAX_DRAFT) + 1
    elif chance == 0:
        assert drafted < 150, "what is never right is soon not tried any more"
    else:
        assert 0.3 < accepted / drafted < 0.8
        assert 500 / sum(c.steps for c in found) > 1.5


SAMPLED = {"temperature": 0.7, "top_p": 0.95, "top_k": 30, "repetition_penalty": 1.05, "logprobs": 2}


def test_a_seed_gives_the_same_text_with_and_without_drafts(plain, looking):
    """Log-probabilities are equal to the bit: rows of a draft have the arithmetic of rows that come one by one."""
    for seed in range(20):
        options = {"max_new_tokens": 40, "seed": seed, "ignore_eos": True, **SAMPLED}
        expected = plain.generate(PROMPTS, **options)
        found = looking.generate(PROMPTS, **options)
        assert [(c.token_ids, c.logprobs) for c in found] == [(c.token_ids, c.logprobs) for c in expected]


def test_drafts_keep_the_distribution(plain):
    """Pairs of tokens drawn behind a prompt, the second one often an accepted draft, against their probabilities."""
    prompt = PROMPTS[3]
    logits = plain.logits(prompt)[-1].astype(np.float64) / 2.0
    first = np.exp(logits - logits.max())
    first /= first.sum()
    likely = int(first.argmax())
    logits = plain.logits([*prompt, likely])[-1].astype(np.float64) / 2.0
    second = np.exp(logits - logits.max())
    second /= second.sum()
    guess = int(second.argmax())
    drafter = Scripted({tuple(prompt): [likely, guess, guess]}, 1.0)
    plain._engine.speculate(drafter)
    try:
        with_times(plain, FLAT)._engine._speculation._acceptance.learn = lambda *_: None
        options = {"max_new_tokens": 3, "temperature": 2.0, "ignore_eos": True, "seed": 0}
        drawn = plain.generate([prompt], num_return_sequences=2000, batch=200, **options)
    finally:
        plain._engine._speculation = None
    assert sum(c.drafted_tokens for c in drawn) > 200
    assert sum(c.accepted_tokens for c in drawn) > 50
    for seen, chances in (
        (Counter(c.token_ids[0] for c in drawn), first),
        (Counter(c.token_ids[1] for c in drawn if c.token_ids[0] == likely), second),
    ):
        count = sum(seen.values())
        large = chances * count >= 5
        expected = [*(chances[large] * count), chances[~large].sum() * count]
        counts = [*(seen[t] for t in np.flatnonzero(large)), sum(seen[t] for t in np.flatnonzero(~large))]
        squares = sum((a - b) ** 2 / b for a, b in zip(counts, expected, strict=True) if b)
        freedom = len(expected) - 1
        assert squares < freedom + 5 * (2 * freedom) ** 0.5


def test_constraints_hold_for_drafts_too(plain, looking):
    options = {"max_new_tokens": 60, "ignore_eos": True, "no_repeat_ngram_size": 5, "bad_words": [[9], [30, 31]]}
    expected = plain.generate(PROMPTS, **options)
    assert [c.token_ids for c in looking.generate(PROMPTS, **options)] == [c.token_ids for c in expected]


def test_beams_run_beside_texts_with_drafts(plain, looking):
    beams = {"num_beams": 3, "max_new_tokens": 30, "ignore_eos": True}
    expected = plain.generate([PROMPTS[1]], **beams)[0].token_ids
    greedy = plain.generate([PROMPTS[3]], max_new_tokens=40, ignore_eos=True)[0].token_ids
    with looking.submit(PROMPTS[3], max_new_tokens=40, ignore_eos=True) as handle:
        assert looking.generate([PROMPTS[1]], **beams)[0].token_ids == expected
        while not handle.finished:
            looking.step()
        assert handle.completion.token_ids == greedy


def test_the_limit_of_a_text_is_never_passed(looking, plain):
    for new in range(1, 12):
        (found,) = looking.generate([PROMPTS[4]], max_new_tokens=new, ignore_eos=True)
        assert len(found.token_ids) == new
    with LLM(
        str(plain._checkpoint.path), weights="bf16", device="cpu", threads=1, speculate="lookup", max_context=40
    ) as llm:
        (found,) = with_times(llm, FLAT).generate([[7, 8] * 15], max_new_tokens=100, ignore_eos=True)
        assert (len(found.token_ids), found.finish_reason) == (10, "context")


def test_a_model_drafts_for_another(directory, tmp_path):
    """The small model is the large one itself, so all of its drafts are right, greedy and drawn; then another one."""
    options = {"max_new_tokens": 60, "ignore_eos": True}
    drawn = {**options, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.1}
    with LLM(str(directory), device="cpu", threads=1) as llm:
        expected = [[c.token_ids for c in llm.generate(PROMPTS, **o)] for o in (options, drawn)]
    with LLM(str(directory), device="cpu", threads=1, speculate=str(directory)) as llm:
        with_times(llm, FLAT)
        llm._engine._speculation.drafter._times = StepTimes([1e-6] * len(SIZES))
        for wanted, o in zip(expected, (options, drawn), strict=True):
            for batch in (1, 5):
                found = llm.generate(PROMPTS, **o, batch=batch)
                assert [c.token_ids for c in found] == wanted
                assert sum(c.accepted_tokens for c in found) == sum(c.drafted_tokens for c in found) > 200
        assert llm._draft._blocks.num_used == 0, "texts that are over hold nothing in the small model"
    other = save(random_model(type(configs()["llama"])(**configs()["llama"].to_dict()), seed=9), tmp_path)
    with LLM(str(directory), device="cpu", threads=1, speculate=str(other)) as llm:
        with_times(llm, FLAT)
        llm._engine._speculation.drafter._times = StepTimes([1e-6] * len(SIZES))
        found = llm.generate(PROMPTS, **options)
        assert [c.token_ids for c in found] == expected[0]
        assert sum(c.accepted_tokens for c in found) < sum(c.drafted_tokens for c in found)


@pytest.mark.slow
@pytest.mark.timed
def test_a_small_model_drafts_for_a_large_one_where_it_pays():
    """By the times that are measured: the same weights in float32 take several times as long."""
    with LLM(load=False) as llm:
        small = str(llm.path)
    prompt, options = "The history of bread begins", {"max_new_tokens": 60, "ignore_eos": True}
    with LLM(weights="fp32") as llm:
        expected = llm.generate([prompt, prompt * 20], **options, batch=1)
    with LLM(weights="fp32", speculate=small) as llm:
        found = llm.generate([prompt, prompt * 20], **options, batch=1)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert all(c.accepted_tokens > 20 for c in found)


def test_a_draft_model_reads_a_text_only_where_that_may_pay(directory):
    with LLM(str(directory), device="cpu", threads=1, speculate=str(directory)) as llm:
        speculation = with_times(llm, [1e-3] * len(SIZES))._engine._speculation
        assert speculation is not None
        drafter = speculation.drafter
        assert isinstance(drafter, DraftModel)
        drafter._times = StepTimes([1e-5 * size for size in SIZES])
        long = list(range(4, 60)) * 3
        (first,) = llm.generate([long], max_new_tokens=20, ignore_eos=True)
        assert first.drafted_tokens == 0, "reading takes 1.7 ms of some 20, and nothing is known of drafts"
        (short,) = llm.generate([[5, 6]], max_new_tokens=60, ignore_eos=True)
        assert short.accepted_tokens > 30
        (again,) = llm.generate([long], max_new_tokens=20, ignore_eos=True)
        assert again.accepted_tokens > 10, "now it is known that they are right"


def test_a_draft_model_must_fit(directory, tmp_path):
    with pytest.raises(RequestError, match="a draft model must have the same tokenizer"):
        LLM(str(directory), device="cpu", threads=1, speculate=random(tmp_path))
    with pytest.raises(UnsupportedError, match="a draft model beside one on 2 ranks"):
        LLM(str(directory), device="cpu", threads=1, tp=2, speculate=str(directory))
    with pytest.raises(RequestError, match="no such file"):
        LLM(str(directory), device="cpu", threads=1, speculate="./nowhere")


# --- the parts -------------------------------------------------------------------------------------------------------


def text(tokens: list[int]) -> Text:
    from anthesis.engine.sampling import SamplingParams

    params = SamplingParams(max_new_tokens=100)
    return Text(tokens, params, len(tokens) + 100, "length", frozenset(), text_stream=None, vocab_size=100)


@pytest.mark.parametrize(
    ("tokens", "evidence", "draft"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4, 1, 2, 3, 4]),
        ([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 3, [4, 9, 1, 2, 4, 9]),
        ([5, 1, 2, 3, 9, 6, 1, 2, 4, 5, 1, 2], 3, [3, 9, 6, 1, 2, 4]),
        ([7, 7, 7, 7], 3, [7, 7, 7, 7, 7, 7]),
        ([1, 2, 3, 4], None, []),
        ([1], None, []),
    ],
)
def test_look_up(tokens, evidence, draft):
    lookup = PromptLookup()
    sequence = text(tokens)
    assert lookup.evidence(sequence) == evidence
    if evidence is not None:
        assert lookup.draft({sequence: 6}) == {sequence: draft}
        assert lookup.first_token(sequence) == draft[0]


def test_look_up_prefers_the_longest_match_and_follows_a_growing_text():
    tokens = [*range(10, 20), 50, *range(14, 18), 60]
    sequence = text(tokens)
    lookup = PromptLookup()
    assert lookup.evidence(sequence) is None
    sequence.tokens += [11, 12, 13, 14, 15, 16, 17]
    assert lookup.evidence(sequence) == 7
    assert lookup.draft({sequence: 2}) == {sequence: [18, 19]}, "not what followed the shorter, later match"


def test_acceptance_is_learnt_by_evidence():
    acceptance = Acceptance([0.5, 0.5, 0.5])
    for _ in range(100):
        acceptance.learn(0, 4, 1)
    assert acceptance.chance(0) > 0.9
    assert acceptance.chance(1) < 0.1
    assert acceptance.chance(2) == 0.5, "nothing behind a wrong token was looked at"
    before = acceptance.chance(1)
    for _ in range(400):
        acceptance.doubt()
    assert before < acceptance.chance(1) > 0.3


def test_step_times_interpolate_and_follow():
    times = StepTimes([1.0, 1.2, 1.1, 2.0, 3.0, 4.0, 6.0, 8.0])
    assert times.seconds(1) == 1.0
    assert times.seconds(3) == 1.2, "a step of more rows takes no less"
    assert times.seconds(6) == pytest.approx(1.6)
    assert times.seconds(64) == pytest.approx(16.0)
    for _ in range(200):
        times.learn(1, 2.0)
    assert times.seconds(1) == pytest.approx(2.0, rel=0.05)
    assert times.seconds(32) > 8.0
    assert measure_steps(lambda rows: float(rows)).seconds(20) == 20


def test_steep_steps_are_not_worth_uncertain_drafts(looking):
    with_times(looking, STEEP)
    try:
        found = looking.generate(PROMPTS[:1], max_new_tokens=60, ignore_eos=True)
        assert sum(c.drafted_tokens for c in found) < 10
    finally:
        with_times(looking, FLAT)


def test_a_request_loses_no_more_than_its_share(monkeypatch):
    """All drafts are wrong, and look good again and again: what was lost stays within the bound."""
    speculation = Speculation(Scripted({}, 0), StepTimes([0.01 * (1 + 0.2 * (size - 1)) for size in SIZES]))
    sequence = text(list(range(10)))
    elapsed = lost = 0.0
    speculation.drafter.draft = lambda wanted: {s: [1] * n for s, n in wanted.items()}  # type: ignore[method-assign]
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for _ in range(300):
        speculation._acceptance = Acceptance([0.95] * MAX_DRAFT)
        for request in speculation._requests.values():
            request.acceptance = Acceptance([0.95] * MAX_DRAFT)
        sequence.drafts = []
        sequence.limit = len(sequence.tokens) + 50
        speculation.propose([sequence], 1)
        drafted = len(sequence.drafts)
        step = speculation.times.seconds(1 + drafted)
        clock[0] += step
        elapsed += step
        lost += step - speculation.times.seconds(1)
        speculation.verified(sequence, drafted, 0)
    assert 0 < lost <= MOST_LOST * (elapsed + HORIZON * 0.01) * 1.01
