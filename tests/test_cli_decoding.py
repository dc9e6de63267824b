"""Ways of decoding on the command line: what forbids and favours, beams, several completions, drafts, reuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from anthesis import LLM
from anthesis.cli.options import early_stopping, logit_biases
from anthesis.cli.summary import summary_lines
from anthesis.dataset import DataSet, Request, open_dataset
from anthesis.dataset.identity import wanted_of
from anthesis.dataset.ray_pool import RayJob
from anthesis.errors import RequestError
from command_line import anthesis, fail, succeed, tiny_model
from completing import arguments, fail_last, write_rows
from text_model import text_model

REFERENCE = ("--device", "reference")
QUOTE = "one two three four five six seven eight. one two three four five six seven eight. one two"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(text_model(tmp_path_factory.mktemp("model") / "text"))


def document(*given: str) -> dict[str, Any]:
    """The JSON document of a `generate` that must succeed."""
    return json.loads(succeed("generate", *given, *REFERENCE, "--json"))  # type: ignore[no-any-return]


# --- what forbids and favours ----------------------------------------------------------------------------------------


def test_every_constraint_reaches_the_model(with_text: str) -> None:
    base: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    asked: dict[str, Any] = {"forced_prefix": "quick brown", "no_repeat_ngram_size": 2}
    with LLM(with_text, device="reference") as llm:
        assert llm.tokenizer is not None
        decode, encode = llm.tokenizer.decode, llm.tokenizer.encode
        (found,) = llm.generate([5, 6, 7], **base, **asked)
        words = (decode([token]) for token in found.token_ids[3:] if encode(decode([token])) == [token])
        asked["bad_words"] = [next(words)]
        (found,) = llm.generate([5, 6, 7], **base, **asked)
        asked["logit_bias"] = {found.token_ids[-1]: float("-inf"), 7: 0.5}
        (expected,) = llm.generate([5, 6, 7], **base, **asked)
        for name in asked:
            (without,) = llm.generate([5, 6, 7], **base, **{key: asked[key] for key in asked if key != name})
            assert without.token_ids != expected.token_ids, f"{name} changes nothing here"
    biases = [part for token, bias in asked["logit_bias"].items() for part in ("--logit-bias", f"{token}={bias}")]
    said = document(
        with_text, "--prompt-ids", "5,6,7", "-n", "12", "--ignore-eos", "--no-repeat-ngram-size", "2",
        "--forced-prefix", "quick brown", "--bad-words", asked["bad_words"][0], *biases,
    )  # fmt: skip
    assert said["completions"][0]["token_ids"] == expected.token_ids
    assert said["request"]["logit_bias"] == {str(found.token_ids[-1]): "-inf", "7": 0.5}


def test_no_end_of_text_before_so_many_tokens(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, eos_token_id=list(range(95)))  # all tokens but one
    (found,) = document(model, "--prompt-ids", "1,2", "-n", "6", "--min-new-tokens", "3")["completions"]
    with LLM(model, device="reference") as llm:
        (without,) = llm.generate([1, 2], max_new_tokens=6)
    assert len(without.token_ids) == 1
    assert found["token_ids"][:3] == [95] * 3


@pytest.mark.parametrize("given", [["5"], ["=5"], ["x=5"], ["5=x"], ["5.5=1"], ["5="], [""]])
def test_what_is_no_bias(given: list[str]) -> None:
    with pytest.raises(RequestError, match="write ID=X"):
        logit_biases(given)


def test_biases() -> None:
    assert logit_biases(["5=-2.5", "7=-inf", "0=1"]) == {5: -2.5, 7: float("-inf"), 0: 1.0}
    with pytest.raises(RequestError, match="token id 5 twice"):
        logit_biases(["5=1", "6=1", "5=2"])


def test_when_a_beam_search_ends() -> None:
    assert [early_stopping(text) for text in ("true", "False", "never", False)] == [True, False, "never", False]
    with pytest.raises(typer.BadParameter, match="'maybe' is none of true, false, never"):
        early_stopping("maybe")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--num-beams 0", "num_beams is 0"),
        ("--num-beams 2 --num-return-sequences 3", "at most num_beams"),
        ("--num-return-sequences 3", "num_return_sequences is 3, and at temperature 0"),
        ("--length-penalty 2", "give num_beams too"),
        ("--num-beams 2 --early-stopping maybe", "'maybe' is none of true, false, never"),
        ("--num-beams 2 --temperature 1", "a beam search has no temperature"),
        ("--num-beams 2 --speculate lookup", "--speculate has no effect on a beam search"),
        ("--min-new-tokens 9 -n 3", "min_new_tokens is 9; it must be from 0 to max_new_tokens"),
        ("--no-repeat-ngram-size 0", "no_repeat_ngram_size is 0"),
        ("--logit-bias 5:1", "--logit-bias '5:1' is not a token id and a number; write ID=X"),
        ("--logit-bias 5=inf", "it must be numbers within"),
        ("--forced-prefix=", "forced_prefix is ''"),
        ("--bad-words=", "bad_words is ('',)"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_looked_for(flags: str, named: str) -> None:
    assert named in fail("generate", "no/such-model", "-p", "x", *flags.split())


@pytest.mark.parametrize("flag", ["--bad-words", "--forced-prefix"])
def test_texts_need_a_tokenizer(tiny: str, flag: str) -> None:
    line = fail("generate", tiny, "--prompt-ids", "1,2", *REFERENCE, flag, "x")
    assert f"{flag} is a text, and" in line
    assert "--logit-bias ID=X takes token ids" in line


# --- beams and several completions -----------------------------------------------------------------------------------


def test_completions_of_a_prompt_stand_together(tiny: str, tmp_path: Path) -> None:
    search: dict[str, Any] = {
        "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": "never",
    }  # fmt: skip
    prompts = [[1, 2, 3], [4, 5]]
    with LLM(tiny, device="reference") as llm:
        expected = llm.generate(prompts, max_new_tokens=5, **search)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in search.items()]
    file = tmp_path / "out.json"
    shown = succeed(
        "generate", tiny, "--prompt-ids", "1,2,3", "--prompt-ids", "4,5", "-n", "5", *flags, *REFERENCE, "-o", str(file)
    )
    texts = [",".join(map(str, completion.token_ids)) for completion in expected]
    scores = [f"score {completion.score:.4f}" for completion in expected]
    assert shown.splitlines() == [
        "[1/2] 1,2,3", f"(1/2) {scores[0]}", texts[0], f"(2/2) {scores[1]}", texts[1],
        "[2/2] 4,5", f"(1/2) {scores[2]}", texts[2], f"(2/2) {scores[3]}", texts[3],
    ]  # fmt: skip
    found = json.loads(file.read_text())
    assert [c["prompt_token_ids"] for c in found["completions"]] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert [c["score"] for c in found["completions"]] == [completion.score for completion in expected]
    assert {name: found["request"][name] for name in search} == search


def test_a_beam_search_for_one_text_prints_that_alone(tiny: str) -> None:
    result = anthesis("generate", tiny, "--prompt-ids", "1,2,3", "-n", "5", "--num-beams", "2", *REFERENCE)
    assert re.fullmatch(r"\d+(,\d+){0,4}\n", result.stdout)
    assert re.search(r" tokens/s in all · score -\d+\.\d{4}\n", result.stderr)


def test_draws_of_a_prompt_are_numbered(tiny: str) -> None:
    flags = ("-n", "4", "--temperature", "1", "--seed", "5", "--num-return-sequences", "3")
    shown = succeed("generate", tiny, "--prompt-ids", "1,2,3", *flags, *REFERENCE).splitlines()
    assert shown[::2] == ["(1/3)", "(2/3)", "(3/3)"]
    with LLM(tiny, device="reference", seed=5) as llm:
        expected = llm.generate([1, 2, 3], max_new_tokens=4, temperature=1.0, seed=5, num_return_sequences=3)
    assert shown[1::2] == [",".join(map(str, completion.token_ids)) for completion in expected]


# --- drafts and reuse ------------------------------------------------------------------------------------------------


def test_drafts_change_nothing_but_the_time() -> None:
    run = ("generate", "-p", QUOTE, "-n", "20", "--device", "cpu")
    plain, drafted = anthesis(*run), anthesis(*run, "--speculate", "lookup")
    assert (drafted.returncode, drafted.stdout) == (0, plain.stdout)
    assert re.search(r" · \d+\.\d+ tokens per reading of the weights\n", drafted.stderr)
    assert "drafted" not in plain.stderr
    assert "reading" not in plain.stderr


def test_drafts_of_a_model(with_text: str) -> None:
    with LLM(with_text, device="reference") as llm:
        (expected,) = llm.generate([5, 6, 7], max_new_tokens=12, ignore_eos=True)
    run = (with_text, "--prompt-ids", "5,6,7", "-n", "12", "--ignore-eos", "--speculate", with_text)
    found = document(*run)
    assert found["completions"][0]["token_ids"] == expected.token_ids
    assert found["request"]["speculate"] == with_text


def test_drafts_are_counted(tiny: str) -> None:
    with LLM(tiny, device="reference") as llm:
        (plain,) = llm.generate([1, 2, 3], max_new_tokens=6, ignore_eos=True)
        ten = replace(plain, token_ids=[7] * 10, steps=4, drafted_tokens=9, accepted_tokens=6)
        lines = summary_lines(
            llm, [ten, replace(ten, token_ids=[7] * 8, steps=5, drafted_tokens=1, accepted_tokens=0)], "lookup"
        )
        assert lines[1] == "6 of 10 drafted tokens right · 2.00 tokens per reading of the weights"
        assert "per token (mean)" in lines[0]
        assert summary_lines(llm, [plain], "lookup")[1].startswith("no draft was worth its time · 1.00 tokens per")
        assert len(summary_lines(llm, [plain], None)) == 2
        assert "per token (median)" in summary_lines(llm, [plain], None)[0]


@pytest.mark.parametrize(("flags", "reused"), [((), 64), (("--no-reuse-prefixes",), 0)])
def test_what_prompts_begin_with_is_reused(tiny: str, flags: tuple[str, ...], reused: int) -> None:
    begin = ",".join(str(i % 90) for i in range(64))
    prompts = ("--prompt-ids", f"{begin},1", "--prompt-ids", f"{begin},2")
    result = anthesis("generate", tiny, *prompts, "-n", "2", *REFERENCE, *flags, "--json")
    found = json.loads(result.stdout)
    assert [c["reused_tokens"] for c in found["completions"]] == [0, reused]
    assert found["request"]["reuse_prefixes"] is not bool(flags)
    assert ("64 of 130 prompt tokens reused\n" in result.stderr) == (reused > 0)


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> DataSet:
    return open_dataset(str(write_rows(tmp_path / "data.jsonl", 10)), column="content")


def test_an_output_depends_on_what_constrains_it(rows: DataSet) -> None:
    def wanted(**sampling: Any) -> dict[str, Any]:
        return json.loads(json.dumps(wanted_of(Request(sampling=sampling), rows, None)))  # type: ignore[no-any-return]

    given: dict[str, Any] = {
        "min_new_tokens": 3,
        "no_repeat_ngram_size": 2,
        "bad_words": ("a", (5, 6)),
        "forced_prefix": "x",
        "logit_bias": {5: -2.5, 6: float("-inf")},
    }
    plain = wanted()
    assert not given.keys() & plain.keys(), "outputs of versions without them could not go on"
    assert not {"num_beams", "length_penalty", "early_stopping", "num_return_sequences"} & plain.keys()
    for name, value in given.items():
        assert wanted(**{name: value}).keys() - plain.keys() == {name}
        # as it is read back, so that the same request goes on
        assert wanted(**{name: value}) == wanted_of(Request(sampling={name: value}), rows, None)
    in_another_order = {**given, "bad_words": ((5, 6), "a"), "logit_bias": {6: float("-inf"), 5: -2.5}}
    assert wanted(**in_another_order) == wanted(**given)


@pytest.mark.parametrize("several", [{"num_beams": 2}, {"num_return_sequences": 2, "temperature": 1.0}])
def test_a_row_has_one_completion(several: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="a row of a data set has one completion"):
        Request(sampling=several)


def test_a_data_set_with_constraints_goes_on_with_other_means(tmp_path: Path, with_text: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    run = arguments(with_text, data, output, "--forced-prefix", "quick", "--logit-bias", "5=-inf")
    succeed(*run, "--limit", "4", "--no-reuse-prefixes")
    succeed(*run, "--speculate", "lookup")
    done = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(done) == 10
    assert all("quick" in row["completion"] for row in done if row["error"] is None)
    refused = fail_last(*arguments(with_text, data, output, "--forced-prefix", "lazy", "--logit-bias", "5=-inf"))
    assert "forced_prefix was 'quick' and is 'lazy' now" in refused


def test_what_no_row_can_be_asked_is_refused_before_the_first(tmp_path: Path, with_text: str) -> None:
    data, output = write_rows(tmp_path / "data.jsonl", 10), tmp_path / "out.jsonl"
    refused = fail_last(*arguments(with_text, data, output, "--logit-bias", "99999=1"))
    assert "logit_bias has the token id 99999" in refused
    assert not output.exists()


def test_a_draft_model_is_found_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("draft", "lookup"):
        (tmp_path / name).mkdir()
    job = RayJob(request=Request(), rows={"name": "x"}, output=Path("out.jsonl"), opening={}, num_shards=1)
    found = [replace(job, opening={"speculate": name}).elsewhere().opening["speculate"] for name in ("draft", "lookup")]
    assert found == [str(tmp_path / "draft"), "lookup"]
