"""Importing anthesis is quick and light, and the core package works where PyTorch is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("ray", "torch", "transformers")
MAX_IMPORT_S = 0.3

# Stands before a program in a fresh interpreter: makes heavy packages as absent as in an environment without them.
FORBID_HEAVY = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

# Stands behind a program in a fresh interpreter.
LIST_HEAVY = f"""
import sys
print([name for name in {HEAVY!r} if name in sys.modules])
"""

RUN_CLI = """
import sys
from anthesis.cli import main
main()
"""


def _python(code: str, *arguments: str, python: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def _output(code: str, *arguments: str) -> str:
    result = _python(code, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """MODEL of a BLOOM small enough for the reference device, with random weights and no tokenizer."""
    config = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "eos_token_id": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return f"random:{path}"


@pytest.mark.timed
def test_import_is_quick() -> None:
    code = "import time\nstart = time.perf_counter()\nimport anthesis\nprint(time.perf_counter() - start)"
    assert min(float(_output(code)) for _ in range(5)) < MAX_IMPORT_S


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import anthesis", id="import"),
        pytest.param("from anthesis import LLM", id="LLM"),
        pytest.param("import anthesis.cli", id="cli"),
        pytest.param(
            "import contextlib, io, sys\nfrom anthesis.cli import main\nsys.argv = ['anthesis', '--help']\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()",
            id="help",
        ),
    ],
)
def test_import_is_light(code: str) -> None:
    assert _output(code + LIST_HEAVY) == "[]\n"


def test_the_list_of_heavy_modules_is_told_apart() -> None:
    assert _output("import sys\nsys.modules['torch'] = sys" + LIST_HEAVY) == "['torch']\n"


def test_generating_is_light(tiny_model: str) -> None:
    code = (
        "import sys\nfrom anthesis import LLM\n"
        "(result,) = LLM(sys.argv[1], device='reference').generate([[1, 2, 3]], max_new_tokens=4)\n"
        "assert 1 <= len(result.token_ids) <= 4\n"
    )
    assert _output(code + LIST_HEAVY, tiny_model) == "[]\n"


@pytest.mark.parametrize("package", HEAVY)
def test_a_forbidden_package_is_absent(package: str) -> None:
    assert f"No module named '{package}'" in _python(FORBID_HEAVY + f"import {package}").stderr


def test_command_line_helps_without_pytorch() -> None:
    result = _python(FORBID_HEAVY + RUN_CLI, "--help")
    assert result.returncode == 0, result.stderr
    assert "generate" in result.stdout


def test_command_line_generates_without_pytorch(tiny_model: str) -> None:
    arguments = ("generate", tiny_model, "--device", "reference", "--prompt-tokens", "3", "-n", "4", "--json")
    result = _python(FORBID_HEAVY + RUN_CLI, *arguments)
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_works_in_an_environment_of_its_own(tmp_path: Path, tiny_model: str) -> None:
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    # in the folder and with the settings of the Makefile, so that what is compiled already is not compiled again
    build = ["-C", f"build-dir={ROOT / 'build' / 'native'}", "-C", "cmake.define.ANTHESIS_WERROR=ON"]
    _check([sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", *build, "-w", str(tmp_path), str(ROOT)])
    (wheel,) = tmp_path.glob("anthesis-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    _check([str(scripts / "python"), *pip, "install", "-c", str(ROOT / "constraints.txt"), str(wheel)])

    for package in HEAVY:
        assert f"No module named '{package}'" in _python(f"import {package}", python=scripts / "python").stderr
    bandwidth = _check(
        [str(scripts / "python"), "-c", "from anthesis.native import *; print(read_bandwidth(2**20, 1, 0))"]
    )
    assert len(json.loads(bandwidth)) == 3
    _check([str(scripts / "anthesis"), "--help"])
    generated = _check(
        [str(scripts / "anthesis"), "generate", tiny_model, "--device", "cpu", "--prompt-tokens", "3", "--json"]
    )
    json.loads(generated)


def _check(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout
