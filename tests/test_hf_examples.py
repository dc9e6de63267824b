"""The examples of anthesis.hf, run as they are."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import pytest

from text_model import text_model

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("hf_*.py"))


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    path = next(path for path in EXAMPLES if path.name == f"hf_{name}.py")
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_pipeline(capsys, monkeypatch):
    lines = run("pipeline", capsys, monkeypatch)
    assert lines[0] == "The capital of France is Paris."
    assert lines[-1].startswith("{'role': 'assistant', 'content': ")


def test_accelerate(capsys, monkeypatch, tmp_path):
    first, second, apart = run("accelerate", capsys, monkeypatch, str(text_model(tmp_path)), "abc the")
    assert first.split(" s  ")[1] == second.split(" s  ")[1]
    assert float(apart.split()[-2]) < 1e-3


def test_chat(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi, who are you?\nWhat did I ask?\n\nnot heard\n"))
    lines = run("chat", capsys, monkeypatch)
    assert lines[0].startswith("Hello, I'm here to help")
    assert len(lines) == 2


def test_processors(capsys, monkeypatch):
    (line,) = run("processors", capsys, monkeypatch)
    assert line.startswith("A long, long time ago, ")
    assert "e" not in line.removeprefix("A long, long time ago,").lower()
    assert line.endswith(".")


def test_examples_are_short():
    assert len(EXAMPLES) == 4
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 40, path.name
