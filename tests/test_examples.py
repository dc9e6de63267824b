"""The examples of decoding, run as they are; those of adapters and of anthesis.hf have tests beside theirs."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = {path.stem: path for path in (Path(__file__).resolve().parent.parent / "examples").glob("*.py")}
ELSEWHERE = {"adapter"} | {name for name in EXAMPLES if name.startswith("hf_")}
"""Tested by test_adapter.py and test_hf_examples.py."""


@pytest.fixture
def run(capsys, monkeypatch):
    """The lines that an example prints."""

    def run(name: str, *arguments: str) -> list[str]:
        path = EXAMPLES[name]
        monkeypatch.setattr(sys, "argv", [path.name, *arguments])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_beams(run):
    scores = [float(line.split()[0]) for line in run("beams")]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_constraints(run):
    plain, without, forced, _, favoured = (line.split("}: ")[1] for line in run("constraints"))
    assert "Paris" in plain
    assert "Paris" not in without
    assert forced.startswith("' not London, it is")
    assert "city" in favoured
    assert "city" not in plain


def test_samples(run):
    lines = run("samples")
    assert [line.split()[0] for line in lines] == ["0", "13", "13", "13"]
    assert len(set(lines)) == 4
    assert run("samples") == lines


def test_speculation(run):
    plain, drafted, same = run("speculation")
    assert plain.startswith("plain: 48 tokens in 48 steps, 0 of 0 drafted")
    assert drafted.startswith("lookup: 48 tokens in ")
    assert same == "the same text"


def test_prefixes(run):
    reused = [int(found) for line in run("prefixes") for found in re.findall(r"\((\d+) of", line)]
    assert reused == [0, 64, 64]


def test_lockstep(run):
    (line,) = run("lockstep")
    assert line.startswith(" Edda Lorne")


def test_each_is_short_and_has_a_test():
    assert {name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in EXAMPLES} == (
        EXAMPLES.keys() - ELSEWHERE
    )
    for path in EXAMPLES.values():
        assert len(path.read_text().splitlines()) <= 40, path.name
