"""A speed is never shown without what it cost: evaluations beside the rows of the same model and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anthesis.bench import read_report
from anthesis.bench.subject import Model
from anthesis.report import Line, compose, read_results, render
from report_files import CUDA, document, evaluation, write


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A result with real weights: three rows, bf16 twice and int8, none of them invalid."""
    changed = document(CUDA)
    for row in changed["rows"]:
        if row["measurement"] is not None:
            row["measurement"]["model"]["is_random"] = False
            row["measurement"]["invalid"] = []
    return write(tmp_path / "real.json", changed)


def model_of(path: Path, row: int) -> Model:
    measured = read_report(path).rows[row].measurement
    assert measured is not None
    return measured.model


def lines(path: Path, *found: object) -> list[Line]:
    files = [write(path.parent / f"quality{i}.json", each.document()) for i, each in enumerate(found)]  # type: ignore[attr-defined]
    return compose(read_results([path, *files])).lines


def test_an_evaluation_stands_beside_every_row_of_its_weights(real: Path) -> None:
    bf16, int8 = model_of(real, 0), model_of(real, 2)
    found = lines(real, evaluation(int8, against=bf16, perplexity=21.0))
    assert (found[2].perplexity, found[2].perplexity_ratio, found[2].mean_kl) == (21.0, 21.0 / 19.5, 0.0123)
    assert (found[2].greedy_agreement, found[2].quality_against, found[2].quality_text) == (0.954, "bf16", "prose.txt")
    for line in found[:2]:  # what they are measured against has a perplexity, and no distance from itself
        assert (line.perplexity, line.perplexity_ratio, line.mean_kl) == (19.5, None, None)
    assert all(line.quality_note is None for line in found)


def test_quantised_weights_without_an_evaluation_say_so(real: Path) -> None:
    bf16, int8 = model_of(real, 0), model_of(real, 2)
    unknown = [None, None, "quality not measured", None, None]  # failed rows have no speed that could cost anything
    assert [line.quality_note for line in lines(real)] == unknown
    assert [line.quality_note for line in lines(real, evaluation(bf16))] == unknown
    for form in ("table", "md", "html"):
        assert "quality not measured" in render(compose(read_results([real])), form)
    assert lines(real, evaluation(int8))[2].quality_note is None
    assert [line.quality_note for line in compose(read_results([CUDA])).lines] == [None] * 5  # random weights


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"description": "another name"}, True),  # the fingerprint says it is the same
        ({"fingerprint": "0" * 64}, False),
        ({"fingerprint": None}, True),
        ({"fingerprint": None, "source": "elsewhere"}, False),
        ({"fingerprint": None, "source": None}, True),
        ({"fingerprint": None, "source": None, "description": "another name"}, False),
        ({"weight_kinds": ("int8", "int4")}, False),
        ({"cache_dtype": "int8"}, False),
        ({"cache_dtype": ""}, True),  # not known
    ],
)
def test_only_the_same_model_with_the_same_weights_counts(
    real: Path, changes: dict[str, object], matches: bool
) -> None:
    int8 = replace(model_of(real, 2), **changes)
    assert (lines(real, evaluation(int8))[2].perplexity == 20.0) is matches


def test_an_evaluation_on_another_device_says_nothing_of_this_one(real: Path) -> None:
    """There the same weights may be multiplied with inputs of other widths."""
    bf16, int8 = model_of(real, 0), model_of(real, 2)
    found = lines(real, evaluation(int8, against=bf16, device="cpu"))
    assert [line.perplexity for line in found[:3]] == [None, None, None]
    assert found[2].quality_note == "quality not measured"


def test_of_several_the_one_against_others_counts_then_the_longest(real: Path) -> None:
    bf16, int8 = model_of(real, 0), model_of(real, 2)
    alone = evaluation(int8, perplexity=30.0, tokens=9000)
    short = evaluation(int8, against=bf16, perplexity=21.0, tokens=100)
    long = evaluation(int8, against=bf16, perplexity=22.0, tokens=200)
    assert lines(real, alone, short, long)[2].perplexity == 22.0


@pytest.mark.parametrize("form", ["table", "md", "json", "html"])
def test_evaluations_have_a_section_of_their_own(real: Path, form: str) -> None:
    bf16, int8 = model_of(real, 0), model_of(real, 2)
    file = write(real.parent / "quality.json", evaluation(int8, against=bf16, perplexity=21.0).document())
    text = render(compose(read_results([real, file])), form)
    for shown in ("prose.txt", "0.0123", "quality.json"):
        assert shown in text
    if form in ("md", "json", "html"):
        assert "anthesis evaluate m --text prose.txt --weights int8 --against bf16" in text
    only = render(compose(read_results([file])), form)
    assert "prose.txt" in only
