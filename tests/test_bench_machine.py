"""Which software it was: the commit of a checkout, and whether it is that."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import anthesis
from anthesis.bench.machine import commit

ME = ("-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a checkout that anthesis seems to be of."""
    package = tmp_path / "src" / "anthesis"
    package.mkdir(parents=True)
    source = package / "kernels.py"
    source.write_text("one = 1\n")
    (tmp_path / "README.md").write_text("first")
    for arguments in (("init", "-q"), ("add", "."), (*ME, "commit", "-qm", "first")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(anthesis, "__file__", str(package / "__init__.py"))
    return source


def test_two_changes_are_two_things(source: Path) -> None:
    clean = commit()
    assert clean is not None
    assert len(clean) == 40
    found = []
    for text in (b"one = 2\n", b"one = 3\n", "one = 'é'\n".encode("latin-1"), b"one = 1\n"):
        source.write_bytes(text)
        found.append(str(commit()))
    *changed, again = found
    assert again == clean
    assert len(set(changed)) == 3
    assert all(len(name) == 40 + len("-dirty-") + 12 and name.startswith(f"{clean}-dirty-") for name in changed)
    source.write_bytes(b"one = 3\n")
    assert commit() == changed[1]


def test_what_is_beside_the_sources_changes_nothing(source: Path) -> None:
    clean = commit()
    (source.parents[2] / "README.md").write_text("more")
    assert commit() == clean


def test_a_repository_without_a_commit_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src" / "anthesis").mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(anthesis, "__file__", str(tmp_path / "src" / "anthesis" / "__init__.py"))
    assert commit() is None
