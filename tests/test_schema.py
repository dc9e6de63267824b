"""The JSON Schema of results: made from the code as it is, true of what the commands write, and false of the rest."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from anthesis.bench import Report
from anthesis.dataset import Summary
from anthesis.errors import RequestError
from anthesis.evaluate import Evaluation
from anthesis.json_text import format_json
from anthesis.schema import schema
from command_line import succeed
from text_model import text_model

ROOT = Path(__file__).resolve().parent
SCHEMA = ROOT.parent / "docs" / "result.schema.json"
OLD = {
    "bench": ROOT / "fixtures" / "bench-0.1-old.json",
    "complete": ROOT / "fixtures" / "complete-0.1-old.json",
}
READERS: dict[str, Callable[[Any], Any]] = {
    "bench": Report.from_document,
    "complete": Summary.from_document,
    "evaluate": Evaluation.from_document,
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    written = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(written)
    return Draft202012Validator(written)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each kind, as the command line writes it."""
    directory = tmp_path_factory.mktemp("documents")
    model = str(text_model(directory / "model"))
    text = directory / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 2)
    runs = ("-n", "3", "--runs", "2", "--warmup", "1", "--seconds", "0", "--ops")
    rows = str(directory / "out.jsonl")
    succeed("complete", model, str(text), "-o", rows, "-n", "2", "--prompt-tokens", "4", "--device", "cpu")
    asked = ("--text", str(text), "--window", "16", "--weights", "int8", "--against", "fp32", "--device", "cpu")
    return {
        "bench": json.loads(succeed("bench", model, *runs, "--device", "cpu", "--json")),
        "complete": json.loads(Path(f"{rows}.summary.json").read_text()),
        "evaluate": json.loads(succeed("evaluate", model, *asked, "--json")),
    }


def test_the_file_is_what_the_code_says() -> None:
    assert SCHEMA.read_text() == format_json(schema()), "run: python -m anthesis.schema > docs/result.schema.json"


@pytest.mark.parametrize("kind", READERS)
def test_what_the_commands_write_is_valid(
    kind: str, documents: dict[str, Any], validator: Draft202012Validator
) -> None:
    document = documents[kind]
    assert document["kind"] == kind
    validator.validate(document)
    validator.validate({**document, "of_a_later_version": [1]})
    assert READERS[kind](document).kind == kind


@pytest.mark.parametrize("kind", OLD)
def test_what_the_first_version_wrote_is_valid_and_read(kind: str, validator: Draft202012Validator) -> None:
    document = json.loads(OLD[kind].read_text())
    validator.validate(document)
    assert READERS[kind](document).kind == kind


DAMAGE: list[tuple[str, Callable[[Any], object]]] = [
    ("bench", lambda document: document.pop("kind")),
    ("bench", lambda document: document.pop("machine")),
    ("bench", lambda document: document.update(schema_version=2)),
    ("bench", lambda document: document.update(rows={})),
    ("bench", lambda document: document["rows"][0]["measurement"].pop("tokens_sha256")),
    ("bench", lambda document: document["rows"][0]["measurement"]["runs"][0].update(total_s="1")),
    ("bench", lambda document: document["rows"][0]["measurement"]["runs"][0]["token_s"][0].append(None)),
    ("bench", lambda document: document["rows"][0]["point"].update(batch=1.5)),
    ("complete", lambda document: document["counts"].update(rows="1")),
    ("complete", lambda document: document["sessions"][0].update(ended="lost")),
    ("complete", lambda document: document.pop("written")),
    ("evaluate", lambda document: document.update(kind="bench")),
    ("evaluate", lambda document: document["quality"].pop("mean_nll")),
    ("evaluate", lambda document: document.update(against=1)),
    ("evaluate", lambda document: document["text"].update(sha256=None)),
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGE)
def test_what_lacks_something_or_holds_another_thing_is_not_valid(
    kind: str, damage: Callable[[Any], object], documents: dict[str, Any], validator: Draft202012Validator
) -> None:
    document = copy.deepcopy(documents[kind])
    damage(document)
    assert not validator.is_valid(document)
    with pytest.raises(RequestError):  # nor is it read
        READERS[kind](document)


def test_every_attribute_is_described(validator: Draft202012Validator) -> None:
    for name, definition in validator.schema["$defs"].items():
        for attribute, said in definition["properties"].items():
            assert said["description"], f"{name}.{attribute}"
            assert said.keys() != {"description"}, f"{name}.{attribute} may be anything"
