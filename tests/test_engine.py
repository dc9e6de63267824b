"""The engine through `LLM`: sequences join and leave, stop where they should, and give back what they held."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anthesis
from anthesis import LLM, native
from anthesis.devices.device import Executable
from anthesis.engine.blocks import MAX_SEQUENCES, BlockCache, Need
from anthesis.engine.sampling import SamplingParams
from anthesis.errors import AnthesisError, RequestError
from programs import BLOOM, LLAMA

PROMPTS = [[5], list(range(3, 73)), [9, 8, 7], list(range(1, 30)), [2, 2, 2, 2]]


def tiny(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "tie_word_embeddings": False, "eos_token_id": 11, **changes}))
    return f"random:{path}"


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(tiny(tmp_path), device="reference") as llm:
        yield llm


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LLM]:
    with LLM(device="cpu", threads=1) as llm:
        yield llm


def is_idle(llm: LLM) -> bool:
    blocks = llm._blocks
    return blocks.num_used == 0 and blocks.num_free_slots == MAX_SEQUENCES and not blocks.table.any()


def test_counts_and_reasons(llm: LLM) -> None:
    results = llm.generate(PROMPTS, max_new_tokens=9, ignore_eos=True)
    assert [len(r.token_ids) for r in results] == [9] * 5
    assert {r.finish_reason for r in results} == {"length"}
    assert [r.prompt_token_ids for r in results] == PROMPTS
    assert all(r.text is None for r in results)
    assert len({tuple(r.token_ids) for r in results}) == 5, "a model whose completions differ shows mix-ups"
    for r in results:
        assert len(r.timing.token_s) == 9
        assert sorted(r.timing.token_s) == list(r.timing.token_s)
        assert r.timing.total_s == pytest.approx(r.timing.first_token_s + sum(r.timing.per_token_s))
    assert is_idle(llm)


def test_an_end_of_sequence_token_ends_it_and_is_counted(tmp_path: Path) -> None:
    with LLM(tiny(tmp_path), device="reference") as llm:
        (free,) = llm.generate([PROMPTS[1]], max_new_tokens=40, ignore_eos=True)
    eos = free.token_ids[20]
    first = free.token_ids.index(eos)
    with LLM(tiny(tmp_path, eos_token_id=[99, eos]), device="reference") as llm:
        (stopped,) = llm.generate([PROMPTS[1]], max_new_tokens=40)
        assert stopped.finish_reason == "stop"
        assert stopped.token_ids == free.token_ids[: first + 1]
        (ignored,) = llm.generate([PROMPTS[1]], max_new_tokens=40, ignore_eos=True)
        assert ignored.token_ids == free.token_ids


def test_the_context_ends_it_and_a_prompt_that_fills_it_is_refused(tmp_path: Path) -> None:
    with LLM(tiny(tmp_path, max_position_embeddings=64), device="reference") as llm:
        (result,) = llm.generate([list(range(1, 60))], max_new_tokens=50, ignore_eos=True)
        assert (result.finish_reason, len(result.token_ids)) == ("context", 5)
        with pytest.raises(RequestError, match="64 tokens and the context ends at 64"):
            llm.generate([list(range(64))])
        with pytest.raises(RequestError, match="65 token ids do not fit"):
            llm.logits(list(range(65)))
        assert is_idle(llm)
    with pytest.raises(RequestError, match="max_context is 65, and the model was made for at most 64"):
        LLM(tiny(tmp_path, max_position_embeddings=64), device="reference", max_context=65)
    with LLM(tiny(tmp_path), device="reference", max_context=10) as llm:
        assert len(llm.generate([[1, 2, 3]], max_new_tokens=50, ignore_eos=True)[0].token_ids) == 7


def test_bloom_has_no_context_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BLOOM))
    with LLM(f"random:{path}", device="reference") as llm:
        assert llm.max_context is None
        assert len(llm.generate([list(range(100)) * 21], max_new_tokens=2, ignore_eos=True)[0].token_ids) == 2


def test_a_small_cache_makes_sequences_wait_and_changes_nothing(tmp_path: Path) -> None:
    with LLM(tiny(tmp_path), device="reference") as llm:
        expected = [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=20, ignore_eos=True)]
        two_blocks_and_scratch = 3 * llm.loaded.block_bytes
    with LLM(tiny(tmp_path), device="reference", cache_memory=two_blocks_and_scratch) as llm:
        assert [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=20, ignore_eos=True)] == expected
        assert llm._blocks.num_blocks == 2
        with pytest.raises(RequestError, match="needs 3 cache blocks, and the memory for the cache holds 2"):
            llm.generate([list(range(100))], max_new_tokens=30)
        assert is_idle(llm)
    with pytest.raises(RequestError, match="give more cache_memory"):
        LLM(tiny(tmp_path), device="reference", cache_memory=100)


def test_the_cache_grows_for_a_larger_request_and_results_stay(llm: LLM) -> None:
    (before,) = llm.generate([[5, 6]], max_new_tokens=5, ignore_eos=True)
    small = llm._blocks.num_blocks
    llm.generate(PROMPTS, max_new_tokens=90, ignore_eos=True)
    assert llm._blocks.num_blocks > small
    (after,) = llm.generate([[5, 6]], max_new_tokens=5, ignore_eos=True)
    assert after.token_ids == before.token_ids


def test_a_late_request_joins_what_is_running(smollm2: LLM) -> None:
    prompts = ["The capital of France is", "Once upon a time, " * 20]
    expected = [r.text for r in smollm2.generate(prompts, max_new_tokens=20)]
    with LLM(device="reference") as llm:
        one = llm.stream(prompts[0], max_new_tokens=20)
        text = next(one)
        small = llm._blocks.num_blocks
        two = llm.stream(prompts[1], max_new_tokens=20)
        late = next(two)
        assert llm._blocks.num_blocks > small, "the pool grew while a sequence was in it"
        assert len(one._sequence.completion) < 10, "the second did not have to wait for the first"
        assert [text + "".join(one), late + "".join(two)] == expected
        assert is_idle(llm)


def test_many_late_requests_join_and_get_their_own_tokens(llm: LLM) -> None:
    expected = [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=30, ignore_eos=True)]
    llm._blocks.clear()
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    sequences = [llm._intake.sequences(prompt, params, None, chat=False)[0] for prompt in PROMPTS]
    for sequence in sequences:
        llm._engine.submit([sequence])
        for _ in range(3):
            llm._engine.step()
    assert max(len(sequence.completion) for sequence in sequences) < 30, "they all run side by side"
    llm._engine.run([], 1)
    while not all(sequence.finished for sequence in sequences):
        llm._engine.step()
    assert [sequence.completion for sequence in sequences] == expected
    assert is_idle(llm)


def test_so_many_at_once_and_no_more(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=12, ignore_eos=True)]
    step, running = llm._engine.step, []

    def counted() -> bool:
        progressed = step()
        running.append(len(llm._engine._running) + len(llm._engine._admission.waiting))
        return progressed

    monkeypatch.setattr(llm._engine, "step", counted)
    assert [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=12, ignore_eos=True, batch=2)] == expected
    assert max(running) == 2
    with pytest.raises(RequestError, match="batch is 0"):
        llm.generate(PROMPTS, batch=0)
    assert is_idle(llm)


def test_rows_that_a_device_adds_go_to_the_scratch_block(llm: LLM) -> None:
    """A device that rounds R up: its added rows name the table's last line, and change nothing."""
    expected = [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=12, ignore_eos=True)]
    compile_exact = llm._engine._compile

    class Padded:
        def __init__(self, executable: Executable) -> None:
            self.executable = executable

        def run(self, inputs: Any) -> Any:
            more = -len(inputs["tokens"]) % 8
            scratch = len(inputs["block_table"]) - 1
            fill = {"tokens": 1, "positions": 0, "slots": scratch}
            padded = {name: np.append(inputs[name], np.full(more, value, np.int32)) for name, value in fill.items()}
            return self.executable.run({**inputs, **padded})

    llm._engine._compile = lambda *arguments: Padded(compile_exact(*arguments))
    llm._engine._executables.clear()
    assert [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=12, ignore_eos=True)] == expected


