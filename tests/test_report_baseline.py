"""Ratios to a chosen row: only of rows that did the same work, and a choice that is none lists the choices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anthesis.errors import RequestError
from anthesis.report import compose, read_results, render
from report_files import CUDA, HPU, document, write


def test_ratios_are_of_the_same_work_only() -> None:
    contents = compose(read_results([CUDA, HPU]), published=True, baseline="#6")
    lines = {line.number: line for line in contents.lines}
    base = lines[6]
    assert (base.times_as_fast, base.times_as_fast_token) == (1.0, 1.0)
    assert lines[7].times_as_fast == pytest.approx((base.total_s or 0) / (lines[7].total_s or 1))
    assert lines[7].times_as_fast_token == pytest.approx((base.token_s or 0) / (lines[7].token_s or 1))
    for line in contents.lines:
        same = line.is_usable and (line.parameters, line.new_tokens) == (base.parameters, 100)
        assert (line.times_as_fast is not None) == same
        if line.is_published and same:
            assert line.times_as_fast == pytest.approx((base.total_s or 0) / (line.total_s or 1))
            assert line.times_as_fast_token is None
    assert "1.00x" in render(contents, "table")


def test_another_batch_prompt_or_number_of_tokens_is_another_job(tmp_path: Path) -> None:
    base = compose(read_results([CUDA]), baseline="1").lines
    assert base[1].batch == 8
    assert base[1].times_as_fast is None
    assert base[2].invalid
    assert base[2].times_as_fast is None
    longer = document(CUDA)
    longer["rows"] = longer["rows"][:1]
    longer["rows"][0]["measurement"]["configuration"]["prompt_token_ids"].append(1)
    lines = compose(read_results([CUDA, write(tmp_path / "longer.json", longer)]), baseline="1").lines
    assert lines[-1].prompt_tokens == 8
    assert lines[-1].times_as_fast is None


@pytest.mark.parametrize("wanted", ["7b1 first-gen 8 devices ci", "#18", "18", " 18 "])
def test_a_row_is_chosen_by_number_or_by_words(wanted: str) -> None:
    contents = compose(read_results([HPU]), published=True, baseline=wanted)
    if "#" in wanted or wanted.strip().isdecimal():
        assert contents.baseline is not None
        assert contents.baseline.number == 18
    else:
        assert contents.baseline is not None
        assert (contents.baseline.device, contents.baseline.devices) == ("first-gen Gaudi", 8)
    document = json.loads(render(contents, "json"))
    assert document["baseline"] == contents.baseline.number


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gaudi", "matches 1"),
        ("#99", "matches no row; choose one by its number: #1 BLOOMZ-7B1"),
        ("b200", "matches no row; choose one by its number: #1 BLOOMZ-7B1"),
        ("", "matches no row"),
        ("176b gaudi2", "matches 3 rows; choose one by its number: #4 BLOOMZ 176B"),
        ("3", "has no figure to compare with: unsupported: the hpu device has no int8 weights"),
    ],
)
def test_a_choice_that_is_none_lists_the_choices(wanted: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose(read_results([HPU]), published=True, baseline=wanted)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
