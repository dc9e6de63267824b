"""Files that are replaced as a whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anthesis import atomic

DIES = """
import os, signal, sys
from pathlib import Path
from anthesis import atomic

atomic.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # written, and not yet in its place
atomic.replace_file(Path(sys.argv[1]), "lost")
"""
WRITES = """
import sys
from pathlib import Path
from anthesis import atomic

atomic.os.fsync = lambda _: None  # the disk's time is not what this is about
for _ in range(500):
    atomic.replace_file(Path(sys.argv[1]), sys.argv[2] * int(sys.argv[3]), alone=False)
"""


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.replace_file(path, "old")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", DIES, path]).returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
    atomic.replace_file(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_at_once_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", {"x" * 100_000, "y" * 200_000}
    atomic.replace_file(path, "x" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITES, path, t[0], str(len(t))]) for t in texts]
    while any(writer.poll() is None for writer in writers):
        assert path.read_text() in texts
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    atomic.replace_file(path, "old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("anthesis.atomic.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        atomic.replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
