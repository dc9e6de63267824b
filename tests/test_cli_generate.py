"""`anthesis generate`: the real command line on tiny models with random weights, and on the default model."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from anthesis import LLM
from anthesis.cli.app import app
from anthesis.cli.generate import generate
from command_line import Terminal, anthesis, command, fail, succeed, tiny_model

PROMPT = "The capital of France is"
REFERENCE = ("--device", "reference")
WITHOUT_FLAG = {"self", "model", "prompts", "on_weight", "load"}
WITHOUT_ARGUMENT = {"model", "prompt", "prompt_ids", "prompt_tokens", "json", "output", "help"}
REPEATED = {"seed", "stop", "bad_words", "logit_bias"}
"""Flags that set two arguments, or are given for each value."""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return tiny_model(tmp_path)


def document(*arguments: str, **more: Any) -> dict[str, Any]:
    """The JSON document of a `generate` that must succeed."""
    return json.loads(succeed("generate", *arguments, *REFERENCE, "--json", **more))  # type: ignore[no-any-return]


def token_ids(*arguments: str) -> list[int]:
    """The ids of a `generate` with one prompt."""
    (completion,) = document(*arguments)["completions"]
    return completion["token_ids"]  # type: ignore[no-any-return]


# --- flags and arguments ---------------------------------------------------------------------------------------------


def test_flags_are_the_arguments_of_the_python_interface() -> None:
    parameters = {
        **inspect.signature(LLM.__init__).parameters,
        **inspect.signature(LLM.generate).parameters,
    }
    flags = {
        flag.removeprefix("--").replace("-", "_")
        for option in typer.main.get_command(app).commands["generate"].params  # type: ignore[attr-defined]
        for flag in option.opts
        if flag.startswith("--")
    }
    assert flags - WITHOUT_ARGUMENT == set(parameters) - WITHOUT_FLAG
    own = inspect.signature(generate).parameters
    defaults = {name: own[name].default for name in set(parameters) - WITHOUT_FLAG - REPEATED}
    assert defaults == {name: parameters[name].default for name in defaults}


@pytest.mark.parametrize(
    ("flags", "model_arguments", "arguments"),
    [
        ("--seed 7", {"seed": 7}, {}),
        ("--weights int4", {"weights": "int4"}, {}),
        ("--max-context 8", {"max_context": 8}, {}),
        ("-n 5", {}, {"max_new_tokens": 5}),
        ("--temperature 1 --seed 0", {}, {"seed": 0, "temperature": 1.0}),
        ("--temperature 1 --seed 7", {"seed": 7}, {"temperature": 1.0, "seed": 7}),
        ("--temperature 5 --top-k 3 --seed 0", {}, {"seed": 0, "temperature": 5.0, "top_k": 3}),
        ("--temperature 5 --top-p 0.5 --seed 0", {}, {"seed": 0, "temperature": 5.0, "top_p": 0.5}),
        ("--temperature 5 --min-p 0.9 --seed 0", {}, {"seed": 0, "temperature": 5.0, "min_p": 0.9}),
        ("--repetition-penalty 3", {}, {"repetition_penalty": 3.0}),
    ],
)
def test_flags_reach_the_model(
    tiny: str, flags: str, model_arguments: dict[str, Any], arguments: dict[str, Any]
) -> None:
    base = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 0}
    with LLM(tiny, device="reference", **model_arguments) as llm:
        (expected,) = llm.generate([1, 2, 3], **{**base, **arguments})
    with LLM(tiny, device="reference") as llm:
        (without,) = llm.generate([1, 2, 3], **base)
    prompt = ("--prompt-ids", "1,2,3", "-n", "12", "--ignore-eos", "--logprobs", "0")
    (completion,) = document(tiny, *prompt, *flags.split())["completions"]
    found = completion["token_ids"], [place["logprob"] for place in completion["logprobs"]]
    assert found == (expected.token_ids, [place.logprob for place in expected.logprobs])
    assert found != (without.token_ids, [place.logprob for place in without.logprobs])


def test_ignore_eos(tmp_path: Path) -> None:
    # every token but one ends the text
    model = tiny_model(tmp_path, eos_token_id=list(range(95)))
    assert len(token_ids(model, "--prompt-ids", "1,2", "-n", "6")) == 1
    assert len(token_ids(model, "--prompt-ids", "1,2", "-n", "6", "--ignore-eos")) == 6


def test_cache_and_device(tiny: str) -> None:
    found = json.loads(
        succeed("generate", tiny, "--device", "reference-fp64", "--cache", "fp32", "--prompt-tokens", "2", "--json")
    )
    assert (found["device"], found["cache"], found["weights"]) == ("reference-fp64", "fp32", "bf16")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--weights int3", "int3"),
        ("--tp 99", "can't be split over 99 ranks"),
        ("--pp 99", "too few for 99 stages"),
        ("--threads 0", "threads"),
        ("--cache int8", "int8"),
        ("--cache-memory 1KiB", "1,024"),
        ("--prefill-chunk 0", "prefill_chunk"),
        ("--max-context 2", "the context ends at 2"),
        ("--top-k 3", "temperature"),
        ("--stop x", "tokenizer"),
        ("--chat", "tokenizer"),
        ("--logprobs 1", "--json"),
        ("--seed -1", "-1"),
        ("--batch 0", "batch is 0"),
        ("--batch 257", "batch is 257; at most 256 sequences run at once"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(tiny: str, flags: str, named: str) -> None:
    line = fail("generate", tiny, "--prompt-ids", "1,2,3", *REFERENCE, *flags.split())
    assert line.startswith("anthesis: ")
    assert named in line


def test_bad_sampling_is_refused_before_a_model_is_looked_for() -> None:
    assert "top_p is 2.0" in fail("generate", "no/such-model", "-p", "x", "--temperature", "1", "--top-p", "2")


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_model_without_tokenizer_prints_ids(tiny: str) -> None:
    shown = succeed("generate", tiny, "--prompt-ids", "1,2,3", "-n", "4", *REFERENCE)
    assert [int(part) for part in shown.split(",")] == token_ids(tiny, "--prompt-ids", "1, 2, 3", "-n", "4")


def test_several_prompts_have_headings(tiny: str) -> None:
    shown = succeed(
        "generate", tiny, "--prompt-ids", "1,2,3", "--prompt-ids", "4,5", "-n", "4", "--ignore-eos", *REFERENCE
    )
    lines = shown.splitlines()
    assert (lines[0], lines[2], len(lines)) == ("[1/2] 1,2,3", "[2/2] 4,5", 4)
    found = [token_ids(tiny, "--prompt-ids", prompt, "-n", "4", "--ignore-eos") for prompt in ("1,2,3", "4,5")]
    assert [[int(part) for part in line.split(",")] for line in lines[1::2]] == found


def test_prompts_that_wait_for_others_begin_later(tiny: str) -> None:
    prompts = [part for prompt in ("1,2,3", "4,5", "6") for part in ("--prompt-ids", prompt)]
    one, all_ = (document(tiny, *prompts, "-n", "20", "--ignore-eos", "--batch", n)["completions"] for n in ("1", "3"))
    assert [c["token_ids"] for c in one] == [c["token_ids"] for c in all_]
    waits = [[c["timing"]["first_token_s"] for c in completions[1:]] for completions in (one, all_)]
    ends = [[c["timing"]["total_s"] for c in completions[:-1]] for completions in (one, all_)]
    assert [[wait > end for wait, end in zip(*pair, strict=True)] for pair in zip(waits, ends, strict=True)] == [
        [True, True], [False, False],
    ]  # fmt: skip


def test_made_up_prompts_are_always_the_same(tiny: str) -> None:
    once, again = (document(tiny, "--prompt-tokens", "70", "-n", "3") for _ in range(2))
    (completion,), (repeated,) = once["completions"], again["completions"]
    assert len(completion["prompt_token_ids"]) == 70
    assert len(set(completion["prompt_token_ids"])) > 60
    assert completion["prompt_token_ids"] == repeated["prompt_token_ids"]
    assert completion["token_ids"] == repeated["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt-ids", "1,2", "--prompt-tokens", "4"], "--prompt-ids and --prompt-tokens"),
        (["-p", "x", "--prompt-ids", "1"], "-p and --prompt-ids"),
        (["--prompt-ids", "1,two"], "1,two"),
        (["--prompt-ids", "1,96"], "96"),
        (["--prompt-tokens", "0"], "at least 1"),
        (["-p", "a text"], "no tokenizer; give token ids with --prompt-ids, or a made-up prompt with --prompt-tokens"),
        (["--prompt-ids", "1", "--chat"], "--prompt-tokens, without --chat"),
        ([], "stdin is empty"),
    ],
)
def test_prompts_that_cannot_be(tiny: str, arguments: list[str], named: str) -> None:
    assert named in fail("generate", tiny, *arguments, *REFERENCE)


def test_a_prompt_in_the_place_of_the_model_is_pointed_out() -> None:
    assert "'hello' was taken as MODEL; give -p TEXT" in fail("generate", "hello", "-n", "3")


def test_stdin_must_be_utf8() -> None:
    assert "not UTF-8" in fail("generate", stdin="Grüße".encode("latin-1"))


def test_no_prompt_on_a_terminal_is_an_error_and_no_waiting() -> None:
    terminal = Terminal(command("generate"))
    assert terminal.finish() == 2
    assert terminal.output == "anthesis: there is no prompt; give -p TEXT, or send a text to stdin\n"


# --- documents -------------------------------------------------------------------------------------------------------


def test_json_says_all_there_is_to_say(tiny: str) -> None:
    result = anthesis(
        "generate", tiny, "--prompt-ids", "5,6", "--prompt-ids", "7", "-n", "3", "--ignore-eos", "--logprobs", "2",
        "--json", *REFERENCE,
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert list(found) == ["model", "device", "weights", "cache", "load_s", "request", "completions"]
    assert "random weights" in found["model"]
    assert found["load_s"] > 0
    first, second = found["completions"]
    assert list(first) == [
        "prompt", "prompt_token_ids", "text", "token_ids", "finish_reason", "seed", "score", "reused_tokens", "steps",
        "drafted_tokens", "accepted_tokens", "logprobs", "timing",
    ]  # fmt: skip
    assert (first["prompt"], first["text"], first["finish_reason"]) == (None, None, "length")
    assert (found["request"]["max_new_tokens"], found["request"]["temperature"], first["seed"]) == (3, 0.0, None)
    assert (first["prompt_token_ids"], second["prompt_token_ids"]) == ([5, 6], [7])
    assert [place["top"][0]["token_id"] for place in first["logprobs"]] == first["token_ids"]
    assert all(len(place["top"]) == 2 and place["logprob"] < 0 for place in first["logprobs"])
    times = first["timing"]["token_s"]
    assert len(times) == len(first["token_ids"]) == 3
    assert times == sorted(times)
    assert (first["timing"]["first_token_s"], first["timing"]["total_s"]) == (times[0], times[-1])
    # the summary goes elsewhere
    assert "6 tokens (2 length)" in result.stderr
    assert "tokens/s" in result.stderr


def test_every_logprob_is_json(tiny: str) -> None:
    # more of the likeliest than there are tokens that can come
    (completion,) = document(tiny, "--prompt-ids", "5", "-n", "1", "--logprobs", "96")["completions"]
    assert len(completion["logprobs"][0]["top"]) == 96


def test_a_file_is_written_besides_the_text(tiny: str, tmp_path: Path) -> None:
    directory = tmp_path / "results"
    directory.mkdir()
    file = directory / "out.json"
    file.write_text("old")
    arguments = ("generate", tiny, "--prompt-ids", "1,2,3", "-n", "4", *REFERENCE, "-o", str(file))
    shown = succeed(*arguments)
    (completion,) = json.loads(file.read_text())["completions"]
    assert [int(part) for part in shown.split(",")] == completion["token_ids"]
    assert os.listdir(directory) == ["out.json"]
    (printed,) = json.loads(succeed(*arguments, "--json"))["completions"]
    (written,) = json.loads(file.read_text())["completions"]
    assert printed == written


@pytest.mark.parametrize(("name", "named"), [("", "directory"), ("missing/out.json", "missing")])
def test_a_file_that_cannot_be_is_refused_before_a_model_is_looked_for(tmp_path: Path, name: str, named: str) -> None:
    assert named in fail("generate", "no/such-model", "-p", "x", "-o", str(tmp_path / name))


def test_a_named_pipe_is_written_to(tiny: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        shown = succeed("generate", tiny, "--prompt-ids", "1", "-n", "1", *REFERENCE, "-o", str(pipe))
        received, _ = reader.communicate(timeout=60)
    assert json.loads(received)["completions"][0]["token_ids"] == [int(shown)]
    assert pipe.is_fifo()


# --- the default model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def france() -> dict[str, Any]:
    """The completion of `PROMPT` by the default model, out of stdin."""
    (completion,) = document("-n", "6", stdin=f"{PROMPT}\n".encode())["completions"]
    return completion  # type: ignore[no-any-return]


def test_a_prompt_comes_from_stdin(france: dict[str, Any]) -> None:
    assert france["prompt"] == PROMPT
    assert france["text"].startswith(" Paris")


def test_a_pipe_gets_the_completion_alone(france: dict[str, Any]) -> None:
    result = anthesis("generate", "-p", PROMPT, "-n", "6", *REFERENCE)
    assert (result.returncode, result.stdout) == (0, france["text"] + "\n")
    summary = result.stderr.splitlines()
    assert len(summary) == 2
    assert summary[0].startswith("6 tokens (length) · first after ")
    assert "SmolLM2" in summary[1]


def test_stop(france: dict[str, Any]) -> None:
    stop = france["text"][3:5]
    (completion,) = document("-p", PROMPT, "-n", "6", "--stop", "never said", "--stop", stop)["completions"]
    assert completion["finish_reason"] == "stop"
    assert completion["text"] == france["text"].partition(stop)[0]


def test_chat(france: dict[str, Any]) -> None:
    (completion,) = document("-p", PROMPT, "-n", "3", "--chat")["completions"]
    ids, plain = completion["prompt_token_ids"], france["prompt_token_ids"]
    # the prompt's own ids stand in the middle of those of the template
    at = next(i for i in range(len(ids)) if ids[i : i + len(plain)] == plain)
    assert 0 < at < len(ids) - len(plain)
    assert completion["prompt"] == PROMPT


def test_text_is_utf8_whatever_the_locale() -> None:
    prompts = ("Grüße aus Köln ☕, 東京", "Ελλάδα")
    flags = [part for prompt in prompts for part in ("-p", prompt)]
    shown = succeed("generate", *flags, "-n", "2", *REFERENCE, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii")
    headings = [line for line in shown.splitlines() if line.startswith("[")]
    assert headings == [f"[1/2] {prompts[0]}", f"[2/2] {prompts[1]}"]
    assert document("-p", prompts[0], "-n", "1", LC_ALL="C")["completions"][0]["prompt"] == prompts[0]


def test_text_streams_behind_its_prompt_on_a_terminal(france: dict[str, Any]) -> None:
    terminal = Terminal(command("generate", "-p", PROMPT, "-n", "6", *REFERENCE))
    dimmed = f"\x1b[2m{PROMPT}\x1b[0m"
    # the prompt and the first word are there while the rest is still to come
    early = terminal.read_until(lambda output: f"{dimmed} Paris" in output)
    assert "tokens/s" not in early
    assert terminal.finish() == 0
    assert f"{dimmed}{france['text']}\n" in terminal.output


def test_no_colour_where_none_is_wanted() -> None:
    terminal = Terminal(command("generate", "-p", PROMPT, "-n", "1", *REFERENCE), TERM="dumb")
    assert terminal.finish() == 0
    assert f"{PROMPT} Paris\n" in terminal.output
    assert "\x1b[2m" not in terminal.output


# --- interruption ----------------------------------------------------------------------------------------------------


def test_an_interrupted_stream_keeps_what_was_said() -> None:
    terminal = Terminal(command("generate", "-p", PROMPT, "-n", "8000", "--ignore-eos", *REFERENCE))
    terminal.read_until(lambda output: "Paris" in output)
    terminal.process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert terminal.finish() == 130
    assert time.monotonic() - begin < 20
    assert "Paris" in terminal.output
    assert terminal.output.endswith("\n")
    assert "Traceback" not in terminal.output
    assert "tokens/s" not in terminal.output


def test_an_interrupted_run_in_a_pipe_is_quiet(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    arguments = command("generate", model, "--prompt-tokens", "4", "-n", "100000", "--ignore-eos", "--device", "auto")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    announced = process.stderr.readline()
    assert "device auto" in announced
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
