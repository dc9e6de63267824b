"""What README.md tells people to type works: every bash and python block is run, in order of appearance.

A block is left out only under a comment `<!-- not run: REASON -->`, where it needs a network, an accelerator or a whole
set-up. `make` lines are not run from here (they would run these tests again), but must name targets of the Makefile.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MAX_LINES = 150

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?^```(?P<language>bash|sh|shell|console|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
REASON = re.compile(r"\b(GPUs?|Gaudi|network|set-up)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    line: int
    language: str
    code: str
    reason: str | None

    def make_targets(self) -> list[str]:
        """Targets that its `make` commands name."""
        commands = re.findall(r"(?:^|&&|;)[ \t]*make\b([^#\n&;]*)", self.code, re.MULTILINE)
        return [word for command in commands for word in command.split() if "=" not in word and word[0] != "-"]

    def without_make(self) -> str:
        """Its code without the lines that only call `make`."""
        return "".join(line for line in self.code.splitlines(True) if not line.startswith("make "))


def blocks(text: str) -> list[Block]:
    """The blocks of a Markdown text that can be run."""
    return [
        Block(text.count("\n", 0, match.start("code")), match["language"], match["code"], match["reason"])
        for match in FENCE.finditer(text)
    ]


BLOCKS = blocks(README.read_text()) if README.is_file() else []
TO_RUN = [block for block in BLOCKS if block.reason is None and block.without_make().strip()]

SAMPLE = """\
# Title

```bash
make demo          # a comment
make test PYTHON=python3.12
```

<!-- not run: needs a GPU -->
```bash
git clone https://example.org/x && cd x && make train
```

```text
not code
```

```python
print(1)
```
"""


def test_blocks_are_found() -> None:
    first, second, third = blocks(SAMPLE)
    assert first == Block(3, "bash", "make demo          # a comment\nmake test PYTHON=python3.12\n", None)
    assert (first.make_targets(), first.without_make()) == (["demo", "test"], "")
    assert (second.line, second.reason, second.make_targets()) == (9, "needs a GPU", ["train"])
    assert (third.language, third.code, third.reason) == ("python", "print(1)\n", None)


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    assert _run(Block(1, "bash", "false\necho done\n", None), tmp_path).returncode != 0
    assert _run(Block(1, "python", "raise SystemExit(3)\n", None), tmp_path).returncode == 3


def test_there_is_a_readme_with_something_to_run() -> None:
    assert README.is_file()
    assert TO_RUN


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_LINES


def test_no_fence_escapes_these_tests() -> None:
    # A fence with a misspelt or missing language would be shown and never run.
    opening = re.findall(r"^```(.*)\n(?:.*\n)*?```$", README.read_text(), re.MULTILINE)
    assert set(opening) <= {"bash", "python", "text", "json", "markdown", "csv"}


def test_blocks_are_left_out_for_good_reasons_only() -> None:
    assert [block for block in BLOCKS if block.reason is not None and not REASON.search(block.reason)] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for block in BLOCKS for target in block.make_targets()} <= targets


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, in which README's blocks run one after the other."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path_factory.mktemp("readme") / "anthesis"
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: f"line-{block.line}")
def test_block_runs(block: Block, tree: Path) -> None:
    result = _run(block, tree)
    assert result.returncode == 0, f"README.md:{block.line}:\n{block.code}\n{result.stdout}\n{result.stderr}"


def _run(block: Block, directory: Path) -> subprocess.CompletedProcess[str]:
    # The commands are those of the environment these tests run in, and nothing may be downloaded.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    code = block.without_make()
    command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240)
