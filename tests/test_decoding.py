"""Ways of decoding: beams, constraints, several completions, shared prefixes, lockstep, speculation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, LlamaConfig, PreTrainedModel

from anthesis import LLM
from anthesis.engine.blocks import MAX_SEQUENCES
from anthesis.errors import AnthesisError, RequestError, UnsupportedError
from parity.truth import random_model, save
from programs import LLAMA

VOCABULARY = 61
PROMPTS = [[5], list(range(3, 60)), [9, 8, 7], list(range(1, 30)), [2, 2, 2, 2]]


def configs() -> dict[str, Any]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "bos_token_id": 1, "pad_token_id": 3}
    llama = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    return {
        "bloom": BloomConfig(**sizes, n_head=4, n_layer=2, eos_token_id=2),
        "llama": LlamaConfig(**sizes, **llama, eos_token_id=[2, 7], max_position_embeddings=256),
    }


class Pair:
    """A model twice: theirs in float32 and ours."""

    def __init__(self, theirs: PreTrainedModel, ours: LLM) -> None:
        self.theirs, self.ours = theirs, ours


@pytest.fixture(scope="module", params=["bloom", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = random_model(configs()[request.param])
    directory = save(model, tmp_path_factory.mktemp(request.param))
    with LLM(str(directory), weights="fp32", device="cpu", threads=1) as llm:
        yield Pair(model.float(), llm)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(random(tmp_path_factory.mktemp("random")), device="cpu", threads=1) as llm:
        yield llm


def random(directory: Path) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps({**LLAMA, "tie_word_embeddings": False, "eos_token_id": 11}))
    return f"random:{path}"


def is_idle(llm: LLM) -> bool:
    blocks = llm._blocks
    return blocks.num_used == 0 and blocks.num_free_slots == MAX_SEQUENCES and not blocks.table.any()


def theirs(model: PreTrainedModel, prompt: list[int], **options: Any) -> Any:
    ids = torch.tensor([prompt])
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=3,
        **options,
    )


def cut(ids: list[int], ends: set[int]) -> list[int]:
    """Without what transformers fills a shorter text with."""
    for i, token in enumerate(ids):
        if token in ends:
            return ids[: i + 1]
    return ids


PROMPT = st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=20)
CONSTRAINTS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "min_new_tokens": st.integers(1, 8),
        "bad_words": st.lists(
            st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3), min_size=1, max_size=8, unique_by=tuple
        ),
        "logit_bias": st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-8, 8, width=16), min_size=1),
    },
)
BEAMS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"num_beams": st.integers(2, 5)},
        optional={
            "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
            "early_stopping": st.sampled_from([True, False, "never"]),
        },
    ),
)


def in_their_words(options: dict[str, Any]) -> dict[str, Any]:
    options = dict(options)
    if "bad_words" in options:
        options["bad_words_ids"] = options.pop("bad_words")
    if "logit_bias" in options:
        options["sequence_bias"] = {(token,): float(bias) for token, bias in options.pop("logit_bias").items()}
    return options


@given(prompt=PROMPT, constraints=CONSTRAINTS, beams=BEAMS, new=st.integers(1, 12), several=st.booleans())
@settings(max_examples=100, deadline=None)
def test_greedy_and_beam_requests_give_what_transformers_gives(pair, prompt, constraints, beams, new, several):
    options = constraints | beams
    new = max(new, options.get("min_new_tokens", 0))
    if several and beams:
        options["num_return_sequences"] = beams["num_beams"]
    expected = theirs(pair.theirs, prompt, max_new_tokens=new, **in_their_words(options))
    found = pair.ours.generate([prompt], max_new_tokens=new, **options)
    ends = set(pair.ours.config.eos_token_ids)
    texts = [cut(ids[len(prompt) :], ends) for ids in expected.sequences.tolist()]
    assert [completion.token_ids for completion in found] == texts
    if beams:
        scores = [completion.score for completion in found]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=2e-4)
    assert is_idle(pair.ours)


def test_beams_of_several_prompts_run_side_by_side(pair):
    options = {"max_new_tokens": 70, "num_beams": 4, "num_return_sequences": 4, "ignore_eos": True}
    alone = [[c.token_ids for c in pair.ours.generate([prompt], **options)] for prompt in PROMPTS]
    together = pair.ours.generate(PROMPTS, **options)
    assert [[c.token_ids for c in together[4 * i : 4 * i + 4]] for i in range(5)] == alone
    expected = theirs(
        pair.theirs,
        PROMPTS[1],
        max_new_tokens=70,
        eos_token_id=None,
        **dict.fromkeys(("num_beams", "num_return_sequences"), 4),
    )
    assert alone[1] == [ids[57:] for ids in expected.sequences.tolist()]
    with pair.ours.submit(PROMPTS[0], max_new_tokens=20, ignore_eos=True) as greedy:
        pair.ours.generate([PROMPTS[1]], **options)
        (alone_too,) = pair.ours.generate([PROMPTS[0]], max_new_tokens=20, ignore_eos=True)
        assert greedy.completion.token_ids == alone_too.token_ids
    assert is_idle(pair.ours)


def test_a_forced_prefix_comes_first_and_in_one_step(llm):
    forced = [7, 7, 11, 30, 31, 32, 33, 34]  # an end of sequence among them
    (completion,) = llm.generate([PROMPTS[1]], max_new_tokens=12, forced_prefix=forced, ignore_eos=True)
    assert completion.token_ids[:8] == forced
    (behind,) = llm.generate([PROMPTS[1] + forced], max_new_tokens=4, ignore_eos=True)
    assert completion.token_ids[8:] == behind.token_ids
    assert completion.steps == 1 + 1 + 3, "the prompt, what is forced behind its first token, and a token each"
    assert completion.drafted_tokens == 0, "what is forced is no guess"


def test_several_completions_share_the_prompt(llm, tmp_path):
    prompt = list(range(1, 101))
    options = {"max_new_tokens": 10, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    rows: list[int] = []
    llm.watch(lambda finish, sequences, *_: rows.append(sum(count for _, count in sequences)))
    found = llm.generate([prompt], num_return_sequences=6, **options)
    llm.watch(None)
    assert sum(rows) == 100 + 6 * 9 + 5, "the prompt once, and the last token's row again for five of six"
    assert [c.seed for c in found] == [5, 6, 7, 8, 9, 10]
    assert [c.reused_tokens for c in found] == [0] + [99] * 5
    with LLM(random(tmp_path), device="cpu", threads=1, reuse_prefixes=False) as other:
        for completion in found:
            alone = other.generate([prompt], **{**options, "seed": completion.seed})
            assert alone[0].token_ids == completion.token_ids
    assert is_idle(llm)


def test_prompts_that_begin_alike_share_what_was_computed(llm, tmp_path):
    common = [int(t) for t in np.random.default_rng(0).integers(12, 90, 200)]
    prompts = [[*common, 12 + i, 40, *([50 + i] * i)] for i in range(30)]
    with LLM(random(tmp_path), device="cpu", threads=1, reuse_prefixes=False) as other:
        expected = [c.token_ids for c in other.generate(prompts, max_new_tokens=8, ignore_eos=True)]
        assert not any(c.reused_tokens for c in other.generate(prompts[:3], max_new_tokens=2))
    rows: list[int] = []
    with LLM(random(tmp_path), device="cpu", threads=1) as fresh:
        fresh.watch(lambda finish, sequences, *_: rows.append(sum(count for _, count in sequences)))
        found = fresh.generate(prompts, max_new_tokens=8, ignore_eos=True)
        assert [c.token_ids for c in found] == expected
        assert [c.reused_tokens for c in found] == [0] + [192] * 29, "also those that came in together"
        assert sum(rows) == sum(len(p) for p in prompts) + 30 * 7 - 29 * 192
        again = fresh.generate([prompts[0]], max_new_tokens=8, ignore_eos=True)
        assert (again[0].token_ids, again[0].reused_tokens) == (expected[0], 192)
        assert is_idle(fresh)


def test_a_conversation_goes_on_from_its_own_completions(llm):
    rng = np.random.default_rng(1)
    text: list[int] = [int(t) for t in rng.integers(12, 90, 70)]
    computed = 0
    for _ in range(25):
        (turn,) = llm.generate([text], max_new_tokens=60, ignore_eos=True)
        assert turn.reused_tokens == computed // 64 * 64, "though the pool grew, or is too small to keep all"
        text = text + turn.token_ids
        computed = len(text) - 1  # the last token was never read
        text = text + [int(t) for t in rng.integers(12, 90, 9)]


def test_what_is_known_makes_room_when_memory_is_short(tmp_path):
    with LLM(random(tmp_path), device="reference") as llm:
        block = llm.loaded.block_bytes
    rng = np.random.default_rng(2)
    prompts = [[int(t) for t in rng.integers(12, 90, 150)] for _ in range(6)]
    with LLM(random(tmp_path), device="reference", reuse_prefixes=False) as other:
        expected = [c.token_ids for c in other.generate(prompts, max_new_tokens=8, ignore_eos=True)]
    with LLM(random(tmp_path), device="reference", cache_memory=5 * block) as llm:
        for _ in range(2):
            found = llm.generate(prompts, max_new_tokens=8, ignore_eos=True)
            assert [c.token_ids for c in found] == expected
        assert llm._blocks.num_blocks == 4
        assert is_idle(llm)


@pytest.mark.parametrize("width", [1, 3])
def test_lockstep_by_hand_is_greedy(llm, width):
    expected = [c.token_ids for c in llm.generate(PROMPTS, max_new_tokens=10, ignore_eos=True)]
    with llm.lockstep(PROMPTS, max_new_tokens=10, width=width) as rows:
        texts: list[list[int]] = [[] for _ in range(rows.num_rows)]
        for _ in range(10):
            logits = rows.logits()
            assert logits.shape == (5 * width, llm.config.vocab_size)
            tokens = logits[:, : llm.config.usable_vocab_size].argmax(axis=1)
            rows.advance(tokens)
            for text, token in zip(texts, tokens, strict=True):
                text.append(int(token))
        with pytest.raises(RequestError, match="call logits"):
            rows.advance(tokens)
    assert texts == [text for text in expected for _ in range(width)]
    assert is_idle(llm)


def test_lockstep_rows_follow_one_another_and_end(llm):
    """Rows become others' children at random; each must then have the logits of its text."""
    rng = np.random.default_rng(3)
    with llm.lockstep([PROMPTS[1], PROMPTS[3]], max_new_tokens=80, width=4) as rows:
        texts = [list(p) for p in (PROMPTS[1], PROMPTS[3]) for _ in range(4)]
        over = [False] * 8
        for step in range(75):
            logits = rows.logits()
            for row in range(8):
                if not over[row] and step % 8 == 0:
                    assert np.array_equal(logits[row], llm.logits(texts[row])[-1])
                assert not over[row] or not logits[row].any()
            alive = [[r for r in range(start, start + 4) if not over[r]] for start in (0, 4)]
            parents = [int(rng.choice(alive[row // 4])) for row in range(8)]
            tokens = [int(t) for t in rng.integers(12, 90, 8)]
            if step in (20, 40, 41):
                over[{20: 0, 40: 6, 41: 1}[step]] = True
            texts = [[*texts[parent], token] for parent, token in zip(parents, tokens, strict=True)]
            rows.advance([-1 if o else t for o, t in zip(over, tokens, strict=True)], parents)
    assert is_idle(llm)


def test_lockstep_refuses_what_can_not_be(llm):
    with llm.lockstep([PROMPTS[0], PROMPTS[2]], max_new_tokens=2, width=2) as rows:
        rows.logits()
        for tokens, parents, said in (
            ([1, 1, 1], None, "4 rows, and 3 tokens"),
            ([1, 1, 1, 1], [0, 0], "4 rows, and 2 parents"),
            ([1, 1, 1, 400], None, "outside the vocabulary"),
            ([1, 1, 1, 1], [0, 0, 0, 2], "can't go on from row 0"),
            ([1, 1, 1, 1], [0, 0, 2, 9], "can't go on from row 9"),
        ):
            with pytest.raises(RequestError, match=said):
                rows.advance(tokens, parents)
        rows.advance([1, 1, 1, 1])
        rows.logits()
        rows.advance([1, 1, -1, -1])
        rows.logits()
        with pytest.raises(RequestError, match="has reached max_new_tokens"):
            rows.advance([1, 1, 1, 1])
        rows.advance([-1, -1, 5, 5])
        with pytest.raises(RequestError, match="all rows are over"):
            rows.logits()
    assert is_idle(llm)


def test_lockstep_rows_do_not_hold_others_up_nor_wait_for_ever(tmp_path):
    with LLM(random(tmp_path), device="cpu", threads=1) as llm:
        block = llm.loaded.block_bytes
    with LLM(random(tmp_path), device="cpu", threads=1, cache_memory=4 * block) as llm:
        expected = llm.generate([PROMPTS[2]], max_new_tokens=5)[0].token_ids
        with llm.lockstep([PROMPTS[0]], max_new_tokens=100) as rows:
            rows.logits()
            assert llm.generate([PROMPTS[2]], max_new_tokens=5)[0].token_ids == expected
            with pytest.raises(RequestError, match="waits for memory of the cache that nothing will free"):
                llm.generate([PROMPTS[2]], max_new_tokens=100)
        assert is_idle(llm)


@pytest.mark.parametrize(
    ("params", "error", "said"),
    [
        ({"num_beams": 0}, RequestError, "num_beams is 0"),
        ({"num_beams": 2.5}, RequestError, "num_beams is 2.5; it must be a whole number"),
        ({"forced_prefix": [5, 6, 7], "max_new_tokens": 2}, RequestError, "has 3 tokens, and max_new_tokens is 2"),
        ({"length_penalty": 2.0}, RequestError, "give num_beams too"),
        ({"num_beams": 2, "early_stopping": "often"}, RequestError, "early_stopping is 'often'"),
        ({"num_beams": 2, "num_return_sequences": 3}, RequestError, "at most num_beams"),
        ({"num_return_sequences": 3}, RequestError, "all would be the same"),
        ({"num_beams": 2, "temperature": 1.0}, UnsupportedError, "a beam search has no temperature"),
        ({"num_beams": 2, "logprobs": 1}, UnsupportedError, "a beam search has no logprobs"),
        ({"num_beams": 300}, RequestError, "at most 256 run at once"),
        ({"bad_words": [[]]}, RequestError, "none of them empty"),
        ({"bad_words": "ab"}, RequestError, "has no tokenizer; give token ids"),
        ({"bad_words": [5, 6]}, RequestError, "bad_words has 5; texts are needed, or lists of token ids"),
        ({"logit_bias": {"5": 1.0}}, RequestError, "numbers by token id are needed"),
        ({"logit_bias": {5: 1e39}}, RequestError, "within ±1e"),
        ({"num_beams": 2, "early_stopping": 1}, RequestError, "early_stopping is 1"),
        ({"num_beams": 2, "length_penalty": 16.0, "max_new_tokens": 300}, RequestError, "within ±12.1 for 300 tokens"),
        ({"bad_words": ["a"]}, RequestError, "has no tokenizer; give token ids"),
        ({"bad_words": [[5000]]}, RequestError, "bad_words has the token id 5000"),
        ({"forced_prefix": []}, RequestError, "forced_prefix is"),
        ({"logit_bias": {-1: 2.0}}, RequestError, "logit_bias has the token id -1"),
        ({"logit_bias": {1: float("nan")}}, RequestError, "it must be numbers within"),
        ({"no_repeat_ngram_size": 0}, RequestError, "at least 1"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, RequestError, "min_new_tokens is 4"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_with_reasons(llm, params, error, said):
    with pytest.raises(error, match=said):
        llm.generate([[5, 6]], **params)
    assert is_idle(llm)


def test_a_constrained_neighbour_changes_no_bit_of_a_logprob(llm):
    options = {"max_new_tokens": 8, "ignore_eos": True}
    drawn = {**options, "logprobs": 2, "temperature": 0.8, "seed": 3}
    (alone,) = llm.generate([PROMPTS[1]], **drawn)
    with llm.submit(PROMPTS[2], bad_words=[[20]], **options) as neighbour, llm.submit(PROMPTS[1], **drawn) as handle:
        while not (handle.finished and neighbour.finished):
            llm.step()
        assert (handle.completion.token_ids, handle.completion.logprobs) == (alone.token_ids, alone.logprobs)


def test_a_long_forced_prefix_comes_in_chunks(tmp_path):
    forced = [int(t) for t in np.random.default_rng(5).integers(12, 90, 100)]
    with LLM(random(tmp_path), device="cpu", threads=1, prefill_chunk=16) as llm:
        rows: list[int] = []
        llm.watch(lambda finish, sequences, logits, shared: rows.append(sum(count for _, count in sequences)))
        (found,) = llm.generate([[5]], max_new_tokens=101, forced_prefix=forced, ignore_eos=True)
        assert found.token_ids[:100] == forced
        assert max(rows) == 17


def test_logits_that_are_asked_for_after_the_end_are_refused(tmp_path):
    llm = LLM(random(tmp_path), device="cpu", threads=1, prefill_chunk=4)
    chunks = llm.logit_chunks([5, 6, 7, 8, 9, 10])
    next(chunks)
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        next(chunks)


def test_forbidding_everything_is_an_error(llm):
    everything = [[token] for token in range(llm.config.vocab_size)]
    with pytest.raises(AnthesisError, match="every token is forbidden at place 0"):
        llm.generate([[5]], bad_words=everything, ignore_eos=True, num_beams=2)
    with pytest.raises(Exception, match="every token is forbidden at place 0"):
        llm.generate([[5]], bad_words=[[token] for token in range(llm.config.vocab_size)], ignore_eos=True)
    assert is_idle(llm)


@pytest.mark.parametrize("chunk", [1, 7, 65, 256])
def test_lockstep_rows_of_long_and_equal_prompts_start_together(tmp_path, chunk):
    long = [int(t) for t in np.random.default_rng(4).integers(12, 90, 130)]
    prompts = [long, long, long[:65], long[:65], [5], long[:64], long[:129]]
    with LLM(random(tmp_path), device="cpu", threads=1, prefill_chunk=chunk) as llm:
        expected = [llm.logits(prompt)[-1] for prompt in prompts]
        for _ in range(2):  # the second time all of it is known
            with llm.lockstep(prompts, max_new_tokens=3, width=2) as rows:
                assert np.array_equal(rows.logits(), np.repeat(expected, 2, axis=0))
                rows.advance([7, 8] * 7)
                assert np.array_equal(rows.logits()[1], llm.logits([*long, 8])[-1])
        assert is_idle(llm)
