"""anthesis.hf inside transformers' pipeline: the text that its own model gives, streamed, batched, in chats."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, TextIteratorStreamer, TextStreamer, pipeline

from anthesis.hf import AnthesisForCausalLM
from anthesis.hf.release import release
from smollm2 import transformers_model

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n    if n < 2:",
    "Water boils at",
    "My favourite season is",
    "Zwölf Boxkämpfer jagen",
    "1, 1, 2, 3, 5, 8,",
    "The sky is blue because",
]
CHAT = [{"role": "user", "content": "Name two colours."}]
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def theirs() -> PreTrainedModel:
    return transformers_model()


@pytest.fixture(scope="module")
def ours() -> Iterator[AnthesisForCausalLM]:
    with AnthesisForCausalLM.from_pretrained(device="cpu", weights="fp32", cache="fp32") as model:
        yield model


@pytest.fixture
def tokenizer(ours: AnthesisForCausalLM) -> Any:
    return ours.tokenizer


@pytest.fixture(scope="module")
def pipes(theirs: PreTrainedModel, ours: AnthesisForCausalLM) -> list[Any]:
    return [pipeline("text-generation", model=model, tokenizer=ours.tokenizer) for model in (theirs, ours)]


def test_a_batch_of_eight_has_the_same_text(pipes, capfd):
    expected, found = (pipe(PROMPTS, batch_size=8, return_full_text=False, **GREEDY) for pipe in pipes)
    assert found == expected
    assert len({answer[0]["generated_text"] for answer in found}) == 8
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pipes[1](PROMPTS[0], **GREEDY) == [{"generated_text": PROMPTS[0] + found[0][0]["generated_text"]}]
    assert capfd.readouterr().err == ""


def test_a_pipeline_is_made_without_a_word_on_stderr(ours, tokenizer, capfd):
    """Pipelines know models by the names of their classes, and complain of others in 400 lines."""
    assert "LlamaForCausalLM" in repr(pipeline("text-generation", model=ours, tokenizer=tokenizer))
    assert capfd.readouterr().err == ""


def test_a_chat_has_the_same_answer(pipes):
    expected, found = (pipe(CHAT, **GREEDY) for pipe in pipes)
    assert found == expected
    assert [message["role"] for message in found[0]["generated_text"]] == ["user", "assistant"]


def test_streaming_to_the_terminal_prints_the_same(pipes, tokenizer, capsys):
    printed = []
    for pipe in pipes:
        pipe(CHAT, streamer=TextStreamer(tokenizer, skip_prompt=True), **GREEDY)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len(printed[1]) > 10


def test_streaming_from_a_thread_comes_in_pieces(pipes, tokenizer):
    found = []
    for pipe in pipes:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = threading.Thread(target=pipe, args=(PROMPTS[1],), kwargs={"streamer": streamer, **GREEDY})
        thread.start()
        found.append(list(streamer))
        thread.join()
    assert found[0] == found[1]
    assert len([piece for piece in found[1] if piece]) > 5


def test_stop_sequences_and_beams(pipes):
    asked = [
        {"stop_sequence": "Paris", **GREEDY},
        {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False},
    ]
    for arguments in asked:
        expected, found = (pipe(PROMPTS[0], **arguments) for pipe in pipes)
        assert found == expected


def test_stop_strings_are_part_of_the_text(theirs, ours, tokenizer):
    inputs = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    asked = {"stop_strings": ["Paris", "own nest"], "tokenizer": tokenizer, **GREEDY}
    expected, found = (model.generate(**inputs, **asked) for model in (theirs, ours))
    assert torch.equal(expected, found)
    assert tokenizer.decode(found[0], skip_special_tokens=True).endswith("Paris")


@pytest.mark.skipif(release() < (5, 20), reason="pipelines of older releases reach into the model for that")
def test_a_pipelines_own_sampling(pipes):
    """What a pipeline sets by itself, 256 tokens drawn at a temperature of 0.7, is heard."""
    torch.manual_seed(0)
    first = pipes[1](PROMPTS[1], max_new_tokens=20)
    torch.manual_seed(0)
    assert pipes[1](PROMPTS[1], max_new_tokens=20) == first
    assert pipes[1](PROMPTS[1], max_new_tokens=20) != first


def test_scores_come_out_of_a_pipeline(ours, tokenizer):
    ids = tokenizer(PROMPTS[0], return_tensors="pt")
    kept = ours.generate(**ids, return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert torch.equal(torch.stack(kept.scores).argmax(dim=-1)[:, 0], kept.sequences[0, -12:])


def test_calls_of_several_threads_take_turns(ours, tokenizer):
    inputs = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS[:4]]
    asked = {"max_new_tokens": 4, "do_sample": False}
    alone = [ours.generate(**one, **asked) for one in inputs]
    found: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i, one=one: found.update({i: ours.generate(**one, **asked)}))
        for i, one in enumerate(inputs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[i], found[i]) for i in range(4))


@pytest.mark.skipif(release() < (5, 20), reason="older releases read other special tokens out of this file")
def test_the_models_tokenizer_is_that_of_transformers(ours):
    """For the embedded model, whose tokenizer is in its GGUF file, made from what Anthesis has read of it."""
    path = Path(ours.name_or_path)
    theirs, found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), ours.tokenizer
    assert found.special_tokens_map == theirs.special_tokens_map
    assert found.padding_side == "left"
    for text in (*PROMPTS, "<|im_start|>user\nHi  there<|im_end|>", "日本語\n\n  \tx"):
        ids = found(text).input_ids
        assert ids == theirs(text).input_ids
        for skip in (False, True):
            assert found.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert found.apply_chat_template(CHAT, tokenize=False) == theirs.apply_chat_template(CHAT, tokenize=False)
