"""The process of a point: what is told of one that dies, and that it does not take modules of the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from anthesis.bench import Request
from anthesis.bench.failure import failure
from anthesis.bench.point import Finished, PointRun
from anthesis.bench.process import PointProcess
from anthesis.bench.result import Point
from anthesis.bench.sweep import points_of
from anthesis.errors import AnthesisError, RequestError
from command_line import tiny_model
from other_python import other_python

QUICK = {"max_new_tokens": 3, "warmup": 0, "runs": 1, "min_s": 0.0, "device": "reference"}

DIES = """
import os, signal, sys
from anthesis.bench.point import LocalPoint
def run(self, tell):
    {half}
    os.kill(os.getpid(), signal.SIG{signal_name})
LocalPoint.run = run
"""


def of(request: Request) -> tuple[Request, Point]:
    """A request, and its only point."""
    (point,) = points_of(request)
    return request, point


def measured(point: PointRun) -> Finished:
    """The same as a sweep does with it."""
    point.load(lambda text, share: None)
    point.warm_up(lambda text, share: None)
    while not point.run(lambda text, share: None):
        pass
    return point.finish()


@pytest.mark.parametrize(
    ("signal_name", "line"),
    [
        ("KILL", "out of memory: the process was killed by SIGKILL, which the kernel does when memory runs out"),
        ("SEGV", "failed: the process died by SIGSEGV"),
    ],
)
@pytest.mark.parametrize("when", ["at once", "in a run", "in a line"])
def test_a_process_that_dies(tmp_path: Path, signal_name: str, line: str, when: str) -> None:
    request = Request(model=tiny_model(tmp_path), **QUICK)
    if when == "at once":
        python = other_python(tmp_path, f"kill -{signal_name} $$", "/bin/sh")
    else:
        half = """os.write(int(sys.argv[1]), b'{"event": "do')""" if when == "in a line" else "pass"
        python = other_python(tmp_path, DIES.format(half=half, signal_name=signal_name))
    with pytest.raises((AnthesisError, MemoryError)) as raised, PointProcess(*of(request), python) as point:
        measured(point)
    assert failure(raised.value) == line


def test_what_nobody_foresaw_is_told_with_its_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    patch = "from anthesis.bench.point import LocalPoint\nLocalPoint.load = lambda self, tell: 1 / 0"
    request = Request(model=tiny_model(tmp_path), **QUICK)
    with (
        pytest.raises(AnthesisError, match="ZeroDivisionError: division by zero"),
        PointProcess(*of(request), other_python(tmp_path, patch)) as point,
    ):
        measured(point)
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("python", ["missing/python", "/bin/true"])
def test_a_python_without_anthesis(python: str) -> None:
    with (
        pytest.raises(RequestError, match=r"can't be started|has no anthesis that measures"),
        PointProcess(*of(Request(**QUICK)), python) as point,
    ):
        measured(point)


def test_modules_in_the_working_directory_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit('no module of Python')")
    monkeypatch.chdir(tmp_path)
    with PointProcess(*of(Request(model=tiny_model(tmp_path), **QUICK))) as point:
        assert measured(point).measurement.speed.generated_tokens == 3