def test_a_failed_allocation_leaves_the_engine_usable(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = llm.generate([[5, 6]], max_new_tokens=5, ignore_eos=True)
    allocate = llm._blocks._allocate

    def full(num_blocks: int, old: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(llm._blocks, "_allocate", full)
    with pytest.raises(MemoryError):
        llm.generate(PROMPTS, max_new_tokens=90, ignore_eos=True)
    monkeypatch.setattr(llm._blocks, "_allocate", allocate)
    assert is_idle(llm)
    (after,) = llm.generate([[5, 6]], max_new_tokens=5, ignore_eos=True)
    assert after.token_ids == before.token_ids


def test_an_interrupt_between_a_step_and_its_tokens_stops_nobody_else(llm: LLM) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    expected = [r.token_ids for r in llm.generate(PROMPTS[:2], max_new_tokens=12, ignore_eos=True)]
    one, two = (llm._intake.sequences(prompt, params, None, chat=False)[0] for prompt in PROMPTS[:2])
    llm._engine.submit([one, two])
    for _ in range(4):
        llm._engine.step()

    def interrupt(token: int, logprobs: Any) -> None:
        raise KeyboardInterrupt

    append, one.append = one.append, interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm._engine.step()
    one.append = append  # type: ignore[method-assign]
    for _ in range(12):
        llm._engine.step()
    assert [one.completion, two.completion] == expected
    assert is_idle(llm)


def test_blocks_come_and_go_and_the_pool_grows_within_its_limit() -> None:
    made: list[Any] = []
    allocate = lambda n, old: made.append((n, old)) or n  # noqa: E731
    blocks = BlockCache(allocate, lambda *_: pytest.fail("nothing is copied"), max_sequences=3, max_blocks=10)
    assert blocks.take([Need(1)]) is None
    assert blocks.make_room([Need(2), Need(1)])
    places = blocks.take([Need(2), Need(1)])
    assert places is not None
    one, two = places
    assert set(one.blocks) | set(two.blocks) == {1, 2, 3}
    assert not blocks.make_room([])
    assert blocks.make_room([Need(4)])
    assert made == [(4, None), (8, 4)], "twice as many or what is needed, and the old one's blocks are kept"
    places = blocks.take([Need(4)])
    assert places is not None
    (three,) = places
    assert not set(three.blocks) & {1, 2, 3}
    assert blocks.table[three.slot].tolist() == list(three.blocks)
    blocks.give_back(one)
    assert not blocks.table[one.slot].any()
    assert blocks.make_room([Need(8)], before=lambda: made.append("before"))
    assert made[-2:] == ["before", (11, 8)], "what holds the old cache is let go first"
    assert blocks.num_blocks == 10
    assert blocks.take([Need(8)]) is None
    assert not blocks.make_room([Need(8)], before=lambda: pytest.fail("nothing changes")), "at its limit"


def test_interrupting_leaves_the_engine_clean(smollm2: LLM) -> None:
    killer = threading.Timer(0.7, signal.raise_signal, [signal.SIGINT])
    killer.start()
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        smollm2.generate(["Once upon a time"] * 3, max_new_tokens=2000, ignore_eos=True)
    assert time.perf_counter() - begin < 5
    assert is_idle(smollm2)
    assert smollm2.generate("The capital of France is", max_new_tokens=3)[0].text == " Paris.\n"


def test_streams_run_side_by_side_and_closing_one_frees_it(smollm2: LLM) -> None:
    prompts = ["The capital of France is", "Once upon a time"]
    expected = [r.text for r in smollm2.generate(prompts, max_new_tokens=12)]
    one, two = (smollm2.stream(prompt, max_new_tokens=12) for prompt in prompts)
    texts = ["", ""]
    for pieces in zip(one, two, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    texts[0] += "".join(one)
    texts[1] += "".join(two)
    assert texts == expected
    assert two.completion.text == expected[1]

    stream = smollm2.stream("Once upon a time", max_new_tokens=1000)
    next(stream)
    with pytest.raises(RequestError, match="not at its end"):
        _ = stream.completion
    stream.close()
    assert is_idle(smollm2)
    for piece in smollm2.stream("Once upon a time", max_new_tokens=1000):
        assert piece
        break
    assert is_idle(smollm2), "a stream that is dropped frees its blocks"


def test_a_stop_string_ends_the_text_before_it(smollm2: LLM) -> None:
    prompt = "Once upon a time"
    (free,) = smollm2.generate(prompt, max_new_tokens=30)
    assert free.text is not None
    cut = free.text[20:26]
    (stopped,) = smollm2.generate(prompt, max_new_tokens=30, stop=["never occurs", cut])
    assert stopped.text == free.text[: free.text.index(cut)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < 30
    assert "".join(smollm2.stream(prompt, max_new_tokens=30, stop=[cut])) == stopped.text


def test_sampling_parameters_reach_the_sampler(smollm2: LLM) -> None:
    def text(**parameters: Any) -> str | None:
        return smollm2.generate("My favourite animal is", max_new_tokens=8, **parameters)[0].text

    base = text(temperature=1.5, seed=3)
    assert text(temperature=1.5, seed=3) == base
    assert text(temperature=1.5, seed=4) != base
    greedy = text()
    assert text(temperature=1.5, seed=3, top_k=1) == greedy
    assert text(temperature=1.5, seed=3, top_p=1e-6) == greedy
    assert text(temperature=1.5, seed=3, min_p=1.0) == greedy
    assert text(temperature=1e-4, seed=3) == greedy
    assert text(repetition_penalty=5.0) != greedy
    assert text(temperature=1.5) != text(temperature=1.5), "requests without a seed get one of their own"


def test_log_probabilities_agree_with_the_logits(smollm2: LLM) -> None:
    (result,) = smollm2.generate("The capital of France is", max_new_tokens=6, logprobs=4)
    plain = smollm2.generate("The capital of France is", max_new_tokens=6)[0]
    assert result.token_ids == plain.token_ids
    assert plain.logprobs == []
    scores = smollm2.score(result.prompt_token_ids + result.token_ids)[len(result.prompt_token_ids) - 1 :]
    assert [entry.logprob for entry in result.logprobs] == pytest.approx(list(scores), abs=1e-6)
    for token, entry in zip(result.token_ids, result.logprobs, strict=True):
        assert len(entry.top) == 4
        assert entry.top[0] == (token, pytest.approx(entry.logprob))
        assert [p for _, p in entry.top] == sorted((p for _, p in entry.top), reverse=True)


def test_score_equals_the_logits(llm: LLM) -> None:
    ids = PROMPTS[1]
    logits = llm.logits(ids)
    assert logits.shape == (70, LLAMA["vocab_size"])
    own = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(llm.score(ids), own[np.arange(69), ids[1:]], atol=1e-5)
    with pytest.raises(RequestError, match="at least 2"):
        llm.score([1])


def test_rows_that_pad_the_vocabulary_are_never_generated(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BLOOM, "hidden_size": 14, "n_head": 1, "n_layer": 1, "vocab_size": 250_880}))
    with LLM(f"random:{path}", device="reference", weights="fp32") as llm:
        assert llm.config.usable_vocab_size == 250_680
        # a head whose padding rows win at every place of these texts
        (free,) = llm.generate([[1, 2]], max_new_tokens=5, ignore_eos=True)
        embed = llm.loaded._weights["embed.weight"].copy()
        embed[250_680:] = 10 * embed[free.token_ids[0]]
        llm.loaded._weights["embed.weight"] = embed
        llm._engine._executables.clear()
        assert llm.logits([1, 2])[-1].argmax() >= 250_680
        greedy = llm.generate([[1, 2]], max_new_tokens=5, ignore_eos=True)[0].token_ids
        assert greedy[0] == free.token_ids[0]
        sampled = llm.generate([[1, 2]], max_new_tokens=50, ignore_eos=True, temperature=0.5)[0].token_ids
        assert max(greedy + sampled) < 250_680


def test_chat_uses_the_models_template(smollm2: LLM) -> None:
    text = smollm2.generate("What is 2 + 2?", chat=True, max_new_tokens=12)[0]
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    assert smollm2.generate(messages, chat=True, max_new_tokens=12)[0].token_ids == text.token_ids
    assert smollm2.tokenizer is not None
    assert smollm2.tokenizer.encode_chat(messages) == text.prompt_token_ids
    with pytest.raises(RequestError, match="chat=True"):
        smollm2.generate(messages)


def test_bad_requests_are_refused_with_reasons(llm: LLM) -> None:
    cases: list[tuple[Any, str]] = [
        ([[]], "no tokens"),
        ([[1, 103]], "token id 103 is outside"),
        ([[-1]], "token id -1 is outside"),
        ("text", "has no tokenizer"),
    ]
    for prompts, message in cases:
        with pytest.raises(RequestError, match=message):
            llm.generate(prompts)
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        llm.generate([[1]], stop=["x"])
    with pytest.raises(RequestError, match="no text to stream"):
        llm.stream([1])
    assert is_idle(llm)
    with pytest.raises(RequestError, match="a prompt of 99,999,999,999 tokens"):
        llm.made_up_prompt(99_999_999_999)
    for seed in (-1, 2**64):
        with pytest.raises(RequestError, match="seed"):
            llm.generate([[1]], temperature=1.0, seed=seed)
    assert llm.generate([[1]], max_new_tokens=2, temperature=1.0, top_k=10**12)[0].token_ids
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.generate([[1]])


def test_closing_ends_open_streams(smollm2: LLM) -> None:
    with LLM(device="reference") as llm:
        started, unstarted = (llm.stream("Once upon a time", max_new_tokens=50) for _ in range(2))
        next(started)
    for stream in (started, unstarted):
        with pytest.raises(RequestError, match="closed"):
            list(stream)
        stream.close()
    assert llm.loaded._weights == {}


def test_logits_that_are_not_finite_are_an_error(llm: LLM) -> None:
    llm.loaded._weights["final_norm.weight"] = np.full_like(llm.loaded._weights["final_norm.weight"], np.nan)
    for parameters in ({}, {"temperature": 1.0}):
        with pytest.raises(AnthesisError, match="not finite"):
            llm.generate([[1, 2]], max_new_tokens=2, **parameters)
    assert is_idle(llm)


def test_a_completion_tells_the_seed_that_gives_it_again(llm: LLM) -> None:
    request: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "temperature": 2.0}
    (one,) = llm.generate([[1, 2]], **request)
    assert one.seed is not None
    (again,) = llm.generate([[1, 2]], seed=one.seed, **request)
    assert again.token_ids == one.token_ids
    seeds = {completion.seed for completion in llm.generate([[1, 2]] * 4, **request)}
    assert len(seeds) == 4
    assert llm.generate([[1, 2]], max_new_tokens=2)[0].seed is None


def test_any_iterable_of_prompts_will_do(llm: LLM) -> None:
    expected = [r.token_ids for r in llm.generate(PROMPTS, max_new_tokens=3)]
    assert [r.token_ids for r in llm.generate((p for p in PROMPTS), max_new_tokens=3)] == expected
    assert [r.token_ids for r in llm.generate(np.array(PROMPTS[1]), max_new_tokens=3)] == expected[1:2]
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "tpu"}, RequestError, "known are: auto, cpu, cuda, hpu, reference"),
        ({"tp": 99}, RequestError, "can't be split over 99 ranks"),
        ({"pp": 99}, RequestError, "too few for 99 stages"),
        ({"pp": 0}, RequestError, "pp is 0"),
        ({"tp": 0}, RequestError, "tp is 0"),
        ({"seed": -1}, RequestError, "seed is -1"),
        ({"threads": 10**9}, RequestError, "threads"),
        ({"cache_memory": 10**15}, RequestError, "are free"),
        ({"threads": 0}, RequestError, "threads is 0"),
        ({"cache": "int8"}, RequestError, "known are: auto, fp32, bf16"),
        ({"prefill_chunk": 0}, RequestError, "prefill_chunk is 0"),
        ({"weights": "int3"}, RequestError, "int3"),
    ],
)
def test_what_is_not_there_is_an_honest_error(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(tiny(tmp_path), **({"device": "reference"} | arguments))


def test_a_model_that_can_not_fit_is_refused_before_it_is_loaded() -> None:
    begin = time.perf_counter()
    with pytest.raises(RequestError, match=r"the weights take 705\.0 GB on reference"):
        LLM("random:bloomz", device="reference")
    assert time.perf_counter() - begin < 5


def test_auto_says_which_device_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(tiny(tmp_path)) as llm:
        assert llm.device_info.name == "cpu"
    assert "device auto: cpu" in caplog.text


def test_auto_without_the_extension_is_the_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anthesis._native", None)
    monkeypatch.delattr(anthesis, "_native", raising=False)
    native.extension.cache_clear()
    try:
        with LLM(tiny(tmp_path)) as llm:
            assert llm.device_info.name == "reference"
        assert "device auto: reference (NumPy; correct but slow; the native extension was never built)" in caplog.text
    finally:
        native.extension.cache_clear()


def test_two_models_at_once(tmp_path: Path, llm: LLM) -> None:
    with LLM(tiny(tmp_path), device="reference", seed=1) as other:
        alone = llm.generate([[1, 2, 3]], max_new_tokens=8, ignore_eos=True)[0].token_ids
        assert other.generate([[1, 2, 3]], max_new_tokens=8, ignore_eos=True)[0].token_ids != alone
        assert llm.generate([[1, 2, 3]], max_new_tokens=8, ignore_eos=True)[0].token_ids == alone
